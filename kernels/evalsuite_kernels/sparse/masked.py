"""The kernels of attention over lists as attention over all keys under a mask: for lists that name many of few keys.

Lists become sets of bits, by `divergence.mark`. Tiles of queries and of keys meet on tensor cores as in
FlashAttention-2 (arXiv:2307.08691), and weights of what is not named are 0. What a tile need not meet is read off the
sets themselves, so that lists need not be causal. Sums have one order, and there are no atomics.
"""

import triton
import triton.language as tl

from evalsuite_kernels.sparse.divergence import closed, sees
from evalsuite_kernels.sparse.forward import load_rows


@triton.jit(do_not_specialize=["T", "words", "units"])
def gather_words(named, met, T, words, units, UNIT: tl.constexpr, WORDS: tl.constexpr):
    """met [B, units, words]: whether any of UNIT queries has a bit in that word of named [B, T, words], both int32. A
    program takes one unit of queries."""
    pid = tl.program_id(0)
    b = tl.cast(pid // units, tl.int64)
    t = pid % units * UNIT + tl.arange(0, UNIT)
    for at in range(0, words, WORDS):
        word = at + tl.arange(0, WORDS)
        there = (t < T)[:, None] & (word < words)[None, :]
        found = tl.load(named + (b * T + t)[:, None] * words + word[None, :], mask=there, other=0)
        any_bit = tl.max((found != 0).to(tl.int32), 0)
        tl.store(met + (b * units + pid % units) * words + word, any_bit, mask=word < words)


@triton.jit
def keys_met(met, b, low, words, units, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UNIT: tl.constexpr,
             WORDS: tl.constexpr):  # fmt: skip
    """From which row on, of a whole tile, and up to which keys are that queries low .. low + BLOCK_M - 1 may name."""
    start = words
    stop = words * 0
    for unit in range(low // UNIT, tl.minimum((low + BLOCK_M - 1) // UNIT + 1, units)):
        for at in range(0, words, WORDS):
            word = at + tl.arange(0, WORDS)
            found = tl.load(met + (b * units + unit) * words + word, mask=word < words, other=0) != 0
            start = tl.minimum(start, tl.min(tl.where(found, word, words), 0))
            stop = tl.maximum(stop, tl.max(tl.where(found, word + 1, 0), 0))
    return start * 32 // BLOCK_N * BLOCK_N, stop * 32


@triton.jit
def queries_met(met, b, n, T, words, units, BLOCK_N: tl.constexpr, UNIT: tl.constexpr, WORDS: tl.constexpr):
    """From which and up to which queries are that may name keys n .. n + BLOCK_N - 1."""
    start = units
    stop = units * 0
    column = n // 32 + tl.arange(0, BLOCK_N // 32)
    for at in range(0, units, WORDS):
        unit = at + tl.arange(0, WORDS)
        found = tl.load(
            met + (b * units + unit)[:, None] * words + column[None, :], mask=(unit < units)[:, None], other=0
        )
        found = tl.max(found, 1) != 0
        start = tl.minimum(start, tl.min(tl.where(found, unit, units), 0))
        stop = tl.maximum(stop, tl.max(tl.where(found, unit + 1, 0), 0))
    return start * UNIT, tl.minimum(stop * UNIT, T)


@triton.jit
def among(named, b, t, n, T, words, BLOCK_N: tl.constexpr):
    """Which of the keys n .. n + BLOCK_N - 1 queries t name, [queries, keys]; none is there from T on."""
    begin = t * 0
    return sees(begin, begin + (T - 1), named, b, t, n, T, words, BLOCK_N)


@triton.jit(do_not_specialize=["B", "T", "HQ", "group", "words", "units", "tiles"])
def masked_forward(
    q, k, v, named, met, o, lse, scale, B, T, HQ, group, words, units, tiles,
    sqb, sqt, sqh, skb, sks, skh, svb, svs, svh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, UNIT: tl.constexpr, WORDS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """o [B, T, HQ, V], 0 where nothing is named, and lse [B, HQ, T] of the logits in base 2, inf there. scale is in
    base 2. A program takes a tile of queries of one head, later tiles, which mostly name more, first."""
    pid = tl.program_id(0)
    h = pid % HQ
    b = tl.cast(pid // HQ % B, tl.int64)
    low = (tiles - 1 - pid // (HQ * B)) * BLOCK_M
    t = low + tl.arange(0, BLOCK_M)
    x = load_rows(q, b * sqb + t.to(tl.int64) * sqt + h * sqh, t < T, K, BK, WIDE)
    k += b * skb + (h // group) * skh
    v += b * svb + (h // group) * svh
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BV], tl.float32)
    start, stop = keys_met(met, b, low, words, units, BLOCK_M, BLOCK_N, UNIT, WORDS)
    for n in range(start, stop, BLOCK_N):
        row = n + tl.arange(0, BLOCK_N)
        y = load_rows(k, row.to(tl.int64) * sks, row < T, K, BK, WIDE)
        s = tl.dot(x, tl.trans(y), input_precision="ieee") * scale
        s = tl.where(among(named, b, t, n, T, words, BLOCK_N), s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(s - base[:, None])
        decay = tl.exp2(top - base)
        z = load_rows(v, row.to(tl.int64) * svs, row < T, V, BV, WIDE)
        acc = tl.dot(p.to(z.dtype), z, acc * decay[:, None], input_precision="ieee")
        total = total * decay + tl.sum(p, 1)
        top = higher
    tl.store(lse + (b * HQ + h) * T + t, closed(top, total), mask=t < T)
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    column = tl.arange(0, BV)[None, :]
    at = ((b * T + t) * HQ + h)[:, None] * V + column
    tl.store(o + at, acc.to(o.dtype.element_ty), mask=(t < T)[:, None] & (column < V))


@triton.jit(do_not_specialize=["B", "T", "HQ", "group", "words", "units", "tiles"])
def masked_queries(
    q, k, v, named, met, o, g, lse, dq, delta, scale, slope, B, T, HQ, group, words, units, tiles,
    sqb, sqt, sqh, skb, sks, skh, svb, svs, svh, sgb, sgt, sgh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, UNIT: tl.constexpr, WORDS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dq [B, T, HQ, K], and delta = sum(do * o) [B, HQ, T] for the keys' kernel. Programs and terms as in
    `masked_forward`; g is do, slope the scale in base e."""
    pid = tl.program_id(0)
    h = pid % HQ
    b = tl.cast(pid // HQ % B, tl.int64)
    low = (tiles - 1 - pid // (HQ * B)) * BLOCK_M
    t = low + tl.arange(0, BLOCK_M)
    real = t < T
    at = (b * T + t) * HQ + h
    x = load_rows(q, b * sqb + t.to(tl.int64) * sqt + h * sqh, real, K, BK, WIDE)
    y = load_rows(g, b * sgb + t.to(tl.int64) * sgt + h * sgh, real, V, BV, WIDE)
    z = load_rows(o, at * V, real, V, BV, WIDE)
    sums = tl.sum(z.to(tl.float32) * y.to(tl.float32), 1)
    tl.store(delta + (b * HQ + h) * T + t, sums, mask=real)
    logs = tl.load(lse + (b * HQ + h) * T + t, mask=real, other=float("inf"))
    k += b * skb + (h // group) * skh
    v += b * svb + (h // group) * svh
    acc = tl.zeros([BLOCK_M, BK], tl.float32)
    start, stop = keys_met(met, b, low, words, units, BLOCK_M, BLOCK_N, UNIT, WORDS)
    for n in range(start, stop, BLOCK_N):
        row = n + tl.arange(0, BLOCK_N)
        keys = load_rows(k, row.to(tl.int64) * sks, row < T, K, BK, WIDE)
        values = load_rows(v, row.to(tl.int64) * svs, row < T, V, BV, WIDE)
        s = tl.dot(x, tl.trans(keys), input_precision="ieee") * scale - logs[:, None]
        p = tl.exp2(tl.where(among(named, b, t, n, T, words, BLOCK_N), s, float("-inf")))
        ds = p * (tl.dot(y, tl.trans(values), input_precision="ieee") - sums[:, None])
        acc = tl.dot(ds.to(keys.dtype), keys, acc, input_precision="ieee")
    column = tl.arange(0, BK)[None, :]
    tl.store(dq + at[:, None] * K + column, (acc * slope).to(dq.dtype.element_ty), mask=real[:, None] & (column < K))


@triton.jit(do_not_specialize=["B", "T", "HQ", "group", "words", "units"])
def masked_keys(
    q, k, v, named, met, g, lse, delta, dk, dv, scale, slope, B, T, HQ, group, words, units,
    sqb, sqt, sqh, skb, sks, skh, svb, svs, svh, sgb, sgt, sgh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, UNIT: tl.constexpr, WORDS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dk [B, T, H, K] and dv [B, T, H, V]: a program takes a tile of keys of one head and the queries of all its query
    heads, earlier keys, which mostly more queries name, first."""
    pid = tl.program_id(0)
    H = HQ // group
    h = pid % H
    b = tl.cast(pid // H % B, tl.int64)
    n = pid // (H * B) * BLOCK_N
    row = n + tl.arange(0, BLOCK_N)
    keys = load_rows(k, b * skb + row.to(tl.int64) * sks + h * skh, row < T, K, BK, WIDE)
    values = load_rows(v, b * svb + row.to(tl.int64) * svs + h * svh, row < T, V, BV, WIDE)
    acc_k = tl.zeros([BLOCK_N, BK], tl.float32)
    acc_v = tl.zeros([BLOCK_N, BV], tl.float32)
    start, stop = queries_met(met, b, n, T, words, units, BLOCK_N, UNIT, WORDS)
    for i in range(group):
        head = h * group + i
        for low in range(start, stop, BLOCK_M):
            t = low + tl.arange(0, BLOCK_M)
            x = load_rows(q, b * sqb + t.to(tl.int64) * sqt + head * sqh, t < T, K, BK, WIDE)
            y = load_rows(g, b * sgb + t.to(tl.int64) * sgt + head * sgh, t < T, V, BV, WIDE)
            logs = tl.load(lse + (b * HQ + head) * T + t, mask=t < T, other=float("inf"))
            sums = tl.load(delta + (b * HQ + head) * T + t, mask=t < T, other=0.0)
            # keys come first, so that weights can be multiplied from where they were made
            s = tl.dot(keys, tl.trans(x), input_precision="ieee") * scale - logs[None, :]
            p = tl.exp2(tl.where(tl.trans(among(named, b, t, n, T, words, BLOCK_N)), s, float("-inf")))
            acc_v = tl.dot(p.to(y.dtype), y, acc_v, input_precision="ieee")
            ds = p * (tl.dot(values, tl.trans(y), input_precision="ieee") - sums[None, :])
            acc_k = tl.dot(ds.to(x.dtype), x, acc_k, input_precision="ieee")
    at = ((b * T + row) * H + h)[:, None]
    in_k = tl.arange(0, BK)[None, :]
    in_v = tl.arange(0, BV)[None, :]
    tl.store(dk + at * K + in_k, (acc_k * slope).to(dk.dtype.element_ty), mask=(row < T)[:, None] & (in_k < K))
    tl.store(dv + at * V + in_v, acc_v.to(dv.dtype.element_ty), mask=(row < T)[:, None] & (in_v < V))
