"""The scans of `chunk_kernels.py` and `chunk_gradients.py` for heads whose tiles do not fit into shared memory, under
a gate per channel and for the delta rule: the state stays in memory, and is read and written by blocks of channels."""

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
    load_rows,
    load_tile,
    store_rows,
    store_tile,
)


@triton.jit
def _inputs(x, decayed, block, start, i, valid, H, head, d, K, KP: tl.constexpr, GATE: tl.constexpr, DOT: tl.constexpr):
    """q or k as they meet the state: decayed under a gate per channel, as they were given without one."""
    if GATE == 2:
        return load_tile(decayed, block * C * KP, i, d, KP, DOT)
    else:
        return load_rows(x, start, i, valid, H, head, d, K, DOT)


@triton.jit(do_not_specialize=COUNTS)
def scan(
    q, k, v, each, G, P, Qs, Kd, Kg, rates, S0, starts, stops, firsts,
    o, S1, states, X,
    scale, chunks, H, HV, K, V,
    KP: tl.constexpr, BK: tl.constexpr, VP: tl.constexpr, BV: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr,
    KEEP: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """S1 holds the state from the first chunk on."""
    vb, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = h // (HV // H)
    i, e = tl.arange(0, C), vb * BV + tl.arange(0, BV)
    at = (n * HV + h).to(tl.int64) * KP * VP
    for kb in range(0, KP, BK):
        d = kb + tl.arange(0, BK)
        store_tile(S1, at, d, e, VP, load_tile(S0, at, d, e, VP, tl.float32))
    for c in range(tl.load(firsts + n), tl.load(firsts + n + 1)):
        block = (h * chunks + c).to(tl.int64)
        start, stop = tl.load(starts + c), tl.load(stops + c)
        valid = start + i < stop
        read = tl.zeros([C, BV], tl.float32)
        y = tl.zeros([C, BV], tl.float32)
        tl.debug_barrier()
        for kb in range(0, KP, BK):
            d = kb + tl.arange(0, BK)
            S = load_tile(S1, at, d, e, VP, tl.float32)
            if KEEP:
                store_tile(states, block * KP * VP, d, e, VP, S)
            else:
                y += dot(_inputs(q, Qs, block, start, i, valid, H, head, d, K, KP, GATE, DOT), S, DOT, PRECISION)
            if DELTA:
                read += dot(_inputs(k, Kd, block, start, i, valid, H, head, d, K, KP, GATE, DOT), S, DOT, PRECISION)
        r = load_rows(v, start, i, valid, HV, h, e, V, tl.float32)
        if GATE < 2:
            since, until = head_decays(G, block, GATE)
            of_q, of_k = lengths(rates, block)
            read *= (since * of_k)[:, None]
            y *= (since * of_q * scale)[:, None]
        if DELTA:
            r -= read
            if KEEP:
                store_tile(X, block * C * VP, i, e, VP, r)
            r *= tl.load(each + block * C + i)[:, None]
        if not KEEP:
            y += dot(load_tile(P, block * C * C, i, i, C, DOT), r, DOT, PRECISION)
            store_rows(o, start, i, valid, HV, h, e, V, y)
        tl.debug_barrier()
        for kb in range(0, KP, BK):
            d = kb + tl.arange(0, BK)
            S = load_tile(S1, at, d, e, VP, tl.float32) * chunk_decay(G, block, d, KP, GATE)[:, None]
            S += dot(tl.trans(load_tile(Kg, block * C * KP, i, d, KP, DOT)), r, DOT, PRECISION)
            store_tile(S1, at, d, e, VP, S)


@triton.jit(do_not_specialize=COUNTS)
def scan_back(
    q, k, d_o, each, G, P, Qs, Kd, Kg, rest, rates, d_S1, starts, stops, firsts,
    d_v, d_S0, d_states, W,
    scale, chunks, H, HV, K, V,
    KP: tl.constexpr, BK: tl.constexpr, VP: tl.constexpr, BV: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """d_S0 holds the gradient of the state from the last chunk on."""
    vb, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = h // (HV // H)
    i, e = tl.arange(0, C), vb * BV + tl.arange(0, BV)
    at = (n * HV + h).to(tl.int64) * KP * VP
    for kb in range(0, KP, BK):
        d = kb + tl.arange(0, BK)
        store_tile(d_S0, at, d, e, VP, load_tile(d_S1, at, d, e, VP, tl.float32))
    first, end = tl.load(firsts + n), tl.load(firsts + n + 1)
    for step in range(0, end - first):
        c = end - 1 - step
        block = (h * chunks + c).to(tl.int64)
        start, stop = tl.load(starts + c), tl.load(stops + c)
        valid = start + i < stop
        dy = load_rows(d_o, start, i, valid, HV, h, e, V, tl.float32)
        dr = dot(tl.trans(load_tile(P, block * C * C, i, i, C, DOT)), dy, DOT, PRECISION)
        tl.debug_barrier()
        for kb in range(0, KP, BK):
            d = kb + tl.arange(0, BK)
            dS = load_tile(d_S0, at, d, e, VP, tl.float32)
            store_tile(d_states, block * KP * VP, d, e, VP, dS)
            kg = load_tile(Kg, block * C * KP, i, d, KP, DOT)
            dr += dot(kg, dS, DOT, PRECISION)
            if rest is not None:
                dr += dot(kg, halves(dS, DOT)[1], DOT, PRECISION)
                dr += dot(load_tile(rest, block * C * KP, i, d, KP, DOT), dS, DOT, PRECISION)
        taken = dr
        if DELTA:
            store_tile(W, block * C * VP, i, e, VP, dr)
            dr *= tl.load(each + block * C + i)[:, None]
            taken = dr
        if GATE < 2:
            since, until = head_decays(G, block, GATE)
            taken = dr * since[:, None]
            dy *= (since * scale)[:, None]
        of_q, of_k = lengths(rates, block)
        store_rows(d_v, start, i, valid, HV, h, e, V, dr)
        tl.debug_barrier()
        for kb in range(0, KP, BK):
            d = kb + tl.arange(0, BK)
            dS = load_tile(d_S0, at, d, e, VP, tl.float32) * chunk_decay(G, block, d, KP, GATE)[:, None]
            qs = _inputs(q, Qs, block, start, i, valid, H, head, d, K, KP, GATE, DOT)
            if GATE < 2 and rates is not None:
                qs = qs.to(tl.float32) * of_q[:, None]
            dS += dot(tl.trans(qs), dy, DOT, PRECISION)
            if DELTA:
                kd = _inputs(k, Kd, block, start, i, valid, H, head, d, K, KP, GATE, DOT)
                if GATE < 2 and rates is not None:
                    kd = kd.to(tl.float32) * of_k[:, None]
                kd = tl.trans(kd)
                dS -= dot(kd, taken, DOT, PRECISION)
                if rest is not None:
                    dS -= dot(kd, halves(taken, DOT)[1], DOT, PRECISION)
            store_tile(d_S0, at, d, e, VP, dS)
