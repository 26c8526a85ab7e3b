"""The forward kernel of attention over lists: a program reads one list for the query heads that share it."""

import triton
import triton.language as tl

from evalsuite_kernels.full.tiles import overlap, widen


@triton.jit
def place(pid, tiles, lists, T, heads, BLOCK_M: tl.constexpr):
    """What a program takes: batch, token, list, and query heads [BLOCK_M], -1 where there is none; all int64, since
    heads of a long cache may stand a whole sequence apart.

    `heads` query heads read each of a token's `lists`; `tiles` programs share them. A token's programs are neighbours,
    and so are tokens, whose lists mostly name the same keys.
    """
    tile = pid % tiles
    own = tl.cast(pid // tiles % lists, tl.int64)
    token = pid // (tiles * lists)
    b = token // T
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    head = tl.where(row < heads, own * heads + row, -1)
    return tl.cast(b, tl.int64), tl.cast(token - b * T, tl.int64), own, head


@triton.jit
def load_rows(ptr, at, there, D: tl.constexpr, BD: tl.constexpr, WIDE: tl.constexpr, SHARED: tl.constexpr = False):
    """[rows, BD] from `at` [rows] on (int64), 0 where nothing is there and from column D on; SHARED: by the cache of
    all multiprocessors, not their own."""
    cols = tl.arange(0, BD)[None, :]
    there = there[:, None]
    if D != BD:
        there = there & (cols < D)
    return widen(tl.load(ptr + at[:, None] + cols, mask=there, other=0.0, cache_modifier=".cg" if SHARED else ""), WIDE)


@triton.jit
def standing(first, position, b, t, real, T, S, SHARED: tl.constexpr = False):
    """Of queries t of batch row b (int64): the row of their sequence's first key and their own position, S and -1 where
    none is real. Without names queries are the last of all keys."""
    if first is None:
        return tl.where(real, 0, S).to(tl.int64), tl.where(real, S - T + t, -1).to(tl.int64)
    else:
        begin = tl.load(first + b * T + t, mask=real, other=S, cache_modifier=".cg" if SHARED else "").to(tl.int64)
        return begin, tl.load(position + b * T + t, mask=real, other=-1, cache_modifier=".cg" if SHARED else "").to(
            tl.int64
        )


@triton.jit
def length(entries, N, TILE: tl.constexpr):
    """One more than the place of the last of N entries that names something; what comes after it costs nothing."""
    last = tl.zeros([TILE], tl.int32)
    for at in range(0, N, TILE):
        each = at + tl.arange(0, TILE)
        last = tl.maximum(last, tl.where(tl.load(entries + each, mask=each < N, other=-1) >= 0, each + 1, 0))
    return tl.max(last, 0)


@triton.jit
def listed(entries, at, end, first, position, S, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows of the keys at .. at + BLOCK_N - 1 of a list (int64 [BLOCK_N]), and which of them are read.

    With BLOCK an entry names so many keys, of which those up to `position` are read; BLOCK_N divides BLOCK.
    """
    if BLOCK:
        key = tl.load(entries + at // BLOCK).to(tl.int64) * BLOCK + at % BLOCK + tl.arange(0, BLOCK_N)
        read = (key >= 0) & (key <= position)
    else:
        each = at + tl.arange(0, BLOCK_N)
        key = tl.load(entries + each, mask=each < end, other=-1).to(tl.int64)
        read = key >= 0
    return first + key, read & (first + key < S)


@triton.jit
def weigh(s, top):
    """The largest logit of each row so far [M], of logits s [M, N] in base 2 the weights beside it, and by how much
    what was summed up before decays."""
    higher = tl.maximum(top, tl.max(s, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, tl.exp2(s - base[:, None]), tl.exp2(top - base)


@triton.jit(do_not_specialize=["T", "S", "HQ", "heads", "G", "lists", "share", "N", "tiles", "splits"])
def forward(
    q, k, v, entries, first, position, o, lse, part, tops, totals, scale,
    T, S, HQ, heads, G, lists, share, N, tiles, splits,
    sqb, sqt, sqh, skb, skt, skh, svb, svt, svh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, WIDE: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """o [B, T, HQ, V], and the logits' log2-sum-exp2 [B, HQ, T], inf where nothing is read. With SPLIT, a multiple of
    BLOCK_N, a program reads so many keys of a list, for `full.decode.merge`: part [B, lists, splits, T * heads, V], and
    the largest logit and the sum of each.

    entries [B, T, G, N]; a token's `lists` are as many as the sets of `heads` query heads that share both a list of
    entries and a key head, `share` of which share the key head. scale is in base 2.
    """
    overlap(EARLY)
    b, t, own, head = place(tl.program_id(0) // splits, tiles, lists, T, heads, BLOCK_M)
    split = tl.program_id(0) % splits
    real = head >= 0
    head = tl.maximum(head, 0)
    begin, mine = standing(first, position, b, t, t < T, T, S)
    entries += ((b * T + t) * G + own // (lists // G)) * N
    x = load_rows(q, b * sqb + t * sqt + head * sqh, real, K, BK, WIDE)
    k += b * skb + (own // share) * skh
    v += b * svb + (own // share) * svh
    acc = tl.zeros([BLOCK_M, BV], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    end = N
    if not SPLIT:  # which reads too little to look for the end first
        end = length(entries, N, 1024)
    stop = end
    if BLOCK:
        stop = end * BLOCK
    start = stop * 0
    if SPLIT:
        start = split * SPLIT
        stop = tl.minimum(stop, start + SPLIT)
    for at in range(start, stop, BLOCK_N):
        row, read = listed(entries, at, end, begin, mine, S, BLOCK, BLOCK_N)
        y = load_rows(k, row * skt, read, K, BK, WIDE)
        if SPLIT:  # one step of decoding waits for memory: values come with their keys
            z = load_rows(v, row * svt, read, V, BV, WIDE)
        s = tl.dot(x, tl.trans(y), input_precision="ieee") * scale
        s = tl.where(read[None, :], s, float("-inf"))
        top, p, decay = weigh(s, top)
        if not SPLIT:
            z = load_rows(v, row * svt, read, V, BV, WIDE)
        acc = tl.dot(p.to(z.dtype), z, acc * decay[:, None], input_precision="ieee")
        total = total * decay + tl.sum(p, 1)
    cols = tl.arange(0, BV)[None, :]
    if SPLIT:
        at = ((b * lists + own) * splits + split) * (T * heads) + t * heads + head - own * heads
        tl.store(part + at[:, None] * V + cols, acc, mask=real[:, None] & (cols < V))
        tl.store(tops + at, top, mask=real)
        tl.store(totals + at, total, mask=real)
        return
    blind = total == 0.0
    total = tl.where(blind, 1.0, total)
    at_o = ((b * T + t) * HQ + head) * V
    out = (acc / total[:, None]).to(o.dtype.element_ty)
    tl.store(o + at_o[:, None] + cols, out, mask=real[:, None] & (cols < V))
    tl.store(lse + (b * HQ + head) * T + t, tl.where(blind, float("inf"), top + tl.log2(total)), mask=real)
