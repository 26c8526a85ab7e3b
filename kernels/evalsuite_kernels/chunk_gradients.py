"""The backward kernels of `chunk_kernels.py`, whose names they use.

The gradients of R and of X (but for beta) are d_R = P^T d_O + Kg d_S' and W = T^T d_R: by `fold`'s P T and T^T Kg, W
comes without d_R. Then d_P = d_O R^T, and dA = -T^T (d_R (beta X)^T) T^T = -W R^T.
"""

import triton
import triton.language as tl

from evalsuite_kernels.activations import log_decay, sigmoid
from evalsuite_kernels.chunk_tiles import (
    COUNTS,
    C,
    chunk_decay,
    dot,
    halves,
    head_decays,
    in_room,
    lengths,
    level_decays,
    load_chunk,
    load_gates,
    load_rows,
    load_tile,
    store_rows,
    store_tile,
)


@triton.jit(do_not_specialize=COUNTS)
def scan_back(
    q, k, d_o, each, G, P, Qs, Kd, Kg, rest, rates, d_S1, starts, stops, firsts,
    d_v, d_S0, d_states, W,
    scale, chunks, H, HV, K, V,
    KP: tl.constexpr, VP: tl.constexpr, BV: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr,
    TMA: tl.constexpr, EXACT: tl.constexpr, STAGES: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of v [tokens, HV, V], of X but for beta [HV, chunks, C, VP], of each chunk's last state
    [HV, chunks, KP, VP] and of the first, from the last chunk to the first.

    The gradient of a state gathers what no key takes out of it, and is large where the keys' part of it is small: the
    delta rule reads it, and changes it, by twice as many bits; so does EXACT, by what its queries add.
    """
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
        store_tile(d_states, block * KP * VP, d, e, VP, dS)
        dy = load_rows(d_o, start, i, valid, HV, h, e, V, DOT).to(DOT)
        dr = dot(tl.trans(load_chunk(P, block, i, i, C, DOT, TMA)), dy, DOT, PRECISION)
        if GATE < 2:
            ks = load_rows(k, start, i, valid, H, h // (HV // H), d, K, DOT)
            since, until = head_decays(G, block, GATE)
            of_q, of_k = lengths(rates, block)
            ks, of_k = in_room(ks, of_k, DOT)
        if DELTA:
            kg = load_chunk(Kg, block, i, d, KP, DOT, TMA)
            dr += dot(kg, dS, DOT, PRECISION)
            if rest is not None:
                dr += dot(kg, halves(dS, DOT)[1], DOT, PRECISION)
                dr += dot(load_chunk(rest, block, i, d, KP, DOT, TMA), dS, DOT, PRECISION)
        elif GATE == 2:
            dr += dot(load_chunk(Kg, block, i, d, KP, DOT, TMA), dS, DOT, PRECISION)
        else:
            dr += dot(ks, dS, DOT, PRECISION) * until[:, None]
        if GATE == 2:
            qs = load_chunk(Qs, block, i, d, KP, DOT, TMA)
        else:
            qs, of_q = in_room(load_rows(q, start, i, valid, H, h // (HV // H), d, K, DOT), of_q, DOT)
            dy = dy.to(tl.float32) * (since * of_q * scale)[:, None]
        dS = dS * chunk_decay(G, block, d, KP, GATE)[:, None]
        dS += dot(tl.trans(qs), dy, DOT, PRECISION)
        if EXACT:
            dS += dot(tl.trans(qs), halves(dy, DOT)[1], DOT, PRECISION)
        if DELTA:
            store_tile(W, block * C * VP, i, e, VP, dr)
            dr *= tl.load(each + block * C + i)[:, None]
            if GATE == 2:
                kd = tl.trans(load_chunk(Kd, block, i, d, KP, DOT, TMA))
                taken = dr
            else:
                kd = tl.trans(ks)
                taken = dr * (since * of_k)[:, None]
            dS -= dot(kd, taken, DOT, PRECISION)
            if rest is not None:
                dS -= dot(kd, halves(taken, DOT)[1], DOT, PRECISION)
        store_rows(d_v, start, i, valid, HV, h, e, V, dr)
    tl.store(d_S0 + at + d[:, None] * VP + e[None, :], dS)


@triton.jit
def _store_symmetric(to, block, x):
    """The lower triangle of x [C, C], and above it its mirror image."""
    i = tl.arange(0, C)
    x = x.to(to.dtype.element_ty)
    tl.store(to + block * C * C + i[:, None] * C + i[None, :], x, mask=i[:, None] >= i[None, :])
    tl.store(to + block * C * C + i[None, :] * C + i[:, None], x, mask=i[:, None] > i[None, :])


@triton.jit(do_not_specialize=COUNTS)
def pairs_back(
    v, d_o, each, X, W, T, B, starts, stops,
    R, d_P, d_B, d_beta,
    beta_max, chunks, H, HV, V,
    VP: tl.constexpr, BV: tl.constexpr, DELTA: tl.constexpr, SIGMOID: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of P and B [HV, chunks, C, C], mirrored at the diagonal, and of beta, and R [HV, chunks, C, VP].

    In sums over R and W there is cancelled what resembles each other: they are products of fp32's numbers.
    """
    c, h = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, C)
    start, stop = tl.load(starts + c), tl.load(stops + c)
    valid = start + i < stop
    block = (h * chunks + c).to(tl.int64)
    dp = tl.zeros([C, C], tl.float32)
    da = tl.zeros([C, C], tl.float32)
    db = tl.zeros([C], tl.float32)
    if DELTA:
        strength = tl.load(each + block * C + i)
        lower = (i[:, None] >> 4) >= (i[None, :] >> 4)
        t = tl.load(T + block * C * C + i[:, None] * C + i[None, :], mask=lower, other=0.0)
    for vb in range(0, VP, BV):
        e = vb + tl.arange(0, BV)
        if DELTA:
            x = load_tile(X, block * C * VP, i, e, VP, tl.float32)
            w = load_tile(W, block * C * VP, i, e, VP, tl.float32)
            r = dot(t, x * strength[:, None], tl.float32, PRECISION)
            store_tile(R, block * C * VP, i, e, VP, r)
            da -= dot(w, tl.trans(r), tl.float32, PRECISION)
            db += tl.sum(w * x, 1)
        else:
            r = load_rows(v, start, i, valid, HV, h, e, V, tl.float32)
        dy = load_rows(d_o, start, i, valid, HV, h, e, V, tl.float32)
        dp += dot(dy, tl.trans(r), tl.float32, PRECISION)
    _store_symmetric(d_P, block, dp)
    if DELTA:
        below = i[:, None] > i[None, :]
        b = tl.load(B + block * C * C + i[:, None] * C + i[None, :], mask=below, other=0.0)
        db += tl.sum(tl.where(below, da, 0.0) * b, 1)
        _store_symmetric(d_B, block, da * strength[:, None])
        if SIGMOID:
            db *= strength * (1.0 - strength / beta_max)
        to = d_beta + (start + i).to(tl.int64) * HV + h
        tl.store(to, db.to(d_beta.dtype.element_ty), mask=valid)


@triton.jit
def _from_states(
    states, d_states, R, d_o, d_v, block, start, i, valid, h, d, HV, V,
    KP: tl.constexpr, BK: tl.constexpr, VP: tl.constexpr, BV: tl.constexpr, DELTA: tl.constexpr, STATE: tl.constexpr,
    STATES: tl.constexpr,
):  # fmt: skip
    """The gradients of Qs (without its scale), Kd and Kg [C, BK], and of the decay of the whole chunk [BK].

    STATE, STATES: type and precision of the products. R is v [tokens, HV, V] without DELTA.
    """
    dx = tl.zeros([C, BK], tl.float32)
    dk = tl.zeros([C, BK], tl.float32)
    late = tl.zeros([C, BK], tl.float32)
    dD = tl.zeros([BK], tl.float32)
    for vb in range(0, VP, BV):
        e = vb + tl.arange(0, BV)
        S = load_tile(states, block * KP * VP, d, e, VP, tl.float32)
        dS = load_tile(d_states, block * KP * VP, d, e, VP, tl.float32)
        dx += dot(load_rows(d_o, start, i, valid, HV, h, e, V, STATE), tl.trans(S), STATE, STATES)
        if DELTA:
            r = load_tile(R, block * C * VP, i, e, VP, STATE)
            dk -= dot(load_rows(d_v, start, i, valid, HV, h, e, V, STATE), tl.trans(S), STATE, STATES)
        else:
            r = load_rows(R, start, i, valid, HV, h, e, V, STATE)
        late += dot(r, tl.trans(dS), STATE, STATES)
        dD += tl.sum(S * dS, 1)
    return dx, dk, late, dD


@triton.jit(do_not_specialize=COUNTS)
def head_back(
    q, k, g, A_log, dt_bias, rates, G, d_o, d_v, states, d_states, R, d_P, d_B, starts, stops,
    d_q, d_k, d_g, d_A,
    scale, chunks, H, HV, K, V,
    KP: tl.constexpr, BK: tl.constexpr, VP: tl.constexpr, BV: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr,
    STATE: tl.constexpr, STATES: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a chunk's q, k and g are owed, per value head, without a gate or under one per head: d_q and d_k
    [tokens, HV, K], and d_g [tokens, HV].

    The gradient of a gate is summed over the pairs it stands between: from what each token owes, rows less keys, it
    would be a small difference of large sums.
    """
    c, h = tl.program_id(0), tl.program_id(1)
    head = h // (HV // H)
    i = tl.arange(0, C)
    start, stop = tl.load(starts + c), tl.load(stops + c)
    valid = start + i < stop
    block = (h * chunks + c).to(tl.int64)
    past = i[:, None] >= i[None, :]
    decay = tl.where(past, 1.0, 0.0)
    if GATE == 1:
        here = tl.load(G + block * C + i)
        since, until = head_decays(G, block, GATE)
        decay *= tl.exp2(tl.where(past, here[:, None] - here[None, :], 0.0).to(tl.float32))
    dp = load_tile(d_P, block * C * C, i, i, C, tl.float32) * decay
    if DELTA:
        da = tl.where(i[:, None] > i[None, :], load_tile(d_B, block * C * C, i, i, C, tl.float32) * decay, 0.0)
    of_q, of_k = lengths(rates, block)
    since_ = tl.zeros([C], tl.float32)  # what tokens owe the decay since the chunk's start,
    until_ = tl.zeros([C], tl.float32)  # and until its end,
    whole = 0.0  # what the state owes the decay of the chunk,
    between = tl.zeros([C, C], tl.float32)  # and what pairs owe the decay between them
    for kb in range(0, KP, BK):
        d = kb + tl.arange(0, BK)
        dx, dk, late, dD = _from_states(
            states, d_states, R, d_o, d_v, block, start, i, valid, h, d, HV, V, KP, BK, VP, BV, DELTA, STATE, STATES
        )
        x = load_rows(q, start, i, valid, H, head, d, K, DOT).to(tl.float32) * (scale * of_q)[:, None]
        y = load_rows(k, start, i, valid, H, head, d, K, DOT)
        unit = y.to(tl.float32) * of_k[:, None]
        if rates is not None:
            y = unit.to(DOT)
        if GATE == 1:
            dx *= since[:, None]
            dk *= since[:, None]
            late *= until[:, None]
            since_ += tl.sum(x * dx + unit * dk, 1)
            until_ += tl.sum(unit * late, 1)
            whole += tl.sum(dD)
            between += dp * dot(x, tl.trans(unit), tl.float32, STATES)
        dk += late
        dx += dot(dp, y, DOT, PRECISION)
        dk += dot(tl.trans(dp), x, DOT, PRECISION)
        if DELTA:
            dk += dot(da + tl.trans(da), y, DOT, PRECISION)
            if GATE == 1:
                between += da * dot(unit, tl.trans(unit), tl.float32, STATES)
        store_rows(d_q, start, i, valid, HV, h, d, K, dx * scale)
        store_rows(d_k, start, i, valid, HV, h, d, K, dk)
    if GATE == 1:
        SUM: tl.constexpr = d_g.dtype.element_ty if d_g.dtype.element_ty == tl.float64 else tl.float32
        whole *= tl.exp2(tl.load(G + block * C + C - 1).to(tl.float32))
        since_, until_ = since_.to(SUM), until_.to(SUM)
        dg = tl.cumsum(since_, 0, reverse=True) + tl.cumsum(until_, 0) - until_ + whole
        early = tl.where(i[:, None] < i[None, :], 1.0, 0.0)  # keys before a gate
        before = dot(between, early, tl.float32, STATES)
        dg += tl.sum(tl.where(past, before, 0.0), 0)
        if A_log is not None:
            x = tl.load(g + (start + i).to(tl.int64) * HV + h, mask=valid, other=0.0).to(tl.float32)
            if dt_bias is not None:
                x += tl.load(dt_bias + h).to(tl.float32)
            tl.store(d_A + block, tl.sum(log_decay(x, A_log, h, valid) * dg, 0))
            dg *= -tl.exp(tl.load(A_log + h).to(tl.float32)) * sigmoid(x)
        tl.store(d_g + (start + i).to(tl.int64) * HV + h, dg.to(d_g.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=COUNTS)
def channel_back(
    q, k, g, A_log, dt_bias, rates, G, d_o, d_v, states, d_states, R, d_P, d_B, starts, stops,
    d_q, d_k, d_g, d_A,
    scale, chunks, H, HV, K, V,
    KP: tl.constexpr, BK: tl.constexpr, VP: tl.constexpr, BV: tl.constexpr, DELTA: tl.constexpr,
    STATE: tl.constexpr, STATES: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same under a gate per channel, BK channels in each program; d_g [tokens, HV, K]."""
    c, h, kb = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = h // (HV // H)
    i, d = tl.arange(0, C), kb * BK + tl.arange(0, BK)
    start, stop = tl.load(starts + c), tl.load(stops + c)
    valid = start + i < stop
    block = (h * chunks + c).to(tl.int64)
    base = block * C * KP
    dx, dk, late, dD = _from_states(
        states, d_states, R, d_o, d_v, block, start, i, valid, h, d, HV, V, KP, BK, VP, BV, DELTA, STATE, STATES
    )
    of_q, of_k = lengths(rates, block)
    x = load_rows(q, start, i, valid, H, head, d, K, DOT).to(tl.float32) * (scale * of_q)[:, None]
    y = load_rows(k, start, i, valid, H, head, d, K, DOT).to(tl.float32) * of_k[:, None]
    here = load_gates(G, base, i, d, KP)
    last = tl.load(G + base + (C - 1) * KP + d)
    since, until = tl.exp2(here.to(tl.float32)), tl.exp2((last[None, :] - here).to(tl.float32))
    dx *= since
    dk *= since
    late *= until
    dG = x * dx + y * dk - y * late
    end = tl.sum(y * late, 0) + dD * tl.exp2(last.to(tl.float32))
    dG += tl.where(i[:, None] == C - 1, end[None, :], 0.0)
    dk += late

    dp = load_tile(d_P, block * C * C, i, i, C, DOT)
    eye = tl.sum(tl.where(i[:, None] == i[None, :], dp.to(tl.float32), 0.0), 1)
    dx += eye[:, None] * y
    dk += eye[:, None] * x
    if DELTA:
        da = load_tile(d_B, block * C * C, i, i, C, DOT)
    for level in range(6):  # every token is a row or a key here: one factor, and symmetric products
        f, block_of = level_decays(G, base, here, level, d, KP), i >> level
        meet = (block_of[:, None] ^ 1) == block_of[None, :]
        row = ((block_of & 1) == 1)[:, None]
        z = (tl.where(row, x, y) * f).to(DOT)
        add = dot(tl.where(meet, dp, 0.0), z, DOT, PRECISION)
        # a gate is owed by the rows after it less the keys after it, a small difference of large sums: both as the
        # products saw them, rounded, or what no row and key share does not cancel
        share = z.to(tl.float32) * add
        dx += tl.where(row, add * f, 0.0)
        dk += tl.where(row, 0.0, add * f)
        if DELTA:
            z = (y * f).to(DOT)
            add = dot(tl.where(meet, da, 0.0), z, DOT, PRECISION)
            share += z.to(tl.float32) * add
            dk += add * f
        dG += tl.where(row, share, -share)
    dg = tl.cumsum(dG, 0, reverse=True)
    if A_log is not None:
        x = load_rows(g, start, i, valid, HV, h, d, K, tl.float32)
        if dt_bias is not None:
            x += tl.load(dt_bias + h * K + d, mask=d < K, other=0.0).to(tl.float32)[None, :]
        share = log_decay(x, A_log, h, valid[:, None] & (d < K)[None, :]) * dg
        tl.store(d_A + block * (KP // BK) + kb, tl.sum(tl.sum(share, 1), 0))
        dg *= -tl.exp(tl.load(A_log + h).to(tl.float32)) * sigmoid(x)
    store_rows(d_g, start, i, valid, HV, h, d, K, dg)
    store_rows(d_q, start, i, valid, HV, h, d, K, dx * scale)
    store_rows(d_k, start, i, valid, HV, h, d, K, dk)


@triton.jit(do_not_specialize=["tokens", "H", "HV"])
def unit_back(x, d, d_x, tokens, H, HV, K, KP: tl.constexpr, BT: tl.constexpr):
    """The gradient of x [tokens, H, K] from that of x / |x|, which each value head gives its own: d [tokens, HV, K]."""
    h = tl.program_id(1)
    i, column = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)[:, None], tl.arange(0, KP)[None, :]
    inside = (i < tokens) & (column < K)
    at = (i * H + h) * K + column
    row = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    owed = tl.zeros([BT, KP], tl.float32)
    for member in range(HV // H):
        owed += tl.load(d + (i * HV + h * (HV // H) + member) * K + column, mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(row * row, 1))[:, None]
    rate = 1.0 / tl.maximum(length, 1e-12)
    row *= rate
    owed -= tl.where(length > 1e-12, row * tl.sum(row * owed, 1)[:, None], 0.0)
    tl.store(d_x + at, (owed * rate).to(d_x.dtype.element_ty), mask=inside)
