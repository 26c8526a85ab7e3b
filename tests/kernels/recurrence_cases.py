"""Inputs of the recurrences, calls of them and comparisons, for every test of an implementation."""

import math

import torch
import torch.nn.functional as F

from evalsuite_kernels import delta_rule, linear_attention

GATES = ("none", "head", "scalar", "vector")
OPERATORS = (linear_attention, delta_rule)


def make(T, gate, *, B=2, H=2, HV=4, K=8, V=6, dtype=torch.float64, regime="mixed", seed=0):
    """{q, k, v, beta, g}: keys of length 1, beta in (0, 2), gates of half-lives 1 to 100,000 tokens and of -200."""
    r = torch.Generator().manual_seed(seed)
    q, k, v, beta = (
        torch.randn(s, generator=r, dtype=torch.float64)
        for s in ((B, T, H, K), (B, T, H, K), (B, T, HV, V), (B, T, HV))
    )
    shape = {"none": (0,), "head": (HV,), "scalar": (B, T, HV), "vector": (B, T, HV, K)}[gate]
    g = -math.log(2) / 10 ** (5 * torch.rand(shape, generator=r, dtype=torch.float64))
    spike = torch.rand(shape, generator=r) < {"mixed": 0.1, "long": 0.0, "storm": 0.7}[regime]
    g = g.masked_fill(spike, -200.0)
    x = {"q": q, "k": F.normalize(k, dim=-1), "v": v, "beta": 2 * beta.sigmoid(), "g": None if gate == "none" else g}
    return {name: None if t is None else t.to(dtype) for name, t in x.items()}


def call(operator, x, **options):
    """The operator on {q, k, v, beta, g}: (o, final state)."""
    first = (x["q"], x["k"], x["v"]) + ((x["beta"],) if operator is delta_rule else ())
    return operator(*first, x["g"], output_final_state=True, **options)


def with_gradients(operator, x, S, impl):
    """o, the final state, and the gradients of a nonlinear function of both in every input and the initial state."""
    x = {n: None if t is None else t.clone().requires_grad_() for n, t in x.items()}
    S = S.clone().requires_grad_()
    o, final = call(operator, x, initial_state=S, impl=impl)
    leaves = [S, *(t for n, t in x.items() if t is not None and (n != "beta" or operator is delta_rule))]
    gradients = torch.autograd.grad(o.sin().sum() + final.cos().sum(), leaves)
    return [o.detach(), final.detach(), *gradients]


def assert_close(got, want, relative):
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.shape == b.shape
        assert torch.isfinite(a).all()
        assert (a - b).norm() <= relative * b.norm(), f"tensor {i}: {((a - b).norm() / b.norm()).item():.1e}"


def state(HV=4, K=8, V=6, N=2, dtype=torch.float64):
    return torch.randn(N, HV, K, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
