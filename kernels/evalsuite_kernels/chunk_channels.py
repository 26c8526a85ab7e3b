"""The kernels by chunks of a gate per channel: running sums of gates, decayed inputs, and the products P and B.

Rows and keys of a product meet at a boundary between them, by doubling blocks as in `vector.py`, so that no exponent is
above 0. `hopper_channels.py` does the same for half precision on Hopper.
"""

import triton
import triton.language as tl

from evalsuite_kernels.activations import log_decay
from evalsuite_kernels.chunk_kernels import unit
from evalsuite_kernels.chunk_tiles import COUNTS, LOG2E, C, dot, load_gates, load_rows, store_tile


@triton.jit(do_not_specialize=COUNTS)
def channel_gates(
    q, k, g, A_log, dt_bias, starts, stops,
    G, P, Qs, Kd, Kg, rates,
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
    if rates is not None:
        of_q, of_k = unit(q, k, rates, block, start, i, valid, H, head, K, KP, BK)
    for kb in range(0, KP, BK):
        d = kb + tl.arange(0, BK)
        step = load_rows(g, start, i, valid, HV, h, d, K, g.dtype.element_ty)
        if A_log is not None:
            step = step.to(tl.float32)
            if dt_bias is not None:
                step += tl.load(dt_bias + h * K + d, mask=d < K, other=0.0).to(tl.float32)[None, :]
            step = log_decay(step, A_log, h, valid[:, None] & (d < K)[None, :])
        step = tl.maximum(step.to(G.dtype.element_ty), -1000.0) * LOG2E  # decays to 0 already; the sums stay finite
        here, last = tl.cumsum(step, 0), tl.sum(step, 0)
        x = load_rows(q, start, i, valid, H, head, d, K, DOT).to(tl.float32) * scale
        y = load_rows(k, start, i, valid, H, head, d, K, DOT).to(tl.float32)
        if rates is not None:
            x *= of_q[:, None]
            y *= of_k[:, None]
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


@triton.jit(do_not_specialize=COUNTS)
def channel_levels(
    q, k, G, rates, starts, stops,
    P, B,
    scale, chunks, H, HV, K,
    KP: tl.constexpr, BK: tl.constexpr, DELTA: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P and B below the diagonal under a gate per channel, level by level: the rows of odd blocks of 2^level tokens
    meet the keys of the block before them at the boundary between both."""
    c, h = tl.program_id(0), tl.program_id(1)
    head = h // (HV // H)
    start, stop = tl.load(starts + c), tl.load(stops + c)
    block = (h * chunks + c).to(tl.int64)
    base = block * C * KP
    n = tl.arange(0, 32)
    for level in range(6):
        pair = n >> level
        early = n + (pair << level)  # the tokens of even blocks, and one block later those of odd blocks
        late = early + (1 << level)
        boundary = ((2 * pair + 1) << level) - 1
        p = tl.zeros([32, 32], tl.float32)
        b = tl.zeros([32, 32], tl.float32)
        for kb in range(0, KP, BK):
            d = kb + tl.arange(0, BK)
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
        if rates is not None:
            of_k = rates + block * (2 * C) + C
            key = tl.load(of_k + early)[None, :]
            p *= tl.load(of_k - C + late)[:, None] * key
            b *= tl.load(of_k + late)[:, None] * key
        to = block * C * C + late[:, None] * C + early[None, :]
        meet = pair[:, None] == pair[None, :]
        tl.store(P + to, (p * scale).to(P.dtype.element_ty), mask=meet)
        if DELTA:
            tl.store(B + to, b, mask=meet)
