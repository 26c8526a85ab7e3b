"""The backward kernels of softmax attention (FlashAttention-2, arXiv:2307.08691): by queries, then by keys."""

import triton
import triton.language as tl

from evalsuite_kernels.full.tiles import (
    bounds_of,
    key_range,
    load_tile,
    load_whole,
    place,
    seen,
    sequence_of,
    store_tile,
    widen,
)


@triton.jit
def _pull_queries(
    q, g, k, v, in_k, in_v, b, k0, col_k, col_v, dq, logs, delta, low, high, keys, position, scale, window, skt, svt,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, WIDE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    for at in range(low, high, BLOCK_N):
        at_k = k + tl.cast(at, tl.int64) * skt
        at_v = v + tl.cast(at, tl.int64) * svt
        if MASKED:
            x = widen(load_tile(at_k, keys - at, skt, BLOCK_N, K, BK, True), WIDE)
            y = widen(load_tile(at_v, keys - at, svt, BLOCK_N, V, BV, True), WIDE)
        else:
            x = load_whole(in_k, b, k0 + at, col_k, at_k, skt, BLOCK_N, K, BK, TMA, WIDE)
            y = load_whole(in_v, b, k0 + at, col_v, at_v, svt, BLOCK_N, V, BV, TMA, WIDE)
        s = tl.dot(q, tl.trans(x), input_precision="ieee") * scale - logs[:, None]
        if MASKED:
            key = at + tl.arange(0, BLOCK_N)
            s = tl.where(seen(position[:, None], key[None, :], window, WINDOWED), s, float("-inf"))
        p = tl.exp2(s)
        dp = tl.dot(g, tl.trans(y), input_precision="ieee")
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(x.dtype), x, dq, input_precision="ieee")
    return dq


@triton.jit(do_not_specialize=["window", "T", "S", "HQ", "group", "sequences", "blocks", "heads", "fan"])
def backward_queries(
    q, k, v, in_k, in_v, o, g, lse, dq, delta, cu_q, cu_k, lengths, scale, slope, window, T, S, HQ, group, sequences,
    blocks, heads, fan, sqb, sqt, sqh, skb, skt, skh, svb, svt, svh, sgb, sgt, sgh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PACKED: tl.constexpr, PADDED: tl.constexpr,
    WINDOWED: tl.constexpr, WIDE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """dq, and delta = sum(do * o) for the keys' kernel."""
    block, head = place(tl.program_id(0), blocks, heads, fan)
    b = head // HQ
    h = head - b * HQ
    seq = b
    if PACKED:
        seq = sequence_of(cu_q, sequences, block, BLOCK_M)
        block = tl.maximum(block - tl.load(cu_q + seq).to(tl.int32) // BLOCK_M - seq, 0)
    q0, queries, k0, keys = bounds_of(cu_q, cu_k, lengths, b, seq, T, S, PACKED, PADDED)
    start = block * BLOCK_M
    if start >= queries:
        return
    shift = keys - queries
    count = queries - start
    rows = start + tl.arange(0, BLOCK_M)
    position = rows + shift
    token = tl.cast(q0, tl.int64) + start
    row = b
    col_k = (h // group) * skh
    col_v = (h // group) * svh
    b = tl.cast(b, tl.int64)
    x = widen(load_tile(q + b * sqb + token * sqt + tl.cast(h, tl.int64) * sqh, count, sqt, BLOCK_M, K, BK, True), WIDE)
    y = widen(load_tile(g + b * sgb + token * sgt + tl.cast(h, tl.int64) * sgh, count, sgt, BLOCK_M, V, BV, True), WIDE)
    z = load_tile(o + ((b * T + token) * HQ + h) * V, count, HQ * V, BLOCK_M, V, BV, True)
    sums = tl.sum(z.to(tl.float32) * y.to(tl.float32), 1)
    at = (b * HQ + h) * T + q0 + rows
    tl.store(delta + at, sums, mask=rows < queries)
    logs = tl.load(lse + at, mask=rows < queries, other=float("inf"))
    k += b * skb + tl.cast(k0, tl.int64) * skt + tl.cast(h // group, tl.int64) * skh
    v += b * svb + tl.cast(k0, tl.int64) * svt + tl.cast(h // group, tl.int64) * svh
    acc = tl.zeros([BLOCK_M, BK], tl.float32)
    low, begin, end = key_range(start + shift, window, BLOCK_M, BLOCK_N, WINDOWED)
    stop = tl.maximum(tl.minimum(start + BLOCK_M, queries) + shift, 0)
    if WINDOWED:
        for side in range(2):
            a = tl.where(side == 0, low, end)
            c = tl.where(side == 0, begin, stop)
            acc = _pull_queries(
                x, y, k, v, in_k, in_v, row, k0, col_k, col_v, acc, logs, sums, a, c, keys, position, scale, window,
                skt, svt, K, V, BK, BV, BLOCK_N, True, WINDOWED, WIDE, TMA)  # fmt: skip
    acc = _pull_queries(
        x, y, k, v, in_k, in_v, row, k0, col_k, col_v, acc, logs, sums, begin, end, keys, position, scale, window,
        skt, svt, K, V, BK, BV, BLOCK_N, False, WINDOWED, WIDE, TMA)  # fmt: skip
    if not WINDOWED:
        acc = _pull_queries(
            x, y, k, v, in_k, in_v, row, k0, col_k, col_v, acc, logs, sums, end, stop, keys, position, scale, window,
            skt, svt, K, V, BK, BV, BLOCK_N, True, WINDOWED, WIDE, TMA)  # fmt: skip
    store_tile(dq + ((b * T + token) * HQ + h) * K, acc * slope, count, HQ * K, BLOCK_M, K, BK)


@triton.jit
def _pull_keys(
    k, v, q, g, in_q, in_g, b, q0, col_q, col_g, lse, delta, dk, dv, low, high, queries, key, shift, scale, window,
    sqt, sgt, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BLOCK_M: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, WIDE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    for at in range(low, high, BLOCK_M):
        rows = at + tl.arange(0, BLOCK_M)
        at_q = q + tl.cast(at, tl.int64) * sqt
        at_g = g + tl.cast(at, tl.int64) * sgt
        if MASKED:
            x = widen(load_tile(at_q, queries - at, sqt, BLOCK_M, K, BK, True), WIDE)
            y = widen(load_tile(at_g, queries - at, sgt, BLOCK_M, V, BV, True), WIDE)
            logs = tl.load(lse + rows, mask=rows < queries, other=float("inf"))
            sums = tl.load(delta + rows, mask=rows < queries, other=0.0)
        else:
            x = load_whole(in_q, b, q0 + at, col_q, at_q, sqt, BLOCK_M, K, BK, TMA, WIDE)
            y = load_whole(in_g, b, q0 + at, col_g, at_g, sgt, BLOCK_M, V, BV, TMA, WIDE)
            logs = tl.load(lse + rows)
            sums = tl.load(delta + rows)
        s = tl.dot(k, tl.trans(x), input_precision="ieee") * scale - logs[None, :]
        if MASKED:
            s = tl.where(seen((rows + shift)[None, :], key[:, None], window, WINDOWED), s, float("-inf"))
        p = tl.exp2(s)
        dv = tl.dot(p.to(y.dtype), y, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(y), input_precision="ieee")
        ds = p * (dp - sums[None, :])
        dk = tl.dot(ds.to(x.dtype), x, dk, input_precision="ieee")
    return dk, dv


@triton.jit(do_not_specialize=["window", "T", "S", "HQ", "group", "sequences", "blocks", "heads", "fan"])
def backward_keys(
    q, k, v, g, in_q, in_g, lse, delta, dk, dv, cu_q, cu_k, lengths, scale, slope, window, T, S, HQ, group, sequences,
    blocks, heads, fan, sqb, sqt, sqh, skb, skt, skh, svb, svt, svh, sgb, sgt, sgh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PACKED: tl.constexpr, PADDED: tl.constexpr,
    WINDOWED: tl.constexpr, WIDE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys, over the queries of all heads that read it."""
    block, head = place(tl.program_id(0), blocks, heads, fan)
    H = HQ // group
    b = head // H
    h = head - b * H
    seq = b
    if PACKED:
        seq = sequence_of(cu_k, sequences, block, BLOCK_N)
        block = tl.maximum(block - tl.load(cu_k + seq).to(tl.int32) // BLOCK_N - seq, 0)
    else:
        block = blocks - 1 - block  # the first keys have the most queries
    q0, queries, k0, keys = bounds_of(cu_q, cu_k, lengths, b, seq, T, S, PACKED, PADDED)
    start = block * BLOCK_N
    room = keys
    if PADDED:
        room = start * 0 + S
    if start >= room:
        return
    shift = keys - queries
    key = start + tl.arange(0, BLOCK_N)
    token = tl.cast(k0, tl.int64) + start
    batch = b
    b = tl.cast(b, tl.int64)
    x = widen(
        load_tile(k + b * skb + token * skt + tl.cast(h, tl.int64) * skh, keys - start, skt, BLOCK_N, K, BK, True), WIDE
    )
    y = widen(
        load_tile(v + b * svb + token * svt + tl.cast(h, tl.int64) * svh, keys - start, svt, BLOCK_N, V, BV, True), WIDE
    )
    # queries that see a key of the block begin at low; in begin .. end - 1 every query sees all its keys
    low = tl.maximum(start - shift, 0) // BLOCK_M * BLOCK_M
    stop = queries
    if WINDOWED:
        stop = tl.minimum(tl.maximum(start + BLOCK_N - 1 + window - shift, 0), queries)
    begin = (tl.maximum(start + BLOCK_N - 1 - shift, 0) + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    begin = tl.minimum(begin, stop)
    end = stop // BLOCK_M * BLOCK_M
    if WINDOWED:
        end = tl.minimum(tl.maximum(start + window - shift, 0) // BLOCK_M * BLOCK_M, end)
    end = tl.maximum(end, begin)
    acc_k = tl.zeros([BLOCK_N, BK], tl.float32)
    acc_v = tl.zeros([BLOCK_N, BV], tl.float32)
    for i in range(group):
        hq = h * group + i
        at_q = q + b * sqb + tl.cast(q0, tl.int64) * sqt + tl.cast(hq, tl.int64) * sqh
        at_g = g + b * sgb + tl.cast(q0, tl.int64) * sgt + tl.cast(hq, tl.int64) * sgh
        row = (b * HQ + hq) * T + q0
        col_q = hq * sqh
        col_g = hq * sgh
        for side in range(2):  # one copy of the code for both edges
            a = tl.where(side == 0, low, end)
            c = tl.where(side == 0, begin, stop)
            acc_k, acc_v = _pull_keys(
                x, y, at_q, at_g, in_q, in_g, batch, q0, col_q, col_g, lse + row, delta + row, acc_k, acc_v, a, c,
                queries, key, shift, scale, window, sqt, sgt,
                K, V, BK, BV, BLOCK_M, True, WINDOWED, WIDE, TMA)  # fmt: skip
        acc_k, acc_v = _pull_keys(
            x, y, at_q, at_g, in_q, in_g, batch, q0, col_q, col_g, lse + row, delta + row, acc_k, acc_v, begin, end,
            queries, key, shift, scale, window, sqt, sgt,
            K, V, BK, BV, BLOCK_M, False, WINDOWED, WIDE, TMA)  # fmt: skip
    row = (b * S + token) * H + h
    store_tile(dk + row * K, acc_k * slope, room - start, H * K, BLOCK_N, K, BK)
    store_tile(dv + row * V, acc_v, room - start, H * V, BLOCK_N, V, BV)
