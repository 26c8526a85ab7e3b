"""Triton kernels of both recurrences by chunks of 64 tokens, forward and backward; `chunk_run.py` launches them.

With S the state before a chunk, G the running sums of its gates, D = exp(G_C), and the gates folded into
(a gate per head stays outside the products, so that q and k enter them unrounded)
Qs = scale exp(G) Q, Kd = exp(G) K, Kg = exp(G_C - G) K and the lower triangles P = scale Q.K and B = K.K (decayed):

    X = V - Kd S,   R = T beta X,   O = Qs S + P R,   S' = D S + Kg^T R       (delta rule, T = (I + beta B)^-1)
                    R = V                                                     (linear attention)

(arXiv:2406.06484, arXiv:2510.26692; linear attention: arXiv:2312.06635). Where keys resemble each other R changes its
sign from token to token, and its rounding would outweigh the sums of it: the delta rule has P T and T^T Kg, whose parts
do not cancel, in the place of P and Kg, and beta X in the place of R. P and B come from doubling blocks as in
`vector.py`: no exponent is above 0 and no row meets a later gate. Chunks stand at fixed places of their sequence, so a
result knows neither its batch nor its future.
"""

import triton
import triton.language as tl

from evalsuite_kernels.activations import log_decay, sigmoid
from evalsuite_kernels.chunk_tiles import (
    COUNTS,
    LOG2E,
    C,
    chunk_decay,
    dot,
    halves,
    halves_dot,
    head_decays,
    lengths,
    load_chunk,
    load_rows,
    load_tile,
    precise_dot,
    store_rows,
    store_tile,
)


@triton.jit
def _lower(i):
    """Where blocks of 16 of a matrix [C, C] are not above the diagonal."""
    return (i[:, None] >> 4) >= (i[None, :] >> 4)


@triton.jit
def _products(
    x, y, start, i, valid, H, head, K, KP: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr
):
    """Products of rows of x and keys of y [C, C]."""
    p = tl.zeros([C, C], tl.float32)
    for kb in range(0, KP, BK):
        d = kb + tl.arange(0, BK)
        row = load_rows(x, start, i, valid, H, head, d, K, DOT)
        p += dot(row, tl.trans(load_rows(y, start, i, valid, H, head, d, K, DOT)), DOT, PRECISION)
    return p


@triton.jit
def _between(here, i):
    """The decays from each token to each later one, 0 to earlier ones, of running sums of a gate per head [C]."""
    past = i[:, None] >= i[None, :]
    return tl.where(past, tl.exp2(tl.where(past, here[:, None] - here[None, :], 0.0).to(tl.float32)), 0.0)


@triton.jit
def unit(q, k, rates, block, start, i, valid, H, head, K, KP: tl.constexpr, BK: tl.constexpr):
    """1 / |q| and 1 / |k| of a chunk's tokens [C], |x| at least 1e-12, kept in `rates` [HV, chunks, 2, C]."""
    of_q = tl.zeros([C], tl.float32)
    of_k = tl.zeros([C], tl.float32)
    for kb in range(0, KP, BK):
        d = kb + tl.arange(0, BK)
        x = load_rows(q, start, i, valid, H, head, d, K, tl.float32)
        y = load_rows(k, start, i, valid, H, head, d, K, tl.float32)
        of_q += tl.sum(x * x, 1)
        of_k += tl.sum(y * y, 1)
    of_q, of_k = 1.0 / tl.maximum(tl.sqrt(of_q), 1e-12), 1.0 / tl.maximum(tl.sqrt(of_k), 1e-12)
    tl.store(rates + block * (2 * C) + i, of_q)
    tl.store(rates + block * (2 * C) + C + i, of_k)
    return of_q, of_k


@triton.jit(do_not_specialize=["gt", "gh", *COUNTS])
def head_products(
    q, k, g, A_log, dt_bias, starts, stops,
    G, P, B, rates,
    scale, gt, gh, chunks, H, HV, K,
    KP: tl.constexpr, BK: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """But under a gate per channel, G [HV, chunks, C], the running sums of a gate per head, in units of log 2, and
    B [HV, chunks, C, C] of the delta rule, whose P `fold` makes, or else P."""
    c, h = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, C)
    start, stop = tl.load(starts + c), tl.load(stops + c)
    valid = start + i < stop
    block = (h * chunks + c).to(tl.int64)
    head = h // (HV // H)
    if GATE == 1:
        step = tl.load(g + (start + i).to(tl.int64) * gt + h * gh, mask=valid, other=0.0)
        if A_log is not None:
            step = step.to(tl.float32)
            if dt_bias is not None:
                step += tl.load(dt_bias + h).to(tl.float32)
            step = log_decay(step, A_log, h, valid)
        step = tl.maximum(step.to(G.dtype.element_ty), -1000.0)  # decays to 0 already; the sums stay finite
        here = tl.cumsum(step * LOG2E, 0)
        tl.store(G + block * C + i, here)
        decay = _between(here, i)
    else:
        decay = tl.where(i[:, None] >= i[None, :], 1.0, 0.0)
    if DELTA:
        b = _products(k, k, start, i, valid, H, head, K, KP, BK, DOT, PRECISION) * decay
        if rates is not None:
            of_q, of_k = unit(q, k, rates, block, start, i, valid, H, head, K, KP, BK)
            b *= of_k[:, None] * of_k[None, :]
        tl.store(B + block * C * C + i[:, None] * C + i[None, :], b, mask=_lower(i))
    else:
        p = _products(q, k, start, i, valid, H, head, K, KP, BK, DOT, PRECISION) * decay
        store_tile(P, block * C * C, i, i, C, p * scale)


@triton.jit
def _block(pointer, base, row, column):
    """Pointers to a block [16, 16] of a matrix [C, C]."""
    i = tl.arange(0, 16)
    return pointer + base + (16 * row + i)[:, None] * C + 16 * column + i[None, :]


@triton.jit
def _corner(A, strength, base, row, column):
    i = tl.arange(0, 16)
    each = tl.load(strength + 16 * row + i)
    return tl.load(_block(A, base, row, column)) * each[:, None]


@triton.jit
def _put(T, base, row, column, x):
    tl.store(_block(T, base, row, column), x.to(T.dtype.element_ty))


@triton.jit
def _mul(a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _rows(B, strength, base, block, row):
    """One row below the diagonal of each of four blocks of 16 of A = beta B."""
    n, m = tl.arange(0, 4), tl.arange(0, 16)
    at = base + (16 * n + row)[:, None] * C + (16 * n)[:, None] + m[None, :]
    return tl.load(B + at, mask=(m < row)[None, :], other=0.0) * tl.load(strength + block * C + 16 * n + row)[:, None]


@triton.jit(do_not_specialize=["chunks", "HV"])
def solve(beta, starts, stops, B, each, T, beta_max, chunks, HV, SIGMOID: tl.constexpr, PRECISION: tl.constexpr):
    """T = (I + A)^-1, A = beta B below the diagonal: four blocks of 16 by substitution, then their neighbours by
    products with their inverses; no others are written. `each` [HV, chunks, C] keeps beta in fp32, 0 beyond the
    sequence."""
    c, h = tl.program_id(0), tl.program_id(1)
    block = (h * chunks + c).to(tl.int64)
    base = block * C * C
    j = tl.arange(0, C)
    tokens, stop = tl.load(starts + c) + j, tl.load(stops + c)
    strength = tl.load(beta + tokens.to(tl.int64) * HV + h, mask=tokens < stop, other=0.0).to(tl.float32)
    if SIGMOID:
        strength = tl.where(tokens < stop, beta_max * sigmoid(strength), 0.0)
    tl.store(each + block * C + j, strength)
    tl.debug_barrier()
    n, m = tl.arange(0, 4), tl.arange(0, 16)
    eye = tl.where(m[:, None] == m[None, :], 1.0, 0.0)
    t = tl.zeros([4, 16, 16], tl.float32) + eye[None, :, :]
    a = _rows(B, each, base, block, 1)
    for row in range(1, 16):
        following = _rows(B, each, base, block, tl.minimum(row + 1, 15))  # it takes as long as the rest of a step
        done = tl.sum(a[:, :, None] * t, 1)
        t = tl.where((m == row)[None, :, None], t - done[:, None, :], t)
        a = following
    t0 = tl.sum(tl.where((n == 0)[:, None, None], t, 0.0), 0)
    t1 = tl.sum(tl.where((n == 1)[:, None, None], t, 0.0), 0)
    t2 = tl.sum(tl.where((n == 2)[:, None, None], t, 0.0), 0)
    t3 = tl.sum(tl.where((n == 3)[:, None, None], t, 0.0), 0)
    beta_ = each + block * C
    t10 = -_mul(t1, _mul(_corner(B, beta_, base, 1, 0), t0, PRECISION), PRECISION)
    t32 = -_mul(t3, _mul(_corner(B, beta_, base, 3, 2), t2, PRECISION), PRECISION)
    a21, a31 = _corner(B, beta_, base, 2, 1), _corner(B, beta_, base, 3, 1)
    y20 = _mul(_corner(B, beta_, base, 2, 0), t0, PRECISION) + _mul(a21, t10, PRECISION)
    y30 = _mul(_corner(B, beta_, base, 3, 0), t0, PRECISION) + _mul(a31, t10, PRECISION)
    y21, y31 = _mul(a21, t1, PRECISION), _mul(a31, t1, PRECISION)
    _put(T, base, 0, 0, t0)
    _put(T, base, 1, 1, t1)
    _put(T, base, 2, 2, t2)
    _put(T, base, 3, 3, t3)
    _put(T, base, 1, 0, t10)
    _put(T, base, 3, 2, t32)
    _put(T, base, 2, 0, -_mul(t2, y20, PRECISION))
    _put(T, base, 2, 1, -_mul(t2, y21, PRECISION))
    _put(T, base, 3, 0, -_mul(t32, y20, PRECISION) - _mul(t3, y30, PRECISION))
    _put(T, base, 3, 1, -_mul(t32, y21, PRECISION) - _mul(t3, y31, PRECISION))


@triton.jit(do_not_specialize=[*COUNTS, "keep"])
def fold(
    q, k, G, P, T, Kg, rates, starts, stops,
    PT, KT, rest,
    scale, keep, chunks, H, HV, K,
    KP: tl.constexpr, BK: tl.constexpr, GATE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P T and T^T Kg; with `keep` also `rest`, what rounding takes from the latter. P and Kg are given under a gate per
    channel alone."""
    c, h = tl.program_id(0), tl.program_id(1)
    head = h // (HV // H)
    i = tl.arange(0, C)
    start, stop = tl.load(starts + c), tl.load(stops + c)
    valid = start + i < stop
    block = (h * chunks + c).to(tl.int64)
    square = block * C * C + i[:, None] * C + i[None, :]
    t = tl.load(T + square, mask=_lower(i), other=0.0)
    if GATE == 2:
        p = tl.load(P + square, mask=_lower(i), other=0.0)
    else:
        p = _products(q, k, start, i, valid, H, head, K, KP, BK, DOT, PRECISION) * scale
        if GATE == 1:
            p *= _between(tl.load(G + block * C + i), i)
        else:
            p = tl.where(i[:, None] >= i[None, :], p, 0.0)
        of_q, of_k = lengths(rates, block)
        p *= of_q[:, None] * of_k[None, :]
    store_tile(PT, block * C * C, i, i, C, precise_dot(p, t, DOT, PRECISION))
    if GATE == 1:
        t *= head_decays(G, block, GATE)[1][:, None]
    for kb in range(0, KP, BK):
        d = kb + tl.arange(0, BK)
        if GATE == 2:
            key = precise_dot(tl.trans(t), load_tile(Kg, block * C * KP, i, d, KP, tl.float32), DOT, PRECISION)
        elif rates is not None:
            key = load_rows(k, start, i, valid, H, head, d, K, tl.float32) * of_k[:, None]
            key = precise_dot(tl.trans(t), key, DOT, PRECISION)
        else:
            key = halves_dot(tl.trans(t), load_rows(k, start, i, valid, H, head, d, K, DOT), DOT, PRECISION)
        store_tile(KT, block * C * KP, i, d, KP, key)
        if keep > 0:
            store_tile(rest, block * C * KP, i, d, KP, key - key.to(DOT).to(tl.float32))


@triton.jit(do_not_specialize=COUNTS)
def scan(
    q, k, v, each, G, P, Qs, Kd, Kg, rates, S0, starts, stops, firsts,
    o, S1, states, X,
    scale, chunks, H, HV, K, V,
    KP: tl.constexpr, VP: tl.constexpr, BV: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr,
    KEEP: tl.constexpr, TMA: tl.constexpr, EXACT: tl.constexpr, STAGES: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Chunk after chunk of one sequence and value head, BV columns of the state: o and the last state.

    With KEEP for the backward pass: each state [HV, chunks, KP, VP] and X [HV, chunks, C, VP], and no o. P and Kg are
    `fold`'s for the delta rule. EXACT: what half precision takes from the states' operands is added.
    """
    vb, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i, d, e = tl.arange(0, C), tl.arange(0, KP), vb * BV + tl.arange(0, BV)
    at = (n * HV + h).to(tl.int64) * KP * VP
    S = tl.load(S0 + at + d[:, None] * VP + e[None, :])
    for c in tl.range(tl.load(firsts + n), tl.load(firsts + n + 1), num_stages=STAGES):
        block = (h * chunks + c).to(tl.int64)
        start, stop = tl.load(starts + c), tl.load(stops + c)
        valid = start + i < stop
        r = load_rows(v, start, i, valid, HV, h, e, V, DOT)
        before = S.to(DOT)
        if KEEP:
            store_tile(states, block * KP * VP, d, e, VP, S)
        if GATE < 2:
            ks = load_rows(k, start, i, valid, H, h // (HV // H), d, K, DOT)
            since, until = head_decays(G, block, GATE)
            of_q, of_k = lengths(rates, block)
        if DELTA:
            if GATE == 2:
                x = r.to(tl.float32) - dot(load_chunk(Kd, block, i, d, KP, DOT, TMA), before, DOT, PRECISION)
            else:
                x = r.to(tl.float32) - dot(ks, before, DOT, PRECISION) * (since * of_k)[:, None]
            if KEEP:
                store_tile(X, block * C * VP, i, e, VP, x)
            x *= tl.load(each + block * C + i)[:, None]
            r = x.to(DOT)
        if not KEEP:
            if GATE == 2:
                y = dot(load_chunk(Qs, block, i, d, KP, DOT, TMA), before, DOT, PRECISION)
            else:
                y = dot(load_rows(q, start, i, valid, H, h // (HV // H), d, K, DOT), before, DOT, PRECISION)
                y *= (since * of_q * scale)[:, None]
            y += dot(load_chunk(P, block, i, i, C, DOT, TMA), r, DOT, PRECISION)
            store_rows(o, start, i, valid, HV, h, e, V, y)
        S = S * chunk_decay(G, block, d, KP, GATE)[:, None]
        if DELTA or GATE == 2:
            kg = tl.trans(load_chunk(Kg, block, i, d, KP, DOT, TMA))
            S += dot(kg, r, DOT, PRECISION)
            if DELTA and EXACT:
                S += dot(kg, halves(x, DOT)[1], DOT, PRECISION)
        else:
            late = r.to(tl.float32) * until[:, None]
            S += dot(tl.trans(ks), late, DOT, PRECISION)
            if EXACT:
                S += dot(tl.trans(ks), halves(late, DOT)[1], DOT, PRECISION)
    tl.store(S1 + at + d[:, None] * VP + e[None, :], S)
