"""What the kernels on Hopper make of a chunk's products under the delta rule, in Gluon: T = (I + A)^-1, P T and T^T Kg
(`chunk_kernels.py`), all in registers and shared memory.

A matrix in fp32 meets tensor cores as the sum of two in bf16: products keep 16 bits of their operands. Left operands
in registers are named where their product is waited for: ptxas 12.8 gives them away before (seen on an H100).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from evalsuite_kernels.gluon import halves, meet, seen

C = gl.constexpr(64)
SHARED = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))
PAIRS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))  # of matrices [C, C]: 16 rows in a warp


@gluon.jit
def put(x, tiles, at: gl.constexpr):
    """The halves of x to tiles [.., C, width] from `at` on, for tensor cores to read."""
    high, low = halves(x)
    tiles.index(at).store(high)
    tiles.index(at + 1).store(low)
    hopper.fence_async_shared()
    meet()


@gluon.jit
def times(x, tiles, at: gl.constexpr):
    """x [C, C] times the matrix [C, C] whose halves the tiles from `at` on hold."""
    A: gl.constexpr = gl.DotOperandLayout(0, PAIRS, 2)
    high, low = halves(x)
    high, low = gl.convert_layout(high, A), gl.convert_layout(low, A)
    y = gl.zeros([C, C], gl.float32, PAIRS)
    y = hopper.warpgroup_mma(low, tiles.index(at), y, use_acc=False, is_async=True)
    y = hopper.warpgroup_mma(high, tiles.index(at + 1), y, is_async=True)
    y = hopper.warpgroup_mma(high, tiles.index(at), y, is_async=True)
    y, high, low = hopper.warpgroup_mma_wait(0, [y, high, low])
    return y


@gluon.jit
def _diagonal(a, few):
    """(I + a)^-1 of the blocks of 16 on the diagonal, by substitution; each is one warp's. few: fp32 [C, 16]."""
    L: gl.constexpr = gl.BlockedLayout([1, 8, 1], [1, 2, 16], [4, 1, 1], [2, 1, 0])
    own = gl.reshape(a, [C, 4, 16])
    M: gl.constexpr = own.type.layout
    row = gl.arange(0, C, gl.SliceLayout(1, gl.SliceLayout(2, M)))[:, None, None]
    column = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(2, M)))[None, :, None]
    mine = (row >> 4) == column
    few.store(gl.sum(gl.where(mine, own, 0.0), 1))
    meet()
    blocks = seen(few, gl.float32, [4, 16, 16], gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0]))
    j = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(2, L)))[None, :, None]
    e = gl.arange(0, 16, gl.SliceLayout(0, gl.SliceLayout(1, L)))[None, None, :]
    t = gl.zeros([4, 16, 16], gl.float32, L) + gl.where(j == e, 1.0, 0.0)
    for n in gl.static_range(1, 16):
        x = blocks.slice(n, 1, 1).permute((0, 2, 1)).load(L)
        done = gl.sum(x * t, 1)
        t = gl.where(j == n, t - done[:, None, :], t)
    meet()  # the rows have been read
    blocks.store(t)
    meet()
    t = few.load(gl.SliceLayout(1, M))[:, None, :]
    return gl.convert_layout(gl.reshape(gl.where(mine, t, 0.0), [C, C]), PAIRS)


@gluon.jit
def inverse(a, few, tiles):
    """(I + a)^-1 of a [C, C] below the diagonal, in fp32: blocks of 16, and twice neighbours by their inverses.
    few: fp32 [C, 16]; tiles: [4, C, C]."""
    n = gl.arange(0, C, gl.SliceLayout(1, PAIRS))[:, None]
    m = gl.arange(0, C, gl.SliceLayout(0, PAIRS))[None, :]
    t = _diagonal(a, few)
    for level in range(4, 6):
        put(t, tiles, 0)
        x = times(gl.where((((n >> level) ^ 1) == (m >> level)) & (n > m), a, 0.0), tiles, 0)
        put(x, tiles, 2)
        t -= times(t, tiles, 2)
    return t


@gluon.jit
def solved(b, strength, few, tiles, B, T, block, keep):
    """T of a chunk's B and beta [C], its halves in the first two tiles. With `keep` B and T go to [HV, chunks, C, C];
    else T is times the beta of the tokens it is for."""
    n = gl.arange(0, C, gl.SliceLayout(1, PAIRS))[:, None]
    m = gl.arange(0, C, gl.SliceLayout(0, PAIRS))[None, :]
    t = inverse(gl.where(n > m, b * strength[:, None], 0.0), few, tiles)
    to = block * (C * C) + n * C + m
    gl.store(B + to, b, mask=(n > m) & (keep > 0))  # masks leave more registers than a branch
    gl.store(T + to, t, mask=((n >> 4) >= (m >> 4)) & (keep > 0))
    t *= gl.convert_layout(gl.where(keep > 0, 1.0, strength), gl.SliceLayout(0, PAIRS))[None, :]
    put(t, tiles, 0)
    return t


@gluon.jit
def strengths(beta, start, stop, h, HV, beta_max, SIGMOID: gl.constexpr):
    """beta of a chunk's tokens [C] in fp32, 0 beyond the sequence."""
    i = start + gl.arange(0, C, gl.SliceLayout(1, PAIRS))
    x = gl.load(beta + i.to(gl.int64) * HV + h, mask=i < stop, other=0.0).to(gl.float32)
    if SIGMOID:
        x = gl.where(i < stop, beta_max / (1.0 + gl.exp(-x)), 0.0)
    return x


@gluon.jit
def lines(x, to, stride, tile):
    """x [C, width] to rows in bf16 in memory, by whole lines, through a tile that nobody still reads."""
    width: gl.constexpr = tile.shape[1]
    L: gl.constexpr = gl.BlockedLayout([1, 8], [256 // width, width // 8], [4, 1], [1, 0])
    i = gl.arange(0, C, gl.SliceLayout(1, L))[:, None]
    d = gl.arange(0, width, gl.SliceLayout(0, L))[None, :]
    tile.store(x.to(gl.bfloat16))
    meet()
    gl.store(to + i * stride + d, tile.load(L))


@gluon.jit
def rate(squares):
    """1 / |x| of the sum of an x's squares, |x| at least 1e-12."""
    return 1.0 / gl.maximum(gl.sqrt(squares), 1e-12)
