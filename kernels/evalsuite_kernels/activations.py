"""Activations in Triton kernels, exact to the last digits of fp32."""

import triton
import triton.language as tl


@triton.jit
def softplus(x):
    """log(1 + exp(x)), also where it is small (Kahan's log1p)."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    return tl.maximum(x, 0.0) + tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def log_decay(x, A_log, h, valid):
    """-exp(A_log) softplus(x) of a head, 0 where not valid: there is no token."""
    rate = tl.exp(tl.load(A_log + h).to(tl.float32))
    return tl.where(valid, -rate * softplus(x), 0.0)
