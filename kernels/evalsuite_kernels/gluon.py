"""What the kernels in Gluon share: its names in all versions of Triton that have what Hopper needs (`arguments.GLUON`),
and tensors of heads as TMA reads them."""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# each by its newer name, or by that of Triton 3.6
bring = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
take = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
copy = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
meet = getattr(gl, "barrier", None) or gl.thread_barrier


if hasattr(gl.shared_memory_descriptor, "reinterpret"):

    @gluon.jit
    def seen(tile, dtype: gl.constexpr, shape: gl.constexpr, layout: gl.constexpr):
        """The same shared memory as other tiles."""
        return tile.reinterpret(dtype, shape, layout)

else:

    @gluon.jit
    def seen(tile, dtype: gl.constexpr, shape: gl.constexpr, layout: gl.constexpr):
        """The same shared memory as other tiles."""
        return tile._reinterpret(dtype, shape, layout)


def aligned(x: Tensor) -> bool:
    """Whether TMA can read x, every row of it as the whole."""
    *steps, one = x.stride()
    return one == 1 and x.data_ptr() % 16 == 0 and all(n > 0 and n * x.itemsize % 16 == 0 for n in steps)


def describe(x: Tensor, rows: int) -> TensorDescriptor:
    """x [B, T, H, D] in 16 bits as [B, H, T, D], by tiles [1, 1, rows, D]."""
    B, T, H, D = x.shape
    sb, st, sh, _ = x.stride()
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    return TensorDescriptor(x, [B, H, T, D], [sb, sh, st, 1], [1, 1, rows, D], layout)


def tiles(x: Tensor, width: int) -> TensorDescriptor:
    """x [..., columns] in 16 bits, to be read by tiles [64, width]."""
    return TensorDescriptor.from_tensor(x.view(-1, x.shape[-1]), [64, width], gl.NVMMASharedLayout(128, 16, 2))


@gluon.jit
def clear(tile, count):
    """Zeros in the rows of a tile [64, width] in 16 bits from `count` on: they are another sequence's."""
    width: gl.constexpr = tile.shape[1]
    L: gl.constexpr = gl.BlockedLayout([1, 8], [256 // width, width // 8], [4, 1], [1, 0])
    i = gl.arange(0, 64, gl.SliceLayout(1, L))
    x = tile.load(L)
    tile.store(gl.where((i < count)[:, None], x, gl.zeros_like(x)))


@gluon.jit
def exp2(x):
    """Without numbers below 2^-126, which take four times as long."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def softplus(x):
    """log(1 + exp(x)), to 16 bits or more: by the GPU's own instructions, not by a library that takes three
    times the space of all else in a kernel."""
    e = exp2(-gl.abs(x) * 1.4426950408889634)
    log2 = gl.inline_asm_elementwise(
        "lg2.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + e], dtype=gl.float32, is_pure=True, pack=1
    )
    small = e * (1.0 - e * (0.5 - e * (0.33333334 - e * 0.25)))
    return gl.maximum(x, 0.0) + gl.where(e < 0.015625, small, log2 * 0.6931471805599453)


@gluon.jit
def halves(x):
    """A number in fp32 as the sum of two in bf16; as assembly, or numbers are converted one by one, at a quarter of the
    speed of pairs."""
    return gl.inline_asm_elementwise(
        """{ .reg .f32 a, b;
        cvt.rn.bf16x2.f32 $0, $3, $2;
        shl.b32 a, $0, 16;
        and.b32 b, $0, 0xffff0000;
        sub.f32 a, $2, a;
        sub.f32 b, $3, b;
        cvt.rn.bf16x2.f32 $1, b, a; }""",
        "=r,=r,f,f", [x], dtype=(gl.bfloat16, gl.bfloat16), is_pure=True, pack=2,
    )  # fmt: skip
