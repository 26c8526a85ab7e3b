"""A chunk under a gate per channel on Hopper's tensor cores, in Gluon: all that knows no state, in one kernel.

Of 64 tokens each of four warps holds 16 rows, and all that is done to rows happens in registers, in the layout of a
wgmma's result, which is that of its left operand too. Running sums of gates are products with triangles of ones.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from evalsuite_kernels.gluon import copy, exp2, halves, meet, softplus
from evalsuite_kernels.hopper_solve import (
    PAIRS,
    SHARED,
    C,
    lines,
    rate,
    solved,
    strengths,
    times,
)

D = gl.constexpr(64)  # channels in a part
LEFT = gl.constexpr(gl.DotOperandLayout(0, PAIRS, 2))
LOG2E = gl.constexpr(1.4426950408889634)
FAR = gl.constexpr(100.0)  # in bits: keys times 2^100 and rows times 2^-100 are normal numbers of bf16


@gluon.jit
def _rows(x, start, heads, at, K: gl.constexpr, L: gl.constexpr):
    """Pointers to the tokens from `start` on of 64 channels of x [tokens, heads * K], from channel `at` on."""
    i = gl.arange(0, C, gl.SliceLayout(1, L))[:, None]
    d = gl.arange(0, D, gl.SliceLayout(0, L))[None, :]
    return x + start.to(gl.int64) * (heads * K) + at + i * (heads * K) + d


@gluon.jit
def _steps(g, A_log, dt_bias, start, stop, h, HV, part, steps, TERMS: gl.constexpr, K: gl.constexpr, L: gl.constexpr):
    """The gates of a chunk's part to its `steps`, as bf16 or as the sum of two."""
    i = gl.arange(0, C, gl.SliceLayout(1, L))[:, None]
    at = h * K + part * D
    step = gl.load(_rows(g, start, HV, at, K, L), mask=start + i < stop, other=0.0).to(gl.float32)
    if A_log is not None:
        if dt_bias is not None:
            step += gl.load(dt_bias + at + gl.arange(0, D, gl.SliceLayout(0, L))).to(gl.float32)[None, :]
        step = softplus(step) * -gl.exp(gl.load(A_log + h).to(gl.float32))
        step = gl.where(start + i < stop, step, 0.0)
    step = gl.maximum(step, -1000.0)  # decays to 0 already; the sums stay finite
    if TERMS == 1:
        steps.index(part).store(step.to(gl.bfloat16))
    else:
        high, low = halves(step)
        steps.index(part * TERMS).store(high)
        steps.index(part * TERMS + 1).store(low)


@gluon.jit
def _these(chosen, one):
    """`chosen` [C, C] as the left operand of `_sums`.

    `one` is 1, and no compiler knows: ptxas 12.8 writes constants of a left operand after its product has begun.
    """
    return gl.where(chosen, one, 1.0 - one).to(gl.bfloat16)


@gluon.jit
def _sums(these, steps, part, TERMS: gl.constexpr):
    """Of the steps of a chunk's part those that each row takes, as `these` [C, C] says; in units of log 2."""
    acc = gl.zeros([C, D], gl.float32, PAIRS)
    for term in gl.static_range(TERMS):
        acc = hopper.warpgroup_mma(these, steps.index(part * TERMS + term), acc, use_acc=term > 0, is_async=True)
    acc, these = hopper.warpgroup_mma_wait(0, [acc, these])
    return acc * LOG2E


@gluon.jit
def _turn(
    p, b, slow, turns, turn, near, one, tiles, steps, keys,
    PARTS: gl.constexpr, TERMS: gl.constexpr, DELTA: gl.constexpr,
):  # fmt: skip
    """Add to P and B [C, C] what meets at the start of blocks of 16 if `near` (turn 0), then where two of 16, and of
    32, meet, and then, for slow rows alone, where two blocks inside one of 16 do, and at last each row and its key."""
    row = gl.arange(0, C, gl.SliceLayout(1, LEFT))[:, None]
    step = gl.arange(0, C, gl.SliceLayout(0, LEFT))[None, :]
    level = gl.where(near, 4, gl.where(turn < 3, turn + 3, (turn - 3) & 3))
    alone = turn == 7
    past = ((row >> level) & 1 == 1) | near
    these = _these((row >> level == step >> level) & (past == (step <= row)) & (turn < 7), one)
    least = gl.zeros([C], gl.float32, gl.SliceLayout(1, PAIRS))
    p_ = gl.zeros([C, C], gl.float32, PAIRS)
    b_ = gl.zeros([C, C], gl.float32, PAIRS)
    meet()  # the keys before have been read
    for part in range(PARTS):
        here = _sums(these, steps, part, TERMS)
        least = gl.minimum(least, gl.min(here, 1))
        decay = exp2(here)
        y = tiles.index(2 + part).load(PAIRS).to(gl.float32)
        other = y * decay
        if near is True:
            z = y * exp2(gl.minimum(-here, FAR))
        elif near is False:
            z = other
        else:
            z = y * exp2(gl.where(near, gl.minimum(-here, FAR), here))
        high, low = halves(z)
        keys.index(part).store(high)
        if DELTA:
            keys.index(PARTS + part).store(low)
        hopper.fence_async_shared()
        meet()
        x = gl.convert_layout((tiles.index(part).load(PAIRS).to(gl.float32) * decay).to(gl.bfloat16), LEFT)
        key = keys.index(part).permute((1, 0))
        p_ = hopper.warpgroup_mma(x, key, p_, is_async=True)
        if DELTA:  # P is to be multiplied by T, whose parts cancel it
            p_ = hopper.warpgroup_mma(x, keys.index(PARTS + part).permute((1, 0)), p_, is_async=True)
            y = gl.convert_layout(other.to(gl.bfloat16), LEFT)
            b_ = hopper.warpgroup_mma(y, key, b_, is_async=True)
            p_, b_, x, y = hopper.warpgroup_mma_wait(0, [p_, b_, x, y])
        else:
            p_, x = hopper.warpgroup_mma_wait(0, [p_, x])
    if near:
        slow = (least < -FAR).to(gl.int32)
        turns = gl.where(gl.min(least, 0) < -FAR, 8, 3)
    n = gl.arange(0, C, gl.SliceLayout(1, PAIRS))[:, None]
    m = gl.arange(0, C, gl.SliceLayout(0, PAIRS))[None, :]
    mine = gl.where(near, slow == 0, (level >= 4) | (slow > 0))[:, None]
    meets = (((n >> level) ^ gl.where(near | alone, 0, 1)) == (m >> level)) & (n >= m) & mine
    return gl.where(meets, p_, p), gl.where(meets, b_, b), slow, turns


@gluon.jit
def _lengths(tiles, at: gl.constexpr, PARTS: gl.constexpr):
    """1 / |x| of the rows of an x whose parts the tiles from `at` on hold."""
    squares = gl.zeros([C], gl.float32, gl.SliceLayout(1, PAIRS))
    for part in range(PARTS):
        x = tiles.index(at + part).load(PAIRS).to(gl.float32)
        squares += gl.sum(x * x, 1)
    return rate(squares)


@gluon.jit(do_not_specialize=["keep", "chunks", "H", "HV"])
def channel_blocks(
    q, k, g, beta, A_log, dt_bias, starts, stops,
    G, last, P, Qs, Kd, Kg, B, T, each, rest, rates,
    scale, beta_max, keep, chunks, H, HV,
    K: gl.constexpr, DELTA: gl.constexpr, TERMS: gl.constexpr, UNIT: gl.constexpr, SIGMOID: gl.constexpr,
):  # fmt: skip
    """What the scan reads: P, Qs, Kd and Kg; of the delta rule P T and T^T Kg in the place of P and Kg, as `fold` makes
    them; and `last` [HV, chunks, K], the decay of chunks. With `keep` (0 or 1) G, B, T, `each` and `rest` too, else
    P T and T^T Kg are times the beta of the tokens they are for: one kernel for both, which takes seconds to compile.

    Inside blocks of 16 rows and keys meet at the block's start, from where keys decay up. A row may use them while its
    own decay since then is no less than 2^-FAR in every channel: a property of the row and its past alone. The few
    others meet keys there as all do further on: at borders of doubling blocks, both decaying (`vector.py`).
    """
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    PARTS: gl.constexpr = K // D
    c, h = gl.program_id(0), gl.program_id(1)
    start, stop = gl.load(starts + c), gl.load(stops + c)
    block = (h * chunks + c).to(gl.int64)
    tiles = gl.allocate_shared_memory(gl.bfloat16, [4, C, D], SHARED)  # q and k by parts, and once they have been read
    keys = gl.allocate_shared_memory(gl.bfloat16, [(2 if DELTA else 1) * PARTS, C, D], SHARED)
    steps = gl.allocate_shared_memory(gl.bfloat16, [TERMS * PARTS, C, D], SHARED)
    i = gl.arange(0, C, gl.SliceLayout(1, ROWS))[:, None]
    for part in range(PARTS):
        at = h // (HV // H) * K + part * D
        copy(tiles.index(part), _rows(q, start, H, at, K, ROWS), mask=start + i < stop)
        copy(tiles.index(2 + part), _rows(k, start, H, at, K, ROWS), mask=start + i < stop)
        hopper.async_copy.commit_group()
    for part in range(PARTS):
        _steps(g, A_log, dt_bias, start, stop, h, HV, part, steps, TERMS, K, ROWS)
    hopper.async_copy.wait_group(0)
    hopper.fence_async_shared()
    meet()

    one = gl.where(start < stop, 1.0, 0.0)
    p = gl.zeros([C, C], gl.float32, PAIRS)
    b = gl.zeros([C, C], gl.float32, PAIRS)
    slow = gl.full([C], 0, gl.int32, gl.SliceLayout(1, PAIRS))
    turn, turns = 0, 3
    # the first turn on its own is faster, but where a kernel would not fit the cache of instructions then
    APART: gl.constexpr = A_log is None and not UNIT
    if APART:
        p, b, slow, turns = _turn(p, b, slow, turns, 0, True, one, tiles, steps, keys, PARTS, TERMS, DELTA)
        turn = 1
    while turn < turns:
        near = False if APART else turn == 0
        p, b, slow, turns = _turn(p, b, slow, turns, turn, near, one, tiles, steps, keys, PARTS, TERMS, DELTA)
        turn += 1

    base = block * (C * K)
    n = gl.arange(0, C, gl.SliceLayout(1, PAIRS))
    of_q = gl.full([C], 1.0, gl.float32, gl.SliceLayout(1, PAIRS))
    of_k = gl.full([C], 1.0, gl.float32, gl.SliceLayout(1, PAIRS))
    if UNIT:
        of_q, of_k = _lengths(tiles, 0, PARTS), _lengths(tiles, 2, PARTS)
        gl.store(rates + block * (2 * C) + n, of_q)
        gl.store(rates + block * (2 * C) + C + n, of_k)
        across = gl.convert_layout(of_k, gl.SliceLayout(0, PAIRS))[None, :]
        p, b = p * (of_q[:, None] * across), b * (of_k[:, None] * across)
    p *= scale
    row = gl.arange(0, C, gl.SliceLayout(1, LEFT))[:, None]
    step = gl.arange(0, C, gl.SliceLayout(0, LEFT))[None, :]
    before, after = _these(step <= row, one), _these(step > row, one)
    r, d = n[:, None], gl.arange(0, D, gl.SliceLayout(0, PAIRS))[None, :]
    meet()  # the keys have been read
    for part in range(PARTS):
        here = _sums(before, steps, part, TERMS)
        decay = exp2(here)
        gl.store(G + base + r * K + part * D + d, here, mask=keep > 0)
        gl.store(last + block * K + part * D + d + 0 * r, decay, mask=r == C - 1)
        x = tiles.index(part).load(PAIRS).to(gl.float32)
        y = tiles.index(2 + part).load(PAIRS).to(gl.float32)
        if UNIT:
            x, y = x * of_q[:, None], y * of_k[:, None]
        lines(x * (decay * scale), Qs + base + part * D, K, tiles.index(part))
        if DELTA:
            lines(y * decay, Kd + base + part * D, K, tiles.index(2 + part))
        y *= exp2(_sums(after, steps, part, TERMS))
        if DELTA:
            high, low = halves(y)
            keys.index(part).store(high)
            keys.index(PARTS + part).store(low)
        else:
            lines(y, Kg + base + part * D, K, tiles.index(2 + part))
    if not DELTA:
        meet()  # Qs has left
        lines(p, P + block * (C * C), C, tiles.index(0))
    else:
        strength = strengths(beta, start, stop, h, HV, beta_max, SIGMOID)
        if keep > 0:
            gl.store(each + block * C + n, strength)
        few = gl.allocate_shared_memory(gl.float32, [C, 16], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
        solved(b, strength, few, tiles, B, T, block, keep)
        p = times(p, tiles, 0)
        high, low = tiles.index(0).permute((1, 0)), tiles.index(1).permute((1, 0))
        for part in range(PARTS):
            late = gl.zeros([C, D], gl.float32, PAIRS)
            late = hopper.warpgroup_mma(low, keys.index(part), late, use_acc=False, is_async=True)
            late = hopper.warpgroup_mma(high, keys.index(PARTS + part), late, is_async=True)
            late = hopper.warpgroup_mma(high, keys.index(part), late, is_async=True)
            late = hopper.warpgroup_mma_wait(0, [late])
            meet()  # keys have been read
            lines(late, Kg + base + part * D, K, keys.index(part))
            if keep > 0:
                lines(late - late.to(gl.bfloat16).to(gl.float32), rest + base + part * D, K, keys.index(PARTS + part))
        lines(p, P + block * (C * C), C, tiles.index(2))
