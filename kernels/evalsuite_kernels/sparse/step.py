"""A step of decoding: what may be chosen is kept where it is scored, and read before it is known what is chosen."""

import triton
import triton.language as tl

from evalsuite_kernels.sparse.forward import load_rows, place, standing, weigh
from evalsuite_kernels.sparse.select import all_of, beside, largest, ordered, pick, rest, slots

EVERY = tl.constexpr(1 << 30)  # of the numbers like the least one: all


@triton.jit
def keep_part(
    scores, part, parts, count, low, values, places, size, dense, tally, found, topk,
    PART: tl.constexpr, OWN: tl.constexpr, LIMIT: tl.constexpr, TILE: tl.constexpr, WAIT: tl.constexpr,
):  # fmt: skip
    """Of the PART scores of a part those above the threshold `low` [1], in order, and then those like it: values (as
    `ordered`) and places [PART], and size [1], how many there are, as `_two` has them. The values above it stand in
    dense [LIMIT] too, those of all parts in any order, as far as they fit; tally [1] counts both, and parts.

    Where these are not enough to choose from (`_kept`), the last part makes the choice among all scores: found [topk],
    as `select.choose` has it. Threads own OWN numbers side by side, as in `select.gather_part`. With WAIT the threshold
    is there only when the launch before is through.
    """
    column = part * PART + tl.arange(0, PART // OWN) * OWN
    xs = (_score(scores, column, count),)
    for i in tl.static_range(1, OWN):
        xs = xs + (_score(scores, column + i, count),)  # type: ignore[assignment]
    if WAIT:
        tl.extra.cuda.gdc_wait()
    least = tl.load(low)
    end = tl.where(least > -2147483648, count, 0)  # else nobody looked for one
    ns = (beside(xs[0], column < end, least),)
    own = ns[0]
    for i in tl.static_range(1, OWN):
        ns = ns + (beside(xs[i], column + i < end, least),)  # type: ignore[assignment]
        own += ns[i]
    upto = tl.cumsum(own, 0)
    kept = tl.max(upto, 0)
    above, like = _two(kept)
    upto -= own
    tl.debug_barrier()  # what all threads stored is there before the part counts as through
    before = tl.atomic_add(tally, tl.cast(above, tl.int64) + (tl.cast(like, tl.int64) << 24) + (1 << 48))
    base, _like = _totals(before)
    tl.store(size, kept)
    for i in tl.static_range(OWN):
        upto += ns[i]
        rank, tied = _two(upto)
        slot = tl.where(ns[i] == 1, rank, above + tied) - 1
        tl.store(values + slot, xs[i], mask=ns[i] > 0)
        tl.store(places + slot, column + i, mask=ns[i] > 0)
        tl.store(dense + base + slot, xs[i], mask=(ns[i] == 1) & (base + slot < LIMIT))
    _, _, listed = _kept(base + above, _like + like, topk, LIMIT)
    if listed & ((before >> 48) == parts - 1):
        taken = tl.minimum(count, topk)
        if count <= topk:
            all_of(found, count, TILE)
        else:
            pick(scores, scores, scores, None, found, count, taken, 0, 0, TILE, True)
        rest(found, taken, topk, TILE)


@triton.jit
def _score(scores, column, count):
    return ordered(tl.load(scores + column, mask=column < count, other=0.0))


@triton.jit
def _two(n):
    """How many are above the threshold and how many are like it, of fewer than 65536 each."""
    return n & 65535, n >> 16


@triton.jit
def _totals(tally):
    """The same of a row."""
    return (tally & 0xFFFFFF).to(tl.int32), ((tally >> 24) & 0xFFFFFF).to(tl.int32)


@triton.jit
def _kept(above, like, topk, LIMIT: tl.constexpr):
    """Of a row's kept numbers: how many are to be read or chosen from, how many of these are like the threshold, and
    whether it has a list of its own.

    Where more than topk are above the threshold, of those is chosen; where fewer are, they all are, and the first ones
    like it. Often many are equal: they need no room, and nobody looks for what is known.
    """
    room = tl.maximum(topk - above, 0)
    return tl.maximum(above, topk), room, (above > LIMIT) | (room > like)


@triton.jit(do_not_specialize=["topk"])
def find(dense, low, tally, least, topk, LIMIT: tl.constexpr, EARLY: tl.constexpr):
    """What is chosen of the kept numbers of each row: those above least [rows, 2], and how many of those like it.

    Where launches overlap the next begins when all rows have been kept, and looks for its keys meanwhile.
    """
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.cast(tl.program_id(0), tl.int64)
    each = tl.arange(0, LIMIT)
    x = tl.load(dense + row * LIMIT + each)  # without waiting for how many are there
    lowest = tl.load(low + row)
    n, _ = _totals(tl.load(tally + row))
    x = tl.where(each < n, x, -2147483648)
    if (n > topk) & (n <= LIMIT):
        bound, reach = largest(x, n, lowest, topk)
        like = topk * 0 + EVERY
        if reach > topk:
            like = topk - tl.sum((x > bound).to(tl.int32), 0)
        tl.store(least + 2 * row, bound)
        tl.store(least + 2 * row + 1, like)


@triton.jit
def _candidates(values, places, ends, each, n, PART: tl.constexpr, BITS: tl.constexpr):
    """Of a row's kept numbers, in order: values, positions (-1 where there is none)."""
    at = slots(each, ends, PART, BITS)
    value = tl.load(values + at, mask=each < n, other=0, cache_modifier=".cg")
    return value, tl.load(places + at, mask=each < n, other=-1, cache_modifier=".cg")


@triton.jit(do_not_specialize=["topk", "T", "S", "HQ", "heads", "lists", "share", "parts", "tiles", "splits"])
def attend(
    q, k, v, first, position, values, places, sizes, tally, least, found, part, tops, totals, scale, topk,
    T, S, HQ, heads, lists, share, parts, tiles, splits,
    sqb, sqt, sqh, skb, skt, skh, svb, svt, svh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr, PART: tl.constexpr, BITS: tl.constexpr, LIMIT: tl.constexpr, WIDE: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """As `forward.forward` with SPLIT, for tokens, of what `keep_part` kept: of a row's candidates, SPLIT to a program,
    those are read that are chosen, as `find` says; where `keep_part` made a list, SPLIT of its entries. part [B, lists,
    splits, T * heads, V] and tops and totals are written of all splits.

    Keys and values come while `find` is at work, also of candidates that lose. What it waited for is there; but see
    `single.score_one` about the cache.
    """
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    b, t, own, head = place(tl.program_id(0) // splits, tiles, lists, T, heads, BLOCK_M)
    split = tl.program_id(0) % splits
    real = head >= 0
    head = tl.maximum(head, 0)
    row = b * T + t
    above, like = _totals(tl.load(tally + row, cache_modifier=".cg"))
    n, room, listed = _kept(above, like, topk, LIMIT)
    n = tl.where(listed, topk, n)
    begin, _last = standing(first, position, b, t, t < T, T, S, True)
    x = load_rows(q, b * sqb + t * sqt + head * sqh, real, K, BK, WIDE, True)
    k += b * skb + (own // share) * skh
    v += b * svb + (own // share) * svh
    values += row * parts * PART
    places += row * parts * PART
    found += row * topk
    of_part = tl.arange(0, 1 << BITS)
    size = tl.load(sizes + row * parts + of_part, mask=of_part < parts, other=0, cache_modifier=".cg")
    above, like = _two(size)
    ends = tl.cumsum(above, 0) + tl.minimum(tl.cumsum(like, 0), room)
    acc = tl.zeros([BLOCK_M, BV], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    bound = n * 0 + -2147483648
    ties = n * 0 + EVERY
    start = split * SPLIT
    if start < n:
        for i in tl.static_range(SPLIT // BLOCK_N):
            each = start + i * BLOCK_N + tl.arange(0, BLOCK_N)
            if listed:
                value = tl.zeros([BLOCK_N], tl.int32)
                key = tl.load(found + each, mask=each < n, other=-1, cache_modifier=".cg")
            else:
                value, key = _candidates(values, places, ends, each, n, PART, BITS)
            at = begin + key
            read = (key >= 0) & (at < S)
            y = load_rows(k, at * skt, read, K, BK, WIDE, True)
            z = load_rows(v, at * svt, read, V, BV, WIDE, True)
            if i == 0:
                if EARLY:
                    tl.extra.cuda.gdc_wait()
                if (n > topk) & (not listed):
                    bound = tl.load(least + 2 * row, cache_modifier=".cg")
                    ties = tl.load(least + 2 * row + 1, cache_modifier=".cg")
            same = read & (value == bound)
            read = read & (value >= bound)
            if ties < EVERY:
                before = n * 0
                for j in range(0, start + i * BLOCK_N, BLOCK_N):
                    earlier, _key = _candidates(values, places, ends, j + tl.arange(0, BLOCK_N), n, PART, BITS)
                    before += tl.sum((earlier == bound).to(tl.int32), 0)
                read = read & ((value > bound) | (before + tl.cumsum(same.to(tl.int32), 0) <= ties))
            s = tl.dot(x, tl.trans(y), input_precision="ieee") * scale
            top, p, decay = weigh(tl.where(read[None, :], s, float("-inf")), top)
            z = tl.where(read[:, None], z, 0.0)  # a value that is no number counts nowhere but where it is chosen
            acc = tl.dot(p.to(z.dtype), z, acc * decay[:, None], input_precision="ieee")
            total = total * decay + tl.sum(p, 1)
    cols = tl.arange(0, BV)[None, :]
    at = ((b * lists + own) * splits + split) * (T * heads) + t * heads + head - own * heads
    tl.store(part + at[:, None] * V + cols, acc, mask=real[:, None] & (cols < V))
    tl.store(tops + at, top, mask=real)
    tl.store(totals + at, total, mask=real)
