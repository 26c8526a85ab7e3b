"""A chunk under a gate per channel on Hopper's tensor cores, in Gluon: all that knows no state, in one kernel.

Of 64 tokens each of four warps holds 16 rows, and all that is done to rows happens in registers, in the layout of a
wgmma's result, which is that of its left operand too. Running sums of gates are products with triangles of ones.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from evalsuite_kernels.gluon import copy, exp2, halves, meet, seen, softplus
from evalsuite_kernels.hopper_solve import (
    PAIRS,
    SHARED,
    C,
    length,
    lines,
    put,
    solved,
    strengths,
    times,
)

LOG2E = gl.constexpr(1.4426950408889634)
FAR = gl.constexpr(100.0)  # in bits: keys times 2^100 and rows times 2^-100 are normal numbers of bf16


@gluon.jit
def _rows(x, start, heads, head, K: gl.constexpr, L: gl.constexpr):
    """Pointers to the tokens from `start` on of one head of x [tokens, heads, K]."""
    i = gl.arange(0, C, gl.SliceLayout(1, L))[:, None]
    d = gl.arange(0, K, gl.SliceLayout(0, L))[None, :]
    return x + (start.to(gl.int64) * heads + head) * K + i * (heads * K) + d


@gluon.jit
def _steps(g, A_log, dt_bias, start, stop, h, HV, steps, L: gl.constexpr):
    """The gates of a chunk to `steps` [terms, C, K], as bf16 or as the sum of two."""
    TERMS: gl.constexpr = steps.shape[0]
    K: gl.constexpr = steps.shape[2]
    i = gl.arange(0, C, gl.SliceLayout(1, L))[:, None]
    step = gl.load(_rows(g, start, HV, h, K, L), mask=start + i < stop, other=0.0).to(gl.float32)
    if A_log is not None:
        if dt_bias is not None:
            step += gl.load(dt_bias + h * K + gl.arange(0, K, gl.SliceLayout(0, L))).to(gl.float32)[None, :]
        step = softplus(step) * -gl.exp(gl.load(A_log + h).to(gl.float32))
        step = gl.where(start + i < stop, step, 0.0)
    step = gl.maximum(step, -1000.0)  # decays to 0 already; the sums stay finite
    if TERMS == 1:
        steps.index(0).store(step.to(gl.bfloat16))
    else:
        high, low = halves(step)
        steps.index(0).store(high)
        steps.index(1).store(low)


@gluon.jit
def _sums(these, one, steps, L: gl.constexpr):
    """Of the steps of a chunk those that each row takes, as `these` [C, C] says; in units of log 2.

    `one` is 1, and no compiler knows: ptxas 12.8 writes constants of a left operand after its product has begun.
    """
    TERMS: gl.constexpr = steps.shape[0]
    K: gl.constexpr = steps.shape[2]
    part = gl.where(these, one, 1.0 - one).to(gl.bfloat16)
    acc = gl.zeros([C, K], gl.float32, L)
    for term in gl.static_range(TERMS):
        acc = hopper.warpgroup_mma(part, steps.index(term), acc, use_acc=term > 0, is_async=True)
    acc, part = hopper.warpgroup_mma_wait(0, [acc, part])
    return acc * LOG2E


@gluon.jit
def _turn(p, b, slow, turns, turn, near, one, xs, ys, steps, keys, DELTA: gl.constexpr, L: gl.constexpr):
    """Add to P and B [C, C] what meets at the start of blocks of 16 if `near` (turn 0), then where two of 16, and of
    32, meet, and then, for slow rows alone, where two blocks inside one of 16 do, and at last each row and its key."""
    A: gl.constexpr = gl.DotOperandLayout(0, PAIRS, 2)
    LEFT: gl.constexpr = gl.DotOperandLayout(0, L, 2)
    row = gl.arange(0, C, gl.SliceLayout(1, LEFT))[:, None]
    step = gl.arange(0, C, gl.SliceLayout(0, LEFT))[None, :]
    level = gl.where(near, 4, gl.where(turn < 3, turn + 3, (turn - 3) & 3))
    alone = turn == 7
    past = ((row >> level) & 1 == 1) | near
    here = _sums((row >> level == step >> level) & (past == (step <= row)) & (turn < 7), one, steps, L)
    if near:
        least = gl.min(here, 1)
        slow = gl.convert_layout((least < -FAR).to(gl.int32), gl.SliceLayout(1, PAIRS))
        turns = gl.where(gl.min(least, 0) < -FAR, 8, 3)
    decay = exp2(here)
    y = ys.load(L).to(gl.float32)
    other = y * decay
    if near is True:
        z = y * exp2(gl.minimum(-here, FAR))
    elif near is False:
        z = other
    else:
        z = y * exp2(gl.where(near, gl.minimum(-here, FAR), here))
    meet()  # the keys before have been read
    high, low = halves(z)
    keys.index(0).store(high)
    if DELTA:
        keys.index(1).store(low)
    hopper.fence_async_shared()
    meet()
    x = gl.convert_layout((xs.load(L).to(gl.float32) * decay).to(gl.bfloat16), A)
    key = keys.index(0).permute((1, 0))
    none = gl.zeros([C, C], gl.float32, PAIRS)
    p_ = hopper.warpgroup_mma(x, key, none, use_acc=False, is_async=True)
    b_ = none
    if DELTA:  # P is to be multiplied by T, whose parts cancel it
        p_ = hopper.warpgroup_mma(x, keys.index(1).permute((1, 0)), p_, is_async=True)
        y = gl.convert_layout(other.to(gl.bfloat16), A)
        b_ = hopper.warpgroup_mma(y, key, b_, use_acc=False, is_async=True)
        p_, b_, x, y = hopper.warpgroup_mma_wait(0, [p_, b_, x, y])
    else:
        p_, x = hopper.warpgroup_mma_wait(0, [p_, x])
    n = gl.arange(0, C, gl.SliceLayout(1, PAIRS))[:, None]
    m = gl.arange(0, C, gl.SliceLayout(0, PAIRS))[None, :]
    mine = gl.where(near, slow == 0, (level >= 4) | (slow > 0))[:, None]
    meets = (((n >> level) ^ gl.where(near | alone, 0, 1)) == (m >> level)) & (n >= m) & mine
    return gl.where(meets, p_, p), gl.where(meets, b_, b), slow, turns


@gluon.jit(do_not_specialize=["keep", "chunks", "H", "HV"])
def channel_blocks(
    q, k, g, beta, A_log, dt_bias, starts, stops,
    G, D, P, Qs, Kd, Kg, B, T, each, rest, rates,
    scale, beta_max, keep, chunks, H, HV,
    K: gl.constexpr, DELTA: gl.constexpr, TERMS: gl.constexpr, UNIT: gl.constexpr, SIGMOID: gl.constexpr,
):  # fmt: skip
    """What the scan reads: P, Qs, Kd and Kg; of the delta rule P T and T^T Kg in the place of P and Kg, as `fold` makes
    them; and D [HV, chunks, K], the decay of whole chunks. With `keep` (0 or 1) G, B, T, `each` and `rest` too, else
    P T and T^T Kg are times the beta of the tokens they are for: one kernel for both, which takes seconds to compile.

    Inside blocks of 16 rows and keys meet at the block's start, from where keys decay up. A row may use them while its
    own decay since then is no less than 2^-FAR in every channel: a property of the row and its past alone. The few
    others meet keys there as all do further on: at borders of doubling blocks, both decaying (`vector.py`).
    """
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // K, K // 8], [4, 1], [1, 0])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, K, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, SUMS, 2)
    c, h = gl.program_id(0), gl.program_id(1)
    head = h // (HV // H)
    start, stop = gl.load(starts + c), gl.load(stops + c)
    block = (h * chunks + c).to(gl.int64)
    both = gl.allocate_shared_memory(gl.bfloat16, [256 // K, C, K], SHARED)
    xs, ys = both.index(0), both.index(1)
    tiles = seen(both, gl.bfloat16, [4, C, C], SHARED)  # once q and k have been read
    keys = gl.allocate_shared_memory(gl.bfloat16, [2 if DELTA else 1, C, K], SHARED)
    steps = gl.allocate_shared_memory(gl.bfloat16, [TERMS, C, K], SHARED)
    i = gl.arange(0, C, gl.SliceLayout(1, ROWS))[:, None]
    copy(xs, _rows(q, start, H, head, K, ROWS), mask=start + i < stop)
    copy(ys, _rows(k, start, H, head, K, ROWS), mask=start + i < stop)
    hopper.async_copy.commit_group()
    _steps(g, A_log, dt_bias, start, stop, h, HV, steps, ROWS)
    hopper.async_copy.wait_group(0)
    hopper.fence_async_shared()
    meet()

    row = gl.arange(0, C, gl.SliceLayout(1, LEFT))[:, None]
    step = gl.arange(0, C, gl.SliceLayout(0, LEFT))[None, :]
    one = gl.where(start < stop, 1.0, 0.0)
    p = gl.zeros([C, C], gl.float32, PAIRS)
    b = gl.zeros([C, C], gl.float32, PAIRS)
    slow = gl.full([C], 0, gl.int32, gl.SliceLayout(1, PAIRS))
    turn, turns = 0, 3
    # the first turn on its own is faster, but where a kernel would not fit the cache of instructions then
    APART: gl.constexpr = A_log is None and not UNIT
    if APART:
        p, b, slow, turns = _turn(p, b, slow, turns, 0, True, one, xs, ys, steps, keys, DELTA, SUMS)
        turn = 1
    while turn < turns:
        near = False if APART else turn == 0
        p, b, slow, turns = _turn(p, b, slow, turns, turn, near, one, xs, ys, steps, keys, DELTA, SUMS)
        turn += 1

    base = block * (C * K)
    here = _sums(step <= row, one, steps, SUMS)
    decay = exp2(here)
    r = gl.arange(0, C, gl.SliceLayout(1, SUMS))[:, None]
    d = gl.arange(0, K, gl.SliceLayout(0, SUMS))[None, :]
    gl.store(G + base + r * K + d, here, mask=keep > 0)
    gl.store(D + block * K + d + 0 * r, decay, mask=r == C - 1)
    x, y = xs.load(SUMS).to(gl.float32), ys.load(SUMS).to(gl.float32)
    if UNIT:
        of_q, of_k = length(x), length(y)
        gl.store(rates + block * (2 * C) + gl.arange(0, C, gl.SliceLayout(1, SUMS)), of_q)
        gl.store(rates + block * (2 * C) + C + gl.arange(0, C, gl.SliceLayout(1, SUMS)), of_k)
        x, y = x * of_q[:, None], y * of_k[:, None]
        of_q = gl.convert_layout(of_q, gl.SliceLayout(1, PAIRS))
        of_k = gl.convert_layout(of_k, gl.SliceLayout(1, PAIRS))
        across = gl.convert_layout(of_k, gl.SliceLayout(0, PAIRS))[None, :]
        p, b = p * (of_q[:, None] * across), b * (of_k[:, None] * across)
    p *= scale
    meet()  # q and the keys have been read
    lines(x * (decay * scale), Qs + base, keys.index(0))
    if DELTA:
        lines(y * decay, Kd + base, xs)
    y *= exp2(_sums(step > row, one, steps, SUMS))
    if not DELTA:
        meet()  # k has been read
        lines(y, Kg + base, ys)
        lines(p, P + block * (C * C), tiles.index(0))
    else:
        meet()  # Qs has left
        put(y, keys, 0)
        strength = strengths(beta, start, stop, h, HV, beta_max, SIGMOID)
        i = gl.arange(0, C, gl.SliceLayout(1, PAIRS))
        if keep > 0:
            gl.store(each + block * C + i, strength)
        few = gl.allocate_shared_memory(gl.float32, [C, 16], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
        solved(b, strength, few, tiles, B, T, block, keep)
        p = times(p, tiles, 0)
        late = gl.zeros([C, K], gl.float32, SUMS)
        high, low = tiles.index(0).permute((1, 0)), tiles.index(1).permute((1, 0))
        late = hopper.warpgroup_mma(low, keys.index(0), late, use_acc=False, is_async=True)
        late = hopper.warpgroup_mma(high, keys.index(1), late, is_async=True)
        late = hopper.warpgroup_mma(high, keys.index(0), late, is_async=True)
        late = hopper.warpgroup_mma_wait(0, [late])
        meet()  # tiles and keys have been read
        lines(p, P + block * (C * C), tiles.index(2))
        lines(late, Kg + base, keys.index(0))
        if keep > 0:
            lines(late - late.to(gl.bfloat16).to(gl.float32), rest + base, keys.index(1))
