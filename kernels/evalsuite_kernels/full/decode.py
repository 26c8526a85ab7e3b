"""Decoding over a cache in splits that are merged (Flash-Decoding): the kernels."""

import triton
import triton.language as tl

from evalsuite_kernels.full.tiles import overlap, seen, widen


@triton.jit(do_not_specialize=["window", "T", "S", "H", "group", "splits", "tiles"])
def decode(
    q, k, v, table, lengths, part, tops, totals, scale, window, T, S, H, group, splits, tiles,
    sqb, sqt, sqh, skb, skt, skh, svb, svt, svh, stb,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, PAGE: tl.constexpr,
    PADDED: tl.constexpr, WINDOWED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The queries of a key head over one split of its keys: sums relative to the split's own maximum.

    With PAGE, k and v are [pages, PAGE, H, K] and row b's i-th page is table[b, i]; skb and svb step over pages.
    """
    pid = tl.program_id(0)
    split = pid % splits
    tile = pid // splits % tiles
    b = pid // (splits * tiles) // H
    h = pid // (splits * tiles) - b * H
    keys = b * 0 + S
    if PADDED:
        keys = tl.minimum(tl.load(lengths + b).to(tl.int32), S)
    low = split * SPLIT
    stop = tl.minimum(low + SPLIT, keys)
    if WINDOWED:
        low = tl.maximum(low, tl.maximum(keys - T - window + 1, 0) // BLOCK_N * BLOCK_N)
    if low >= stop:
        return
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    real = rows < T * group
    t = rows // group
    hq = h * group + rows - t * group
    position = keys - T + t
    b = tl.cast(b, tl.int64)
    in_k = tl.arange(0, BK)[None, :]
    in_v = tl.arange(0, BV)[None, :]
    x = tl.load(
        q + b * sqb + (t * sqt + hq.to(tl.int64) * sqh)[:, None] + in_k, mask=real[:, None] & (in_k < K), other=0.0
    )
    x = widen(x, WIDE)
    acc = tl.zeros([BLOCK_M, BV], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for at in range(low, stop, BLOCK_N):
        key = at + tl.arange(0, BLOCK_N)
        valid = (key < stop)[:, None]
        if PAGE:
            page = tl.load(table + b * stb + key // PAGE, mask=key < stop, other=0).to(tl.int64)
            at_k = page * skb + (key % PAGE) * skt
            at_v = page * svb + (key % PAGE) * svt
        else:
            at_k = b * skb + key.to(tl.int64) * skt
            at_v = b * svb + key.to(tl.int64) * svt
        y = tl.load(k + (at_k + tl.cast(h, tl.int64) * skh)[:, None] + in_k, mask=valid & (in_k < K), other=0.0)
        s = tl.dot(x, tl.trans(widen(y, WIDE)), input_precision="ieee") * scale
        s = tl.where(seen(position[:, None], key[None, :], window, WINDOWED), s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(s - base[:, None])
        decay = tl.exp2(top - base)
        z = widen(
            tl.load(v + (at_v + tl.cast(h, tl.int64) * svh)[:, None] + in_v, mask=valid & (in_v < V), other=0.0), WIDE
        )
        acc = tl.dot(p.to(z.dtype), z, acc * decay[:, None], input_precision="ieee")
        total = total * decay + tl.sum(p, 1)
        top = higher
    row = ((b * H + h) * splits + split) * (T * group) + rows
    tl.store(part + row[:, None] * V + in_v, acc, mask=real[:, None] & (in_v < V))
    tl.store(tops + row, top, mask=real)
    tl.store(totals + row, total, mask=real)


@triton.jit(do_not_specialize=["window", "T", "S", "H", "group", "splits"])
def merge(
    part, tops, totals, sinks, lengths, o, lse, window, T, S, H, group, splits,
    V: tl.constexpr, BV: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr, BLOCK_N: tl.constexpr,
    PADDED: tl.constexpr, WINDOWED: tl.constexpr, SUNK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One query head's splits, TILE at a time from fixed positions."""
    overlap(EARLY)
    pid = tl.program_id(0)
    heads = H * group
    b = pid // heads // T
    t = pid // heads - b * T
    hq = pid % heads
    h = hq // group
    keys = b * 0 + S
    if PADDED:
        keys = tl.minimum(tl.load(lengths + b).to(tl.int32), S)
    first = keys * 0
    if WINDOWED:
        first = tl.maximum(keys - T - window + 1, 0) // BLOCK_N * BLOCK_N // SPLIT
    last = (keys + SPLIT - 1) // SPLIT
    cols = tl.arange(0, BV)
    acc = tl.zeros([BV], tl.float32)
    if SUNK:
        top = tl.load(sinks + hq).to(tl.float32) * 1.4426950408889634
        total = top * 0.0 + 1.0
    else:
        top = tl.cast(keys, tl.float32) * 0.0 + float("-inf")
        total = tl.cast(keys, tl.float32) * 0.0
    b = tl.cast(b, tl.int64)
    for at in range(first // TILE * TILE, last, TILE):
        split = at + tl.arange(0, TILE)
        here = (split >= first) & (split < last)
        row = ((b * H + h) * splits + split) * (T * group) + t * group + hq - h * group
        mine = tl.load(tops + row, mask=here, other=float("-inf"))
        sums = tl.load(totals + row, mask=here, other=0.0)
        x = tl.load(part + row[:, None] * V + cols[None, :], mask=here[:, None] & (cols[None, :] < V), other=0.0)
        higher = tl.maximum(top, tl.max(mine, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(mine - base)
        decay = tl.exp2(top - base)
        acc = acc * decay + tl.sum(x * weight[:, None], 0)
        total = total * decay + tl.sum(weight * sums, 0)
        top = higher
    blind = total == 0.0
    total = tl.where(blind, 1.0, total)
    at = (b * T + t) * heads + hq
    tl.store(o + at * V + cols, (acc / total).to(o.dtype.element_ty), mask=cols < V)
    tl.store(lse + (b * heads + hq) * T + t, tl.where(blind, float("inf"), top + tl.log2(total)))
