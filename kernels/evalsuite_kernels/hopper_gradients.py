"""What q, k and a gate per channel are owed, on Hopper's tensor cores, in Gluon. What is done to rows happens in
registers, in the layout of a wgmma's result, as in `hopper_channels.py`; all operands are tiles in shared memory."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from evalsuite_kernels.gluon import copy, meet, softplus

C = gl.constexpr(64)
D = gl.constexpr(64)  # channels in a program
FAR = gl.constexpr(100.0)  # as in `hopper_channels.py`
MOST = gl.constexpr(2.0**100)


@gluon.jit
def _tile(x, start, width, L: gl.constexpr):
    """Pointers to a tile [64, 64] of rows of `width`, from the row `start` of x on."""
    i = gl.arange(0, C, gl.SliceLayout(1, L))[:, None]
    d = gl.arange(0, D, gl.SliceLayout(0, L))[None, :]
    return x + start.to(gl.int64) * width + i * width + d


@gluon.jit
def _put(x, to, tile, mask, L: gl.constexpr):
    """x to the pointers `to`, through a tile for whole lines."""
    meet()
    tile.store(x.to(gl.bfloat16))
    meet()
    gl.store(to, tile.load(L).to(to.dtype.element_ty), mask=mask)


@gluon.jit
def _pairs(dx, dk, dG, xs, ys, tiles, G, slow, of_q, of_k, step, K, DELTA: gl.constexpr, L: gl.constexpr):
    """Add what rows and keys of a chunk owe where they meet: at levels 0 to 3, slow rows alone; at the start of their
    block of 16, all others; at levels 4 and 5.

    A gate is owed by the rows after it less the keys after it, a small difference of large sums: both as the products
    saw them, rounded, or what no row and key share does not cancel.
    """
    dp, da, late, early, key, dp_rows, dp_keys, da_rows, da_keys = tiles
    i, d = gl.arange(0, C, gl.SliceLayout(1, L)), gl.arange(0, D, gl.SliceLayout(0, L))
    n, m = i[:, None], d[None, :]
    near = step == 4
    level = gl.where(step > 4, step - 1, step)
    meets = gl.where(near, (n >> 4) == (m >> 4), ((n >> level) ^ 1) == (m >> level))
    mine, theirs = slow[:, None] > 0, gl.convert_layout(slow, gl.SliceLayout(0, L))[None, :] > 0
    border = (gl.where(near, (i >> 4) << 4, ((i >> level) | 1) << level) - 1)[:, None]
    there = gl.load(G + border * K + m, mask=border + 0 * m >= 0, other=0.0)
    since = gl.exp2(-gl.abs(gl.load(G + n * K + m) - there))
    y = ys.load(L).to(gl.float32) * of_k[:, None]
    rows = meets & (n > m) & ((step > 4) | (mine != near))
    keys = meets & (n < m) & ((step > 4) | (theirs != near))
    meet()  # the tiles have been read
    p = dp.load(L)
    zero = gl.zeros_like(p)
    dp_rows.store(gl.where(rows, p, zero))
    dp_keys.store(gl.where(keys, p, zero))
    late.store((xs.load(L).to(gl.float32) * (since * of_q[:, None])).to(gl.bfloat16))
    if DELTA:
        p = da.load(L)
        da_rows.store(gl.where(rows, p, zero))
        da_keys.store(gl.where(keys, p, zero))
        early.store((y * since).to(gl.bfloat16))
    key.store((y * gl.where(near, gl.minimum(1 / since, MOST), since)).to(gl.bfloat16))
    hopper.fence_async_shared()
    meet()
    none = gl.zeros([C, D], gl.float32, L)
    add = hopper.warpgroup_mma(dp_rows, key, none, use_acc=False, is_async=True)
    add = hopper.warpgroup_mma_wait(0, [add])
    dx += add * since
    dG += add * late.load(L).to(gl.float32)
    if DELTA:
        add = hopper.warpgroup_mma(da_rows, key, none, use_acc=False, is_async=True)
        add = hopper.warpgroup_mma_wait(0, [add])
        dk += add * since
        dG += add * early.load(L).to(gl.float32)
    add = hopper.warpgroup_mma(dp_keys, late, none, use_acc=False, is_async=True)
    if DELTA:
        add = hopper.warpgroup_mma(da_keys, early, add, is_async=True)
    add = hopper.warpgroup_mma_wait(0, [add])
    dk += add * gl.where(near, gl.minimum(1 / since, MOST), since)
    dG -= add * key.load(L).to(gl.float32)
    return dx, dk, dG


@gluon.jit(do_not_specialize=["chunks", "H", "HV"])
def channel_back(
    q, k, g, A_log, dt_bias, rates, G, d_o, d_v, states, d_states, R, d_P, d_B, starts, stops,
    d_q, d_k, d_g, d_A,
    scale, chunks, H, HV,
    K: gl.constexpr, V: gl.constexpr, DELTA: gl.constexpr,
):  # fmt: skip
    """As `chunk_gradients.py`'s, for 64 channels in each program. R is v [tokens, HV, V] without DELTA."""
    L: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    LINES: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    PARTS: gl.constexpr = V // 64
    TILES: gl.constexpr = 10 if V == 128 else 9  # what is read of states, and then what `_pairs` needs
    c, h, kb = gl.program_id(0), gl.program_id(1), gl.program_id(2)
    start, stop = gl.load(starts + c), gl.load(stops + c)
    block = (h * chunks + c).to(gl.int64)
    tiles = gl.allocate_shared_memory(gl.bfloat16, [TILES, C, D], gl.NVMMASharedLayout(128, 16, 2))
    xs = gl.allocate_shared_memory(gl.bfloat16, [C, D], gl.NVMMASharedLayout(128, 16, 2))
    ys = gl.allocate_shared_memory(gl.bfloat16, [C, D], gl.NVMMASharedLayout(128, 16, 2))
    valid = (start + gl.arange(0, C, gl.SliceLayout(1, LINES)) < stop)[:, None]
    head = h // (HV // H) * K + kb * D
    own = h * K + kb * D
    for part in gl.static_range(PARTS):
        copy(tiles.index(5 * part), _tile(states + part * 64, block * K + kb * D, V, LINES))
        copy(tiles.index(5 * part + 1), _tile(d_states + part * 64, block * K + kb * D, V, LINES))
        copy(tiles.index(5 * part + 2), _tile(d_o + h * V + part * 64, start, HV * V, LINES), mask=valid)
        if DELTA:
            copy(tiles.index(5 * part + 3), _tile(R + part * 64, block * C, V, LINES))
            copy(tiles.index(5 * part + 4), _tile(d_v + h * V + part * 64, start, HV * V, LINES), mask=valid)
        else:
            copy(tiles.index(5 * part + 3), _tile(R + h * V + part * 64, start, HV * V, LINES), mask=valid)
    copy(xs, _tile(q + head, start, H * K, LINES), mask=valid)
    copy(ys, _tile(k + head, start, H * K, LINES), mask=valid)
    hopper.async_copy.commit_group()
    G += block * (C * K) + kb * D
    d = gl.arange(0, D, gl.SliceLayout(0, L))
    i = gl.arange(0, C, gl.SliceLayout(1, L))
    here = gl.load(_tile(G, start * 0, K, L))
    last = gl.load(G + (C - 1) * K + d)
    hopper.async_copy.wait_group(0)
    hopper.fence_async_shared()
    meet()
    dD = gl.zeros([D], gl.float32, gl.SliceLayout(1, L))
    for part in gl.static_range(PARTS):
        S, dS = tiles.index(5 * part).load(L), tiles.index(5 * part + 1).load(L)
        dD += gl.sum(S.to(gl.float32) * dS.to(gl.float32), 1)
    dx = gl.zeros([C, D], gl.float32, L)
    dk = gl.zeros([C, D], gl.float32, L)
    late = gl.zeros([C, D], gl.float32, L)
    for part in gl.static_range(PARTS):
        S, dS = tiles.index(5 * part).permute((1, 0)), tiles.index(5 * part + 1).permute((1, 0))
        dx = hopper.warpgroup_mma(tiles.index(5 * part + 2), S, dx, is_async=True)
        late = hopper.warpgroup_mma(tiles.index(5 * part + 3), dS, late, is_async=True)
        if DELTA:
            dk = hopper.warpgroup_mma(tiles.index(5 * part + 4), S, dk, is_async=True)
    dx, dk, late = hopper.warpgroup_mma_wait(0, [dx, dk, late])
    meet()  # the tiles have been read
    dp, da = tiles.index(3), tiles.index(4)
    copy(dp, _tile(d_P + block * (C * C), start * 0, C, LINES))
    if DELTA:
        copy(da, _tile(d_B + block * (C * C), start * 0, C, LINES))
    hopper.async_copy.commit_group()
    of_q = gl.full([C], scale, gl.float32, gl.SliceLayout(1, L))
    of_k = gl.full([C], 1.0, gl.float32, gl.SliceLayout(1, L))
    if rates is not None:
        of_q *= gl.load(rates + block * (2 * C) + i)
        of_k *= gl.load(rates + block * (2 * C) + C + i)
    x, y = xs.load(L).to(gl.float32) * of_q[:, None], ys.load(L).to(gl.float32) * of_k[:, None]
    since = gl.exp2(here)
    dx *= since
    dk *= -since
    late *= gl.exp2(last[None, :] - here)
    dG = x * dx + y * dk - y * late
    whole = gl.sum(y * late, 0) + gl.convert_layout(dD, gl.SliceLayout(0, L)) * gl.exp2(last)
    dG += gl.where((i == C - 1)[:, None], whole[None, :], 0.0)
    n, m = i[:, None], gl.arange(0, C, gl.SliceLayout(0, L))[None, :]
    hopper.async_copy.wait_group(0)
    meet()
    eye = gl.sum(gl.where(n == m, dp.load(L).to(gl.float32), 0.0), 1)[:, None]
    dx += eye * y
    dk += late + eye * x

    # a row may meet its block's keys at the block's start while it has lost no more than 2^-FAR since then
    before = ((i >> 4) << 4) - 1
    before = gl.load(G + before[:, None] * K + d[None, :], mask=before[:, None] + 0 * d[None, :] >= 0, other=0.0)
    slow = (gl.min(here - before, 1) < -FAR).to(gl.int32)
    used = (
        dp, da, tiles.index(0), tiles.index(1), tiles.index(2),
        tiles.index(5), tiles.index(6), tiles.index(7), tiles.index(8),
    )  # fmt: skip
    for step in range(gl.where(gl.max(slow, 0) > 0, 0, 4), 7):
        dx, dk, dG = _pairs(dx, dk, dG, xs, ys, used, G, slow, of_q, of_k, step, K, DELTA, L)

    # a gate is owed by all that comes after it: a product with a triangle of ones
    meet()
    tiles.index(3).store(gl.where(n <= m, 1.0, 0.0).to(gl.bfloat16))
    for term in gl.static_range(3):  # fp32 as the sum of three
        tiles.index(term).store(dG.to(gl.bfloat16))
        dG -= dG.to(gl.bfloat16).to(gl.float32)
    hopper.fence_async_shared()
    meet()
    dg = gl.zeros([C, D], gl.float32, L)
    for term in gl.static_range(3):
        dg = hopper.warpgroup_mma(tiles.index(3), tiles.index(term), dg, is_async=True)
    dg = hopper.warpgroup_mma_wait(0, [dg])
    if A_log is not None:
        z = gl.load(_tile(g + own, start, HV * K, L), mask=start + n < stop, other=0.0).to(gl.float32)
        if dt_bias is not None:
            z += gl.load(dt_bias + own + d).to(gl.float32)[None, :]
        rate = -gl.exp(gl.load(A_log + h).to(gl.float32))
        share = gl.where(start + n < stop, rate * softplus(z) * dg, 0.0)
        gl.store(d_A + block * (K // D) + kb, gl.sum(gl.sum(share, 1), 0))
        dg *= rate / (1.0 + gl.exp(-z))
    if d_g.dtype.element_ty == gl.bfloat16:
        _put(dg, _tile(d_g + own, start, HV * K, LINES), xs, valid, LINES)
    else:
        gl.store(_tile(d_g + own, start, HV * K, L), dg, mask=start + n < stop)
    if d_q.dtype.element_ty == gl.bfloat16:
        _put(dx * scale, _tile(d_q + own, start, HV * K, LINES), ys, valid, LINES)
        _put(dk, _tile(d_k + own, start, HV * K, LINES), tiles.index(4), valid, LINES)
    else:
        gl.store(_tile(d_q + own, start, HV * K, L), dx * scale, mask=start + n < stop)
        gl.store(_tile(d_k + own, start, HV * K, L), dk, mask=start + n < stop)
