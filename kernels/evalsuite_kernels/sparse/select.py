"""The lightning indexer's exact choice of the largest scores."""

import triton
import triton.language as tl

from evalsuite_kernels.full.tiles import overlap
from evalsuite_kernels.sparse.scores import seen, wide


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
def _reached(x, a, b, c, d):
    """How many numbers, fewer than 32768, reach each of four."""
    one = (x >= a).to(tl.int32) + (x >= b).to(tl.int32) * 65536
    two = (x >= c).to(tl.int32) + (x >= d).to(tl.int32) * 65536
    both = tl.sum(one.to(tl.int64) + (two.to(tl.int64) << 32), 0)
    one, two = both.to(tl.int32), (both >> 32).to(tl.int32)
    return one & 65535, one >> 16, two & 65535, two >> 16


@triton.jit
def _narrowed(low, high, reach, wanted, a, b, c, d, of_a, of_b, of_c, of_d, GAP: tl.constexpr):
    """The fifth of low .. high, cut at four ascending numbers, that has the wanted-th largest number, and how many
    reach it; a fifth ends GAP below the next."""
    high = tl.where(of_d >= wanted, high, d - GAP)
    high = tl.where(of_c >= wanted, high, c - GAP)
    high = tl.where(of_b >= wanted, high, b - GAP)
    high = tl.where(of_a >= wanted, high, a - GAP)
    reach = tl.where(of_a >= wanted, of_a, reach)
    reach = tl.where(of_b >= wanted, of_b, reach)
    reach = tl.where(of_c >= wanted, of_c, reach)
    reach = tl.where(of_d >= wanted, of_d, reach)
    low = tl.where(of_a >= wanted, a, low)
    low = tl.where(of_b >= wanted, b, low)
    low = tl.where(of_c >= wanted, c, low)
    low = tl.where(of_d >= wanted, d, low)
    return low, high, reach


@triton.jit
def largest(x, n, low, wanted):
    """Of n numbers that reach `low` (one that is -2^31 is not there) the least of the `wanted` largest, or one below it
    that no others reach, and how many reach this; by fifths: a look at all numbers takes its time, however much is
    asked of them, and equal bytes would meet in one counter of a histogram."""
    high = tl.max(x, 0)
    reach = n
    while (low < high) & (reach > wanted):
        span = (high - low).to(tl.uint32, bitcast=True)
        fifth = tl.umulhi(span, tl.full([], 0x33333333, tl.uint32)).to(tl.int32, bitcast=True)
        a = low + fifth + 1
        b, c, d = a + fifth, a + 2 * fifth, a + 3 * fifth
        of_a, of_b, of_c, of_d = _reached(x, a, b, c, d)
        low, high, reach = _narrowed(low, high, reach, wanted, a, b, c, d, of_a, of_b, of_c, of_d, 1)
    return low, reach


@triton.jit
def _least_and_most(a, x, b, y):
    return tl.minimum(a, b), tl.maximum(x, y)


@triton.jit
def _about(x, n, wanted):
    """The least of n numbers that `wanted` of them reach, and if few cuts tell, hardly more."""
    low, high = tl.reduce((x, x), 0, _least_and_most)
    low, high = tl.maximum(low, -3e38), tl.minimum(high, 3e38)
    reach = wanted * 0 + n
    cuts = wanted * 0
    while (low < high) & (reach > wanted + wanted // 16) & (cuts < 11):
        a, b, c, d = low * 0.8 + high * 0.2, low * 0.6 + high * 0.4, low * 0.4 + high * 0.6, low * 0.2 + high * 0.8
        of_a, of_b, of_c, of_d = _reached(x, a, b, c, d)
        low, high, reach = _narrowed(low, high, reach, wanted, a, b, c, d, of_a, of_b, of_c, of_d, 0)
        cuts += 1
    return tl.min(tl.where(x >= low, x, float("inf")), 0)


@triton.jit
def sampled(each, count, COUNT: tl.constexpr, RUN: tl.constexpr):
    """Where of `count` scores those stand that are looked at, COUNT in runs of RUN side by side (int64)."""
    return tl.cast(each // RUN, tl.int64) * count // COUNT * RUN + each % RUN


@triton.jit(do_not_specialize=["start", "stop", "T", "S", "topk"])
def sample(
    scores, first, position, low, tally, start, stop, T, S, topk,
    COUNT: tl.constexpr, RUN: tl.constexpr, SLACK: tl.constexpr, APART: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """low [B, stop - start]: what a little more than topk of each query's scores reach (as `ordered`), as those tell
    that are `sampled`; the lowest of all numbers where they are few. APART: scores [B, stop - start, COUNT] are these
    alone. A tally [B, stop - start] for the next launch to count in begins with 0."""
    overlap(EARLY)
    pid = tl.program_id(0)
    b = tl.cast(pid // (stop - start), tl.int64)
    count = seen(first, position, b, start + pid % (stop - start), T, S)
    least = count * 0 + -2147483648
    if tally is not None:
        tl.store(tally + pid, tl.full([], 0, tl.int64))
    if count > 2 * COUNT:
        if APART:
            x = tl.load(scores + pid * COUNT + tl.arange(0, COUNT))
        else:
            x = tl.load(scores + tl.cast(pid, tl.int64) * wide(S) + sampled(tl.arange(0, COUNT), count, COUNT, RUN))
        expected = topk.to(tl.float32) * COUNT / count
        wanted = tl.minimum(expected + SLACK * (0.125 * expected + 2.0 * tl.sqrt(expected) + 2.0), COUNT * 1.0)
        least = ordered(_about(tl.where(x == x, x, float("inf")), COUNT, wanted.to(tl.int32)))  # noqa: PLR0124
    tl.store(low + pid, least)


@triton.jit
def beside(x, there, least):
    """1 where a number is above `least`, 65536 where it is the same; 0 where it is below or not there."""
    return tl.where(there, (x > least).to(tl.int32) + (x == least).to(tl.int32) * 65536, 0)


@triton.jit
def _sifted(scores, column, end, least):
    """Numbers of some columns (as `ordered`): 1 where one is above `least`, 65536 where it is the same."""
    there = column < end
    x = ordered(tl.load(scores + column, mask=there, other=0.0))
    return x, beside(x, there, least)


@triton.jit
def gather_part(
    scores, begin, end, least, values, places, sizes, topk,
    CAP: tl.constexpr, TILE: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """Of the scores begin .. end - 1 what may be chosen, in order: values (as `ordered`) and places [CAP], and sizes
    [3]: how many there are, -1 where they do not fit, how many scores reach `least`, and how many are larger.

    Of those that only just reach it the first topk are enough. Threads own OWN numbers side by side of a tile, so that
    one scan over threads says for all of these where they go; a tile has fewer than 65536.
    """
    looked = least > -2147483648  # else so few keys are seen that the choice is made of all
    end = tl.where(looked, end, 0)
    kept = end * 0
    tied = end * 0
    above = end * 0
    for at in range(begin, end, TILE):
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
    tl.store(sizes, tl.where(looked & (kept <= CAP), kept, -1))
    tl.store(sizes + 1, above + tied)
    tl.store(sizes + 2, above)


@triton.jit(do_not_specialize=["start", "stop", "T", "S", "width", "topk", "parts"])
def collect(
    scores, first, position, low, values, places, sizes, start, stop, T, S, width, topk, parts,
    CAP: tl.constexpr, TILE: tl.constexpr, OWN: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """What `gather_part` keeps of `parts` equal parts of a row: values, places [.., parts, CAP], sizes [.., parts, 3].
    width is wide(S), which nobody is told: numbers that are loaded by fours would change hands to be stored."""
    overlap(EARLY)
    pid = tl.program_id(0)
    row = pid // parts
    part = pid - row * parts
    b = tl.cast(row // (stop - start), tl.int64)
    count = seen(first, position, b, start + row % (stop - start), T, S)
    at = tl.cast(pid, tl.int64) * CAP
    each = tl.cdiv(tl.cdiv(count, parts), TILE) * TILE
    gather_part(
        scores + tl.cast(row, tl.int64) * width, part * each, tl.minimum((part + 1) * each, count), tl.load(low + row),
        values + at, places + at, sizes + 3 * pid, topk, CAP, TILE, OWN,
    )  # fmt: skip


@triton.jit
def _store(x, column, there, least, wanted, taken, tied, found):
    """The positions of what is larger than `least`, and of the first `wanted` numbers like it, in order; returns how
    many have been taken, and how many are like it."""
    n = beside(x, there, least)
    upto = tl.cumsum(n, 0)
    room = tl.maximum(wanted - tied, 0)
    slot = taken + (upto & 65535) + tl.minimum(upto >> 16, room) - 1
    tl.store(found + slot, column, mask=(n == 1) | ((n > 1) & ((upto >> 16) <= room)))
    total = tl.max(upto, 0)
    return taken + (total & 65535) + tl.minimum(total >> 16, room), tied + (total >> 16)


@triton.jit
def slots(each, ends, CAP: tl.constexpr, BITS: tl.constexpr):
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
        at = slots(each, ends, CAP, BITS)
        return tl.load(values + at, mask=there, other=0), tl.load(places + at, mask=there, other=0), there


@triton.jit
def pick(
    scores, values, places, ends, found, n, wanted,
    CAP: tl.constexpr, BITS: tl.constexpr, TILE: tl.constexpr, DIRECT: tl.constexpr,
):  # fmt: skip
    """The `wanted` largest of n numbers: with DIRECT of n scores, else of what `gather_part` kept. Byte by byte of the
    last of them, from how many numbers have which; a loop, since its body is long."""
    least = wanted * 0
    for i in range(4):
        hist = tl.zeros([256], tl.int32)
        for at in range(0, n, TILE):
            each = at + tl.arange(0, TILE)
            x, _, there = _entries(scores, values, places, ends, each, n, CAP, BITS, DIRECT)
            digit, alike = _digit(x, least, i)
            hist += tl.histogram(digit, 256, mask=there & alike)
        least, wanted = _next(hist, least, wanted)
    _keep(scores, values, places, ends, found, n, least ^ -2147483648, wanted, CAP, BITS, TILE, DIRECT)


@triton.jit
def _keep(
    scores, values, places, ends, found, n, least, wanted,
    CAP: tl.constexpr, BITS: tl.constexpr, TILE: tl.constexpr, DIRECT: tl.constexpr,
):  # fmt: skip
    """What is larger than `least` of the same numbers, and the first `wanted` like it."""
    taken = n * 0
    tied = n * 0
    for at in range(0, n, TILE):
        each = at + tl.arange(0, TILE)
        x, column, there = _entries(scores, values, places, ends, each, n, CAP, BITS, DIRECT)
        taken, tied = _store(x, column, there, least, wanted, taken, tied, found)


@triton.jit
def _pick_once(values, places, ends, found, n, low, wanted, ONCE: tl.constexpr, CAP: tl.constexpr, BITS: tl.constexpr):
    """As `pick`, of no more than ONCE numbers, which are read once and reach `low`."""
    x, column, there = _entries(values, values, places, ends, tl.arange(0, ONCE), n, CAP, BITS, False)
    least, _ = largest(tl.where(there, x, -2147483648), n, low, wanted)
    above = tl.sum((there & (x > least)).to(tl.int32), 0)
    _store(x, column, there, least, wanted - above, n * 0, n * 0, found)


@triton.jit
def all_of(found, count, TILE: tl.constexpr):
    for each in range(0, count, TILE):
        column = each + tl.arange(0, TILE)
        tl.store(found + column, column, mask=column < count)


@triton.jit
def rest(found, taken, topk, TILE: tl.constexpr):
    """-1 behind what has been taken."""
    for each in range(taken // TILE * TILE, topk, TILE):
        column = each + tl.arange(0, TILE)
        tl.store(found + column, tl.full([TILE], -1, tl.int32), mask=(column >= taken) & (column < topk))


@triton.jit
def _fewest_and_totals(a, i, j, k, b, x, y, z):
    return tl.minimum(a, b), i + x, j + y, k + z


@triton.jit(do_not_specialize=["start", "stop", "T", "S", "topk", "parts"])
def choose(
    scores, first, position, low, values, places, sizes, found, start, stop, T, S, topk, parts,
    ONCE: tl.constexpr, CAP: tl.constexpr, BITS: tl.constexpr, TILE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """found [B, T, topk] of the queries start .. stop - 1: the places of the topk largest of a row's scores, of equal
    ones the earliest, ascending, then -1.

    By what `gather_part` kept of all parts where that holds them all, which it nearly always does, read once if they
    are at most ONCE; else by all scores. Where many scores are equal the threshold often is the last one taken: nothing
    is left to search. Which of these changes no bit. 2^BITS is at least `parts`.
    """
    overlap(EARLY)
    pid = tl.program_id(0)
    b = tl.cast(pid // (stop - start), tl.int64)
    t = start + pid % (stop - start)
    row = tl.cast(pid, tl.int64)
    count = seen(first, position, b, t, T, S)
    least = tl.load(low + row)
    scores += row * wide(S)
    values += row * parts * CAP
    places += row * parts * CAP
    sizes += 3 * row * parts
    found += (b * T + t) * topk
    part = tl.arange(0, 1 << BITS)
    n = tl.load(sizes + 3 * part, mask=part < parts, other=0)
    reach = tl.load(sizes + 3 * part + 1, mask=part < parts, other=0)
    above = tl.load(sizes + 3 * part + 2, mask=part < parts, other=0)
    fewest, kept, reach, above = tl.reduce((n, n, reach, above), 0, _fewest_and_totals)
    fits = fewest >= 0
    ends = tl.cumsum(n, 0)
    taken = tl.minimum(count, topk)
    if count <= topk:
        all_of(found, count, TILE)
    elif fits & (reach >= topk):
        if above < topk:
            _keep(scores, values, places, ends, found, kept, least, topk - above, CAP, BITS, TILE, False)
        elif kept <= ONCE:
            _pick_once(values, places, ends, found, kept, least, taken, ONCE, CAP, BITS)
        else:
            pick(scores, values, places, ends, found, kept, taken, CAP, BITS, TILE, False)
    else:
        pick(scores, values, places, ends, found, count, taken, CAP, BITS, TILE, True)
    rest(found, taken, topk, TILE)
