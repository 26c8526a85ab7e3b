"""The state between segments of a sequence, where they are scanned all at once: a segment maps the state before it, S,
to M S + E. E is what it makes of no state, and M = transition; both follow from the segment alone."""

import triton
import triton.language as tl

from evalsuite_kernels.chunk_tiles import (
    COUNTS,
    C,
    chunk_decay,
    dot,
    halves,
    head_decays,
    lengths,
    load_chunk,
    load_rows,
    load_tile,
    store_tile,
)


@triton.jit(do_not_specialize=COUNTS)
def transition(
    k, each, G, D, Kd, Kg, rates, starts, stops, firsts,
    M,
    chunks, H, HV, K,
    KP: tl.constexpr, BV: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr, TMA: tl.constexpr,
    STAGES: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """M [segments, HV, KP, KP], BV columns in a program: the scan of `chunk_kernels.py` from S = I on, no values.
    `each` is None where Kg holds it."""
    vb, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i, d, e = tl.arange(0, C), tl.arange(0, KP), vb * BV + tl.arange(0, BV)
    S = tl.where(d[:, None] == e[None, :], 1.0, 0.0)
    for c in tl.range(tl.load(firsts + n), tl.load(firsts + n + 1), num_stages=STAGES):
        block = (h * chunks + c).to(tl.int64)
        decay = chunk_decay(G, block, d, KP, GATE) if D is None else tl.load(D + block * KP + d)
        if DELTA:
            if GATE == 2:
                x = -dot(load_chunk(Kd, block, i, d, KP, DOT, TMA), S, DOT, PRECISION)
            else:
                start, stop = tl.load(starts + c), tl.load(stops + c)
                ks = load_rows(k, start, i, start + i < stop, H, h // (HV // H), d, K, DOT)
                by_k = head_decays(G, block, GATE)[0] * lengths(rates, block)[1]
                x = -dot(ks, S, DOT, PRECISION) * by_k[:, None]
            if each is not None:
                x *= tl.load(each + block * C + i)[:, None]
            kg = tl.trans(load_chunk(Kg, block, i, d, KP, DOT, TMA))
            S = S * decay[:, None] + dot(kg, x, DOT, PRECISION)
            if DOT.primitive_bitwidth == 16:
                S += dot(kg, halves(x, DOT)[1], DOT, PRECISION)
        else:
            S = S * decay[:, None]
    store_tile(M, (n * HV + h).to(tl.int64) * KP * KP, d, e, KP, S)


@triton.jit(do_not_specialize=["HV"])
def merge(
    M, E, S, edges,
    states,
    HV,
    KP: tl.constexpr, VP: tl.constexpr, BV: tl.constexpr, BACK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`states` [segments, HV, KP, VP], those before each segment, of the first ones S [N, HV, KP, VP]; with BACK their
    gradients: after each segment, of the last ones S, by M^T."""
    vb, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d, e = tl.arange(0, KP), vb * BV + tl.arange(0, BV)
    first, end = tl.load(edges + n), tl.load(edges + n + 1)
    x = load_tile(S, (n * HV + h).to(tl.int64) * KP * VP, d, e, VP, tl.float32)
    for step in range(0, end - first):
        j = (end - 1 - step if BACK else first + step) * HV + h
        store_tile(states, j.to(tl.int64) * KP * VP, d, e, VP, x)
        m = load_tile(M, j.to(tl.int64) * KP * KP, d, d, KP, tl.float32)
        if BACK:
            m = tl.trans(m)
        x = dot(m, x, tl.float32, PRECISION) + load_tile(E, j.to(tl.int64) * KP * VP, d, e, VP, tl.float32)
