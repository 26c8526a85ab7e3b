"""Few queries of a lightning indexer, one a program: a part of the keys is scored, and sifted at once."""

import triton
import triton.language as tl

from evalsuite_kernels.sparse.forward import load_rows, standing
from evalsuite_kernels.sparse.scores import wide
from evalsuite_kernels.sparse.select import sampled
from evalsuite_kernels.sparse.step import keep_part


@triton.jit(do_not_specialize=["T", "S", "width", "topk", "parts", "each"])
def score_one(
    q, k, w, first, position, scores, low, values, places, sizes, dense, tally, found, scale, T, S, width, topk, parts,
    each,
    sqb, sqt, sqh, skb, sks, swb, swt, swh,
    D: tl.constexpr, BD: tl.constexpr, HI: tl.constexpr, HEADS: tl.constexpr, BLOCK_N: tl.constexpr,
    COUNT: tl.constexpr, RUN: tl.constexpr, PART: tl.constexpr, OWN: tl.constexpr, LIMIT: tl.constexpr,
    TILE: tl.constexpr, WIDE: tl.constexpr, EARLY: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """As `scores.score` with BLOCK_H = 1, to the bit, of all T queries: for few, whose keys meet no more than HEADS
    heads at once. A program takes `each` times BLOCK_N positions; with COUNT, of those alone that `select.sample` looks
    at, and their scores [B, T, COUNT] stand side by side. With PART, which is each * BLOCK_N, it then keeps of them
    what may be chosen, as `step.keep_part`; width as in `select.collect`.

    Where launches overlap, AHEAD lets those that sift score before the sample is through. What they read was there
    before the sample's program let them start, but a multiprocessor may have kept what stood there earlier: these loads
    ask the cache that all share (.cg). Copies ahead of a loop can do so by 16 bytes alone: keys of other widths wait.
    """
    if EARLY and COUNT:  # the launches after the next may lean on all before this one
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    elif EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        if not AHEAD:
            tl.extra.cuda.gdc_wait()
    pid = tl.program_id(0)
    part = pid % parts
    row = tl.cast(pid // parts, tl.int64)
    b, t = row // T, row % T
    begin, last = standing(first, position, b, t, t < T, T, S, True)
    count = tl.maximum(tl.minimum(last + 1, S - begin), 0).to(tl.int32)
    head = tl.arange(0, HEADS)
    x = load_rows(q, b * sqb + t * sqt + head * sqh, head < HI, D, BD, WIDE, True)
    w += b * swb + t * swt
    weights = (tl.load(w, cache_modifier=".cg").to(tl.float32),)
    for i in tl.static_range(1, HI):
        weights = weights + (tl.load(w + i * swh, cache_modifier=".cg").to(tl.float32),)  # type: ignore[assignment]
    mine = scores + row * wide(S)
    looked_at = count
    if COUNT:
        mine = scores + row * COUNT
        looked_at = tl.where(count > 2 * COUNT, COUNT, 0)
    for n in range(part * each, tl.minimum((part + 1) * each, tl.cdiv(looked_at, BLOCK_N))):
        column = n * BLOCK_N + tl.arange(0, BLOCK_N)
        if COUNT:
            here = column < COUNT
            at = begin + sampled(column, count, COUNT, RUN)
            y = load_rows(k, b * skb + at * sks, here, D, BD, WIDE, True)
        else:
            here = column < wide(count)
            y = load_rows(k, b * skb + (begin + column) * sks, begin + column < S, D, BD, WIDE, True)
        s = tl.maximum(tl.dot(y, tl.trans(x), input_precision="ieee"), 0.0, propagate_nan=tl.PropagateNan.ALL)
        total = tl.zeros([BLOCK_N], tl.float32)
        for i in tl.static_range(HI):
            alone = tl.sum(tl.where(head[None, :] == i, s, 0.0), 1)
            total = tl.fma(alone, tl.zeros([BLOCK_N], tl.float32) + weights[i], total)
        tl.store(mine + column, total * scale, mask=here)
    if PART:
        tl.debug_barrier()  # what all threads stored is there before it is read
        keep_part(
            scores + row * width, part, parts, count, low + row, values + tl.cast(pid, tl.int64) * PART,
            places + tl.cast(pid, tl.int64) * PART, sizes + pid, dense + row * LIMIT, tally + row, found + row * topk,
            topk, PART, OWN, LIMIT, TILE, EARLY and AHEAD,
        )  # fmt: skip
