"""The kernels of `index_loss` and its gradient, tile by tile: neither attention nor index scores are held for all keys.

Three passes, each of which makes its tiles anew: the sums of both softmaxes; by queries, the divergence and what is
owed to index queries and weights; by keys, what is owed to index keys. Sums have one order, and there are no atomics.
"""

import triton
import triton.language as tl

from evalsuite_kernels.sparse.forward import load_rows


@triton.jit(do_not_specialize=["T", "N", "words"])
def mark(indices, first, named, T, N, words, WORDS: tl.constexpr, ENTRIES: tl.constexpr):
    """named [B, T, words]: bit i of word n is set where a query's list indices [B, T, N] names the key of row
    32 n + i. A program takes one query."""
    pid = tl.cast(tl.program_id(0), tl.int64)
    begin = pid * 0
    if first is not None:
        begin = tl.load(first + pid).to(tl.int64)
    indices += pid * N
    for low in range(0, words, WORDS):
        word = low + tl.arange(0, WORDS)
        found = tl.zeros([WORDS], tl.int32)
        for at in range(0, N, ENTRIES):
            each = at + tl.arange(0, ENTRIES)
            entry = tl.load(indices + each, mask=each < N, other=-1).to(tl.int64)
            row = tl.where(entry >= 0, begin + entry, -1)
            of = row >> 5
            if tl.max(((of >= low) & (of < low + WORDS)).to(tl.int32), 0) > 0:  # an ascending list meets few words
                again = (row[:, None] == row[None, :]) & (each[:, None] > each[None, :])
                bit = tl.full([ENTRIES], 1, tl.int32) << (row & 31).to(tl.int32)
                bit = tl.where(tl.max(again.to(tl.int32), 1) > 0, 0, bit)  # so that a sum of bits has no carry
                found |= tl.sum(tl.where(of[:, None] == word[None, :], bit[:, None], 0), 0)
        tl.store(named + pid * words + word, found, mask=word < words)


@triton.jit
def reach(first, position, b, t, T):
    """Of queries t of batch row b (int64): the first and the last row that each sees, T and -1 where there is none."""
    real = t < T
    if first is None:
        return tl.where(real, 0, T), tl.where(real, t, -1)
    else:
        begin = tl.load(first + b * T + t, mask=real, other=T).to(tl.int32)
        return begin, tl.where(real, begin + tl.load(position + b * T + t, mask=real, other=-1).to(tl.int32), -1)


@triton.jit
def sees(begin, last, named, b, t, n, T, words, BLOCK_N: tl.constexpr):
    """Which of the keys n .. n + BLOCK_N - 1 are in the reach of queries t, and in their sets if there are any, whose
    words are of whole tiles."""
    column = tl.arange(0, BLOCK_N)
    row = (n + column)[None, :]
    seen = (row >= begin[:, None]) & (row <= last[:, None]) & (row < T)
    if named is not None:
        at = named + (b * T + t) * words + n // 32
        word = tl.zeros([t.shape[0], BLOCK_N], tl.int32)
        for i in tl.static_range(BLOCK_N // 32):
            one = tl.load(at + i, mask=t < T, other=0)
            word = tl.where((column // 32 == i)[None, :], one[:, None], word)
        seen = seen & (((word >> (column % 32)[None, :]) & 1) != 0)
    return seen


@triton.jit
def meet(
    q, k, b, t, row, h, group, T, sqb, sqt, sqh, skb, sks, skh,
    K: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Products of query head h of the queries t with the keys at `row`: [queries, keys]."""
    at_q = b * sqb + t.to(tl.int64) * sqt + h * sqh
    at_k = b * skb + row.to(tl.int64) * sks + (h // group) * skh
    s = tl.zeros([t.shape[0], row.shape[0]], tl.float32)
    for c in tl.static_range(0, K, BK):
        x = load_rows(q + c, at_q, t < T, K - c, BK, WIDE)
        y = load_rows(k + c, at_k, row < T, K - c, BK, WIDE)
        s = tl.dot(x, tl.trans(y), s, input_precision="ieee")
    return s


@triton.jit
def attended(
    q, k, lse, seen, b, t, row, scale, T, HQ, group, sqb, sqt, sqh, skb, sks, skh,
    K: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Attention's weights, their mean over heads: [queries, keys], 0 where nothing is seen."""
    p = tl.zeros([t.shape[0], row.shape[0]], tl.float32)
    for h in range(HQ):
        logs = tl.load(lse + (b * HQ + h) * T + t, mask=t < T, other=float("inf"))
        s = meet(q, k, b, t, row, h, group, T, sqb, sqt, sqh, skb, sks, skh, K, BK, WIDE)
        p += tl.exp2(s * scale - logs[:, None])
    return tl.where(seen, p / HQ, 0.0)  # what is not seen may have been infinite


@triton.jit
def index(
    iq, w, y, b, low, i, T, HI, sib, sit, sih, swb, swt, swh,
    D: tl.constexpr, BD: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr, RAGGED: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Of the index heads i * GROUP .. and the queries low .., one head's queries after another's: rows [GROUP *
    BLOCK_M] of iq, their weights, and their products with keys y after ReLU."""
    pair = tl.arange(0, GROUP * BLOCK_M)
    t = (low + pair % BLOCK_M).to(tl.int64)
    head = i * GROUP + pair // BLOCK_M
    there = (t < T) & (head < HI)
    x = load_rows(iq, b * sib + t * sit + head * sih, there, D, BD, WIDE)
    weight = tl.load(w + b * swb + t * swt + head * swh, mask=there, other=0.0).to(tl.float32)
    s = tl.dot(x, tl.trans(y), input_precision="ieee")
    s = tl.maximum(s, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if RAGGED:  # a head that is not there scores an infinite key 0, not NaN
        s = tl.where(there[:, None], s, 0.0)
    return x, weight, s


@triton.jit
def over_heads(x, BLOCK_M: tl.constexpr, GROUP: tl.constexpr):
    """The sum over heads, [BLOCK_M, keys], of x [GROUP * BLOCK_M, keys]."""
    if GROUP == 1:
        return x
    else:
        return tl.sum(tl.reshape(x, [GROUP, BLOCK_M, x.shape[1]]), 0)


@triton.jit
def to_heads(x, BLOCK_M: tl.constexpr, GROUP: tl.constexpr):
    """[GROUP * BLOCK_M, keys]: x [BLOCK_M, keys] for each head."""
    if GROUP == 1:
        return x
    else:
        return tl.reshape(tl.broadcast_to(x[None, :, :], [GROUP, BLOCK_M, x.shape[1]]), [GROUP * BLOCK_M, x.shape[1]])


@triton.jit
def scores(
    iq, w, y, b, low, T, HI, groups, sib, sit, sih, swb, swt, swh,
    D: tl.constexpr, BD: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr, RAGGED: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Index scores of the queries low .. and keys y, [BLOCK_M, keys], without their scale."""
    total = tl.zeros([BLOCK_M, y.shape[0]], tl.float32)
    for i in range(groups):
        _, weight, s = index(iq, w, y, b, low, i, T, HI, sib, sit, sih, swb, swt, swh, D, BD, BLOCK_M, GROUP, RAGGED,
                             WIDE)  # fmt: skip
        total += over_heads(s * weight[:, None], BLOCK_M, GROUP)
    return total


@triton.jit
def onward(top, total, s):
    """The largest number and the sum of an online softmax in base 2 after s [queries, keys] too."""
    higher = tl.maximum(top, tl.max(s, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, total * tl.exp2(top - base) + tl.sum(tl.exp2(s - base[:, None]), 1)


@triton.jit
def closed(top, total):
    """log2-sum-exp2, inf where nothing is seen: whatever is subtracted from it is no weight."""
    blind = total == 0.0
    return tl.where(blind, float("inf"), top + tl.log2(tl.where(blind, 1.0, total)))


@triton.jit(do_not_specialize=["B", "T", "HQ", "group", "words", "tiles"])
def attention_sums(
    q, k, named, first, position, lse, scale, B, T, HQ, group, words, tiles, sqb, sqt, sqh, skb, sks, skh,
    K: tl.constexpr, BK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """lse [B, HQ, T] of attention's logits in base 2. A program takes a tile of queries of one head, later tiles, which
    see more, first."""
    pid = tl.program_id(0)
    h = pid % HQ
    b = tl.cast(pid // HQ % B, tl.int64)
    t = (tiles - 1 - pid // (HQ * B)) * BLOCK_M + tl.arange(0, BLOCK_M)
    begin, last = reach(first, position, b, t, T)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for n in range(tl.min(begin, 0) // BLOCK_N * BLOCK_N, tl.max(last, 0) + 1, BLOCK_N):
        row = n + tl.arange(0, BLOCK_N)
        s = meet(q, k, b, t, row, h, group, T, sqb, sqt, sqh, skb, sks, skh, K, BK, WIDE) * scale
        seen = sees(begin, last, named, b, t, n, T, words, BLOCK_N)
        top, total = onward(top, total, tl.where(seen, s, float("-inf")))
    tl.store(lse + (b * HQ + h) * T + t, closed(top, total), mask=t < T)


@triton.jit(do_not_specialize=["B", "T", "HI", "words", "tiles", "groups"])
def index_sums(
    iq, ik, w, named, first, position, lsi, scale, B, T, HI, words, tiles, groups,
    sib, sit, sih, sjb, sjs, swb, swt, swh,
    D: tl.constexpr, BD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr,
    RAGGED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """lsi [B, T], the same of index scores."""
    pid = tl.program_id(0)
    b = tl.cast(pid % B, tl.int64)
    low = (tiles - 1 - pid // B) * BLOCK_M
    t = low + tl.arange(0, BLOCK_M)
    begin, last = reach(first, position, b, t, T)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for n in range(tl.min(begin, 0) // BLOCK_N * BLOCK_N, tl.max(last, 0) + 1, BLOCK_N):
        row = n + tl.arange(0, BLOCK_N)
        y = load_rows(ik, b * sjb + row.to(tl.int64) * sjs, row < T, D, BD, WIDE)
        s = scores(iq, w, y, b, low, T, HI, groups, sib, sit, sih, swb, swt, swh, D, BD, BLOCK_M, GROUP, RAGGED,
                   WIDE)  # fmt: skip
        seen = sees(begin, last, named, b, t, n, T, words, BLOCK_N)
        top, total = onward(top, total, tl.where(seen, s * scale, float("-inf")))
    tl.store(lsi + b * T + t, closed(top, total), mask=t < T)


@triton.jit(do_not_specialize=["B", "T", "HQ", "group", "HI", "words", "tiles", "groups", "mine"])
def by_queries(
    q, k, iq, ik, w, named, first, position, lse, lsi, kl, diq, dw, scale, index_scale, slope,
    B, T, HQ, group, HI, words, tiles, groups, mine,
    sqb, sqt, sqh, skb, sks, skh, sib, sit, sih, sjb, sjs, swb, swt, swh,
    K: tl.constexpr, BK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, GROUP: tl.constexpr, RAGGED: tl.constexpr, MANY: tl.constexpr, TAUGHT: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """kl [B, T], and where TAUGHT diq [B, T, HI, D] and dw [B, T, HI], all in fp32: a program takes a tile of queries
    and one of `mine` groups of index heads (MANY: there are more than one in all), the first of which gives kl.

    scale and index_scale are in base 2, slope is index_scale / (B T) in base e."""
    pid = tl.program_id(0)
    own = pid % mine
    b = tl.cast(pid // mine % B, tl.int64)
    low = (tiles - 1 - pid // (mine * B)) * BLOCK_M
    t = low + tl.arange(0, BLOCK_M)
    begin, last = reach(first, position, b, t, T)
    logs = tl.load(lsi + b * T + t, mask=t < T, other=float("inf"))
    apart = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([GROUP * BLOCK_M, BD], tl.float32)
    sums = tl.zeros([GROUP * BLOCK_M], tl.float32)
    for n in range(tl.min(begin, 0) // BLOCK_N * BLOCK_N, tl.max(last, 0) + 1, BLOCK_N):
        row = n + tl.arange(0, BLOCK_N)
        y = load_rows(ik, b * sjb + row.to(tl.int64) * sjs, row < T, D, BD, WIDE)
        seen = sees(begin, last, named, b, t, n, T, words, BLOCK_N)
        p = attended(q, k, lse, seen, b, t, row, scale, T, HQ, group, sqb, sqt, sqh, skb, sks, skh, K, BK, WIDE)
        _, weight, s = index(iq, w, y, b, low, own, T, HI, sib, sit, sih, swb, swt, swh, D, BD, BLOCK_M, GROUP, RAGGED,
                             WIDE)  # fmt: skip
        if MANY:
            logits = scores(iq, w, y, b, low, T, HI, groups, sib, sit, sih, swb, swt, swh, D, BD, BLOCK_M, GROUP,
                            RAGGED, WIDE)  # fmt: skip
        else:
            logits = over_heads(s * weight[:, None], BLOCK_M, GROUP)
        logits = tl.where(seen, logits * index_scale - logs[:, None], float("-inf"))
        # what has no weight adds 0, whatever its score, and NaN is not hidden
        apart += tl.sum(p * (tl.log2(tl.maximum(p, 1e-30)) - tl.where(p <= 0.0, 0.0, logits)), 1)
        if TAUGHT:
            d = to_heads(tl.exp2(logits) - p, BLOCK_M, GROUP)
            sums += tl.sum(d * s, 1)
            acc = tl.dot(tl.where(s > 0.0, d, 0.0).to(y.dtype), y, acc, input_precision="ieee")
    if own == 0:
        tl.store(kl + b * T + t, apart * 0.6931471805599453, mask=t < T)
    if TAUGHT:
        pair = tl.arange(0, GROUP * BLOCK_M)
        to = (low + pair % BLOCK_M).to(tl.int64)
        head = own * GROUP + pair // BLOCK_M
        there = (to < T) & (head < HI)
        weight = tl.load(w + b * swb + to * swt + head * swh, mask=there, other=0.0).to(tl.float32)
        at = (b * T + to) * HI + head
        column = tl.arange(0, BD)[None, :]
        tl.store(dw + at, sums * slope, mask=there)
        out = acc * (weight * slope)[:, None]
        tl.store(diq + at[:, None] * D + column, out, mask=there[:, None] & (column < D))


@triton.jit(do_not_specialize=["B", "T", "HQ", "group", "HI", "words", "groups"])
def by_keys(
    q, k, iq, ik, w, named, first, position, ends, lse, lsi, dik, scale, index_scale, slope,
    B, T, HQ, group, HI, words, groups,
    sqb, sqt, sqh, skb, sks, skh, sib, sit, sih, sjb, sjs, swb, swt, swh,
    K: tl.constexpr, BK: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, GROUP: tl.constexpr, RAGGED: tl.constexpr, MANY: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dik [B, T, D] in fp32: a program takes a tile of keys, earlier ones, which more queries see, first. ends [B, T]:
    the row after the last of each sequence. Other terms as in `by_queries`."""
    pid = tl.program_id(0)
    b = tl.cast(pid % B, tl.int64)
    n = pid // B * BLOCK_N
    row = n + tl.arange(0, BLOCK_N)
    y = load_rows(ik, b * sjb + row.to(tl.int64) * sjs, row < T, D, BD, WIDE)
    stop = T
    if ends is not None:
        stop = tl.minimum(tl.load(ends + b * T + tl.minimum(n + BLOCK_N, T) - 1).to(tl.int32), T)
    acc = tl.zeros([BLOCK_N, BD], tl.float32)
    for low in range(n // BLOCK_M * BLOCK_M, stop, BLOCK_M):
        t = low + tl.arange(0, BLOCK_M)
        begin, last = reach(first, position, b, t, T)
        logs = tl.load(lsi + b * T + t, mask=t < T, other=float("inf"))
        seen = sees(begin, last, named, b, t, n, T, words, BLOCK_N)
        p = attended(q, k, lse, seen, b, t, row, scale, T, HQ, group, sqb, sqt, sqh, skb, sks, skh, K, BK, WIDE)
        if MANY:
            logits = scores(iq, w, y, b, low, T, HI, groups, sib, sit, sih, swb, swt, swh, D, BD, BLOCK_M, GROUP,
                            RAGGED, WIDE)  # fmt: skip
            logits = tl.where(seen, logits * index_scale - logs[:, None], float("-inf"))
            d = tl.exp2(logits) - p
            for i in range(groups):
                x, weight, s = index(iq, w, y, b, low, i, T, HI, sib, sit, sih, swb, swt, swh, D, BD, BLOCK_M, GROUP,
                                     RAGGED, WIDE)  # fmt: skip
                g = tl.where(s > 0.0, to_heads(d, BLOCK_M, GROUP) * weight[:, None], 0.0)
                acc = tl.dot(tl.trans(g.to(x.dtype)), x, acc, input_precision="ieee")
        else:
            x, weight, s = index(iq, w, y, b, low, 0, T, HI, sib, sit, sih, swb, swt, swh, D, BD, BLOCK_M, GROUP,
                                 RAGGED, WIDE)  # fmt: skip
            logits = over_heads(s * weight[:, None], BLOCK_M, GROUP) * index_scale - logs[:, None]
            d = tl.exp2(tl.where(seen, logits, float("-inf"))) - p
            g = tl.where(s > 0.0, to_heads(d, BLOCK_M, GROUP) * weight[:, None], 0.0)
            acc = tl.dot(tl.trans(g.to(x.dtype)), x, acc, input_precision="ieee")
    column = tl.arange(0, BD)[None, :]
    at = (b * T + row)[:, None] * D + column
    tl.store(dik + at, acc * slope, mask=(row < T)[:, None] & (column < D))
