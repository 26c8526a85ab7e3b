"""What the kernels by chunks share: tiles of inputs and buffers, and decays."""

import triton
import triton.language as tl

C = tl.constexpr(64)
LOG2E = tl.constexpr(1.4426950408889634)
COUNTS = ["chunks", "H", "HV"]  # kernels are compiled once for all of them


@triton.jit
def dot(a, b, DOT: tl.constexpr, PRECISION: tl.constexpr):
    return tl.dot(a.to(DOT), b.to(DOT), input_precision=PRECISION)


@triton.jit
def halves(x, DOT: tl.constexpr):
    """A number in fp32 as the sum of two in half precision."""
    high = x.to(DOT)
    return high, (x - high.to(tl.float32)).to(DOT)


@triton.jit
def halves_dot(a, b, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """a b for a in fp32, rounded to twice as many bits as half precision has, and b as DOT."""
    if DOT.primitive_bitwidth == 32:
        return dot(a, b, DOT, PRECISION)
    else:
        high, low = halves(a, DOT)
        return dot(high, b, DOT, PRECISION) + dot(low, b, DOT, PRECISION)


@triton.jit
def precise_dot(a, b, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """A product in which half precision would lose what cancels: of operands in fp32, rounded to twice as many bits."""
    if DOT.primitive_bitwidth == 32:
        return dot(a, b, DOT, PRECISION)
    else:
        high, low = halves(b, DOT)
        return halves_dot(a, high, DOT, PRECISION) + dot(a, low, DOT, PRECISION)


@triton.jit
def load_rows(pointer, start, i, valid, heads, head, columns, width, DOT: tl.constexpr):
    """[tokens, heads, width] -> the tokens start + i of one head, zeros outside, as DOT."""
    at = i[:, None] * (heads * width) + columns[None, :]  # 32 bits inside a chunk, 64 only to its start
    base = pointer + (start.to(tl.int64) * heads + head) * width
    return tl.load(base + at, mask=valid[:, None] & (columns < width)[None, :], other=0.0).to(DOT)


@triton.jit
def store_rows(pointer, start, i, valid, heads, head, columns, width, x):
    """Store what `load_rows` loads."""
    at = i[:, None] * (heads * width) + columns[None, :]
    base = pointer + (start.to(tl.int64) * heads + head) * width
    tl.store(base + at, x.to(pointer.dtype.element_ty), mask=valid[:, None] & (columns < width)[None, :])


@triton.jit
def load_tile(pointer, base, rows, columns, width: tl.constexpr, DOT: tl.constexpr):
    """A tile of the buffer [..., rows, width], whose blocks start at `base`."""
    return tl.load(pointer + base + rows[:, None] * width + columns[None, :]).to(DOT)


@triton.jit
def load_chunk(x, block, i, columns, width: tl.constexpr, DOT: tl.constexpr, TMA: tl.constexpr):
    """The rows of one chunk of the buffer [..., C, width], which TMA reads by its descriptor."""
    if TMA:
        return x.load([(block * C).to(tl.int32), 0]).to(DOT)
    else:
        return load_tile(x, block * C * width, i, columns, width, DOT)


@triton.jit
def store_tile(pointer, base, rows, columns, width: tl.constexpr, x):
    tl.store(pointer + base + rows[:, None] * width + columns[None, :], x.to(pointer.dtype.element_ty))


@triton.jit
def load_gates(G, base, rows, columns, width: tl.constexpr):
    return tl.load(G + base + rows[:, None] * width + columns[None, :])


@triton.jit
def level_decays(G, base, here, level, columns, width: tl.constexpr):
    """A level's decays: rows of odd blocks from the boundary before them, columns of even blocks to the one after."""
    boundary = (((tl.arange(0, C) >> level) | 1) << level) - 1
    return tl.exp2(-tl.abs((here - load_gates(G, base, boundary, columns, width)).to(tl.float32)))


@triton.jit
def chunk_decay(G, block, d, KP: tl.constexpr, GATE: tl.constexpr):
    """The decay of a whole chunk for the channels d."""
    if GATE == 2:
        return tl.exp2(tl.load(G + block * C * KP + (C - 1) * KP + d).to(tl.float32))
    if GATE == 1:
        return tl.exp2(tl.load(G + block * C + C - 1 + 0 * d).to(tl.float32))
    return tl.full(d.shape, 1.0, tl.float32)


@triton.jit
def lengths(rates, block):
    """1 / |q| and 1 / |k| of a chunk's tokens [C]; 1 where they enter as they are."""
    i = tl.arange(0, C)
    if rates is not None:
        return tl.load(rates + block * (2 * C) + i), tl.load(rates + block * (2 * C) + C + i)
    one = tl.full([C], 1.0, tl.float32)
    return one, one


@triton.jit
def in_room(x, of_x, DOT: tl.constexpr):
    """Rows x and the factors that what they meet still is to have: none in fp16, which has no room for 1 / |x|."""
    if tl.float16 == DOT:
        return (x.to(tl.float32) * of_x[:, None]).to(DOT), tl.full([C], 1.0, tl.float32)
    else:
        return x, of_x


@triton.jit
def head_decays(G, block, GATE: tl.constexpr):
    """Of a gate per head [C]: decays from the chunk's start to each token, and from each token to the chunk's end."""
    i = tl.arange(0, C)
    if GATE == 1:
        here = tl.load(G + block * C + i)
        last = tl.load(G + block * C + C - 1)
        return tl.exp2(here.to(tl.float32)), tl.exp2((last - here).to(tl.float32))
    one = tl.full([C], 1.0, tl.float32)
    return one, one
