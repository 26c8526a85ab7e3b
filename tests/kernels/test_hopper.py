"""Softmax attention's Hopper kernel: against its definition on such a GPU, and anywhere that it compiles for one."""

import os
import subprocess
import sys

import pytest
import torch

from evalsuite_kernels import full_attention
from evalsuite_kernels.full import hopper

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
on_hopper = pytest.mark.skipif(not HOPPER, reason="it needs a Hopper GPU")


def make(T, S, HQ=4, H=2, D=128, B=2, dtype=torch.bfloat16):
    shapes = ((B, T, HQ, D), (B, S, H, D), (B, S, H, D))
    return [torch.randn(shape, device="cuda" if HOPPER else "cpu").to(dtype) for shape in shapes]


def run(q, k, v, scale=0.1):
    assert hopper.fits(q, k, v, scale)
    return hopper.forward(q, k, v, scale)


def logs(q, k, scale):
    """The logits' log2-sum-exp2 [B, HQ, T] in fp64."""
    T, S, group = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    s = torch.einsum("bthd,bshd->bhts", q.double(), k.double().repeat_interleave(group, 2)) * scale
    late = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
    return s.masked_fill(late, float("-inf")).logsumexp(-1) / torch.tensor(2.0).log().item()


@on_hopper
@pytest.mark.parametrize(("T", "S"), [(1, 1), (17, 17), (128, 128), (129, 129), (1000, 1000), (1, 513), (300, 1111)])
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_definition(T, S, D, dtype):
    q, k, v = make(T, S, D=D, dtype=dtype)
    o, lse = run(q, k, v)
    want = full_attention(q.double(), k.double(), v.double(), scale=0.1, impl="reference")
    assert o.dtype == dtype
    assert (o.double() - want).norm() <= 4e-3 * want.norm()
    assert torch.allclose(lse.double(), logs(q, k, 0.1), atol=1e-3, rtol=0)


@on_hopper
def test_layouts():
    """Heads before tokens, or side by side with others."""
    q, k, v = make(200, 200)
    o, lse = run(q, k, v)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    joined = torch.cat((q, k, v), 2).split((4, 2, 2), 2)
    for inputs in (turned, joined):
        again = run(*inputs)
        assert torch.equal(again[0], o)
        assert torch.equal(again[1], lse)


@on_hopper
def test_rows_depend_on_their_past_alone():
    q, k, v = make(1500, 1500)
    o, lse = run(q, k, v)
    later = [torch.cat((x[:, :700], torch.randn_like(x[:, 700:])), 1) for x in (k, v)]
    for inputs, rows, batch in (
        ((q[:, :700], k[:, :700], v[:, :700]), slice(0, 700), slice(None)),
        ((q[:, :700], later[0][:, :700], later[1][:, :700]), slice(0, 700), slice(None)),
        ((q, *later), slice(0, 700), slice(None)),
        ((q[:, 613:], k, v), slice(613, 1500), slice(None)),
        ((q[1:], k[1:], v[1:]), slice(None), slice(1, 2)),
    ):
        got, sums = run(*inputs)
        shown = slice(0, 700) if got.shape[1] == 1500 and rows.stop == 700 else slice(None)
        assert torch.equal(got[:, shown], o[batch, rows])
        assert torch.equal(sums[:, :, shown], lse[batch, :, rows])


@on_hopper
@pytest.mark.parametrize("fan", [1, 2])
def test_waves_of_heads(fan, monkeypatch):
    """Which heads run at a time is seen in no bit; the last wave may be smaller."""
    q, k, v = make(400, 400, HQ=5, H=5, B=1)
    o, lse = run(q, k, v)
    monkeypatch.setattr(hopper, "L2_BYTES", fan * 2 * k[0, :, 0].nbytes)
    again = run(q, k, v)
    assert torch.equal(again[0], o)
    assert torch.equal(again[1], lse)


@on_hopper
def test_replays():
    q, k, v = make(2000, 2000)
    o, lse = run(q, k, v)
    for _ in range(1000):
        again = run(q, k, v)
        assert torch.equal(again[0], o)
        assert torch.equal(again[1], lse)


@on_hopper
def test_what_does_not_fit():
    q, k, v = make(64, 64)
    assert hopper.fits(q, k, v, 0.1)
    wide = make(64, 64, D=256)
    for inputs in (
        (q, k, v, 0.0),
        (q.float(), k.float(), v.float(), 0.1),
        (*wide, 0.1),
        (q, k[:, :32], v[:, :32], 0.1),
        (q, k, v[..., :64], 0.1),
        (q.transpose(1, 3).contiguous().transpose(1, 3), k, v, 0.1),
        (q, k[:, :1].expand(-1, 64, -1, -1), v, 0.1),
        (q[:, :0], k, v, 0.1),
    ):
        assert not hopper.fits(*inputs)


def test_elsewhere_nothing_fits():
    x = torch.zeros(1, 4, 2, 128, dtype=torch.bfloat16)
    assert not hopper.fits(x, x, x, 0.1)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from evalsuite_kernels.full.hopper import _forward


def tile(rows):
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    return f"tensordesc<bf16[1, 1, {rows}, 128],{layout!r}>"


names = _forward.arg_names
kinds = {"in_q": tile(64), "in_k": tile(128), "in_v": tile(128), "out": tile(64), "lse": "*fp32", "scale": "fp32"}
signature = {name: "constexpr" if name == "D" else kinds.get(name, "i32") for name in names}
source = GluonASTSource(_forward, signature, {(names.index("D"),): 128}, {})
kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
ptx = kernel.asm["ptx"]
print(kernel.metadata.shared, ptx.count("wgmma.wait_group.sync.aligned 1"), ptx.count("setmaxnreg"))
"""


def test_it_compiles():
    """For Hopper without one, in a process that no interpreted kernel has touched."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    ran = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    shared, ahead, registers = map(int, ran.stdout.split())
    assert shared <= 227 << 10
    assert ahead == 4  # in both loops of both warpgroups the softmax runs before the wait for the second product
    assert registers > 0
