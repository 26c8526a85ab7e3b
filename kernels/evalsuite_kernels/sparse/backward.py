"""The backward kernels of attention over lists: by queries, then by keys over the queries that read them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from evalsuite_kernels.sparse.forward import length, listed, load_rows, place


@triton.jit(do_not_specialize=["T", "S", "HQ", "heads", "G", "lists", "share", "N", "tiles"])
def backward_queries(
    q, k, v, entries, first, position, o, g, lse, dq, delta, scale, slope, T, S, HQ, heads, G, lists, share, N, tiles,
    sqb, sqt, sqh, skb, skt, skh, svb, svt, svh, sgb, sgt, sgh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dq [B, T, HQ, K], and delta = sum(do * o) [B, HQ, T] for the keys' kernels. Programs and terms as in `forward`;
    slope is the scale in base e."""
    b, t, own, head = place(tl.program_id(0), tiles, lists, T, heads, BLOCK_M)
    real = head >= 0
    head = tl.maximum(head, 0)
    begin = tl.load(first + b * T + t).to(tl.int64)
    mine = tl.load(position + b * T + t).to(tl.int64)
    entries += ((b * T + t) * G + own // (lists // G)) * N
    x = load_rows(q, b * sqb + t * sqt + head * sqh, real, K, BK, WIDE)
    y = load_rows(g, b * sgb + t * sgt + head * sgh, real, V, BV, WIDE)
    z = load_rows(o, ((b * T + t) * HQ + head) * V, real, V, BV, WIDE)
    sums = tl.sum(z.to(tl.float32) * y.to(tl.float32), 1)
    tl.store(delta + (b * HQ + head) * T + t, sums, mask=real)
    logs = tl.load(lse + (b * HQ + head) * T + t, mask=real, other=float("inf"))
    k += b * skb + (own // share) * skh
    v += b * svb + (own // share) * svh
    acc = tl.zeros([BLOCK_M, BK], tl.float32)
    end = length(entries, N, 256)
    stop = end
    if BLOCK:
        stop = end * BLOCK
    for at in range(0, stop, BLOCK_N):
        row, read = listed(entries, at, end, begin, mine, S, BLOCK, BLOCK_N)
        keys = load_rows(k, row * skt, read, K, BK, WIDE)
        values = load_rows(v, row * svt, read, V, BV, WIDE)
        s = tl.dot(x, tl.trans(keys), input_precision="ieee") * scale - logs[:, None]
        p = tl.exp2(tl.where(read[None, :], s, float("-inf")))
        ds = p * (tl.dot(y, tl.trans(values), input_precision="ieee") - sums[:, None])
        acc = tl.dot(ds.to(keys.dtype), keys, acc, input_precision="ieee")
    cols = tl.arange(0, BK)[None, :]
    at_q = ((b * T + t) * HQ + head) * K
    tl.store(dq + at_q[:, None] + cols, (acc * slope).to(dq.dtype.element_ty), mask=real[:, None] & (cols < K))


def readers(
    entries: Tensor, first: Tensor, position: Tensor, S: int, H: int, block_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Who reads what: the lists of keys turned into lists of queries, in ascending order, without waiting for the GPU.

    entries integers [B, T, G, N], first and position integers [B, T], block_size 0 for lists of tokens. A key head's
    lists count as one: there are P = min(G, H) sets of lists in a batch row.

    Returns:
        For each entry that names keys a query sees, ordered by what it names and then by token and list: the unit that
        it names, (b * P + set) * S + row of its first key, and its reader, token * G + list (int32). Entries without
        such keys come last. Then bounds int64 [B * P * S + 1]: unit u is read by those from bounds[u] to bounds[u + 1].
    """
    B, T, G, N = entries.shape
    sets, units = min(G, H), B * min(G, H) * S
    dtype = torch.int32 if units < 2**31 - 1 else torch.int64  # half the memory, where all the memory is
    key = entries.to(dtype) * max(block_size, 1)
    seen = key >= 0
    if block_size:
        seen &= key <= position.to(dtype)[..., None, None]
    key += first.to(dtype)[..., None, None]
    seen &= key < S
    of_list = torch.arange(G, device=entries.device, dtype=dtype)[:, None] // (G // sets)
    of_row = torch.arange(B, device=entries.device, dtype=dtype)[:, None, None, None]
    key += (of_row * sets + of_list) * S
    key, order = key.masked_fill_(~seen, units).flatten().sort(stable=True)
    reader = torch.div(order, max(N, 1), rounding_mode="floor").remainder_(max(T * G, 1)).int()
    bounds = torch.searchsorted(key, torch.arange(units + 1, device=key.device, dtype=dtype))
    return key, reader, bounds


@triton.jit
def _read_by(
    q, g, lse, delta, reader, pair, there, b, h, T, HQ, heads, G, lists, H, sqt, sqh, sgt, sgh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Of the pairs of a reader and one of its `heads` query heads: tokens, q and do [rows, BK or BV], lse and delta."""
    each = pair // heads
    who = tl.load(reader + each, mask=there, other=0)
    t = (who // G).to(tl.int64)
    # a key head has lists of its own, or all of its heads read one that it may share with other key heads
    own = tl.where(lists == H, h, who % G)
    head = own * heads + pair - each * heads
    x = load_rows(q, t * sqt + head * sqh, there, K, BK, WIDE)
    y = load_rows(g, t * sgt + head * sgh, there, V, BV, WIDE)
    at = (b * HQ + head) * T + t
    logs = tl.load(lse + at, mask=there, other=float("inf"))
    return t, x, y, logs, tl.load(delta + at, mask=there, other=0.0)


@triton.jit(do_not_specialize=["T", "S", "H", "HQ", "heads", "G", "lists", "sets"])
def backward_rows(
    q, k, v, g, lse, delta, reader, bounds, dk, dv, scale, slope, T, S, H, HQ, heads, G, lists, sets,
    sqb, sqt, sqh, skb, skt, skh, svb, svt, svh, sgb, sgt, sgh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BLOCK_M: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dk [B, S, H, K] and dv [B, S, H, V] of lists of tokens: a program takes one row of one key head."""
    pid = tl.program_id(0)
    h = pid % H
    b = tl.cast(pid // H // S, tl.int64)
    row = tl.cast(pid // H, tl.int64) - b * S
    unit = (b * sets + h // (H // sets)) * S + row
    at = tl.load(bounds + unit)
    count = (tl.load(bounds + unit + 1) - at).to(tl.int32) * heads
    in_k = tl.arange(0, BK)
    in_v = tl.arange(0, BV)
    x = tl.load(k + b * skb + row * skt + tl.cast(h, tl.int64) * skh + in_k, mask=in_k < K, other=0.0).to(tl.float32)
    y = tl.load(v + b * svb + row * svt + tl.cast(h, tl.int64) * svh + in_v, mask=in_v < V, other=0.0).to(tl.float32)
    acc_k = tl.zeros([BK], tl.float32)
    acc_v = tl.zeros([BV], tl.float32)
    q += b * sqb
    g += b * sgb
    for i in range(0, count, BLOCK_M):
        pair = i + tl.arange(0, BLOCK_M)
        _, a, c, logs, sums = _read_by(
            q, g, lse, delta, reader + at, pair, pair < count, b, h, T, HQ, heads, G, lists, H, sqt, sqh, sgt, sgh,
            K, V, BK, BV, WIDE)  # fmt: skip
        a = a.to(tl.float32)
        c = c.to(tl.float32)
        p = tl.exp2(tl.sum(a * x[None, :], 1) * scale - logs)
        ds = p * (tl.sum(c * y[None, :], 1) - sums)
        acc_k += tl.sum(a * ds[:, None], 0)
        acc_v += tl.sum(c * p[:, None], 0)
    out = (b * S + row) * H + h
    tl.store(dk + out * K + in_k, (acc_k * slope).to(dk.dtype.element_ty), mask=in_k < K)
    tl.store(dv + out * V + in_v, acc_v.to(dv.dtype.element_ty), mask=in_v < V)


@triton.jit(do_not_specialize=["T", "S", "H", "HQ", "heads", "G", "lists", "sets", "slots"])
def backward_blocks(
    q, k, v, g, first, position, lse, delta, units, reader, bounds, dk, dv, scale, slope,
    T, S, H, HQ, heads, G, lists, sets, slots,
    sqb, sqt, sqh, skb, skt, skh, svb, svt, svh, sgb, sgt, sgh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The same of lists of blocks: a program takes BLOCK_N rows of every block that begins in a slot of BLOCK rows.

    That is one block, but where packed sequences end in the slot. Rows that no query sees are left alone.
    """
    pid = tl.program_id(0)
    h = pid % H
    side = pid // H % (BLOCK // BLOCK_N)
    slot = pid // (H * (BLOCK // BLOCK_N))
    b = tl.cast(slot // slots, tl.int64)
    low = (slot % slots) * BLOCK
    base = (b * sets + h // (H // sets)) * S
    at = tl.load(bounds + base + low)
    stop = tl.load(bounds + base + tl.minimum(low + BLOCK, S))
    k += b * skb + tl.cast(h, tl.int64) * skh
    v += b * svb + tl.cast(h, tl.int64) * svh
    q += b * sqb
    g += b * sgb
    in_k = tl.arange(0, BK)[None, :]
    in_v = tl.arange(0, BV)[None, :]
    while at < stop:
        unit = tl.load(units + at).to(tl.int64)
        end = tl.load(bounds + unit + 1)
        row = unit - base + side * BLOCK_N + tl.arange(0, BLOCK_N)
        x = load_rows(k, row * skt, row < S, K, BK, WIDE)
        y = load_rows(v, row * svt, row < S, V, BV, WIDE)
        acc_k = tl.zeros([BLOCK_N, BK], tl.float32)
        acc_v = tl.zeros([BLOCK_N, BV], tl.float32)
        last = tl.full([BLOCK_M], -1, tl.int64)  # row that a query sees
        count = (end - at).to(tl.int32) * heads
        for i in range(0, count, BLOCK_M):
            pair = i + tl.arange(0, BLOCK_M)
            there = pair < count
            t, a, c, logs, sums = _read_by(
                q, g, lse, delta, reader + at, pair, there, b, h, T, HQ, heads, G, lists, H, sqt, sqh, sgt, sgh,
                K, V, BK, BV, WIDE)  # fmt: skip
            sees = tl.load(first + b * T + t, mask=there, other=0) + tl.load(position + b * T + t, mask=there, other=-1)
            s = tl.dot(x, tl.trans(a), input_precision="ieee") * scale - logs[None, :]
            p = tl.exp2(tl.where(row[:, None] <= sees[None, :], s, float("-inf")))
            acc_v = tl.dot(p.to(c.dtype), c, acc_v, input_precision="ieee")
            ds = p * (tl.dot(y, tl.trans(c), input_precision="ieee") - sums[None, :])
            acc_k = tl.dot(ds.to(a.dtype), a, acc_k, input_precision="ieee")
            last = tl.maximum(last, sees)
        mine = ((row <= tl.max(last, 0)) & (row < S))[:, None]
        out = ((b * S + row) * H + h)[:, None]
        tl.store(dk + out * K + in_k, (acc_k * slope).to(dk.dtype.element_ty), mask=mine & (in_k < K))
        tl.store(dv + out * V + in_v, acc_v.to(dv.dtype.element_ty), mask=mine & (in_v < V))
        at = end
