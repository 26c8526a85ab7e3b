"""The scores of the lightning indexer."""

import triton
import triton.language as tl

from evalsuite_kernels.sparse.forward import load_rows, standing


@triton.jit
def wide(n):
    """A multiple of 4, for numbers to move by fours."""
    return (n + 3) // 4 * 4


@triton.jit
def seen(first, position, b, t, T, S):
    """How many keys query t of batch row b sees."""
    begin, last = standing(first, position, b, t, t < T, T, S)
    return tl.maximum(tl.minimum(last + 1, S - begin), 0).to(tl.int32)


@triton.jit(do_not_specialize=["start", "stop", "T", "S", "HI", "tiles", "parts", "each"])
def score(
    q, k, w, first, position, scores, scale, start, stop, T, S, HI, tiles, parts, each,
    sqb, sqt, sqh, skb, sks, swb, swt, swh,
    D: tl.constexpr, BD: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """scores [B, stop - start, wide(S)] of the queries start .. stop - 1 of each batch row: column c is the key at
    position c of the query's own sequence. What a query does not see may hold anything.

    A program takes BLOCK_T queries and `each` times BLOCK_N positions, the same ones whatever is asked. Queries of
    another sequence take another turn, so that a row's number is one sum in one order wherever the row stands.
    """
    pid = tl.program_id(0)
    part = pid % parts
    tile = pid // parts % tiles
    b = tl.cast(pid // (parts * tiles), tl.int64)
    in_tile = tl.arange(0, BLOCK_T)
    t = start + tile * BLOCK_T + in_tile
    real = t < stop
    begin, last = standing(first, position, b, t, real, T, S)
    begin = tl.where(last >= part * each * BLOCK_N, begin, S)  # S for those that see none of these keys
    pair = tl.arange(0, BLOCK_T * BLOCK_H)
    mine = start + tile * BLOCK_T + pair // BLOCK_H
    head = pair % BLOCK_H
    scores += (b * (stop - start) + tile * BLOCK_T + in_tile).to(tl.int64)[:, None] * wide(S)
    column = tl.arange(0, BLOCK_N)
    own = tl.min(begin, 0)
    while own < S:
        many = tl.where(begin == own, tl.minimum(last + 1, S - own), 0).to(tl.int32)
        for n in range(part * each, tl.minimum((part + 1) * each, tl.cdiv(tl.max(many, 0), BLOCK_N))):
            at = n * BLOCK_N
            row = own + at + column
            y = load_rows(k, b * skb + row * sks, row < S, D, BD, WIDE)
            total = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
            for i in range(0, HI, BLOCK_H):
                there = (mine < stop) & (i + head < HI)
                to = mine.to(tl.int64)
                x = load_rows(q, b * sqb + to * sqt + (i + head) * sqh, there, D, BD, WIDE)
                weight = tl.load(w + b * swb + to * swt + (i + head) * swh, mask=there, other=0.0).to(tl.float32)
                s = tl.dot(x, tl.trans(y), input_precision="ieee")
                s = tl.maximum(s, 0.0, propagate_nan=tl.PropagateNan.ALL)
                if BLOCK_H == 1:  # as `single.score_one`: a compiler is free to fuse or not
                    total = tl.fma(s, weight[:, None], total)
                else:
                    if i + BLOCK_H > HI:  # a head that is not there scores an infinite key 0, not NaN
                        s = tl.where(there[:, None], s, 0.0)
                    total += tl.sum(tl.reshape(s * weight[:, None], [BLOCK_T, BLOCK_H, BLOCK_N]), 1)
            tl.store(scores + at + column[None, :], total * scale, mask=column[None, :] < wide(many)[:, None] - at)
        own = tl.min(tl.where(begin > own, begin, S), 0)
