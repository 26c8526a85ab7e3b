"""The forward kernel of softmax attention (FlashAttention-2, arXiv:2307.08691)."""

import triton
import triton.language as tl

from evalsuite_kernels.full.tiles import (
    bounds_of,
    key_range,
    load_tile,
    place,
    read_keys,
    sequence_of,
    store_tile,
    widen,
)


@triton.jit(do_not_specialize=["window", "T", "S", "HQ", "group", "sequences", "blocks", "heads", "fan"])
def forward(
    q, k, v, in_k, in_v, sinks, o, lse, cu_q, cu_k, lengths, scale, window, T, S, HQ, group, sequences, blocks,
    heads, fan, sqb, sqt, sqh, skb, skt, skh, svb, svt, svh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PACKED: tl.constexpr, PADDED: tl.constexpr,
    WINDOWED: tl.constexpr, SUNK: tl.constexpr, WIDE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    block, head = place(tl.program_id(0), blocks, heads, fan)
    b = head // HQ
    h = head - b * HQ
    seq = b
    if PACKED:
        seq = sequence_of(cu_q, sequences, block, BLOCK_M)
        block = tl.maximum(block - tl.load(cu_q + seq).to(tl.int32) // BLOCK_M - seq, 0)
    q0, queries, k0, keys = bounds_of(cu_q, cu_k, lengths, b, seq, T, S, PACKED, PADDED)
    start = block * BLOCK_M
    if start >= queries:
        return
    shift = keys - queries
    rows = start + tl.arange(0, BLOCK_M)
    position = rows + shift
    token = tl.cast(q0, tl.int64) + start
    row = b
    col_k = (h // group) * skh
    col_v = (h // group) * svh
    b = tl.cast(b, tl.int64)
    x = load_tile(q + b * sqb + token * sqt + tl.cast(h, tl.int64) * sqh, queries - start, sqt, BLOCK_M, K, BK, True)
    x = widen(x, WIDE)
    k += b * skb + tl.cast(k0, tl.int64) * skt + tl.cast(h // group, tl.int64) * skh
    v += b * svb + tl.cast(k0, tl.int64) * svt + tl.cast(h // group, tl.int64) * svh
    acc = tl.zeros([BLOCK_M, BV], tl.float32)
    if SUNK:
        top = tl.zeros([BLOCK_M], tl.float32) + tl.load(sinks + h).to(tl.float32) * 1.4426950408889634
        total = tl.full([BLOCK_M], 1.0, tl.float32)
    else:
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
    low, begin, end = key_range(start + shift, window, BLOCK_M, BLOCK_N, WINDOWED)
    stop = tl.maximum(tl.minimum(start + BLOCK_M, queries) + shift, 0)
    if WINDOWED:
        for side in range(2):  # one copy of the code for both edges
            a = tl.where(side == 0, low, end)
            c = tl.where(side == 0, begin, stop)
            acc, top, total = read_keys(
                x, k, v, in_k, in_v, row, k0, col_k, col_v, acc, top, total, a, c, keys, position, scale, window,
                skt, svt, K, V, BK, BV, BLOCK_N, True, WINDOWED, WIDE, TMA)  # fmt: skip
    acc, top, total = read_keys(
        x, k, v, in_k, in_v, row, k0, col_k, col_v, acc, top, total, begin, end, keys, position, scale, window,
        skt, svt, K, V, BK, BV, BLOCK_N, False, WINDOWED, WIDE, TMA)  # fmt: skip
    if not WINDOWED:
        acc, top, total = read_keys(
            x, k, v, in_k, in_v, row, k0, col_k, col_v, acc, top, total, end, stop, keys, position, scale, window,
            skt, svt, K, V, BK, BV, BLOCK_N, True, WINDOWED, WIDE, TMA)  # fmt: skip
    blind = total == 0.0
    total = tl.where(blind, 1.0, total)
    logs = tl.where(blind, float("inf"), top + tl.log2(total))
    acc = acc / total[:, None]
    store_tile(o + ((b * T + token) * HQ + h) * V, acc, queries - start, HQ * V, BLOCK_M, V, BV)
    tl.store(lse + (b * HQ + h) * T + q0 + rows, logs, mask=rows < queries)
