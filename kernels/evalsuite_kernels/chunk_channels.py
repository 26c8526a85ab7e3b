"""The kernels by chunks of a gate per channel: running sums of gates, decayed inputs, and the products P and B.

Rows and keys of a product meet at a boundary between them, by doubling blocks as in `vector.py`, so that no exponent is
above 0. `hopper_channels.py` does the same for half precision on Hopper.
"""

import triton
import triton.language as tl

from evalsuite_kernels.chunk_tiles import COUNTS, LOG2E, C, dot, load_gates, load_rows, store_tile

MANY = tl.constexpr(4)  # chunks in a program of `channel_rest`


@triton.jit(do_not_specialize=COUNTS)
def channel_gates(
    q, k, g, starts, stops,
    G, P, Qs, Kd, Kg,
    scale, chunks, H, HV, K,
    KP: tl.constexpr, BK: tl.constexpr, DELTA: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """G [HV, chunks, C, KP], the running sums of a gate per channel, in units of log 2; Qs, Kd and Kg of its shape; and
    of P [HV, chunks, C, C] the diagonal and the zeros above."""
    c, h = tl.program_id(0), tl.program_id(1)
    head = h // (HV // H)
    i = tl.arange(0, C)
    start, stop = tl.load(starts + c), tl.load(stops + c)
    valid = start + i < stop
    block = (h * chunks + c).to(tl.int64)
    eye = tl.zeros([C], tl.float32)
    for kb in range(0, KP, BK):
        d = kb + tl.arange(0, BK)
        step = load_rows(g, start, i, valid, HV, h, d, K, G.dtype.element_ty)
        step = tl.maximum(step, -1000.0) * LOG2E  # decays to 0 already; the sums stay finite
        here, last = tl.cumsum(step, 0), tl.sum(step, 0)
        x = load_rows(q, start, i, valid, H, head, d, K, DOT).to(tl.float32) * scale
        y = load_rows(k, start, i, valid, H, head, d, K, DOT).to(tl.float32)
        eye += tl.sum(x * y, 1)
        since = tl.exp2(here.to(tl.float32))
        until = tl.exp2(tl.minimum(last[None, :] - here, 0.0).to(tl.float32))
        base = block * C * KP
        tl.store(G + base + i[:, None] * KP + d[None, :], here)
        store_tile(Qs, base, i, d, KP, x * since)
        if DELTA:
            store_tile(Kd, base, i, d, KP, y * since)
        store_tile(Kg, base, i, d, KP, y * until)
    to = P + block * C * C + i[:, None] * C + i[None, :]
    value = tl.where(i[:, None] == i[None, :], eye[:, None], 0.0)
    tl.store(to, value.to(P.dtype.element_ty), mask=i[:, None] <= i[None, :])


@triton.jit
def _level(
    q, k, G, slow, level, start, stop, P, B, scale, block, head, H, K,
    KP: tl.constexpr, BK: tl.constexpr, DELTA: tl.constexpr, REST: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The rows of odd blocks of 2^level tokens meet the keys of the block before them at the boundary between both."""
    n = tl.arange(0, 32)
    pair = n >> level
    early = n + (pair << level)  # the tokens of even blocks, and one block later those of odd blocks
    late = early + (1 << level)
    boundary = ((2 * pair + 1) << level) - 1
    p = tl.zeros([32, 32], tl.float32)
    b = tl.zeros([32, 32], tl.float32)
    for kb in range(0, KP, BK):
        d = kb + tl.arange(0, BK)
        base = block * C * KP
        border = load_gates(G, base, boundary, d, KP)
        since = tl.exp2((load_gates(G, base, late, d, KP) - border).to(tl.float32))
        until = tl.exp2((border - load_gates(G, base, early, d, KP)).to(tl.float32))
        key = load_rows(k, start, early, start + early < stop, H, head, d, K, DOT).to(tl.float32) * until
        key = tl.trans(key.to(DOT))
        valid = start + late < stop
        x = load_rows(q, start, late, valid, H, head, d, K, DOT).to(tl.float32) * since
        p += dot(x, key, DOT, PRECISION)
        if DELTA:
            y = load_rows(k, start, late, valid, H, head, d, K, DOT).to(tl.float32) * since
            b += dot(y, key, DOT, PRECISION)
    to = block * C * C + late[:, None] * C + early[None, :]
    meet = pair[:, None] == pair[None, :]
    if REST:
        meet &= (tl.load(slow + block * C + late) != 0)[:, None]
    tl.store(P + to, (p * scale).to(P.dtype.element_ty), mask=meet)
    if DELTA:
        tl.store(B + to, b, mask=meet)


@triton.jit(do_not_specialize=COUNTS)
def channel_levels(
    q, k, G, starts, stops,
    P, B,
    scale, chunks, H, HV, K,
    KP: tl.constexpr, BK: tl.constexpr, DELTA: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P and B below the diagonal under a gate per channel, level by level."""
    c, h = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(starts + c), tl.load(stops + c)
    block = (h * chunks + c).to(tl.int64)
    for level in range(6):
        _level(
            q, k, G, None, level, start, stop, P, B, scale, block, h // (HV // H), H, K,
            KP, BK, DELTA, False, DOT, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def channel_rest(
    q, k, G, slow, starts, stops,
    P, B,
    scale, chunks, H, HV, K,
    KP: tl.constexpr, BK: tl.constexpr, DELTA: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same inside blocks of 16, and the diagonal, for the rows that `slow` names: hardly any, most programs end at
    once; MANY chunks in each."""
    first, h = tl.program_id(0) * MANY, tl.program_id(1)
    head = h // (HV // H)
    flags = slow + (h * chunks + first).to(tl.int64) * C
    n = tl.arange(0, MANY * C)
    if tl.max(tl.load(flags + n, mask=first * C + n < chunks * C, other=0).to(tl.int32), 0) == 0:
        return
    i = tl.arange(0, C)
    for c in range(first, tl.minimum(first + MANY, chunks)):
        block = (h * chunks + c).to(tl.int64)
        these = tl.load(slow + block * C + i) != 0
        if tl.max(these.to(tl.int32), 0) > 0:
            start, stop = tl.load(starts + c), tl.load(stops + c)
            valid = start + i < stop
            eye = tl.zeros([C], tl.float32)
            for kb in range(0, KP, BK):
                d = kb + tl.arange(0, BK)
                x = load_rows(q, start, i, valid, H, head, d, K, DOT).to(tl.float32)
                eye += tl.sum(x * load_rows(k, start, i, valid, H, head, d, K, DOT).to(tl.float32), 1)
            tl.store(P + block * C * C + i * C + i, (eye * scale).to(P.dtype.element_ty), mask=these)
            for level in range(4):
                _level(
                    q, k, G, slow, level, start, stop, P, B, scale, block, head, H, K,
                    KP, BK, DELTA, True, DOT, PRECISION,
                )  # fmt: skip
