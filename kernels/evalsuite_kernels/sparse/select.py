"""The kernels of the lightning indexer: scores of a block of queries, and the exact choice of the largest."""

import triton
import triton.language as tl

from evalsuite_kernels.sparse.forward import load_rows


@triton.jit
def wide(n):
    """A multiple of 4, for numbers to move by fours."""
    return (n + 3) // 4 * 4


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
    begin = tl.load(first + b * T + t, mask=real, other=S).to(tl.int64)
    last = tl.load(position + b * T + t, mask=real, other=-1).to(tl.int64)
    begin = tl.where(last >= part * each * BLOCK_N, begin, S)  # S for those that see none of these keys
    pair = tl.arange(0, BLOCK_T * BLOCK_H)
    mine = start + tile * BLOCK_T + pair // BLOCK_H
    head = pair % BLOCK_H
    scores += (b * (stop - start) + tile * BLOCK_T + in_tile).to(tl.int64)[:, None] * wide(S)
    column = tl.arange(0, BLOCK_N)
    own = tl.min(begin, 0)
    while own < S:
        seen = tl.where(begin == own, tl.minimum(last + 1, S - own), 0).to(tl.int32)
        for n in range(part * each, tl.minimum((part + 1) * each, tl.cdiv(tl.max(seen, 0), BLOCK_N))):
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
                s = tl.maximum(s, 0.0, propagate_nan=tl.PropagateNan.ALL) * weight[:, None]
                total += s if BLOCK_H == 1 else tl.sum(tl.reshape(s, [BLOCK_T, BLOCK_H, BLOCK_N]), 1)
            tl.store(scores + at + column[None, :], total * scale, mask=column[None, :] < wide(seen)[:, None] - at)
        own = tl.min(tl.where(begin > own, begin, S), 0)


@triton.jit
def ordered(x):
    """fp32 as int32 of the same order; -0.0 is 0.0, and NaN infinite."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    bits = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7F800000, bits)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _seen(first, position, at, S):
    """How many keys a query sees."""
    return tl.maximum(tl.minimum(tl.load(position + at) + 1, S - tl.load(first + at)), 0).to(tl.int32)


@triton.jit
def _digit(x, least, i: tl.constexpr):
    """The byte of x that pass i looks at, as 0 .. 255 in order, and whether those before it are those of `least`."""
    if i == 0:
        return (x >> 24) + 128, (x & 0) == 0
    else:
        return (x >> (24 - 8 * i)) & 255, (x >> (32 - 8 * i)) == least


@triton.jit
def _count_and_most(a, x, b, y):
    return a + b, tl.maximum(x, y)


@triton.jit
def _next(hist, least, wanted, i: tl.constexpr):
    """One more byte of the wanted-th largest number, from how many numbers have which byte; and which of those with
    this byte it is."""
    from_here = tl.cumsum(hist, 0, reverse=True)  # numbers with this byte or a larger one
    enough = from_here >= wanted
    byte, above = tl.reduce((enough.to(tl.int32), tl.where(enough, 0, from_here)), 0, _count_and_most)
    byte -= 1
    wanted -= above
    return byte - 128 if i == 0 else least * 256 + byte, wanted


@triton.jit(do_not_specialize=["start", "stop", "T", "S", "width", "topk"])
def sample(
    scores, first, position, low, start, stop, T, S, width, topk, COUNT: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """low [B, stop - start] (as `ordered`): of each query a number that, as COUNT of its scores tell, a fourth more
    than topk reach; the lowest of all where it sees few keys."""
    pid = tl.program_id(0)
    b = tl.cast(pid // (stop - start), tl.int64)
    count = _seen(first, position, b * T + start + pid % (stop - start), S)
    least = count * 0 + -2147483648
    if count > 2 * COUNT:
        least = count * 0
        each = tl.arange(0, COUNT)
        column = tl.cast(each // RUN, tl.int64) * count // (COUNT // RUN) + each % RUN
        x = ordered(tl.load(scores + tl.cast(pid, tl.int64) * width + column))
        expected = topk.to(tl.float32) * COUNT / count
        wanted = tl.minimum(1.25 * expected + 4.0 * tl.sqrt(expected) + 4.0, COUNT * 1.0).to(tl.int32)
        for i in tl.static_range(4):
            digit, there = _digit(x, least, i)
            least, wanted = _next(tl.histogram(digit, 256, mask=there), least, wanted, i)
    tl.store(low + pid, least)


@triton.jit(do_not_specialize=["start", "stop", "T", "S", "width", "topk", "parts"])
def collect(
    scores, first, position, low, values, places, sizes, start, stop, T, S, width, topk, parts,
    PART: tl.constexpr, CAP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Of each part of PART keys what may be chosen, in order: values (as `ordered`) and places [.., parts, CAP], and
    sizes [.., parts, 2]: how many there are, -1 where they do not fit, and how many keys reach `low`.

    Of those that only just reach it the first topk are enough.
    """
    pid = tl.program_id(0)
    row = pid // parts
    part = pid - row * parts
    b = tl.cast(row // (stop - start), tl.int64)
    count = _seen(first, position, b * T + start + row % (stop - start), S)
    least = tl.load(low + row)
    sifted = least > -2147483648  # else so few keys are seen that the choice is made of all
    count = tl.where(sifted, count, 0)
    scores += tl.cast(row, tl.int64) * width
    values += tl.cast(pid, tl.int64) * CAP
    places += tl.cast(pid, tl.int64) * CAP
    kept = count * 0
    tied = count * 0
    reach = count * 0
    for at in range(part * PART, tl.minimum((part + 1) * PART, count), TILE):
        column = at + tl.arange(0, TILE)
        there = column < count
        x = ordered(tl.load(scores + column, mask=there, other=0.0))
        take = there & (x > least)
        same = (there & (x == least)).to(tl.int32)
        both = tl.sum(take.to(tl.int32) + same * 65536, 0)  # one sum for two: a tile has fewer than 65536
        equal = both >> 16
        if equal > 0:
            take = take | ((same > 0) & (tied + tl.cumsum(same, 0) <= topk))
        slot = kept + tl.cumsum(take.to(tl.int32), 0) - 1
        fits = take & (slot < CAP)
        tl.store(values + slot, x, mask=fits)
        tl.store(places + slot, column, mask=fits)
        kept += (both & 65535) + tl.maximum(tl.minimum(equal, topk - tied), 0)
        tied += equal
        reach += (both & 65535) + equal
    tl.store(sizes + 2 * pid, tl.where(sifted & (kept <= CAP), kept, -1))
    tl.store(sizes + 2 * pid + 1, reach)


@triton.jit
def _store(x, column, there, least, wanted, taken, tied, found):
    """The positions of what is larger than `least`, and of the first `wanted` numbers like it, in order; returns how
    many have been taken, and how many are like it."""
    same = (there & (x == least)).to(tl.int32)
    take = there & ((x > least) | ((same > 0) & (tied + tl.cumsum(same, 0) <= wanted)))
    one = take.to(tl.int32)
    tl.store(found + taken + tl.cumsum(one, 0) - 1, column, mask=take)
    return taken + tl.sum(one, 0), tied + tl.sum(same, 0)


@triton.jit
def _slots(sizes, each, parts, CAP: tl.constexpr):
    """Where the numbers that `collect` kept of all parts stand, counted through: parts leave room between them."""
    at = each
    total = tl.load(sizes)
    for part in range(1, parts):
        at += tl.where(each >= total, CAP - tl.load(sizes + 2 * part - 2), 0)
        total += tl.load(sizes + 2 * part)
    return at


@triton.jit
def _entries(scores, values, places, sizes, each, n, parts, CAP: tl.constexpr, DIRECT: tl.constexpr):
    """Numbers, their positions, and which of them are there."""
    there = each < n
    if DIRECT:
        return ordered(tl.load(scores + each, mask=there, other=0.0)), each, there
    else:
        at = _slots(sizes, each, parts, CAP)
        return tl.load(values + at, mask=there, other=0), tl.load(places + at, mask=there, other=0), there


@triton.jit
def _pick(
    scores, values, places, sizes, found, n, parts, wanted,
    CAP: tl.constexpr, TILE: tl.constexpr, DIRECT: tl.constexpr,
):  # fmt: skip
    """The `wanted` largest of n numbers, found byte by byte, from how many have which byte: with DIRECT of n scores,
    else of what `collect` kept."""
    least = wanted * 0
    for i in tl.static_range(4):
        hist = tl.zeros([256], tl.int32)
        for at in range(0, n, TILE):
            each = at + tl.arange(0, TILE)
            x, _, there = _entries(scores, values, places, sizes, each, n, parts, CAP, DIRECT)
            digit, alike = _digit(x, least, i)
            hist += tl.histogram(digit, 256, mask=there & alike)
        least, wanted = _next(hist, least, wanted, i)
    taken = n * 0
    tied = n * 0
    for at in range(0, n, TILE):
        each = at + tl.arange(0, TILE)
        x, column, there = _entries(scores, values, places, sizes, each, n, parts, CAP, DIRECT)
        taken, tied = _store(x, column, there, least, wanted, taken, tied, found)


@triton.jit
def _pick_once(values, places, sizes, found, n, parts, wanted, KEPT: tl.constexpr, CAP: tl.constexpr):
    """As `_pick`, of no more than KEPT numbers, which are read once."""
    x, column, there = _entries(values, values, places, sizes, tl.arange(0, KEPT), n, parts, CAP, False)
    least = wanted * 0
    for i in tl.static_range(4):
        digit, alike = _digit(x, least, i)
        least, wanted = _next(tl.histogram(digit, 256, mask=there & alike), least, wanted, i)
    _store(x, column, there, least, wanted, n * 0, n * 0, found)


@triton.jit(do_not_specialize=["start", "stop", "T", "S", "width", "topk", "parts"])
def choose(
    scores, first, position, values, places, sizes, found, start, stop, T, S, width, topk, parts,
    ONCE: tl.constexpr, CAP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """found [B, T, topk] of the queries start .. stop - 1: the positions of the topk largest scores that each sees, of
    equal ones the earliest, ascending, then -1.

    By what `collect` kept where that holds them all, which it nearly always does, read once if they are at most ONCE;
    else by all scores. Which of these changes no bit.
    """
    pid = tl.program_id(0)
    b = tl.cast(pid // (stop - start), tl.int64)
    at = b * T + start + pid % (stop - start)
    scores += tl.cast(pid, tl.int64) * width
    row = tl.cast(pid, tl.int64) * parts
    found += at * topk
    count = _seen(first, position, at, S)
    reach = count * 0
    kept = count * 0
    fits = count >= 0
    for part in range(parts):
        n = tl.load(sizes + 2 * (row + part))
        kept += n
        fits = fits & (n >= 0)
        reach += tl.load(sizes + 2 * (row + part) + 1)
    values += row * CAP
    places += row * CAP
    sizes += 2 * row
    taken = tl.minimum(count, topk)
    if count <= topk:
        for each in range(0, count, TILE):
            column = each + tl.arange(0, TILE)
            tl.store(found + column, column, mask=column < count)
    elif fits & (reach >= topk):
        if ONCE:
            if kept <= ONCE:
                _pick_once(values, places, sizes, found, kept, parts, taken, ONCE, CAP)
            else:
                _pick(scores, values, places, sizes, found, kept, parts, taken, CAP, TILE, False)
        else:
            _pick(scores, values, places, sizes, found, kept, parts, taken, CAP, TILE, False)
    else:
        _pick(scores, values, places, sizes, found, count, parts, taken, CAP, TILE, True)
    for each in range(taken // TILE * TILE, topk, TILE):
        column = each + tl.arange(0, TILE)
        tl.store(found + column, tl.full([TILE], -1, tl.int32), mask=(column >= taken) & (column < topk))
