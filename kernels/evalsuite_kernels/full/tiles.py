"""What the kernels of softmax attention share: which tile a program takes, and how tiles are read and written."""

import triton
import triton.language as tl


@triton.jit
def overlap(EARLY: tl.constexpr):
    """Where a kernel may start while the one before it ends: let the next one, and wait until all is there."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def load_tile(ptr, count, stride, ROWS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, RAGGED: tl.constexpr):
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
def load_whole(
    described, b, row, col, ptr, stride,
    ROWS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, TMA: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """[ROWS, BD], all of them there: from row `row` and column `col` of batch b as described, or from `ptr` on."""
    if TMA:
        return widen(described.load([b, row, col]).reshape(ROWS, BD), WIDE)
    else:
        return widen(load_tile(ptr, ROWS, stride, ROWS, D, BD, False), WIDE)


@triton.jit
def store_tile(ptr, x, count, stride, ROWS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    rows = tl.arange(0, ROWS)[:, None]
    cols = tl.arange(0, BD)[None, :]
    tl.store(ptr + rows * stride + cols, x.to(ptr.dtype.element_ty), mask=(rows < count) & (cols < D))


@triton.jit
def widen(x, WIDE: tl.constexpr):
    """fp32 under the interpreter, whose 16-bit products are wrong for bf16."""
    if WIDE:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def place(pid, blocks, heads, fan):
    """(block, head) of a program: `fan` heads at a time share the cache, each wave's later blocks come first."""
    wave = pid // (fan * blocks)
    rest = pid - wave * (fan * blocks)
    width = tl.minimum(fan, heads - wave * fan)
    block = rest // width
    return blocks - 1 - block, wave * fan + rest - block * width


@triton.jit
def sequence_of(cu, count, slot, BLOCK: tl.constexpr):
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
def bounds_of(cu_q, cu_k, lengths, b, seq, T, S, PACKED: tl.constexpr, PADDED: tl.constexpr):
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
def key_range(first, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WINDOWED: tl.constexpr):
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
def seen(position, key, window, WINDOWED: tl.constexpr):
    if WINDOWED:
        return (key <= position) & (key > position - window)
    else:
        return key <= position


@triton.jit
def read_keys(
    q, k, v, in_k, in_v, b, k0, col_k, col_v, acc, top, total, low, high, keys, position, scale, window, skt, svt,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, WIDE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Keys low .. high - 1 into the online softmax: acc [M, V], its maximum `top` and denominator `total` [M]."""
    for at in range(low, high, BLOCK_N):
        at_k = k + tl.cast(at, tl.int64) * skt
        at_v = v + tl.cast(at, tl.int64) * svt
        if MASKED:
            x = widen(load_tile(at_k, keys - at, skt, BLOCK_N, K, BK, True), WIDE)
        else:
            x = load_whole(in_k, b, k0 + at, col_k, at_k, skt, BLOCK_N, K, BK, TMA, WIDE)
        s = tl.dot(q, tl.trans(x), input_precision="ieee")
        if MASKED:
            s = tl.where(seen(position[:, None], at + tl.arange(0, BLOCK_N)[None, :], window, WINDOWED), s * scale,
                         float("-inf"))  # fmt: skip
            higher = tl.maximum(top, tl.max(s, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            p = tl.exp2(s - base[:, None])
            decay = tl.exp2(top - base)
            y = widen(load_tile(at_v, keys - at, svt, BLOCK_N, V, BV, True), WIDE)
        else:
            higher = tl.maximum(top, tl.max(s, 1) * scale)
            p = tl.exp2(s * scale - higher[:, None])
            decay = tl.exp2(top - higher)
            y = load_whole(in_v, b, k0 + at, col_v, at_v, svt, BLOCK_N, V, BV, TMA, WIDE)
        acc = acc * decay[:, None]
        acc = tl.dot(p.to(y.dtype), y, acc, input_precision="ieee")
        total = total * decay + tl.sum(p, 1)
        top = higher
    return acc, top, total
