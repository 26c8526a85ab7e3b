"""Softmax attention in Triton: tiles of queries over tiles of keys with an online softmax, forward and backward
(FlashAttention-2, arXiv:2307.08691), and decoding over a cache in splits that are merged (Flash-Decoding).

Tiles depend on dtype and head dims alone and start at fixed positions of a sequence, so a row's bits depend neither on
the batch nor on later tokens nor on a cache's capacity. Sums have one order (no atomics): all runs give the same bits.
"""

import math
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from evalsuite_kernels.arguments import INTERPRETED, choose, expect

LOG2E = math.log2(math.e)
SPLIT = 512  # keys of a decoding split, at fixed positions
DECODE = 16  # queries up to here over a longer cache are decoding
TMA = True  # full tiles come through tensor descriptors (Hopper's TMA) where strides allow
L2_BYTES = 24 << 20  # keys and values of the heads that run at a time

# (op, bytes of a number, larger head dim) -> BLOCK_M of queries, BLOCK_N of keys, num_warps, num_stages
SETTINGS = {
    ("forward", 2, 64): (128, 128, 8, 3),
    ("forward", 2, 128): (128, 128, 8, 2),
    ("forward", 2, 256): (128, 64, 8, 2),
    ("forward", 4, 64): (64, 32, 8, 2),
    ("forward", 4, 128): (32, 32, 8, 1),
    ("forward", 4, 256): (16, 32, 8, 1),
    ("keys", 2, 64): (64, 128, 8, 2),
    ("keys", 2, 128): (64, 128, 8, 2),
    ("keys", 2, 256): (32, 64, 8, 2),
    ("keys", 4, 64): (32, 32, 8, 1),
    ("keys", 4, 128): (16, 32, 8, 1),
    ("keys", 4, 256): (16, 16, 8, 1),
    ("queries", 2, 64): (128, 64, 8, 2),
    ("queries", 2, 128): (128, 64, 8, 2),
    ("queries", 2, 256): (64, 32, 8, 2),
    ("queries", 4, 64): (32, 32, 8, 1),
    ("queries", 4, 128): (32, 16, 8, 1),
    ("queries", 4, 256): (16, 16, 8, 1),
    ("decode", 2, 64): (16, 128, 4, 3),
    ("decode", 2, 128): (16, 64, 4, 3),
    ("decode", 2, 256): (16, 32, 4, 3),
    ("decode", 4, 64): (16, 64, 4, 2),
    ("decode", 4, 128): (16, 32, 4, 2),
    ("decode", 4, 256): (16, 16, 4, 2),
}
# what a bench tries in their place
OVERRIDES: dict[tuple[str, int, int], tuple[int, int, int, int]] = {}


def _settings(op: str, dtype: torch.dtype, K: int, V: int) -> tuple[int, int, int, int]:
    """BLOCK_M, BLOCK_N, num_warps, num_stages of "forward", "keys", "queries" or "decode"."""
    key = (op, dtype.itemsize, max(64, triton.next_power_of_2(max(K, V))))
    return OVERRIDES.get(key) or SETTINGS[key]


def _pad(n: int) -> int:
    return max(16, triton.next_power_of_2(n))


@triton.jit
def _tile(ptr, count, stride, ROWS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, RAGGED: tl.constexpr):
    """[ROWS, BD] from the row `ptr` on; rows from `count` on (RAGGED) and columns from D on are 0."""
    rows = tl.arange(0, ROWS)[:, None]
    cols = tl.arange(0, BD)[None, :]
    at = ptr + rows * stride + cols
    if RAGGED:
        if D == BD:
            return tl.load(at, mask=rows < count, other=0.0)
        else:
            return tl.load(at, mask=(rows < count) & (cols < D), other=0.0)
    elif D == BD:
        return tl.load(at)
    else:
        return tl.load(at, mask=cols < D, other=0.0)


@triton.jit
def _whole(
    described, b, row, col, ptr, stride,
    ROWS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, TMA: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """[ROWS, BD], all of them there: from row `row` and column `col` of batch b as described, or from `ptr` on."""
    if TMA:
        return _wide(described.load([b, row, col]).reshape(ROWS, BD), WIDE)
    else:
        return _wide(_tile(ptr, ROWS, stride, ROWS, D, BD, False), WIDE)


@triton.jit
def _store(ptr, x, count, stride, ROWS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    rows = tl.arange(0, ROWS)[:, None]
    cols = tl.arange(0, BD)[None, :]
    tl.store(ptr + rows * stride + cols, x.to(ptr.dtype.element_ty), mask=(rows < count) & (cols < D))


@triton.jit
def _wide(x, WIDE: tl.constexpr):
    """fp32 under the interpreter, whose 16-bit products are wrong for bf16."""
    if WIDE:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def _program(pid, blocks, heads, fan):
    """(block, head) of a program: `fan` heads at a time share the cache, each wave's later blocks come first."""
    wave = pid // (fan * blocks)
    rest = pid - wave * (fan * blocks)
    width = tl.minimum(fan, heads - wave * fan)
    block = rest // width
    return blocks - 1 - block, wave * fan + rest - block * width


@triton.jit
def _sequence(cu, count, slot, BLOCK: tl.constexpr):
    """The packed sequence whose blocks hold this slot; sequence n's blocks start at slot cu[n] // BLOCK + n."""
    low = slot * 0
    high = low + count
    while high - low > 1:
        middle = (low + high) // 2
        begin = tl.load(cu + middle).to(tl.int32) // BLOCK + middle
        low = tl.where(begin <= slot, middle, low)
        high = tl.where(begin <= slot, high, middle)
    return low


@triton.jit
def _bounds(cu_q, cu_k, lengths, b, seq, T, S, PACKED: tl.constexpr, PADDED: tl.constexpr):
    """First query, queries, first key, keys of a row or of a packed sequence, never outside the tensors."""
    if PACKED:
        q0 = tl.maximum(tl.load(cu_q + seq).to(tl.int32), 0)
        k0 = tl.maximum(tl.load(cu_k + seq).to(tl.int32), 0)
        q1 = tl.minimum(tl.load(cu_q + seq + 1).to(tl.int32), T)
        k1 = tl.minimum(tl.load(cu_k + seq + 1).to(tl.int32), S)
        return q0, q1 - q0, k0, k1 - k0
    elif PADDED:
        return b * 0, b * 0 + T, b * 0, tl.minimum(tl.load(lengths + b).to(tl.int32), S)
    else:
        return b * 0, b * 0 + T, b * 0, b * 0 + S


@triton.jit
def _key_range(first, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOWED: tl.constexpr):
    """For queries at positions first .. first + BLOCK_M - 1: where keys begin, and where every query sees all keys."""
    end = tl.maximum(first + 1, 0) // BLOCK_N * BLOCK_N
    if WINDOWED:
        low = tl.maximum(first - window + 1, 0) // BLOCK_N * BLOCK_N
        end = tl.maximum(end, low)
        begin = (tl.maximum(first + BLOCK_M - window, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
        return low, tl.minimum(begin, end), end
    else:
        return end * 0, end * 0, end


@triton.jit
def _seen(position, key, window, WINDOWED: tl.constexpr):
    if WINDOWED:
        return (key <= position) & (key > position - window)
    else:
        return key <= position


@triton.jit
def _read_keys(
    q, k, v, in_k, in_v, b, k0, col_k, col_v, acc, top, total, low, high, keys, position, scale, window, skt, svt,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, WIDE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Keys low .. high - 1 into the online softmax: acc [M, V], its maximum `top` and denominator `total` [M]."""
    for at in range(low, high, BLOCK_N):
        at_k = k + tl.cast(at, tl.int64) * skt
        at_v = v + tl.cast(at, tl.int64) * svt
        if MASKED:
            x = _wide(_tile(at_k, keys - at, skt, BLOCK_N, K, BK, True), WIDE)
        else:
            x = _whole(in_k, b, k0 + at, col_k, at_k, skt, BLOCK_N, K, BK, TMA, WIDE)
        s = tl.dot(q, tl.trans(x), input_precision="ieee")
        if MASKED:
            s = tl.where(_seen(position[:, None], at + tl.arange(0, BLOCK_N)[None, :], window, WINDOWED), s * scale,
                         float("-inf"))  # fmt: skip
            higher = tl.maximum(top, tl.max(s, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            p = tl.exp2(s - base[:, None])
            decay = tl.exp2(top - base)
            y = _wide(_tile(at_v, keys - at, svt, BLOCK_N, V, BV, True), WIDE)
        else:
            higher = tl.maximum(top, tl.max(s, 1) * scale)
            p = tl.exp2(s * scale - higher[:, None])
            decay = tl.exp2(top - higher)
            y = _whole(in_v, b, k0 + at, col_v, at_v, svt, BLOCK_N, V, BV, TMA, WIDE)
        acc = acc * decay[:, None]
        acc = tl.dot(p.to(y.dtype), y, acc, input_precision="ieee")
        total = total * decay + tl.sum(p, 1)
        top = higher
    return acc, top, total


@triton.jit(do_not_specialize=["window", "T", "S", "HQ", "group", "sequences", "blocks", "heads", "fan"])
def _forward(
    q, k, v, in_k, in_v, sinks, o, lse, cu_q, cu_k, lengths, scale, window, T, S, HQ, group, sequences, blocks,
    heads, fan, sqb, sqt, sqh, skb, skt, skh, svb, svt, svh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PACKED: tl.constexpr, PADDED: tl.constexpr,
    WINDOWED: tl.constexpr, SUNK: tl.constexpr, WIDE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    block, head = _program(tl.program_id(0), blocks, heads, fan)
    b = head // HQ
    h = head - b * HQ
    seq = b
    if PACKED:
        seq = _sequence(cu_q, sequences, block, BLOCK_M)
        block = tl.maximum(block - tl.load(cu_q + seq).to(tl.int32) // BLOCK_M - seq, 0)
    q0, queries, k0, keys = _bounds(cu_q, cu_k, lengths, b, seq, T, S, PACKED, PADDED)
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
    x = _tile(q + b * sqb + token * sqt + h * sqh, queries - start, sqt, BLOCK_M, K, BK, True)
    x = _wide(x, WIDE)
    k += b * skb + tl.cast(k0, tl.int64) * skt + (h // group) * skh
    v += b * svb + tl.cast(k0, tl.int64) * svt + (h // group) * svh
    acc = tl.zeros([BLOCK_M, BV], tl.float32)
    if SUNK:
        top = tl.zeros([BLOCK_M], tl.float32) + tl.load(sinks + h).to(tl.float32) * 1.4426950408889634
        total = tl.full([BLOCK_M], 1.0, tl.float32)
    else:
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
    low, begin, end = _key_range(start + shift, window, BLOCK_M, BLOCK_N, WINDOWED)
    stop = tl.maximum(tl.minimum(start + BLOCK_M, queries) + shift, 0)
    if WINDOWED:
        for side in range(2):  # one copy of the code for both edges
            a = tl.where(side == 0, low, end)
            c = tl.where(side == 0, begin, stop)
            acc, top, total = _read_keys(
                x, k, v, in_k, in_v, row, k0, col_k, col_v, acc, top, total, a, c, keys, position, scale, window,
                skt, svt, K, V, BK, BV, BLOCK_N, True, WINDOWED, WIDE, TMA)  # fmt: skip
    acc, top, total = _read_keys(
        x, k, v, in_k, in_v, row, k0, col_k, col_v, acc, top, total, begin, end, keys, position, scale, window,
        skt, svt, K, V, BK, BV, BLOCK_N, False, WINDOWED, WIDE, TMA)  # fmt: skip
    if not WINDOWED:
        acc, top, total = _read_keys(
            x, k, v, in_k, in_v, row, k0, col_k, col_v, acc, top, total, end, stop, keys, position, scale, window,
            skt, svt, K, V, BK, BV, BLOCK_N, True, WINDOWED, WIDE, TMA)  # fmt: skip
    blind = total == 0.0
    total = tl.where(blind, 1.0, total)
    logs = tl.where(blind, float("inf"), top + tl.log2(total))
    acc = acc / total[:, None]
    _store(o + ((b * T + token) * HQ + h) * V, acc, queries - start, HQ * V, BLOCK_M, V, BV)
    tl.store(lse + (b * HQ + h) * T + q0 + rows, logs, mask=rows < queries)


@triton.jit
def _pull_queries(
    q, g, k, v, in_k, in_v, b, k0, col_k, col_v, dq, logs, delta, low, high, keys, position, scale, window, skt, svt,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, WIDE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    for at in range(low, high, BLOCK_N):
        at_k = k + tl.cast(at, tl.int64) * skt
        at_v = v + tl.cast(at, tl.int64) * svt
        if MASKED:
            x = _wide(_tile(at_k, keys - at, skt, BLOCK_N, K, BK, True), WIDE)
            y = _wide(_tile(at_v, keys - at, svt, BLOCK_N, V, BV, True), WIDE)
        else:
            x = _whole(in_k, b, k0 + at, col_k, at_k, skt, BLOCK_N, K, BK, TMA, WIDE)
            y = _whole(in_v, b, k0 + at, col_v, at_v, svt, BLOCK_N, V, BV, TMA, WIDE)
        s = tl.dot(q, tl.trans(x), input_precision="ieee") * scale - logs[:, None]
        if MASKED:
            key = at + tl.arange(0, BLOCK_N)
            s = tl.where(_seen(position[:, None], key[None, :], window, WINDOWED), s, float("-inf"))
        p = tl.exp2(s)
        dp = tl.dot(g, tl.trans(y), input_precision="ieee")
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(x.dtype), x, dq, input_precision="ieee")
    return dq


@triton.jit(do_not_specialize=["window", "T", "S", "HQ", "group", "sequences", "blocks", "heads", "fan"])
def _backward_queries(
    q, k, v, in_k, in_v, o, g, lse, dq, delta, cu_q, cu_k, lengths, scale, slope, window, T, S, HQ, group, sequences,
    blocks, heads, fan, sqb, sqt, sqh, skb, skt, skh, svb, svt, svh, sgb, sgt, sgh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PACKED: tl.constexpr, PADDED: tl.constexpr,
    WINDOWED: tl.constexpr, WIDE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """dq, and delta = sum(do * o) for the keys' kernel."""
    block, head = _program(tl.program_id(0), blocks, heads, fan)
    b = head // HQ
    h = head - b * HQ
    seq = b
    if PACKED:
        seq = _sequence(cu_q, sequences, block, BLOCK_M)
        block = tl.maximum(block - tl.load(cu_q + seq).to(tl.int32) // BLOCK_M - seq, 0)
    q0, queries, k0, keys = _bounds(cu_q, cu_k, lengths, b, seq, T, S, PACKED, PADDED)
    start = block * BLOCK_M
    if start >= queries:
        return
    shift = keys - queries
    count = queries - start
    rows = start + tl.arange(0, BLOCK_M)
    position = rows + shift
    token = tl.cast(q0, tl.int64) + start
    row = b
    col_k = (h // group) * skh
    col_v = (h // group) * svh
    b = tl.cast(b, tl.int64)
    x = _wide(_tile(q + b * sqb + token * sqt + h * sqh, count, sqt, BLOCK_M, K, BK, True), WIDE)
    y = _wide(_tile(g + b * sgb + token * sgt + h * sgh, count, sgt, BLOCK_M, V, BV, True), WIDE)
    z = _tile(o + ((b * T + token) * HQ + h) * V, count, HQ * V, BLOCK_M, V, BV, True)
    sums = tl.sum(z.to(tl.float32) * y.to(tl.float32), 1)
    at = (b * HQ + h) * T + q0 + rows
    tl.store(delta + at, sums, mask=rows < queries)
    logs = tl.load(lse + at, mask=rows < queries, other=float("inf"))
    k += b * skb + tl.cast(k0, tl.int64) * skt + (h // group) * skh
    v += b * svb + tl.cast(k0, tl.int64) * svt + (h // group) * svh
    acc = tl.zeros([BLOCK_M, BK], tl.float32)
    low, begin, end = _key_range(start + shift, window, BLOCK_M, BLOCK_N, WINDOWED)
    stop = tl.maximum(tl.minimum(start + BLOCK_M, queries) + shift, 0)
    if WINDOWED:
        for side in range(2):
            a = tl.where(side == 0, low, end)
            c = tl.where(side == 0, begin, stop)
            acc = _pull_queries(
                x, y, k, v, in_k, in_v, row, k0, col_k, col_v, acc, logs, sums, a, c, keys, position, scale, window,
                skt, svt, K, V, BK, BV, BLOCK_N, True, WINDOWED, WIDE, TMA)  # fmt: skip
    acc = _pull_queries(
        x, y, k, v, in_k, in_v, row, k0, col_k, col_v, acc, logs, sums, begin, end, keys, position, scale, window,
        skt, svt, K, V, BK, BV, BLOCK_N, False, WINDOWED, WIDE, TMA)  # fmt: skip
    if not WINDOWED:
        acc = _pull_queries(
            x, y, k, v, in_k, in_v, row, k0, col_k, col_v, acc, logs, sums, end, stop, keys, position, scale, window,
            skt, svt, K, V, BK, BV, BLOCK_N, True, WINDOWED, WIDE, TMA)  # fmt: skip
    _store(dq + ((b * T + token) * HQ + h) * K, acc * slope, count, HQ * K, BLOCK_M, K, BK)


@triton.jit
def _pull_keys(
    k, v, q, g, in_q, in_g, b, q0, col_q, col_g, lse, delta, dk, dv, low, high, queries, key, shift, scale, window,
    sqt, sgt, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BLOCK_M: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, WIDE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    for at in range(low, high, BLOCK_M):
        rows = at + tl.arange(0, BLOCK_M)
        at_q = q + tl.cast(at, tl.int64) * sqt
        at_g = g + tl.cast(at, tl.int64) * sgt
        if MASKED:
            x = _wide(_tile(at_q, queries - at, sqt, BLOCK_M, K, BK, True), WIDE)
            y = _wide(_tile(at_g, queries - at, sgt, BLOCK_M, V, BV, True), WIDE)
            logs = tl.load(lse + rows, mask=rows < queries, other=float("inf"))
            sums = tl.load(delta + rows, mask=rows < queries, other=0.0)
        else:
            x = _whole(in_q, b, q0 + at, col_q, at_q, sqt, BLOCK_M, K, BK, TMA, WIDE)
            y = _whole(in_g, b, q0 + at, col_g, at_g, sgt, BLOCK_M, V, BV, TMA, WIDE)
            logs = tl.load(lse + rows)
            sums = tl.load(delta + rows)
        s = tl.dot(k, tl.trans(x), input_precision="ieee") * scale - logs[None, :]
        if MASKED:
            s = tl.where(_seen((rows + shift)[None, :], key[:, None], window, WINDOWED), s, float("-inf"))
        p = tl.exp2(s)
        dv = tl.dot(p.to(y.dtype), y, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(y), input_precision="ieee")
        ds = p * (dp - sums[None, :])
        dk = tl.dot(ds.to(x.dtype), x, dk, input_precision="ieee")
    return dk, dv


@triton.jit(do_not_specialize=["window", "T", "S", "HQ", "group", "sequences", "blocks", "heads", "fan"])
def _backward_keys(
    q, k, v, g, in_q, in_g, lse, delta, dk, dv, cu_q, cu_k, lengths, scale, slope, window, T, S, HQ, group, sequences,
    blocks, heads, fan, sqb, sqt, sqh, skb, skt, skh, svb, svt, svh, sgb, sgt, sgh,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PACKED: tl.constexpr, PADDED: tl.constexpr,
    WINDOWED: tl.constexpr, WIDE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys, over the queries of all heads that read it."""
    block, head = _program(tl.program_id(0), blocks, heads, fan)
    H = HQ // group
    b = head // H
    h = head - b * H
    seq = b
    if PACKED:
        seq = _sequence(cu_k, sequences, block, BLOCK_N)
        block = tl.maximum(block - tl.load(cu_k + seq).to(tl.int32) // BLOCK_N - seq, 0)
    else:
        block = blocks - 1 - block  # the first keys have the most queries
    q0, queries, k0, keys = _bounds(cu_q, cu_k, lengths, b, seq, T, S, PACKED, PADDED)
    start = block * BLOCK_N
    room = keys
    if PADDED:
        room = start * 0 + S
    if start >= room:
        return
    shift = keys - queries
    key = start + tl.arange(0, BLOCK_N)
    token = tl.cast(k0, tl.int64) + start
    batch = b
    b = tl.cast(b, tl.int64)
    x = _wide(_tile(k + b * skb + token * skt + h * skh, keys - start, skt, BLOCK_N, K, BK, True), WIDE)
    y = _wide(_tile(v + b * svb + token * svt + h * svh, keys - start, svt, BLOCK_N, V, BV, True), WIDE)
    # queries that see a key of the block begin at low; in begin .. end - 1 every query sees all its keys
    low = tl.maximum(start - shift, 0) // BLOCK_M * BLOCK_M
    stop = queries
    if WINDOWED:
        stop = tl.minimum(tl.maximum(start + BLOCK_N - 1 + window - shift, 0), queries)
    begin = (tl.maximum(start + BLOCK_N - 1 - shift, 0) + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    begin = tl.minimum(begin, stop)
    end = stop // BLOCK_M * BLOCK_M
    if WINDOWED:
        end = tl.minimum(tl.maximum(start + window - shift, 0) // BLOCK_M * BLOCK_M, end)
    end = tl.maximum(end, begin)
    acc_k = tl.zeros([BLOCK_N, BK], tl.float32)
    acc_v = tl.zeros([BLOCK_N, BV], tl.float32)
    for i in range(group):
        hq = h * group + i
        at_q = q + b * sqb + tl.cast(q0, tl.int64) * sqt + hq * sqh
        at_g = g + b * sgb + tl.cast(q0, tl.int64) * sgt + hq * sgh
        row = (b * HQ + hq) * T + q0
        col_q = hq * sqh
        col_g = hq * sgh
        for side in range(2):  # one copy of the code for both edges
            a = tl.where(side == 0, low, end)
            c = tl.where(side == 0, begin, stop)
            acc_k, acc_v = _pull_keys(
                x, y, at_q, at_g, in_q, in_g, batch, q0, col_q, col_g, lse + row, delta + row, acc_k, acc_v, a, c,
                queries, key, shift, scale, window, sqt, sgt,
                K, V, BK, BV, BLOCK_M, True, WINDOWED, WIDE, TMA)  # fmt: skip
        acc_k, acc_v = _pull_keys(
            x, y, at_q, at_g, in_q, in_g, batch, q0, col_q, col_g, lse + row, delta + row, acc_k, acc_v, begin, end,
            queries, key, shift, scale, window, sqt, sgt,
            K, V, BK, BV, BLOCK_M, False, WINDOWED, WIDE, TMA)  # fmt: skip
    row = (b * S + token) * H + h
    _store(dk + row * K, acc_k * slope, room - start, H * K, BLOCK_N, K, BK)
    _store(dv + row * V, acc_v, room - start, H * V, BLOCK_N, V, BV)


@triton.jit(do_not_specialize=["window", "T", "S", "H", "group", "splits", "tiles"])
def _decode(
    q, k, v, table, lengths, part, tops, totals, scale, window, T, S, H, group, splits, tiles,
    sqb, sqt, sqh, skb, skt, skh, svb, svt, svh, stb,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, PAGE: tl.constexpr,
    PADDED: tl.constexpr, WINDOWED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The queries of a key head over one split of its keys: sums relative to the split's own maximum.

    With PAGE, k and v are [pages, PAGE, H, K] and row b's i-th page is table[b, i]; skb and svb step over pages.
    """
    pid = tl.program_id(0)
    split = pid % splits
    tile = pid // splits % tiles
    b = pid // (splits * tiles) // H
    h = pid // (splits * tiles) - b * H
    keys = b * 0 + S
    if PADDED:
        keys = tl.minimum(tl.load(lengths + b).to(tl.int32), S)
    low = split * SPLIT
    stop = tl.minimum(low + SPLIT, keys)
    if WINDOWED:
        low = tl.maximum(low, tl.maximum(keys - T - window + 1, 0) // BLOCK_N * BLOCK_N)
    if low >= stop:
        return
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    real = rows < T * group
    t = rows // group
    hq = h * group + rows - t * group
    position = keys - T + t
    b = tl.cast(b, tl.int64)
    in_k = tl.arange(0, BK)[None, :]
    in_v = tl.arange(0, BV)[None, :]
    x = tl.load(q + b * sqb + (t * sqt + hq * sqh)[:, None] + in_k, mask=real[:, None] & (in_k < K), other=0.0)
    x = _wide(x, WIDE)
    acc = tl.zeros([BLOCK_M, BV], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for at in range(low, stop, BLOCK_N):
        key = at + tl.arange(0, BLOCK_N)
        valid = (key < stop)[:, None]
        if PAGE:
            page = tl.load(table + b * stb + key // PAGE, mask=key < stop, other=0).to(tl.int64)
            at_k = page * skb + (key % PAGE) * skt
            at_v = page * svb + (key % PAGE) * svt
        else:
            at_k = b * skb + key.to(tl.int64) * skt
            at_v = b * svb + key.to(tl.int64) * svt
        y = tl.load(k + (at_k + h * skh)[:, None] + in_k, mask=valid & (in_k < K), other=0.0)
        s = tl.dot(x, tl.trans(_wide(y, WIDE)), input_precision="ieee") * scale
        s = tl.where(_seen(position[:, None], key[None, :], window, WINDOWED), s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(s - base[:, None])
        decay = tl.exp2(top - base)
        z = _wide(tl.load(v + (at_v + h * svh)[:, None] + in_v, mask=valid & (in_v < V), other=0.0), WIDE)
        acc = tl.dot(p.to(z.dtype), z, acc * decay[:, None], input_precision="ieee")
        total = total * decay + tl.sum(p, 1)
        top = higher
    row = ((b * H + h) * splits + split) * (T * group) + rows
    tl.store(part + row[:, None] * V + in_v, acc, mask=real[:, None] & (in_v < V))
    tl.store(tops + row, top, mask=real)
    tl.store(totals + row, total, mask=real)


@triton.jit(do_not_specialize=["window", "T", "S", "H", "group", "splits"])
def _merge(
    part, tops, totals, sinks, lengths, o, lse, window, T, S, H, group, splits,
    V: tl.constexpr, BV: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr, BLOCK_N: tl.constexpr,
    PADDED: tl.constexpr, WINDOWED: tl.constexpr, SUNK: tl.constexpr,
):  # fmt: skip
    """One query head's splits, TILE at a time from fixed positions."""
    pid = tl.program_id(0)
    heads = H * group
    b = pid // heads // T
    t = pid // heads - b * T
    hq = pid % heads
    h = hq // group
    keys = b * 0 + S
    if PADDED:
        keys = tl.minimum(tl.load(lengths + b).to(tl.int32), S)
    first = keys * 0
    if WINDOWED:
        first = tl.maximum(keys - T - window + 1, 0) // BLOCK_N * BLOCK_N // SPLIT
    last = (keys + SPLIT - 1) // SPLIT
    cols = tl.arange(0, BV)
    acc = tl.zeros([BV], tl.float32)
    if SUNK:
        top = tl.load(sinks + hq).to(tl.float32) * 1.4426950408889634
        total = top * 0.0 + 1.0
    else:
        top = tl.cast(keys, tl.float32) * 0.0 + float("-inf")
        total = tl.cast(keys, tl.float32) * 0.0
    b = tl.cast(b, tl.int64)
    for at in range(first // TILE * TILE, last, TILE):
        split = at + tl.arange(0, TILE)
        here = (split >= first) & (split < last)
        row = ((b * H + h) * splits + split) * (T * group) + t * group + hq - h * group
        mine = tl.load(tops + row, mask=here, other=float("-inf"))
        higher = tl.maximum(top, tl.max(mine, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(mine - base)
        decay = tl.exp2(top - base)
        x = tl.load(part + row[:, None] * V + cols[None, :], mask=here[:, None] & (cols[None, :] < V), other=0.0)
        acc = acc * decay + tl.sum(x * weight[:, None], 0)
        total = total * decay + tl.sum(weight * tl.load(totals + row, mask=here, other=0.0), 0)
        top = higher
    blind = total == 0.0
    total = tl.where(blind, 1.0, total)
    at = (b * T + t) * heads + hq
    tl.store(o + at * V + cols, (acc / total).to(o.dtype.element_ty), mask=cols < V)
    tl.store(lse + (b * heads + hq) * T + t, tl.where(blind, float("inf"), top + tl.log2(total)))


def _fan(heads: int, S: int, K: int, V: int, itemsize: int, group: int) -> int:
    """Heads of all B * HQ that run at a time, so that their keys and values stay in the L2 cache."""
    return min(heads, max(1, L2_BYTES // max(1, S * (K + V) * itemsize)) * group)


def _common(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor | None, lengths: Tensor | None, window: int
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Constants of the kernels of a call, and the strides of q, k and v."""
    K, V = q.shape[-1], v.shape[-1]
    constants = {
        "K": K, "V": V, "BK": _pad(K), "BV": _pad(V), "PACKED": cu_q is not None, "PADDED": lengths is not None,
        "WINDOWED": window > 0, "WIDE": INTERPRETED,
    }  # fmt: skip
    return constants, (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])


def _rows(x: Tensor) -> Tensor:
    """With a head's numbers side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _describe(x: Tensor, rows: int) -> TensorDescriptor | None:
    """x [B, T, H, D] as [B, T, columns], to be read by tiles [1, rows, D]; None if TMA cannot.

    Whether it can depends on layout alone, so that a batch takes the way of each of its rows.
    """
    B, T, H, D = x.shape
    sb, st, sh, _ = x.stride()
    columns = (H - 1) * sh + D
    sb = T * st if B == 1 else sb
    steps = (x.data_ptr(), sb * x.itemsize, st * x.itemsize, sh * x.itemsize)
    fits = _pad(D) == D and T > 0 and columns <= st <= sb and not any(n % 16 for n in steps)
    if not TMA or not fits or not (INTERPRETED or (x.itemsize == 2 and _hopper(x.device))):
        return None
    return TensorDescriptor(x, [B, T, columns], [sb, st, 1], [1, rows, D])


@cache
def _hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] >= 9


def _described(x: Tensor, y: Tensor, rows: int) -> tuple[TensorDescriptor | None, TensorDescriptor | None]:
    """Both, or none."""
    pair = _describe(x, rows), _describe(y, rows)
    return pair if pair[0] and pair[1] else (None, None)


OPTIONS = "Tensor? sinks, Tensor? cu_q, Tensor? cu_k, Tensor? lengths, float scale, int window"


def _new_outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    B, T, HQ, _ = q.shape
    o = torch.empty(B, T, HQ, v.shape[-1], dtype=q.dtype, device=q.device)
    return o, torch.empty(B, HQ, T, dtype=torch.float32, device=q.device)


@torch.library.custom_op(
    "evalsuite::full_forward",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {OPTIONS}) -> (Tensor, Tensor)",
)
def full_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    lengths: Tensor | None,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    """o [B, T, HQ, V] in q's dtype and the logits' log2-sum-exp2 [B, HQ, T] in fp32 (inf where no key is seen).

    q [B, T, HQ, K], k [B, S, H, K], v [B, S, H, V] of one dtype; sinks [HQ]; cu_q and cu_k integers [N + 1] (B is 1);
    lengths integers [B]; scale >= 0; window 0 for none.
    """
    q, k, v = _rows(q), _rows(k), _rows(v)
    B, T, HQ, K = q.shape
    S, H, V = v.shape[1:]
    o, lse = _new_outputs(q, v)
    if o.numel() == 0:
        return o, lse
    BLOCK_M, BLOCK_N, warps, stages = _settings("forward", q.dtype, K, V)
    constants, strides = _common(q, k, v, cu_q, lengths, window)
    sequences = 0 if cu_q is None else len(cu_q) - 1
    blocks = triton.cdiv(T, BLOCK_M) if cu_q is None else T // BLOCK_M + sequences
    pair = _described(k, v, BLOCK_N)
    _forward[(blocks * B * HQ,)](
        q, k, v, *pair, sinks, o, lse, cu_q, cu_k, lengths, scale * LOG2E, window, T, S, HQ, HQ // H, sequences, blocks,
        B * HQ, _fan(B * HQ, S, K, V, q.itemsize, HQ // H), *strides, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
        SUNK=sinks is not None, TMA=pair[0] is not None, num_warps=warps, num_stages=stages, **constants,
    )  # fmt: skip
    return o, lse


@full_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _new_outputs(q, v)


@torch.library.custom_op(
    "evalsuite::full_backward",
    mutates_args=(),
    schema=f"(Tensor g, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, {OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def full_backward(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    sinks: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    lengths: Tensor | None,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv in the dtype of q, k, v and dsinks [HQ] in fp32 ([0] without sinks), from g = do [B, T, HQ, V]."""
    q, k, v, g, o = _rows(q), _rows(k), _rows(v), _rows(g), o.contiguous()
    B, T, HQ, K = q.shape
    S, H, V = v.shape[1:]
    dq, dk, dv, dsinks = _new_gradients(q, k, v, sinks)
    delta = torch.empty_like(lse)
    constants, strides = _common(q, k, v, cu_q, lengths, window)
    strides = (*strides, *g.stride()[:3])
    sequences = 0 if cu_q is None else len(cu_q) - 1
    if q.numel():
        BLOCK_M, BLOCK_N, warps, stages = _settings("queries", q.dtype, K, V)
        blocks = triton.cdiv(T, BLOCK_M) if cu_q is None else T // BLOCK_M + sequences
        pair = _described(k, v, BLOCK_N)
        _backward_queries[(blocks * B * HQ,)](
            q, k, v, *pair, o, g, lse, dq, delta, cu_q, cu_k, lengths, scale * LOG2E, scale, window, T, S, HQ, HQ // H,
            sequences, blocks, B * HQ, _fan(B * HQ, S, K, V, q.itemsize, HQ // H), *strides,
            BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, TMA=pair[0] is not None, num_warps=warps, num_stages=stages, **constants,
        )  # fmt: skip
    if k.numel():
        BLOCK_M, BLOCK_N, warps, stages = _settings("keys", q.dtype, K, V)
        blocks = triton.cdiv(S, BLOCK_N) if cu_q is None else S // BLOCK_N + sequences
        pair = _described(q, g, BLOCK_M)
        _backward_keys[(blocks * B * H,)](
            q, k, v, g, *pair, lse, delta, dk, dv, cu_q, cu_k, lengths, scale * LOG2E, scale, window, T, S, HQ, HQ // H,
            sequences, blocks, B * H, _fan(B * H, T * HQ // H, K, V, q.itemsize, 1), *strides,
            BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, TMA=pair[0] is not None, num_warps=warps, num_stages=stages, **constants,
        )  # fmt: skip
    if sinks is not None:
        weight = torch.exp2(sinks.float()[None, :, None] * LOG2E - lse)
        dsinks = -(weight * delta).sum((0, 2))
    return dq, dk, dv, dsinks


def _new_gradients(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    return dq, dk, dv, torch.empty(0 if sinks is None else len(sinks), dtype=torch.float32, device=q.device)


@full_backward.register_fake
def _(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, sinks: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _new_gradients(q, k, v, sinks)


def _decoded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    lengths: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    q, k, v = _rows(q), _rows(k), _rows(v)
    B, T, HQ, K = q.shape
    page, H, V = v.shape[1:]
    S = page if table is None else page * table.shape[1]
    o, lse = _new_outputs(q, v)
    if o.numel() == 0:
        return o, lse
    BLOCK_M, BLOCK_N, warps, stages = _settings("decode", q.dtype, K, V)
    splits, tiles, group = triton.cdiv(S, SPLIT), triton.cdiv(T * (HQ // H), BLOCK_M), HQ // H
    fp32: Any = {"dtype": torch.float32, "device": q.device}
    part = torch.empty(B, H, splits, T * group, V, **fp32)
    tops, totals = (torch.empty(B, H, splits, T * group, **fp32) for _ in range(2))
    constants, strides = _common(q, k, v, None, lengths, window)
    merged = {name: constants[name] for name in ("V", "BV", "PADDED", "WINDOWED")}
    del constants["PACKED"]
    if splits:
        _decode[(B * H * tiles * splits,)](
            q, k, v, table, lengths, part, tops, totals, scale * LOG2E, window, T, S, H, group, splits, tiles,
            *strides, 0 if table is None else table.stride(0), BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, SPLIT=SPLIT,
            PAGE=0 if table is None else page, num_warps=warps, num_stages=stages, **constants,
        )  # fmt: skip
    _merge[(B * T * HQ,)](
        part, tops, totals, sinks, lengths, o, lse, window, T, S, H, group, splits, TILE=16, SPLIT=SPLIT,
        BLOCK_N=BLOCK_N, SUNK=sinks is not None, num_warps=4, **merged,
    )  # fmt: skip
    return o, lse


@torch.library.custom_op(
    "evalsuite::full_decode",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {OPTIONS}) -> (Tensor, Tensor)",
)
def full_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    lengths: Tensor | None,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    """`full_forward` for few queries over a long cache; cu_q and cu_k must be None."""
    return _decoded(q, k, v, None, lengths, sinks, scale, window)


@full_decode.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _new_outputs(q, v)


@torch.library.custom_op(
    "evalsuite::full_paged_decode",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor table, Tensor lengths, Tensor? sinks, float scale, int window)"
    " -> Tensor",
)
def full_paged_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    lengths: Tensor,
    sinks: Tensor | None,
    scale: float,
    window: int,
) -> Tensor:
    """`full_decode` over pages; no gradient."""
    return _decoded(q, k, v, table, lengths, sinks, scale, window)[0]


@full_paged_decode.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return _new_outputs(q, v)[0]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale, window = inputs
    ctx.save_for_backward(*tensors[:3], *output, *tensors[3:])
    ctx.options = scale, window
    ctx.set_materialize_grads(False)


def _pull(ctx: Any, g: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if g is None:
        return (None,) * 9
    sinks = ctx.saved_tensors[5]
    dq, dk, dv, dsinks = full_backward(g, *ctx.saved_tensors, *ctx.options)
    return dq, dk, dv, None if sinks is None else dsinks.to(sinks.dtype), None, None, None, None, None


full_forward.register_autograd(_pull, setup_context=_keep)
full_decode.register_autograd(_pull, setup_context=_keep)


def _positive(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """The kernels take the largest product before they scale it."""
    return (q, scale) if scale >= 0 else (-q, -scale)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int | None = None,
    sinks: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> Tensor:
    """`full_attention` in one launch (two for decoding), differentiable once. Arguments fit: they are checked there.

    q [B, T, HQ, K], k [B, S, H, K], v [B, S, H, V] of one dtype: bf16 or fp16 (products on tensor cores, sums and
    softmax in fp32) or fp32 (all in fp32). No value of an index tensor is read on the host.
    """
    q, scale = _positive(q, scale)
    T, S = q.shape[1], k.shape[1]
    if cu_seqlens is not None and cu_seqlens_k is None:
        cu_seqlens_k = cu_seqlens
    run = full_decode if T <= DECODE and T < S and cu_seqlens is None else full_forward
    options = (x if x is None else x.to(q.device).contiguous() for x in (cu_seqlens, cu_seqlens_k, key_lengths))
    return run(q, k, v, sinks, *options, scale, window or 0)[0]


def paged_decode(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    key_lengths: Tensor,
    *,
    window: int | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of the last T tokens over a paged cache; the bits are those of `full_attention` over the same keys side
    by side. Nothing waits for the device, so that a CUDA graph can hold it. No gradient.

    Args:
        q: [B, T, HQ, K].
        k_pages: [P, page, H, K] in q's dtype; query head h reads key head h // (HQ // H).
        v_pages: [P, page, H, V].
        block_table: integers [B, pages]; key j of row b is slot j % page of page block_table[b, j // page]. Entries
            beyond a row's keys are not read.
        key_lengths: integers [B], each at most pages * page; row b's last query is key key_lengths[b] - 1. A query
            that would stand before its row's first key gives zeros.
        window, sinks, scale: as in `full_attention`.

    Returns:
        o [B, T, HQ, V] in q's dtype.

    Raises:
        ValueError: shapes or dtypes that do not fit, or tensors on no GPU.
    """
    expect("q", q, "B", "T", "HQ", "K")
    expect("k_pages", k_pages, "P", "page", "H", q.shape[-1])
    expect("v_pages", v_pages, *k_pages.shape[:3], "V")
    expect("block_table", block_table, q.shape[0], "pages")
    expect("key_lengths", key_lengths, q.shape[0])
    if not q.dtype == k_pages.dtype == v_pages.dtype:
        raise ValueError(f"q and the pages must be of one dtype, not {q.dtype}, {k_pages.dtype} and {v_pages.dtype}")
    choose("triton", q, k_pages, v_pages, sinks, widest=max(q.shape[-1], v_pages.shape[-1]))
    q, scale = _positive(q, q.shape[-1] ** -0.5 if scale is None else scale)
    if block_table.stride(-1) != 1:
        block_table = block_table.contiguous()
    return full_paged_decode(q, k_pages, v_pages, block_table, key_lengths.contiguous(), sinks, scale, window or 0)
