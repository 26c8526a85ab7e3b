"""The backward pass of softmax attention's Hopper kernel: against its definition on such a GPU, and anywhere that it
compiles for one."""

import os
import subprocess
import sys

import pytest
import torch

from evalsuite_kernels import full_attention
from evalsuite_kernels.full import hopper_backward
from no_gpu import printed

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
on_hopper = pytest.mark.skipif(not HOPPER, reason="it needs a Hopper GPU")
SCALE = 0.1


def make(T, HQ=4, H=2, D=128, B=2, dtype=torch.bfloat16):
    """g, q, k, v."""
    shapes = ((B, T, HQ, D), (B, T, HQ, D), (B, T, H, D), (B, T, H, D))
    return [torch.randn(shape, device="cuda" if HOPPER else "cpu").to(dtype) for shape in shapes]


def forward(q, k, v):
    """o and the logits' log2-sum-exp2, from fp64."""
    T, group = q.shape[1], q.shape[2] // k.shape[2]
    x, y, z = q.double(), k.double().repeat_interleave(group, 2), v.double().repeat_interleave(group, 2)
    s = torch.einsum("bthd,bshd->bhts", x, y) * SCALE
    s = s.masked_fill(torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1), float("-inf"))
    lse = s.logsumexp(-1) / torch.tensor(2.0).log().item()
    return torch.einsum("bhts,bshd->bthd", s.softmax(-1), z).to(q.dtype), lse.float()


def run(g, q, k, v, o=None, lse=None):
    assert hopper_backward.fits(g, q, k, v, SCALE)
    if o is None:
        o, lse = forward(q, k, v)
    return hopper_backward.backward(g, q, k, v, o, lse, SCALE)


def same(gots, wants):
    return all(torch.equal(got, want) for got, want in zip(gots, wants, strict=True))


@on_hopper
@pytest.mark.parametrize("T", [1, 17, 64, 65, 128, 129, 200, 1000, 1024])
@pytest.mark.parametrize(("HQ", "H"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_definition(T, HQ, H, dtype):
    g, q, k, v = make(T, HQ, H, dtype=dtype)
    inputs = [x.double().requires_grad_() for x in (q, k, v)]
    wants = torch.autograd.grad(full_attention(*inputs, scale=SCALE, impl="reference"), inputs, g.double())
    for got, want in zip(run(g, q, k, v), wants, strict=True):
        assert got.dtype == dtype
        assert (got.double() - want).norm() <= 5e-3 * want.norm() + 1e-3


@on_hopper
def test_layouts():
    """Heads before tokens, or side by side with others."""
    inputs = make(200)
    sums = forward(*inputs[1:])
    wants = run(*inputs, *sums)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    joined = torch.cat(inputs, 2).split((4, 4, 2, 2), 2)
    assert same(run(*turned, *sums), wants)
    assert same(run(*joined, *sums), wants)


@on_hopper
def test_rows_alone():
    """A row's bits do not depend on its batch, those of dq not on later tokens."""
    inputs = make(1500)
    o, lse = forward(*inputs[1:])
    wants = run(*inputs, o, lse)
    assert same(run(*(x[1:] for x in inputs), o[1:], lse[1:].contiguous()), [x[1:] for x in wants])
    early = run(*(x[:, :700].contiguous() for x in inputs), o[:, :700].contiguous(), lse[:, :, :700].contiguous())
    assert torch.equal(early[0], wants[0][:, :700])


@on_hopper
@pytest.mark.parametrize(("T", "HQ", "H", "B"), [(2000, 16, 4, 2), (4096, 32, 32, 1), (333, 32, 32, 4)])
def test_replays(T, HQ, H, B):
    inputs = make(T, HQ, H, B=B)
    sums = forward(*inputs[1:])
    wants = run(*inputs, *sums)
    for _ in range(100):
        assert same(run(*inputs, *sums), wants)


@on_hopper
def test_what_does_not_fit():
    g, q, k, v = make(64)
    assert hopper_backward.fits(g, q, k, v, SCALE)
    for inputs in (
        (g.float(), q.float(), k.float(), v.float()),
        make(64, D=64),
        (g, q, k[:, :32], v[:, :32]),
        (g, q, k, v[..., :64]),
        (g.half(), q, k, v),
        (g[:, :, :1].expand(-1, -1, 4, -1), q, k, v),
        (g, q.transpose(1, 3).contiguous().transpose(1, 3), k, v),
        (g[:, :0], q[:, :0], k[:, :0], v[:, :0]),
    ):
        assert not hopper_backward.fits(*inputs, SCALE)


def test_elsewhere_nothing_fits():
    x = torch.zeros(1, 4, 2, 128, dtype=torch.bfloat16)
    assert not hopper_backward.fits(x, x, x, x, SCALE)


COMPILE = """
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from evalsuite_kernels.full.hopper_backward import _gradients

dtype = sys.argv[1]


def tile(rows):
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    return f"tensordesc<{dtype}[1, 1, {rows}, 128],{layout!r}>"


flat = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=2)
kinds = {
    **dict.fromkeys(("in_q", "in_g"), tile(64)),
    **dict.fromkeys(("in_k", "in_v", "out_k", "out_v"), tile(128)),
    **dict.fromkeys(("turns", "ticket"), "*i32"),
    **dict.fromkeys(("scale", "slope"), "fp32"),
    "out": f"tensordesc<fp32[32, 256],{flat!r}>",
    "rows": "*fp32",
}
source = GluonASTSource(_gradients, {name: kinds.get(name, "i32") for name in _gradients.arg_names}, {}, {})
kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
ptx = kernel.asm["ptx"]
print(kernel.metadata.shared, ptx.count("wgmma.wait_group.sync.aligned 2"), ptx.count("cp.reduce.async.bulk.tensor"))
"""


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_it_compiles(dtype):
    """For Hopper without one, in a process that no interpreted kernel has touched."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", COMPILE, dtype], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    shared, ahead, sums = map(int, ran.stdout.split())
    assert shared <= 227 << 10
    assert ahead == 1  # dS is computed before the wait for dV and the next logits
    assert sums == 1


REHEARSAL = """
import torch

from evalsuite_kernels import launches
from evalsuite_kernels.full import hopper, hopper_backward, triton

hopper.hopper = hopper_backward.hopper = no_gpu.is_hopper
launches._load = no_gpu.load
q, k, v = (torch.zeros(2, 3000, 4, 128, dtype=torch.bfloat16) for _ in range(3))
triton._rehearse(q, k, v, 0.1)
launches.Launches.run = no_gpu.known
o, lse = hopper.forward(q, k, v, 0.1)
hopper_backward.backward(o, q, k, v, o, lse, 0.1)
"""


def test_a_rehearsal_compiles_all_that_both_passes_launch(tmp_path):
    """Without any GPU."""
    assert printed(REHEARSAL, tmp_path) == [0] * 4
