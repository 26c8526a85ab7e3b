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

C = tl.constexpr(64)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _dot(a, b, DOT: tl.constexpr, PRECISION: tl.constexpr):
    return tl.dot(a.to(DOT), b.to(DOT), input_precision=PRECISION)


@triton.jit
def _rows(pointer, start, i, valid, heads, head, columns, width, DOT: tl.constexpr):
    """[tokens, heads, width] -> the tokens start + i of one head, zeros outside, as DOT."""
    at = i[:, None] * (heads * width) + columns[None, :]  # 32 bits inside a chunk, 64 only to its start
    base = pointer + (start.to(tl.int64) * heads + head) * width
    return tl.load(base + at, mask=valid[:, None] & (columns < width)[None, :], other=0.0).to(DOT)


@triton.jit
def _put(pointer, start, i, valid, heads, head, columns, width, x):
    """Store what `_rows` loads."""
    at = i[:, None] * (heads * width) + columns[None, :]
    base = pointer + (start.to(tl.int64) * heads + head) * width
    tl.store(base + at, x.to(pointer.dtype.element_ty), mask=valid[:, None] & (columns < width)[None, :])


@triton.jit
def _tile(pointer, base, rows, columns, width: tl.constexpr, DOT: tl.constexpr):
    """A tile of the buffer [..., rows, width], whose blocks start at `base`."""
    return tl.load(pointer + base + rows[:, None] * width + columns[None, :]).to(DOT)


@triton.jit
def _keep(pointer, base, rows, columns, width: tl.constexpr, x):
    tl.store(pointer + base + rows[:, None] * width + columns[None, :], x.to(pointer.dtype.element_ty))


@triton.jit
def head_gates(g, G, starts, stops, chunks, gt, gh):
    """G [HV, chunks, C] = the running sums of a gate per head, in units of log 2."""
    c, h = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, C)
    tokens, stop = tl.load(starts + c) + i, tl.load(stops + c)
    x = tl.load(g + tokens.to(tl.int64) * gt + h * gh, mask=tokens < stop, other=0.0)
    x = tl.maximum(x.to(G.dtype.element_ty), -1000.0)  # decays to 0 already; the sums stay finite
    tl.store(G + (h * chunks + c).to(tl.int64) * C + i, tl.cumsum(x * LOG2E, 0))


@triton.jit
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
        step = _rows(g, start, i, valid, HV, h, d, K, G.dtype.element_ty)
        step = tl.maximum(step, -1000.0) * LOG2E  # decays to 0 already; the sums stay finite
        here, last = tl.cumsum(step, 0), tl.sum(step, 0)
        x = _rows(q, start, i, valid, H, head, d, K, DOT).to(tl.float32) * scale
        y = _rows(k, start, i, valid, H, head, d, K, DOT).to(tl.float32)
        eye += tl.sum(x * y, 1)
        since = tl.exp2(here.to(tl.float32))
        until = tl.exp2(tl.minimum(last[None, :] - here, 0.0).to(tl.float32))
        base = block * C * KP
        tl.store(G + base + i[:, None] * KP + d[None, :], here)
        _keep(Qs, base, i, d, KP, x * since)
        if DELTA:
            _keep(Kd, base, i, d, KP, y * since)
        _keep(Kg, base, i, d, KP, y * until)
    to = P + block * C * C + i[:, None] * C + i[None, :]
    value = tl.where(i[:, None] == i[None, :], eye[:, None], 0.0)
    tl.store(to, value.to(P.dtype.element_ty), mask=i[:, None] <= i[None, :])


@triton.jit
def channel_products(
    q, k, G, starts, stops,
    P, B,
    scale, chunks, H, HV, K,
    KP: tl.constexpr, BK: tl.constexpr, DELTA: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P and B below the diagonal under a gate per channel: level by level, the rows of odd blocks of 2^level tokens
    meet the keys of the block before them at the boundary between the two."""
    c, h = tl.program_id(0), tl.program_id(1)
    head = h // (HV // H)
    start, stop = tl.load(starts + c), tl.load(stops + c)
    block = (h * chunks + c).to(tl.int64)
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
            base = block * C * KP
            border = _gates(G, base, boundary, d, KP)
            since = tl.exp2((_gates(G, base, late, d, KP) - border).to(tl.float32))
            until = tl.exp2((border - _gates(G, base, early, d, KP)).to(tl.float32))
            key = _rows(k, start, early, start + early < stop, H, head, d, K, DOT).to(tl.float32) * until
            key = tl.trans(key.to(DOT))
            valid = start + late < stop
            x = _rows(q, start, late, valid, H, head, d, K, DOT).to(tl.float32) * since
            p += _dot(x, key, DOT, PRECISION)
            if DELTA:
                y = _rows(k, start, late, valid, H, head, d, K, DOT).to(tl.float32) * since
                b += _dot(y, key, DOT, PRECISION)
        to = block * C * C + late[:, None] * C + early[None, :]
        meet = pair[:, None] == pair[None, :]
        tl.store(P + to, (p * scale).to(P.dtype.element_ty), mask=meet)
        if DELTA:
            tl.store(B + to, b, mask=meet)


@triton.jit
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
        x = _rows(q, start, i, valid, H, head, d, K, DOT)
        y = _rows(k, start, i, valid, H, head, d, K, DOT)
        p += _dot(x, tl.trans(y), DOT, PRECISION)
        if DELTA:
            b += _dot(y, tl.trans(y), DOT, PRECISION)
    past = i[:, None] >= i[None, :]
    if GATE == 1:
        here = tl.load(G + block * C + i)
        decay = tl.exp2(tl.where(past, here[:, None] - here[None, :], 0.0).to(tl.float32))
        p *= decay
        b *= decay
    _keep(P, block * C * C, i, i, C, tl.where(past, p, 0.0) * scale)
    if DELTA:
        _keep(B, block * C * C, i, i, C, b)


@triton.jit
def _gates(G, base, rows, columns, width: tl.constexpr):
    return tl.load(G + base + rows[:, None] * width + columns[None, :])


@triton.jit
def _decays(G, base, here, level, columns, width: tl.constexpr):
    """A level's decays: rows of odd blocks from the boundary before them, columns of even blocks to the one after."""
    boundary = (((tl.arange(0, C) >> level) | 1) << level) - 1
    return tl.exp2(-tl.abs((here - _gates(G, base, boundary, columns, width)).to(tl.float32)))


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
def _mul(a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def solve(beta, starts, stops, B, each, T, chunks, HV, PRECISION: tl.constexpr):
    """T = (I + A)^-1, A = beta B below the diagonal: four blocks of 16 by substitution, then their neighbours by
    products with their inverses. `each` [HV, chunks, C] keeps beta in fp32, 0 beyond the sequence."""
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
    kind = T.dtype.element_ty
    tl.store(_block(T, base, 0, 0), t0.to(kind))
    tl.store(_block(T, base, 1, 1), t1.to(kind))
    tl.store(_block(T, base, 2, 2), t2.to(kind))
    tl.store(_block(T, base, 3, 3), t3.to(kind))
    tl.store(_block(T, base, 1, 0), t10.to(kind))
    tl.store(_block(T, base, 3, 2), t32.to(kind))
    tl.store(_block(T, base, 2, 0), (-_mul(t2, y20, PRECISION)).to(kind))
    tl.store(_block(T, base, 2, 1), (-_mul(t2, y21, PRECISION)).to(kind))
    tl.store(_block(T, base, 3, 0), (-_mul(t32, y20, PRECISION) - _mul(t3, y30, PRECISION)).to(kind))
    tl.store(_block(T, base, 3, 1), (-_mul(t32, y21, PRECISION) - _mul(t3, y31, PRECISION)).to(kind))
    above = tl.zeros([16, 16], kind)
    tl.store(_block(T, base, 0, 1), above)
    tl.store(_block(T, base, 0, 2), above)
    tl.store(_block(T, base, 0, 3), above)
    tl.store(_block(T, base, 1, 2), above)
    tl.store(_block(T, base, 1, 3), above)
    tl.store(_block(T, base, 2, 3), above)


@triton.jit
def _whole(G, block, d, KP: tl.constexpr, GATE: tl.constexpr):
    """The decay of a whole chunk for the channels d."""
    if GATE == 2:
        return tl.exp2(tl.load(G + block * C * KP + (C - 1) * KP + d).to(tl.float32))
    if GATE == 1:
        return tl.exp2(tl.load(G + block * C + C - 1 + 0 * d).to(tl.float32))
    return tl.full([KP], 1.0, tl.float32)


@triton.jit
def _head_decays(G, block, GATE: tl.constexpr):
    """Of a gate per head [C]: decays from the chunk's start to each token, and from each token to the chunk's end."""
    i = tl.arange(0, C)
    if GATE == 1:
        here = tl.load(G + block * C + i)
        last = tl.load(G + block * C + C - 1)
        return tl.exp2(here.to(tl.float32)), tl.exp2((last - here).to(tl.float32))
    one = tl.full([C], 1.0, tl.float32)
    return one, one


@triton.jit
def scan(
    q, k, v, each, G, P, T, Qs, Kd, Kg, S0, starts, stops, firsts,
    o, S1, states, X, R,
    scale, chunks, H, HV, K, V,
    KP: tl.constexpr, VP: tl.constexpr, BV: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr,
    KEEP: tl.constexpr, STAGES: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
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
        r = _rows(v, start, i, valid, HV, h, e, V, DOT)
        before = S.to(DOT)
        if KEEP:
            _keep(states, block * KP * VP, d, e, VP, S)
        if GATE == 2:
            ks = _tile(Kg, block * C * KP, i, d, KP, DOT)
        else:
            ks = _rows(k, start, i, valid, H, h // (HV // H), d, K, DOT)
            since, until = _head_decays(G, block, GATE)
        if DELTA:
            if GATE == 2:
                x = r.to(tl.float32) - _dot(_tile(Kd, block * C * KP, i, d, KP, DOT), before, DOT, PRECISION)
            else:
                x = r.to(tl.float32) - _dot(ks, before, DOT, PRECISION) * since[:, None]
            if KEEP:
                _keep(X, block * C * VP, i, e, VP, x)
            x *= tl.load(each + block * C + i)[:, None]
            r = _dot(_tile(T, block * C * C, i, i, C, DOT), x, DOT, PRECISION)
        if KEEP:
            _keep(R, block * C * VP, i, e, VP, r)
        else:
            if GATE == 2:
                y = _dot(_tile(Qs, block * C * KP, i, d, KP, DOT), before, DOT, PRECISION)
            else:
                y = _dot(_rows(q, start, i, valid, H, h // (HV // H), d, K, DOT), before, DOT, PRECISION)
                y *= (since * scale)[:, None]
            y += _dot(_tile(P, block * C * C, i, i, C, DOT), r, DOT, PRECISION)
            _put(o, start, i, valid, HV, h, e, V, y)
        S = S * _whole(G, block, d, KP, GATE)[:, None]
        if GATE < 2:
            r = r.to(tl.float32) * until[:, None]
        S += _dot(tl.trans(ks), r, DOT, PRECISION)
    tl.store(S1 + at + d[:, None] * VP + e[None, :], S)


@triton.jit
def scan_back(
    q, k, d_o, each, G, P, T, Qs, Kd, Kg, d_S1, starts, stops, firsts,
    d_v, d_S0, d_states, d_R,
    scale, chunks, H, HV, K, V,
    KP: tl.constexpr, VP: tl.constexpr, BV: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr,
    STAGES: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of v [tokens, HV, V], of R [HV, chunks, C, VP], of each chunk's last state [HV, chunks, KP, VP] and
    of the first, from the last chunk to the first."""
    vb, h, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i, d, e = tl.arange(0, C), tl.arange(0, KP), vb * BV + tl.arange(0, BV)
    at = (n * HV + h).to(tl.int64) * KP * VP
    dS = tl.load(d_S1 + at + d[:, None] * VP + e[None, :])
    first, end = tl.load(firsts + n), tl.load(firsts + n + 1)
    for step in tl.range(0, end - first, num_stages=STAGES):
        c = end - 1 - step
        block = (h * chunks + c).to(tl.int64)
        start, stop = tl.load(starts + c), tl.load(stops + c)
        valid = start + i < stop
        _keep(d_states, block * KP * VP, d, e, VP, dS)
        dy = _rows(d_o, start, i, valid, HV, h, e, V, DOT).to(DOT)
        dr = _dot(tl.trans(_tile(P, block * C * C, i, i, C, DOT)), dy, DOT, PRECISION)
        if GATE == 2:
            dr += _dot(_tile(Kg, block * C * KP, i, d, KP, DOT), dS, DOT, PRECISION)
            qs = _tile(Qs, block * C * KP, i, d, KP, DOT)
        else:
            qs = _rows(q, start, i, valid, H, h // (HV // H), d, K, DOT)
            ks = _rows(k, start, i, valid, H, h // (HV // H), d, K, DOT)
            since, until = _head_decays(G, block, GATE)
            dr += _dot(ks, dS, DOT, PRECISION) * until[:, None]
            dy = dy.to(tl.float32) * (since * scale)[:, None]
        dS = dS * _whole(G, block, d, KP, GATE)[:, None]
        dS += _dot(tl.trans(qs), dy, DOT, PRECISION)
        if DELTA:
            _keep(d_R, block * C * VP, i, e, VP, dr)
            dr = _dot(tl.trans(_tile(T, block * C * C, i, i, C, DOT)), dr, DOT, PRECISION)
            dr *= tl.load(each + block * C + i)[:, None]
            if GATE == 2:
                dS -= _dot(tl.trans(_tile(Kd, block * C * KP, i, d, KP, DOT)), dr, DOT, PRECISION)
            else:
                dS -= _dot(tl.trans(ks), dr * since[:, None], DOT, PRECISION)
        _put(d_v, start, i, valid, HV, h, e, V, dr)
    tl.store(d_S0 + at + d[:, None] * VP + e[None, :], dS)


@triton.jit
def inside_back(
    q, k, each, G, d_o, d_v, B, T, states, d_states, X, R, d_R, starts, stops,
    d_q, d_k, d_g, d_beta,
    scale, chunks, H, HV, K, V,
    KP: tl.constexpr, BK: tl.constexpr, VP: tl.constexpr, BV: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a chunk's q, k, g and beta are owed, per value head: d_q, d_k [tokens, HV, K], d_g and d_beta."""
    c, h = tl.program_id(0), tl.program_id(1)
    head = h // (HV // H)
    i = tl.arange(0, C)
    start, stop = tl.load(starts + c), tl.load(stops + c)
    valid = start + i < stop
    block = (h * chunks + c).to(tl.int64)
    dp = tl.zeros([C, C], tl.float32)
    da = tl.zeros([C, C], tl.float32)
    db = tl.zeros([C], tl.float32)
    strength = tl.zeros([C], tl.float32)
    if DELTA:
        strength += tl.load(each + block * C + i)
        t = _tile(T, block * C * C, i, i, C, DOT)
    for vb in range(0, VP, BV):
        e = vb + tl.arange(0, BV)
        dy = _rows(d_o, start, i, valid, HV, h, e, V, DOT)
        dp += _dot(dy, tl.trans(_tile(R, block * C * VP, i, e, VP, DOT)), DOT, PRECISION)
        if DELTA:
            x, dr = _tile(X, block * C * VP, i, e, VP, DOT).to(tl.float32), _tile(d_R, block * C * VP, i, e, VP, DOT)
            da += _dot(dr, tl.trans(x * strength[:, None]), DOT, PRECISION)
            db += tl.sum(_dot(tl.trans(t), dr, DOT, PRECISION) * x, 1)
    dp = tl.where(i[:, None] >= i[None, :], dp, 0.0)
    if DELTA:  # T = (I + A)^-1
        da = _dot(_dot(tl.trans(t), da, DOT, PRECISION), tl.trans(t), DOT, PRECISION)
        da = tl.where(i[:, None] > i[None, :], -da, 0.0)
        below = i[:, None] > i[None, :]
        db += tl.sum(da * tl.load(B + block * C * C + i[:, None] * C + i[None, :], mask=below, other=0.0), 1)
        da *= strength[:, None]  # of B
    dps, das = dp + tl.trans(dp), da + tl.trans(da)
    along = tl.zeros([C], tl.float32)  # of a gate per head
    for kb in range(0, KP, BK):
        d = kb + tl.arange(0, BK)
        x = _rows(q, start, i, valid, H, head, d, K, DOT).to(tl.float32) * scale
        y = _rows(k, start, i, valid, H, head, d, K, DOT).to(tl.float32)
        dx = tl.zeros([C, BK], tl.float32)  # of Qs, then of q
        dk = tl.zeros([C, BK], tl.float32)  # of Kd, then of k
        late = tl.zeros([C, BK], tl.float32)  # of Kg
        dD = tl.zeros([BK], tl.float32)
        for vb in range(0, VP, BV):
            e = vb + tl.arange(0, BV)
            S = _tile(states, block * KP * VP, d, e, VP, DOT)
            dS = _tile(d_states, block * KP * VP, d, e, VP, DOT)
            dx += _dot(_rows(d_o, start, i, valid, HV, h, e, V, DOT), tl.trans(S), DOT, PRECISION)
            late += _dot(_tile(R, block * C * VP, i, e, VP, DOT), tl.trans(dS), DOT, PRECISION)
            if DELTA:
                dk -= _dot(_rows(d_v, start, i, valid, HV, h, e, V, DOT), tl.trans(S), DOT, PRECISION)
            dD += tl.sum(S.to(tl.float32) * dS.to(tl.float32), 1)
        if GATE == 2:
            base = block * C * KP
            here = _gates(G, base, i, d, KP)
            last = tl.load(G + base + (C - 1) * KP + d)
            since, until = tl.exp2(here.to(tl.float32)), tl.exp2((last[None, :] - here).to(tl.float32))
            dx *= since
            dk *= since
            late *= until
            dG = x * dx + y * dk - y * late
            end = tl.sum(y * late, 0) + dD * tl.exp2(last.to(tl.float32))
            dG += tl.where(i[:, None] == C - 1, end[None, :], 0.0)
            dk += late
            eye = tl.sum(tl.where(i[:, None] == i[None, :], dp, 0.0), 1)
            dx += eye[:, None] * y
            dk += eye[:, None] * x
            for level in range(6):  # every token is a row or a column here: one factor, and symmetric products
                f, block_of = _decays(G, base, here, level, d, KP), i >> level
                meet = (block_of[:, None] ^ 1) == block_of[None, :]
                row = ((block_of & 1) == 1)[:, None]
                add = _dot(tl.where(meet, dps, 0.0), tl.where(row, x, y) * f, DOT, PRECISION) * f
                dx += tl.where(row, add, 0.0)
                dk += tl.where(row, 0.0, add)
                dG += tl.where(row, x, -y) * add
                if DELTA:
                    add = _dot(tl.where(meet, das, 0.0), y * f, DOT, PRECISION) * f
                    dk += add
                    dG += tl.where(row, y, -y) * add
            _put(d_g, start, i, valid, HV, h, d, K, tl.cumsum(dG, 0, reverse=True))
        else:
            decay = tl.where(i[:, None] >= i[None, :], 1.0, 0.0)
            if GATE == 1:
                here = tl.load(G + block * C + i)
                last = tl.load(G + block * C + C - 1)
                since, until = tl.exp2(here.to(tl.float32)), tl.exp2((last - here).to(tl.float32))
                decay *= tl.exp2(tl.where(decay > 0, here[:, None] - here[None, :], 0.0).to(tl.float32))
                dx *= since[:, None]
                dk *= since[:, None]
                late *= until[:, None]
                along += tl.sum(x * dx + y * dk - y * late, 1)
                end = tl.sum(y * late) + tl.sum(dD) * tl.exp2(last.to(tl.float32))
                along += tl.where(i == C - 1, end, 0.0)
            dk += late
            dpd = dp * decay
            add = _dot(dpd, y, DOT, PRECISION)
            dx += add
            early = _dot(tl.trans(dpd), x, DOT, PRECISION)
            if GATE == 1:
                along += tl.sum(x * add, 1)
            if DELTA:
                dad = da * decay
                row = _dot(dad, y, DOT, PRECISION)
                dk += row
                early += _dot(tl.trans(dad), y, DOT, PRECISION)
                if GATE == 1:
                    along += tl.sum(y * row, 1)
            if GATE == 1:
                along -= tl.sum(y * early, 1)
            dk += early
        _put(d_q, start, i, valid, HV, h, d, K, dx * scale)
        _put(d_k, start, i, valid, HV, h, d, K, dk)
    tokens = start + i
    if GATE == 1:
        dg = tl.cumsum(along, 0, reverse=True)
        tl.store(d_g + tokens.to(tl.int64) * HV + h, dg.to(d_g.dtype.element_ty), mask=valid)
    if DELTA:
        tl.store(d_beta + tokens.to(tl.int64) * HV + h, db.to(d_beta.dtype.element_ty), mask=valid)
