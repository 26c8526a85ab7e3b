"""Triton kernels of both recurrences by chunks of 64 tokens, forward and backward; `fused.py` launches them.

With S the state before a chunk, G the running sums of its gates, D = exp(G_C), and the gates folded into
(a gate per head stays outside the products, so that q and k enter them unrounded)
Qs = scale exp(G) Q, Kd = exp(G) K, Kg = exp(G_C - G) K and the lower triangles P = scale Q.K and B = K.K (decayed):

    X = V - Kd S,   R = (I + beta B)^-1 beta X,   O = Qs S + P R,   S' = D S + Kg^T R       (delta rule)
                    R = V                                                                   (linear attention)

(arXiv:2406.06484, arXiv:2510.26692; linear attention: arXiv:2312.06635). P and B come from doubling blocks as in
`vector.py`: no exponent is above 0 and no row meets a later gate. Chunks stand at fixed places of their sequence, so a
result knows neither its batch nor its future.
"""

import triton
import triton.language as tl

from evalsuite_kernels.chunk_tiles import (
    COUNTS,
    LOG2E,
    C,
    chunk_decay,
    dot,
    head_decays,
    load_chunk,
    load_rows,
    store_rows,
    store_tile,
)


@triton.jit(do_not_specialize=["chunks", "gt", "gh"])
def head_gates(g, G, starts, stops, chunks, gt, gh):
    """G [HV, chunks, C] = the running sums of a gate per head, in units of log 2."""
    c, h = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, C)
    tokens, stop = tl.load(starts + c) + i, tl.load(stops + c)
    x = tl.load(g + tokens.to(tl.int64) * gt + h * gh, mask=tokens < stop, other=0.0)
    x = tl.maximum(x.to(G.dtype.element_ty), -1000.0)  # decays to 0 already; the sums stay finite
    tl.store(G + (h * chunks + c).to(tl.int64) * C + i, tl.cumsum(x * LOG2E, 0))


@triton.jit(do_not_specialize=COUNTS)
def head_products(
    q, k, G, starts, stops,
    P, B,
    scale, chunks, H, HV, K,
    KP: tl.constexpr, BK: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P and B [HV, chunks, C, C] without a gate (GATE 0) or under one per head (GATE 1)."""
    c, h = tl.program_id(0), tl.program_id(1)
    head = h // (HV // H)
    i = tl.arange(0, C)
    start, stop = tl.load(starts + c), tl.load(stops + c)
    valid = start + i < stop
    block = (h * chunks + c).to(tl.int64)
    p = tl.zeros([C, C], tl.float32)
    b = tl.zeros([C, C], tl.float32)
    for kb in range(0, KP, BK):
        d = kb + tl.arange(0, BK)
        x = load_rows(q, start, i, valid, H, head, d, K, DOT)
        y = load_rows(k, start, i, valid, H, head, d, K, DOT)
        p += dot(x, tl.trans(y), DOT, PRECISION)
        if DELTA:
            b += dot(y, tl.trans(y), DOT, PRECISION)
    past = i[:, None] >= i[None, :]
    if GATE == 1:
        here = tl.load(G + block * C + i)
        decay = tl.exp2(tl.where(past, here[:, None] - here[None, :], 0.0).to(tl.float32))
        p *= decay
        b *= decay
    store_tile(P, block * C * C, i, i, C, tl.where(past, p, 0.0) * scale)
    if DELTA:
        store_tile(B, block * C * C, i, i, C, b)


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
def _put(T, base, row, column, x, strength, scaled):
    each = tl.load(strength + 16 * column + tl.arange(0, 16))
    x *= tl.where(scaled > 0, each, 1.0)[None, :]
    tl.store(_block(T, base, row, column), x.to(T.dtype.element_ty))


@triton.jit
def _mul(a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit(do_not_specialize=["chunks", "HV", "scaled"])
def solve(beta, starts, stops, B, each, T, chunks, HV, scaled, PRECISION: tl.constexpr):
    """T = (I + A)^-1, A = beta B below the diagonal, with `scaled` its columns times beta: four blocks of 16 by
    substitution, then their neighbours by products with their inverses. `each` [HV, chunks, C] keeps beta in fp32, 0
    beyond the sequence."""
    c, h = tl.program_id(0), tl.program_id(1)
    block = (h * chunks + c).to(tl.int64)
    base = block * C * C
    j = tl.arange(0, C)
    tokens, stop = tl.load(starts + c) + j, tl.load(stops + c)
    strength = tl.load(beta + tokens.to(tl.int64) * HV + h, mask=tokens < stop, other=0.0).to(tl.float32)
    tl.store(each + block * C + j, strength)
    tl.debug_barrier()
    n, m = tl.arange(0, 4), tl.arange(0, 16)
    eye = tl.where(m[:, None] == m[None, :], 1.0, 0.0)
    t = tl.zeros([4, 16, 16], tl.float32) + eye[None, :, :]
    for row in range(1, 16):
        at = base + (16 * n + row)[:, None] * C + (16 * n)[:, None] + m[None, :]
        a = tl.load(B + at, mask=(m < row)[None, :], other=0.0)
        a *= tl.load(each + block * C + 16 * n + row)[:, None]
        done = tl.sum(a[:, :, None] * t, 1)
        t = tl.where((m == row)[None, :, None], t - done[:, None, :], t)
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
    _put(T, base, 0, 0, t0, beta_, scaled)
    _put(T, base, 1, 1, t1, beta_, scaled)
    _put(T, base, 2, 2, t2, beta_, scaled)
    _put(T, base, 3, 3, t3, beta_, scaled)
    _put(T, base, 1, 0, t10, beta_, scaled)
    _put(T, base, 3, 2, t32, beta_, scaled)
    _put(T, base, 2, 0, (-_mul(t2, y20, PRECISION)), beta_, scaled)
    _put(T, base, 2, 1, (-_mul(t2, y21, PRECISION)), beta_, scaled)
    _put(T, base, 3, 0, (-_mul(t32, y20, PRECISION) - _mul(t3, y30, PRECISION)), beta_, scaled)
    _put(T, base, 3, 1, (-_mul(t32, y21, PRECISION) - _mul(t3, y31, PRECISION)), beta_, scaled)
    above = tl.zeros([16, 16], T.dtype.element_ty)
    tl.store(_block(T, base, 0, 1), above)
    tl.store(_block(T, base, 0, 2), above)
    tl.store(_block(T, base, 0, 3), above)
    tl.store(_block(T, base, 1, 2), above)
    tl.store(_block(T, base, 1, 3), above)
    tl.store(_block(T, base, 2, 3), above)


@triton.jit(do_not_specialize=COUNTS)
def scan(
    q, k, v, each, G, P, T, Qs, Kd, Kg, S0, starts, stops, firsts,
    o, S1, states, X, R,
    scale, chunks, H, HV, K, V,
    KP: tl.constexpr, VP: tl.constexpr, BV: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr,
    KEEP: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Chunk after chunk of one sequence and value head, BV columns of the state: o and the last state.

    With KEEP for the backward pass: each state [HV, chunks, KP, VP] and X and R [HV, chunks, C, VP], and no o.
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
        if GATE == 2:
            ks = load_chunk(Kg, block, i, d, KP, DOT, TMA)
        else:
            ks = load_rows(k, start, i, valid, H, h // (HV // H), d, K, DOT)
            since, until = head_decays(G, block, GATE)
        if DELTA:
            if GATE == 2:
                x = r.to(tl.float32) - dot(load_chunk(Kd, block, i, d, KP, DOT, TMA), before, DOT, PRECISION)
            else:
                x = r.to(tl.float32) - dot(ks, before, DOT, PRECISION) * since[:, None]
            if KEEP:
                store_tile(X, block * C * VP, i, e, VP, x)
            x *= tl.load(each + block * C + i)[:, None]
            r = dot(load_chunk(T, block, i, i, C, DOT, TMA), x, DOT, PRECISION)
        if KEEP:
            store_tile(R, block * C * VP, i, e, VP, r)
        else:
            if GATE == 2:
                y = dot(load_chunk(Qs, block, i, d, KP, DOT, TMA), before, DOT, PRECISION)
            else:
                y = dot(load_rows(q, start, i, valid, H, h // (HV // H), d, K, DOT), before, DOT, PRECISION)
                y *= (since * scale)[:, None]
            y += dot(load_chunk(P, block, i, i, C, DOT, TMA), r, DOT, PRECISION)
            store_rows(o, start, i, valid, HV, h, e, V, y)
        S = S * chunk_decay(G, block, d, KP, GATE)[:, None]
        if GATE < 2:
            r = r.to(tl.float32) * until[:, None]
        S += dot(tl.trans(ks), r, DOT, PRECISION)
    tl.store(S1 + at + d[:, None] * VP + e[None, :], S)
