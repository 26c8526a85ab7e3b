"""The recurrences' Hopper kernels: against their definition on such a GPU, and anywhere that they compile for one."""

from itertools import pairwise

import pytest
import torch

from evalsuite_kernels import delta_rule
from evalsuite_kernels.sweep import exact
from evalsuite_kernels.sweep.common import OPERATORS, call, inputs
from no_gpu import printed

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
on_hopper = pytest.mark.skipif(not HOPPER, reason="it needs a Hopper GPU")
PACKED = [0, 5, 5, 38, 39, 103, 230, 430, 430, 500]

COMPILE = """
import sys

import torch

from evalsuite_kernels import chunk_run, fused, launches
from evalsuite_kernels.arguments import Raw

chunk_run.hopper = no_gpu.is_hopper
gate, delta, K, dtype = sys.argv[1], sys.argv[2] == "delta", int(sys.argv[3]), getattr(torch, sys.argv[4])
T, segment = map(int, sys.argv[5:])
q, k, v = (torch.zeros(1, T, 2, K, dtype=dtype) for _ in range(3))
shape = {"none": None, "head": (2,), "scalar": (1, T, 2), "vector": (1, T, 2, K)}[gate]
g, beta = None if shape is None else torch.zeros(shape), torch.zeros(1, T, 2) if delta else None
S = torch.zeros(1, 2, K, K)
"""
EVERY_LAUNCH = """
launches.Launches.run = no_gpu.compiled
chunk_run.Run(q, k, v, g, beta, S, None, 0.1, keep=False).forward()
chunk_run.Run(q, k, v, g, beta, S, None, 0.1, keep=True).backward(torch.zeros_like(v), S)
"""
REHEARSAL = """
launches._load = no_gpu.load
raw = Raw(delta, *(None if g is None or g.dim() == 1 else torch.zeros(n) for n in (2, g[0, 0].numel())), delta, 2.0)
fused.rehearse(q, k, v, None if g is None else g.requires_grad_(), beta, raw, segment)

launches.Launches.run = no_gpu.known
options = {"raw": raw, "segment": segment}
chunk_run.Run(q, k, v, g, beta, S, None, 0.1, **options, keep=False).forward()
chunk_run.Run(q, k, v, g, beta, S, None, 0.1, **options, keep=True).backward(torch.zeros_like(v), S)
"""


@pytest.mark.parametrize(("gate", "family", "K", "dtype", "kernels"), [
    ("vector", "delta", 128, "bfloat16", 7), ("scalar", "delta", 128, "bfloat16", 7),
    ("head", "linear", 128, "bfloat16", 8), ("vector", "linear", 64, "bfloat16", 7),
    ("vector", "delta", 64, "float16", 13), ("vector", "delta", 256, "bfloat16", 13),
    ("vector", "linear", 256, "float32", 9),
])  # fmt: skip
def test_every_launch_compiles(gate, family, K, dtype, kernels, tmp_path):
    """For Hopper without one, as it is called, within its shared memory; apart from all interpreted kernels."""
    shared = offline(EVERY_LAUNCH, tmp_path, gate, family, K, dtype, 1024)
    assert len(shared) == kernels
    assert max(shared) <= 227 << 10


@pytest.mark.parametrize(("gate", "family", "dtype", "segment"), [
    ("vector", "delta", "bfloat16", 256), ("scalar", "delta", "bfloat16", 0), ("scalar", "linear", "bfloat16", 0),
    ("vector", "delta", "float32", 0),
])  # fmt: skip
def test_a_rehearsal_compiles_all_that_a_call_of_any_length_launches(gate, family, dtype, segment, tmp_path):
    new = offline(REHEARSAL, tmp_path, gate, family, 64, dtype, 7000, segment)
    assert len(new) >= 7
    assert set(new) == {0}


def offline(program, cache, gate, family, K, dtype, T, segment=0):
    return printed(COMPILE + program, cache, gate, family, K, dtype, T, segment)


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
def test_values_of_a_width_that_the_hopper_scan_does_not_take(op):
    x = inputs(op, 1, 300, 2, 128, V=96)
    got, want = both(op, x, begin(x, 1))
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


CASES = [
    exact.Case(1000, regime="collinear", state=True), exact.Case(1000, regime="softplus", state=True),
    exact.Case(130, K=256, V=256, H=1, state=True), exact.Case(130, K=64, HV=4), exact.Case(65, state=True),
    exact.Case(300, regime="storm"), exact.Case(1000, H=16, regime="raw", state=True),
    exact.Case(70, K=64, H=8, HV=16, regime="raw"),
    exact.Case(1000, regime="long", segment=256, state=True), exact.Case(500, H=16, regime="raw", segment=128),
    exact.Case(130, V=96, state=True),
]  # fmt: skip
WITH_GRADIENTS = [(op, case) for op in ("deltanet", "gdn", "kda", "gla", "lightning") for case in CASES]


@on_hopper
@pytest.mark.parametrize(
    ("op", "case"), [pair for pair in WITH_GRADIENTS if exact.possible(*pair)], ids=lambda x: getattr(x, "name", x)
)
@pytest.mark.parametrize("dtype", exact.LIMITS, ids=exact.name_of)
def test_gradients(op, case, dtype):
    """Where keys resemble each other sums cancel; one gate for all tokens has one gradient, in which all cancels.

    What a head's A_log is owed is such a sum too: the norm of a few heads' may be far below that of their terms.
    """
    torch.manual_seed(0)
    row = exact.judged(op, case, dtype, "triton", "cuda")
    assert row["passed"], row["errors"]


@on_hopper
@pytest.mark.parametrize("op", ["linear", "lightning", "mamba2"])
@pytest.mark.parametrize(("K", "V", "HV"), [(128, 128, 2), (64, 128, 4), (128, 256, 2), (64, 64, 2)])
def test_groups_of_chunks_of_linear_attention(op, K, V, HV):
    """By definition, and bit for bit wherever a sequence is split and whatever lies beside it."""
    T = 1024
    bounds = [0, 0, 2 * T, 2 * T + 3, 4 * T + 70, 4 * T + 70]
    x = inputs(op, 1, bounds[-1], 2, K, HV=HV, V=V)
    state = begin(x, len(bounds) - 1)
    got, want = both(op, x, state, cu_seqlens=torch.tensor(bounds, device="cuda"))
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 5e-3 * b.norm()
    for n, (a, b) in enumerate(pairwise(bounds)):
        S, o = state[n : n + 1], []
        for start, end in pairwise(sorted({a, *(min(a + t, b) for t in (64, T, T + 128, 2 * T)), b})):
            part = {name: t if t is None or t.dim() == 1 else t[:, start:end] for name, t in x.items()}
            y, S = call(op, part, "triton", initial_state=S, output_final_state=True)
            o.append(y)
        assert torch.equal(S[0], got[1][n])
        assert not o or torch.equal(torch.cat(o, 1), got[0][:, a:b])


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
