"""The products of a gate per channel on Hopper's tensor cores, in Gluon: layouts, shared memory and wgmma by hand.

Of 64 tokens each of four warps holds 16 rows, and all that is done to rows happens in registers, in the layout of a
wgmma's result, which is that of its left operand too. Running sums of gates are products with triangles of ones.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from evalsuite_kernels.gluon import copy, meet

C = gl.constexpr(64)
LOG2E = gl.constexpr(1.4426950408889634)
FAR = gl.constexpr(100.0)  # in bits: keys times 2^100 and rows times 2^-100 are normal numbers of bf16


@gluon.jit
def _rows(x, start, heads, head, K: gl.constexpr, L: gl.constexpr):
    """Pointers to the tokens from `start` on of one head of x [tokens, heads, K]."""
    i = gl.arange(0, C, gl.SliceLayout(1, L))[:, None]
    d = gl.arange(0, K, gl.SliceLayout(0, L))[None, :]
    return x + (start.to(gl.int64) * heads + head) * K + i * (heads * K) + d


@gluon.jit
def _sums(part, steps, TERMS: gl.constexpr, SUMS: gl.constexpr):
    """Of the steps those that each row's decay takes, as `part` [C, C] says; in units of log 2."""
    K: gl.constexpr = steps.shape[2]
    acc = gl.zeros([C, K], gl.float32, SUMS)
    for term in gl.static_range(TERMS):
        acc = hopper.warpgroup_mma(part, steps.index(term), acc, use_acc=term > 0, is_async=False)
    return acc * LOG2E


@gluon.jit
def _meet(
    p, b, part, masks, xs, ys, steps, keys, rest,
    DELTA: gl.constexpr, TERMS: gl.constexpr, SUMS: gl.constexpr, PAIRS: gl.constexpr,
):  # fmt: skip
    """Add to P and B what meets at the start of blocks of 16, or where two of 16, or of 32, meet."""
    A: gl.constexpr = gl.DotOperandLayout(0, PAIRS, 2)
    n = gl.arange(0, C, gl.SliceLayout(1, PAIRS))[:, None]
    m = gl.arange(0, C, gl.SliceLayout(0, PAIRS))[None, :]
    here = _sums(masks.index(part), steps, TERMS, SUMS)
    decay = gl.exp2(here)
    z = ys.load(SUMS).to(gl.float32) * gl.where(part == 0, gl.exp2(gl.minimum(-here, FAR)), decay)
    meet()  # the keys before have been read
    keys.store(z.to(gl.bfloat16))
    if DELTA:
        rest.store((z - z.to(gl.bfloat16).to(gl.float32)).to(gl.bfloat16))
    hopper.fence_async_shared()
    meet()
    x = gl.convert_layout((xs.load(SUMS).to(gl.float32) * decay).to(gl.bfloat16), A)
    key = keys.permute((1, 0))
    none = gl.zeros([C, C], gl.float32, PAIRS)
    level = part + 3
    meets = gl.where(part == 0, (n >> 4) == (m >> 4), ((n >> level) ^ 1) == (m >> level)) & (n >= m)
    p_ = hopper.warpgroup_mma(x, key, none, use_acc=False, is_async=True)
    if DELTA:  # P is to be multiplied by T, whose parts cancel it
        p_ = hopper.warpgroup_mma(x, rest.permute((1, 0)), p_, is_async=True)
        row = gl.convert_layout((ys.load(SUMS).to(gl.float32) * decay).to(gl.bfloat16), A)
        b_ = hopper.warpgroup_mma(row, key, none, use_acc=False, is_async=True)
        p_, b_ = hopper.warpgroup_mma_wait(0, [p_, b_])
        b = gl.where(meets, b_, b)
    else:
        p_ = hopper.warpgroup_mma_wait(0, [p_])
    return gl.where(meets, p_, p), b


@gluon.jit
def _store(x, to, tile, L: gl.constexpr, K: gl.constexpr):
    """x to the tile [C, K] at `to`, through shared memory for whole lines."""
    tile.store(x.to(gl.bfloat16))
    i = gl.arange(0, C, gl.SliceLayout(1, L))[:, None]
    d = gl.arange(0, K, gl.SliceLayout(0, L))[None, :]
    gl.store(to + i * K + d, tile.load(L))


@gluon.jit(do_not_specialize=["chunks", "H", "HV", "keep"])
def channel_blocks(
    q, k, g, parts, starts, stops,
    G, D, P, B, Qs, Kd, Kg, slow,
    scale, chunks, H, HV, keep,
    K: gl.constexpr, DELTA: gl.constexpr, TERMS: gl.constexpr,
):  # fmt: skip
    """What `channel_gates` and `channel_levels` give, and D [HV, chunks, K], the decay of whole chunks.

    Inside blocks of 16 rows and keys meet at the block's start, from where keys decay up. A row may use them while its
    own decay since then is no less than 2^-FAR in every channel: a property of the row and its past alone. `slow`
    [HV, chunks, C] names the others, whose products there `channel_rest` makes. G is stored for them and, with `keep`,
    for the backward pass.
    """
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // K, K // 8], [4, 1], [1, 0])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, K, 16])
    PAIRS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    c, h = gl.program_id(0), gl.program_id(1)
    head = h // (HV // H)
    start, stop = gl.load(starts + c), gl.load(stops + c)
    block = (h * chunks + c).to(gl.int64)
    xs = gl.allocate_shared_memory(gl.bfloat16, [C, K], SHARED)
    ys = gl.allocate_shared_memory(gl.bfloat16, [C, K], SHARED)
    keys = gl.allocate_shared_memory(gl.bfloat16, [C, K], SHARED)
    rest = gl.allocate_shared_memory(gl.bfloat16, [C, K], SHARED)  # what rounding takes from the keys
    steps = gl.allocate_shared_memory(gl.bfloat16, [TERMS, C, K], SHARED)
    masks = gl.allocate_shared_memory(gl.bfloat16, [3, C, C], SHARED)  # so that a GPU's processor has room for two
    MASK: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    i = gl.arange(0, C, gl.SliceLayout(1, ROWS))[:, None]
    for part in gl.static_range(3):
        copy(masks.index(part), _rows(parts + part * C * C, start * 0, 1, 0, C, MASK))
    copy(xs, _rows(q, start, H, head, K, ROWS), mask=start + i < stop)
    copy(ys, _rows(k, start, H, head, K, ROWS), mask=start + i < stop)
    hopper.async_copy.commit_group()
    step = gl.load(_rows(g, start, HV, h, K, ROWS), mask=start + i < stop, other=0.0)
    step = gl.maximum(step.to(gl.float32), -1000.0)  # decays to 0 already; the sums stay finite
    for term in gl.static_range(TERMS):  # bf16 is one; fp32 is the sum of three
        steps.index(term).store(step.to(gl.bfloat16))
        step -= step.to(gl.bfloat16).to(gl.float32)
    hopper.async_copy.wait_group(0)
    hopper.fence_async_shared()

    n = gl.arange(0, C, gl.SliceLayout(1, PAIRS))[:, None]
    m = gl.arange(0, C, gl.SliceLayout(0, PAIRS))[None, :]
    p = gl.zeros([C, C], gl.float32, PAIRS)
    b = gl.zeros([C, C], gl.float32, PAIRS)
    meet()
    least = gl.min(_sums(masks.index(0), steps, TERMS, SUMS), 1)
    for part in range(3):
        p, b = _meet(p, b, part, masks, xs, ys, steps, keys, rest, DELTA, TERMS, SUMS, PAIRS)
    meet()  # the masks have been read
    for part in gl.static_range(2):
        copy(masks.index(part), _rows(parts + (3 + part) * C * C, start * 0, 1, 0, C, MASK))
    hopper.async_copy.commit_group()
    to = block * (C * C) + n * C + m
    lower = ((n >> 4) >= (m >> 4)) | (not DELTA)
    gl.store(P + to, (p * scale).to(P.dtype.element_ty), mask=lower)
    if DELTA:
        gl.store(B + to, b, mask=lower)
    i = gl.arange(0, C, gl.SliceLayout(1, SUMS))
    gl.store(slow + block * C + i, (least < -FAR).to(gl.int8))
    first = gl.where((keep > 0) | (gl.min(least, 0) < -FAR), 0, C)

    base = block * (C * K)
    hopper.async_copy.wait_group(0)
    hopper.fence_async_shared()
    meet()
    here = _sums(masks.index(0), steps, TERMS, SUMS)
    decay = gl.exp2(here)
    d = gl.arange(0, K, gl.SliceLayout(0, SUMS))
    gl.store(G + base + i[:, None] * K + d[None, :], here, mask=i[:, None] >= first)
    gl.store(D + block * K + d[None, :] + 0 * i[:, None], decay, mask=i[:, None] == C - 1)
    y = ys.load(SUMS).to(gl.float32)
    meet()  # the tiles have been read
    _store(xs.load(SUMS).to(gl.float32) * (decay * scale), Qs + base, keys, ROWS, K)
    if DELTA:
        _store(y * decay, Kd + base, xs, ROWS, K)
    y *= gl.exp2(_sums(masks.index(1), steps, TERMS, SUMS))
    if DELTA:  # to be folded first
        gl.store(Kg + base + i[:, None] * K + d[None, :], y)
    else:
        _store(y, Kg + base, ys, ROWS, K)
