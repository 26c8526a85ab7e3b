"""The kernels of the lightning indexer: scores of a block of queries, and the exact choice of the largest."""

import triton
import triton.language as tl

from evalsuite_kernels.sparse.forward import load_rows


@triton.jit
def wide(n):
    """A multiple of 4, for numbers to move by fours."""
    return (n + 3) // 4 * 4


@triton.jit
def _seen(first, position, at, S):
    """How many keys a query sees."""
    return tl.maximum(tl.minimum(tl.load(position + at) + 1, S - tl.load(first + at)), 0).to(tl.int32)


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
                s = tl.maximum(s, 0.0, propagate_nan=tl.PropagateNan.ALL)
                if BLOCK_H == 1:  # as `score_one`: a compiler is free to fuse or not
                    total = tl.fma(s, weight[:, None], total)
                else:
                    total += tl.sum(tl.reshape(s * weight[:, None], [BLOCK_T, BLOCK_H, BLOCK_N]), 1)
            tl.store(scores + at + column[None, :], total * scale, mask=column[None, :] < wide(seen)[:, None] - at)
        own = tl.min(tl.where(begin > own, begin, S), 0)


@triton.jit(do_not_specialize=["T", "S", "HI", "parts", "each"])
def score_one(
    q, k, w, first, position, scores, scale, T, S, HI, parts, each,
    sqb, sqt, sqh, skb, sks, swb, swt, swh,
    D: tl.constexpr, BD: tl.constexpr, HEADS: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """As `score` with BLOCK_H = 1, to the bit, of all T queries, one a program: for few, whose keys meet no more than
    HEADS heads at once."""
    pid = tl.program_id(0)
    part = pid % parts
    t = tl.cast(pid // parts % T, tl.int64)
    b = tl.cast(pid // (parts * T), tl.int64)
    begin = tl.load(first + b * T + t).to(tl.int64)
    seen = _seen(first, position, b * T + t, S)
    head = tl.arange(0, HEADS)
    x = load_rows(q, b * sqb + t * sqt + head * sqh, head < HI, D, BD, WIDE)
    w += b * swb + t * swt
    scores += (b * T + t) * wide(S)
    column = tl.arange(0, BLOCK_N)
    for n in range(part * each, tl.minimum((part + 1) * each, tl.cdiv(seen, BLOCK_N))):
        at = n * BLOCK_N
        row = begin + at + column
        y = load_rows(k, b * skb + row * sks, row < S, D, BD, WIDE)
        s = tl.maximum(tl.dot(y, tl.trans(x), input_precision="ieee"), 0.0, propagate_nan=tl.PropagateNan.ALL)
        total = tl.zeros([BLOCK_N], tl.float32)
        for i in range(HI):
            mine = tl.sum(tl.where(head[None, :] == i, s, 0.0), 1)
            total = tl.fma(mine, tl.zeros([BLOCK_N], tl.float32) + tl.load(w + i * swh).to(tl.float32), total)
        tl.store(scores + at + column, total * scale, mask=column < wide(seen) - at)


@triton.jit
def ordered(x):
    """fp32 as int32 of the same order; -0.0 is 0.0, and NaN infinite."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    bits = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7F800000, bits)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _digit(x, least, i):
    """The byte of x that pass i looks at, as 0 .. 255 in order, and whether those before it are those of `least`."""
    bits = (x ^ -2147483648).to(tl.uint32, bitcast=True) >> (24 - 8 * i)
    return (bits & 255).to(tl.int32), (bits >> 8).to(tl.int32) == least


@triton.jit
def _count_and_most(a, x, b, y):
    return a + b, tl.maximum(x, y)


@triton.jit
def _next(hist, least, wanted):
    """One more byte of the wanted-th largest number, from how many numbers have which byte; and which of those with
    this byte it is."""
    from_here = tl.cumsum(hist, 0, reverse=True)  # numbers with this byte or a larger one
    enough = from_here >= wanted
    byte, above = tl.reduce((enough.to(tl.int32), tl.where(enough, 0, from_here)), 0, _count_and_most)
    return least * 256 + byte - 1, wanted - above


@triton.jit
def _largest(x, there, wanted):
    """The wanted-th largest of the numbers that are there, and which of those equal to it it is. Byte by byte, from how
    many numbers have which; a loop, since its body is long."""
    least = wanted * 0
    for i in range(4):
        digit, alike = _digit(x, least, i)
        least, wanted = _next(tl.histogram(digit, 256, mask=there & alike), least, wanted)
    return least ^ -2147483648, wanted


@triton.jit(do_not_specialize=["start", "stop", "T", "S", "topk"])
def sample(
    scores, first, position, low, start, stop, T, S, topk, COUNT: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """low [B, stop - start] (as `ordered`): of each query a number that, as COUNT of its scores tell, a fourth more
    than topk reach; the lowest of all where it sees few keys. They are looked at in runs of RUN side by side."""
    pid = tl.program_id(0)
    b = tl.cast(pid // (stop - start), tl.int64)
    count = _seen(first, position, b * T + start + pid % (stop - start), S)
    least = count * 0 + -2147483648
    if count > 2 * COUNT:
        each = tl.arange(0, COUNT)
        column = tl.cast(each // RUN, tl.int64) * count // COUNT * RUN + each % RUN
        x = ordered(tl.load(scores + tl.cast(pid, tl.int64) * wide(S) + column))
        expected = topk.to(tl.float32) * COUNT / count
        wanted = tl.minimum(1.25 * expected + 4.0 * tl.sqrt(expected) + 4.0, COUNT * 1.0).to(tl.int32)
        least, _ = _largest(x, each >= 0, wanted)
    tl.store(low + pid, least)


@triton.jit
def _sifted(scores, column, end, least):
    """Numbers of some columns (as `ordered`): 1 where one is above `least`, 65536 where it is the same."""
    there = column < end
    x = ordered(tl.load(scores + column, mask=there, other=0.0))
    return x, tl.where(there, (x > least).to(tl.int32) + (x == least).to(tl.int32) * 65536, 0)


@triton.jit(do_not_specialize=["start", "stop", "T", "S", "width", "topk", "parts"])
def collect(
    scores, first, position, low, values, places, sizes, start, stop, T, S, width, topk, parts,
    CAP: tl.constexpr, TILE: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """Of each of `parts` equal parts of a row's keys what may be chosen, in order: values (as `ordered`) and places
    [.., parts, CAP], and sizes [.., parts, 2]: how many there are, -1 where they do not fit, and how many keys reach
    `low`. width is wide(S), which nobody is told: numbers that are loaded by fours would change hands to be stored.

    Of those that only just reach it the first topk are enough. Threads own OWN numbers side by side of a tile, so that
    one scan over threads says for all of these where they go; a tile has fewer than 65536.
    """
    pid = tl.program_id(0)
    row = pid // parts
    part = pid - row * parts
    b = tl.cast(row // (stop - start), tl.int64)
    count = _seen(first, position, b * T + start + row % (stop - start), S)
    least = tl.load(low + row)
    sifted = least > -2147483648  # else so few keys are seen that the choice is made of all
    each = tl.cdiv(tl.cdiv(count, parts), TILE) * TILE
    end = tl.where(sifted, tl.minimum((part + 1) * each, count), 0)
    scores += tl.cast(row, tl.int64) * width
    values += tl.cast(pid, tl.int64) * CAP
    places += tl.cast(pid, tl.int64) * CAP
    kept = count * 0
    tied = count * 0
    above = count * 0
    for at in range(part * each, end, TILE):
        column = at + tl.arange(0, TILE // OWN) * OWN
        x, n = _sifted(scores, column, end, least)
        xs, ns, own = (x,), (n,), n
        for i in tl.static_range(1, OWN):
            x, n = _sifted(scores, column + i, end, least)
            xs, ns, own = xs + (x,), ns + (n,), own + n  # type: ignore[assignment]
        upto = tl.cumsum(own, 0)
        total = tl.max(upto, 0)
        upto -= own
        room = tl.maximum(topk - tied, 0)
        for i in tl.static_range(OWN):
            upto += ns[i]
            slot = kept + (upto & 65535) + tl.minimum(upto >> 16, room) - 1
            fits = ((ns[i] == 1) | ((ns[i] > 1) & ((upto >> 16) <= room))) & (slot < CAP)
            tl.store(values + slot, xs[i], mask=fits)
            tl.store(places + slot, column + i, mask=fits)
        kept += (total & 65535) + tl.minimum(total >> 16, room)
        tied += total >> 16
        above += total & 65535
    tl.store(sizes + 2 * pid, tl.where(sifted & (kept <= CAP), kept, -1))
    tl.store(sizes + 2 * pid + 1, above + tied)


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
def _slots(each, ends, CAP: tl.constexpr, BITS: tl.constexpr):
    """Where the numbers that `collect` kept of all parts stand, counted through: ends [2^BITS] says how many there are
    up to each part's last, and parts leave room between them."""
    part = each * 0
    for i in tl.static_range(BITS):  # the first part that ends later
        half = 1 << (BITS - 1 - i)
        part += tl.where(tl.gather(ends, part + (half - 1), 0) <= each, half, 0)
    before = tl.where(part > 0, tl.gather(ends, tl.maximum(part - 1, 0), 0), 0)
    return part * CAP + each - before


@triton.jit
def _entries(scores, values, places, ends, each, n, CAP: tl.constexpr, BITS: tl.constexpr, DIRECT: tl.constexpr):
    """Numbers, their positions, and which of them are there."""
    there = each < n
    if DIRECT:
        return ordered(tl.load(scores + each, mask=there, other=0.0)), each, there
    else:
        at = _slots(each, ends, CAP, BITS)
        return tl.load(values + at, mask=there, other=0), tl.load(places + at, mask=there, other=0), there


@triton.jit
def _pick(
    scores, values, places, ends, found, n, wanted,
    CAP: tl.constexpr, BITS: tl.constexpr, TILE: tl.constexpr, DIRECT: tl.constexpr,
):  # fmt: skip
    """The `wanted` largest of n numbers, as in `_largest`: with DIRECT of n scores, else of what `collect` kept."""
    least = wanted * 0
    for i in range(4):
        hist = tl.zeros([256], tl.int32)
        for at in range(0, n, TILE):
            each = at + tl.arange(0, TILE)
            x, _, there = _entries(scores, values, places, ends, each, n, CAP, BITS, DIRECT)
            digit, alike = _digit(x, least, i)
            hist += tl.histogram(digit, 256, mask=there & alike)
        least, wanted = _next(hist, least, wanted)
    least = least ^ -2147483648
    taken = n * 0
    tied = n * 0
    for at in range(0, n, TILE):
        each = at + tl.arange(0, TILE)
        x, column, there = _entries(scores, values, places, ends, each, n, CAP, BITS, DIRECT)
        taken, tied = _store(x, column, there, least, wanted, taken, tied, found)


@triton.jit
def _pick_once(values, places, ends, found, n, wanted, ONCE: tl.constexpr, CAP: tl.constexpr, BITS: tl.constexpr):
    """As `_pick`, of no more than ONCE numbers, which are read once."""
    x, column, there = _entries(values, values, places, ends, tl.arange(0, ONCE), n, CAP, BITS, False)
    least, wanted = _largest(x, there, wanted)
    _store(x, column, there, least, wanted, n * 0, n * 0, found)


@triton.jit(do_not_specialize=["start", "stop", "T", "S", "topk", "parts"])
def choose(
    scores, first, position, values, places, sizes, found, start, stop, T, S, topk, parts,
    ONCE: tl.constexpr, CAP: tl.constexpr, BITS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """found [B, T, topk] of the queries start .. stop - 1: the positions of the topk largest scores that each sees, of
    equal ones the earliest, ascending, then -1.

    By what `collect` kept where that holds them all, which it nearly always does, read once if they are at most ONCE;
    else by all scores. Which of these changes no bit. 2^BITS is at least `parts`.
    """
    pid = tl.program_id(0)
    b = tl.cast(pid // (stop - start), tl.int64)
    at = b * T + start + pid % (stop - start)
    row = tl.cast(pid, tl.int64)
    scores += row * wide(S)
    values += row * parts * CAP
    places += row * parts * CAP
    found += at * topk
    count = _seen(first, position, at, S)
    part = tl.arange(0, 1 << BITS)
    sizes += 2 * (row * parts + part)
    n = tl.load(sizes, mask=part < parts, other=0)
    reach = tl.sum(tl.load(sizes + 1, mask=part < parts, other=0), 0)
    fits = tl.min(n, 0) >= 0
    ends = tl.cumsum(n, 0)
    kept = tl.sum(n, 0)
    taken = tl.minimum(count, topk)
    if count <= topk:
        for each in range(0, count, TILE):
            column = each + tl.arange(0, TILE)
            tl.store(found + column, column, mask=column < count)
    elif fits & (reach >= topk):
        if kept <= ONCE:
            _pick_once(values, places, ends, found, kept, taken, ONCE, CAP, BITS)
        else:
            _pick(scores, values, places, ends, found, kept, taken, CAP, BITS, TILE, False)
    else:
        _pick(scores, values, places, ends, found, count, taken, CAP, BITS, TILE, True)
    for each in range(taken // TILE * TILE, topk, TILE):
        column = each + tl.arange(0, TILE)
        tl.store(found + column, tl.full([TILE], -1, tl.int32), mask=(column >= taken) & (column < topk))
