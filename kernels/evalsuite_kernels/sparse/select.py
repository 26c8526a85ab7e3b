"""The kernels of the lightning indexer: scores of a block of queries, and the exact choice of the largest."""

import triton
import triton.language as tl

from evalsuite_kernels.sparse.forward import load_rows


@triton.jit(do_not_specialize=["start", "stop", "T", "S", "HI", "tiles", "parts"])
def score(
    q, k, w, first, position, scores, scale, start, stop, T, S, HI, tiles, parts,
    sqb, sqt, sqh, skb, sks, swb, swt, swh,
    D: tl.constexpr, BD: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """scores [B, stop - start, S] of the queries start .. stop - 1 of each batch row: column c is the key at position c
    of the query's own sequence. What a query does not see is left as it was.

    A program takes BLOCK_T queries and BLOCK_N positions, the same ones whatever is asked. Queries of another sequence
    take another turn, so that a row's number is one sum in one order wherever the row stands.
    """
    pid = tl.program_id(0)
    part = pid % parts
    tile = pid // parts % tiles
    b = tl.cast(pid // (parts * tiles), tl.int64)
    in_tile = tl.arange(0, BLOCK_T)
    t = start + tile * BLOCK_T + in_tile
    real = t < stop
    begin = tl.load(first + b * T + t, mask=real, other=S).to(tl.int64)
    last = tl.load(position + b * T + t, mask=real, other=-1).to(tl.int64)
    column = part * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = tl.where(last >= part * BLOCK_N, begin, S)  # S for those that see none of these keys
    each = tl.arange(0, BLOCK_T * BLOCK_H)
    mine = start + tile * BLOCK_T + each // BLOCK_H
    head = each % BLOCK_H
    own = tl.min(begin, 0)
    while own < S:
        row = own + column
        y = load_rows(k, b * skb + row * sks, row < S, D, BD, WIDE)
        total = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
        for i in range(0, HI, BLOCK_H):
            there = (mine < stop) & (i + head < HI)
            at = mine.to(tl.int64)
            x = load_rows(q, b * sqb + at * sqt + (i + head) * sqh, there, D, BD, WIDE)
            weight = tl.load(w + b * swb + at * swt + (i + head) * swh, mask=there, other=0.0).to(tl.float32)
            s = tl.maximum(tl.dot(x, tl.trans(y), input_precision="ieee"), 0.0) * weight[:, None]
            total += tl.sum(tl.reshape(s, [BLOCK_T, BLOCK_H, BLOCK_N]), 1)
        out = (b * (stop - start) + tile * BLOCK_T + in_tile).to(tl.int64) * S
        seen = (begin == own)[:, None] & (column[None, :] <= last[:, None]) & (row < S)[None, :]
        tl.store(scores + out[:, None] + column[None, :], total * scale, mask=seen)
        own = tl.min(tl.where(begin > own, begin, S), 0)


@triton.jit
def ordered(x):
    """fp32 as int32 of the same order; -0.0 is 0.0."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit(do_not_specialize=["start", "stop", "T", "S", "topk"])
def choose(scores, first, position, found, start, stop, T, S, topk, TILE: tl.constexpr):
    """found [B, T, topk] of the queries start .. stop - 1: the positions of the topk largest scores that each sees, of
    equal ones the earliest, ascending, then -1.

    The least number that is taken is found byte by byte, from how many numbers have which byte.
    """
    pid = tl.program_id(0)
    b = tl.cast(pid // (stop - start), tl.int64)
    t = start + pid % (stop - start)
    scores += tl.cast(pid, tl.int64) * S
    found += (b * T + t) * topk
    begin = tl.load(first + b * T + t)
    count = tl.maximum(tl.minimum(tl.load(position + b * T + t) + 1, S - begin), 0).to(tl.int32)
    wanted = tl.minimum(topk, count)
    some = tl.where(count > topk, count, 0)  # where all are taken, nothing is to be found
    byte = tl.arange(0, 256)
    least = wanted * 0
    for i in tl.static_range(4):
        hist = tl.zeros([256], tl.int32)
        for at in range(0, some, TILE):
            column = at + tl.arange(0, TILE)
            there = column < some
            x = ordered(tl.load(scores + column, mask=there, other=0.0))
            if i == 0:
                digit = (x >> 24) + 128
            else:
                digit = (x >> (24 - 8 * i)) & 255
                there = there & ((x >> (32 - 8 * i)) == least)
            hist += tl.histogram(digit, 256, mask=there)
        from_here = tl.sum(hist, 0) - tl.cumsum(hist, 0) + hist  # numbers with this byte or a larger one
        chosen = tl.sum((from_here >= wanted).to(tl.int32), 0) - 1
        least = chosen - 128 if i == 0 else least * 256 + chosen
        wanted -= tl.max(tl.where(byte > chosen, from_here, 0), 0)
    least = tl.where(some > 0, least, -2147483648)
    ties = tl.where(some > 0, wanted, count)
    taken = count * 0
    tied = count * 0
    for at in range(0, count, TILE):
        column = at + tl.arange(0, TILE)
        there = column < count
        x = ordered(tl.load(scores + column, mask=there, other=0.0))
        same = (there & (x == least)).to(tl.int32)
        take = there & ((x > least) | ((same > 0) & (tied + tl.cumsum(same, 0) <= ties)))
        one = take.to(tl.int32)
        tl.store(found + taken + tl.cumsum(one, 0) - 1, column, mask=take)
        taken += tl.sum(one, 0)
        tied += tl.sum(same, 0)
    for at in range(0, topk, TILE):
        column = at + tl.arange(0, TILE)
        tl.store(found + column, tl.full([TILE], -1, tl.int32), mask=(column >= taken) & (column < topk))
