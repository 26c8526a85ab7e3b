"""The backward kernels of `chunk_kernels.py`, whose names they use."""

import triton
import triton.language as tl

from evalsuite_kernels.chunk_tiles import (
    COUNTS,
    C,
    chunk_decay,
    dot,
    head_decays,
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
    q, k, d_o, each, G, P, T, Qs, Kd, Kg, d_S1, starts, stops, firsts,
    d_v, d_S0, d_states, d_R,
    scale, chunks, H, HV, K, V,
    KP: tl.constexpr, VP: tl.constexpr, BV: tl.constexpr, GATE: tl.constexpr, DELTA: tl.constexpr,
    TMA: tl.constexpr, STAGES: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
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
        store_tile(d_states, block * KP * VP, d, e, VP, dS)
        dy = load_rows(d_o, start, i, valid, HV, h, e, V, DOT).to(DOT)
        dr = dot(tl.trans(load_chunk(P, block, i, i, C, DOT, TMA)), dy, DOT, PRECISION)
        if GATE == 2:
            dr += dot(load_chunk(Kg, block, i, d, KP, DOT, TMA), dS, DOT, PRECISION)
            qs = load_chunk(Qs, block, i, d, KP, DOT, TMA)
        else:
            qs = load_rows(q, start, i, valid, H, h // (HV // H), d, K, DOT)
            ks = load_rows(k, start, i, valid, H, h // (HV // H), d, K, DOT)
            since, until = head_decays(G, block, GATE)
            dr += dot(ks, dS, DOT, PRECISION) * until[:, None]
            dy = dy.to(tl.float32) * (since * scale)[:, None]
        dS = dS * chunk_decay(G, block, d, KP, GATE)[:, None]
        dS += dot(tl.trans(qs), dy, DOT, PRECISION)
        if DELTA:
            store_tile(d_R, block * C * VP, i, e, VP, dr)
            dr = dot(tl.trans(load_chunk(T, block, i, i, C, DOT, TMA)), dr, DOT, PRECISION)
            dr *= tl.load(each + block * C + i)[:, None]
            if GATE == 2:
                dS -= dot(tl.trans(load_chunk(Kd, block, i, d, KP, DOT, TMA)), dr, DOT, PRECISION)
            else:
                dS -= dot(tl.trans(ks), dr * since[:, None], DOT, PRECISION)
        store_rows(d_v, start, i, valid, HV, h, e, V, dr)
    tl.store(d_S0 + at + d[:, None] * VP + e[None, :], dS)


@triton.jit(do_not_specialize=COUNTS)
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
        t = load_tile(T, block * C * C, i, i, C, DOT)
    for vb in range(0, VP, BV):
        e = vb + tl.arange(0, BV)
        dy = load_rows(d_o, start, i, valid, HV, h, e, V, DOT)
        dp += dot(dy, tl.trans(load_tile(R, block * C * VP, i, e, VP, DOT)), DOT, PRECISION)
        if DELTA:
            x, dr = (
                load_tile(X, block * C * VP, i, e, VP, DOT).to(tl.float32),
                load_tile(d_R, block * C * VP, i, e, VP, DOT),
            )
            da += dot(dr, tl.trans(x * strength[:, None]), tl.float32, PRECISION)
            db += tl.sum(dot(tl.trans(t), dr, DOT, PRECISION) * x, 1)
    dp = tl.where(i[:, None] >= i[None, :], dp, 0.0)
    if DELTA:  # T = (I + A)^-1; three roundings to half precision would be a quarter of all error of dk
        da = dot(dot(tl.trans(t), da, tl.float32, PRECISION), tl.trans(t), tl.float32, PRECISION)
        da = tl.where(i[:, None] > i[None, :], -da, 0.0)
        below = i[:, None] > i[None, :]
        db += tl.sum(da * tl.load(B + block * C * C + i[:, None] * C + i[None, :], mask=below, other=0.0), 1)
        da *= strength[:, None]  # of B
    dps, das = dp + tl.trans(dp), da + tl.trans(da)
    # the gradient of a gate per head is summed over the pairs it stands between: from what each token owes, rows less
    # keys, it would be a small difference of large sums
    since_ = tl.zeros([C], tl.float32)  # of a gate per head: what tokens owe the decay since the chunk's start,
    until_ = tl.zeros([C], tl.float32)  # and until its end,
    whole = 0.0  # what the state owes the decay of the chunk,
    between = tl.zeros([C, C], tl.float32)  # and what pairs owe the decay between them
    for kb in range(0, KP, BK):
        d = kb + tl.arange(0, BK)
        x = load_rows(q, start, i, valid, H, head, d, K, DOT).to(tl.float32) * scale
        y = load_rows(k, start, i, valid, H, head, d, K, DOT).to(tl.float32)
        dx = tl.zeros([C, BK], tl.float32)  # of Qs, then of q
        dk = tl.zeros([C, BK], tl.float32)  # of Kd, then of k
        late = tl.zeros([C, BK], tl.float32)  # of Kg
        dD = tl.zeros([BK], tl.float32)
        for vb in range(0, VP, BV):
            e = vb + tl.arange(0, BV)
            S = load_tile(states, block * KP * VP, d, e, VP, DOT)
            dS = load_tile(d_states, block * KP * VP, d, e, VP, DOT)
            dx += dot(load_rows(d_o, start, i, valid, HV, h, e, V, DOT), tl.trans(S), DOT, PRECISION)
            late += dot(load_tile(R, block * C * VP, i, e, VP, DOT), tl.trans(dS), DOT, PRECISION)
            if DELTA:
                dk -= dot(load_rows(d_v, start, i, valid, HV, h, e, V, DOT), tl.trans(S), DOT, PRECISION)
            dD += tl.sum(S.to(tl.float32) * dS.to(tl.float32), 1)
        if GATE == 2:
            base = block * C * KP
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
            eye = tl.sum(tl.where(i[:, None] == i[None, :], dp, 0.0), 1)
            dx += eye[:, None] * y
            dk += eye[:, None] * x
            for level in range(6):  # every token is a row or a column here: one factor, and symmetric products
                f, block_of = level_decays(G, base, here, level, d, KP), i >> level
                meet = (block_of[:, None] ^ 1) == block_of[None, :]
                row = ((block_of & 1) == 1)[:, None]
                z = (tl.where(row, x, y) * f).to(DOT)
                add = dot(tl.where(meet, dps, 0.0), z, DOT, PRECISION)
                # a gate is owed by the rows after it less the keys after it, a small difference of large sums: both
                # as the products saw them, rounded, or what no row and key share does not cancel
                share = z.to(tl.float32) * add
                dx += tl.where(row, add * f, 0.0)
                dk += tl.where(row, 0.0, add * f)
                if DELTA:
                    z = (y * f).to(DOT)
                    add = dot(tl.where(meet, das, 0.0), z, DOT, PRECISION)
                    share += z.to(tl.float32) * add
                    dk += add * f
                dG += tl.where(row, share, -share)
            dg = tl.cumsum(dG, 0, reverse=True)
            store_rows(d_g, start, i, valid, HV, h, d, K, dg)
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
                since_ += tl.sum(x * dx + y * dk, 1)
                until_ += tl.sum(y * late, 1)
                whole += tl.sum(dD) * tl.exp2(last.to(tl.float32))
            dk += late
            dpd = dp * decay
            dx += dot(dpd, y, DOT, PRECISION)
            dk += dot(tl.trans(dpd), x, DOT, PRECISION)
            if GATE == 1:
                between += dpd * dot(x, tl.trans(y), DOT, PRECISION)
            if DELTA:
                dad = da * decay
                dk += dot(dad, y, DOT, PRECISION) + dot(tl.trans(dad), y, DOT, PRECISION)
                if GATE == 1:
                    between += dad * dot(y, tl.trans(y), DOT, PRECISION)
        store_rows(d_q, start, i, valid, HV, h, d, K, dx * scale)
        store_rows(d_k, start, i, valid, HV, h, d, K, dk)
    tokens = start + i
    if GATE == 1:
        dg = tl.cumsum(since_, 0, reverse=True) + tl.cumsum(until_, 0) - until_ + whole
        before = dot(between, tl.where(i[:, None] < i[None, :], 1.0, 0.0), DOT, PRECISION)  # of keys before a gate
        dg += tl.sum(tl.where(i[:, None] >= i[None, :], before, 0.0), 0)
        tl.store(d_g + tokens.to(tl.int64) * HV + h, dg.to(d_g.dtype.element_ty), mask=valid)
    if DELTA:
        tl.store(d_beta + tokens.to(tl.int64) * HV + h, db.to(d_beta.dtype.element_ty), mask=valid)
