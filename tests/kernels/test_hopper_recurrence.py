"""The recurrences' Hopper kernels: against their definition on such a GPU, and anywhere that they compile for one."""

import os
import subprocess
import sys

import pytest
import torch

from evalsuite_kernels import delta_rule
from evalsuite_kernels.sweep.common import OPERATORS, call, inputs

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
on_hopper = pytest.mark.skipif(not HOPPER, reason="it needs a Hopper GPU")
PACKED = [0, 5, 5, 38, 39, 103, 230, 430, 430, 500]

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from evalsuite_kernels import hopper_channels, hopper_scan


def tile(columns):
    return f"tensordesc<bf16[64, {columns}],{gl.NVMMASharedLayout(128, 16, 2)!r}>"


def shared(kernel, constants, kinds):
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else kinds[n] for n in names}
    values = {(names.index(n),): value for n, value in constants.items()}
    pointers = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*"}
    source = GluonASTSource(kernel, signature, values, pointers)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).metadata.shared


integers = dict.fromkeys(("chunks", "H", "HV", "keep"), "i32") | {"scale": "fp32"}
lists = dict.fromkeys(("starts", "stops", "firsts"), "*i32")
for K in (128,):
    for delta in True, False:
        for gate in 0, 1, 2:
            gone = ["q", "k"] if gate == 2 else ["Qs", "Kd", "Kg"]
            gone += [] if delta else ["T", "Kd"]
            gone += [] if delta or gate == 2 else ["P"]
            gone += ["G"] if gate == 0 else []
            constants = dict.fromkeys(gone) | {"K": K, "V": 128, "DELTA": delta, "GATE": gate, "STAGES": 3}
            tiles = dict.fromkeys(("q", "k", "Qs", "Kd", "Kg"), tile(K)) | dict.fromkeys(("v", "P", "T"), tile(64))
            floats = dict.fromkeys(("G", "S0", "S1"), "*fp32") | {"o": "*bf16"}
            print(shared(hopper_scan.scan, constants, tiles | floats | integers | lists))
        for terms in 1, 3:
            constants = {"K": K, "DELTA": delta, "TERMS": terms} | ({} if delta else {"B": None, "Kd": None})
            halves = dict.fromkeys(("q", "k", "parts", "P", "Qs", "Kd", "Kg"), "*bf16") | {"slow": "*i8"}
            floats = dict.fromkeys(("G", "D", "B"), "*fp32") | {"g": "*bf16" if terms == 1 else "*fp32"}
            print(shared(hopper_channels.channel_blocks, constants, halves | floats | integers | lists))
"""


def test_they_compile():
    """For Hopper without one, within its shared memory, in a process that no interpreted kernel has touched."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    ran = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    shared = [int(line) for line in ran.stdout.split()]
    assert len(shared) == 10
    assert max(shared) <= 227 << 10


def both(op, x, state, **options):
    """o and the last state, by the kernels and by definition in fp64."""
    with torch.no_grad():
        got = call(op, x, "triton", initial_state=state, output_final_state=True, **options)
        exact = {name: None if t is None else t.double() for name, t in x.items()}
        return got, call(op, exact, "chunked", initial_state=state.double(), output_final_state=True, **options)


def begin(x, N):
    HV, V = x["v"].shape[2:]
    return torch.randn(N, HV, x["k"].shape[-1], V, device="cuda")


@on_hopper
@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize(("T", "B", "K", "HV", "packed"), [
    (1, 2, 128, 2, False), (17, 1, 128, 2, False), (64, 3, 64, 4, False),
    (500, 1, 128, 4, False), (500, 1, 128, 2, True),
])  # fmt: skip
def test_definition(op, T, B, K, HV, packed):
    x = inputs(op, B, T, 2, K, HV=HV)
    bounds = torch.tensor(PACKED, device="cuda") if packed else None
    state = begin(x, len(PACKED) - 1 if packed else B)
    got, want = both(op, x, state, cu_seqlens=bounds)
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 5e-3 * b.norm()


@on_hopper
@pytest.mark.parametrize("op", ["kda", "gla"])
@pytest.mark.parametrize("gate", [torch.bfloat16, torch.float32])
def test_decays_beyond_what_keys_may_decay_up(op, gate):
    """Some rows of a block of 16 lose more than 2^-100, others next to them do not."""
    x = inputs(op, 1, 300, 2, 128, regime="storm", gate_dtype=gate)
    x["g"][:, ::3] = -0.01
    x["g"][:, 5::7] = float("-inf")
    got, want = both(op, x, begin(x, 1))
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 5e-3 * b.norm()


@on_hopper
def test_no_row_knows_its_future_or_its_neighbours():
    x = inputs("kda", 1, 500, 2, 128, regime="storm")
    bounds = torch.tensor(PACKED, device="cuda")
    with torch.no_grad():
        o = call("kda", x, "triton", cu_seqlens=bounds)[0]
        y = {name: t.clone() for name, t in x.items()}
        for t in y.values():
            t[:, 230:] = torch.nan
        assert torch.equal(call("kda", y, "triton", cu_seqlens=bounds)[0][:, :230], o[:, :230])
        alone = {name: t[:, 103:230] for name, t in x.items()}
        assert torch.equal(call("kda", alone, "triton")[0], o[:, 103:230])
        alone["g"][:, 60:] = -300.0
        assert torch.equal(call("kda", alone, "triton")[0][:, :60], o[:, 103:163])


@on_hopper
def test_an_address_that_tma_cannot_take():
    x = inputs("kda", 1, 200, 1, 128)
    odd = torch.empty(x["v"].numel() + 1, device="cuda", dtype=torch.bfloat16)[1:].view_as(x["v"]).copy_(x["v"])
    o = delta_rule(x["q"], x["k"], odd, x["beta"], x["g"], impl="triton")[0]
    assert torch.allclose(o, call("kda", x, "triton")[0], atol=0.05, rtol=0.05)
