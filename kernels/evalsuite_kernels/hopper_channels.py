"""The products of a gate per channel on Hopper's tensor cores, in Gluon: layouts, shared memory and wgmma by hand.

Of 64 tokens each of four warps holds 16 rows, and all that is done to rows happens in registers, in the layout of a
wgmma's result, which is that of its left operand too. Running sums of gates are products with triangles of ones.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from evalsuite_kernels.gluon import copy

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
    A: gl.constexpr = gl.DotOperandLayout(0, PAIRS, 2)
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    c, h = gl.program_id(0), gl.program_id(1)
    head = h // (HV // H)
    start, stop = gl.load(starts + c), gl.load(stops + c)
    block = (h * chunks + c).to(gl.int64)
    xs = gl.allocate_shared_memory(gl.bfloat16, [C, K], SHARED)
    ys = gl.allocate_shared_memory(gl.bfloat16, [C, K], SHARED)
    keys = gl.allocate_shared_memory(gl.bfloat16, [C, K], SHARED)
    steps = gl.allocate_shared_memory(gl.bfloat16, [TERMS, C, K], SHARED)
    masks = gl.allocate_shared_memory(gl.bfloat16, [5, C, C], SHARED)
    MASK: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    i = gl.arange(0, C, gl.SliceLayout(1, ROWS))[:, None]
    for part in gl.static_range(5):
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
    least = gl.zeros([C], gl.float32, gl.SliceLayout(1, SUMS))
    for part in gl.static_range(3):
        here = _sums(masks.index(part), steps, TERMS, SUMS)
        decay = gl.exp2(here)
        y = ys.load(SUMS).to(gl.float32)
        row = (y * decay).to(gl.bfloat16)
        if part == 0:
            least = gl.min(here, 1)
            keys.store((y * gl.exp2(gl.minimum(-here, FAR))).to(gl.bfloat16))
        else:
            keys.store(row)
        x = gl.convert_layout((xs.load(SUMS).to(gl.float32) * decay).to(gl.bfloat16), A)
        hopper.fence_async_shared()
        key = keys.permute((1, 0))
        none = gl.zeros([C, C], gl.float32, PAIRS)
        p_ = hopper.warpgroup_mma(x, key, none, use_acc=False, is_async=True)
        if part == 0:
            meet = ((n >> 4) == (m >> 4)) & (n >= m)
        elif part == 1:
            meet = ((n >> 4) == (m >> 4) + 1) & ((m >> 4) % 2 == 0)
        else:
            meet = (n >= 32) & (m < 32)
        if DELTA:
            b_ = hopper.warpgroup_mma(gl.convert_layout(row, A), key, none, use_acc=False, is_async=True)
            p_, b_ = hopper.warpgroup_mma_wait(0, [p_, b_])
            b = gl.where(meet, b_, b)
        else:
            p_ = hopper.warpgroup_mma_wait(0, [p_])
        p = gl.where(meet, p_, p)
    to = block * (C * C) + n * C + m
    gl.store(P + to, (p * scale).to(gl.bfloat16))
    if DELTA:
        gl.store(B + to, b)
    i = gl.arange(0, C, gl.SliceLayout(1, SUMS))
    gl.store(slow + block * C + i, (least < -FAR).to(gl.int8))
    first = gl.where((keep > 0) | (gl.min(least, 0) < -FAR), 0, C)

    base = block * (C * K)
    here = _sums(masks.index(3), steps, TERMS, SUMS)
    decay = gl.exp2(here)
    d = gl.arange(0, K, gl.SliceLayout(0, SUMS))
    gl.store(G + base + i[:, None] * K + d[None, :], here, mask=i[:, None] >= first)
    gl.store(D + block * K + d[None, :] + 0 * i[:, None], decay, mask=i[:, None] == C - 1)
    y = ys.load(SUMS).to(gl.float32)
    _store(xs.load(SUMS).to(gl.float32) * (decay * scale), Qs + base, keys, ROWS, K)
    if DELTA:
        _store(y * decay, Kd + base, xs, ROWS, K)
    decay = gl.exp2(_sums(masks.index(4), steps, TERMS, SUMS))
    _store(y * decay, Kg + base, ys, ROWS, K)
