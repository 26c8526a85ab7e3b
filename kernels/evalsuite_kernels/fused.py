"""The kernels by chunks of both recurrences as torch operators with gradients."""

from typing import Any

import torch
from torch import Tensor

from evalsuite_kernels.arguments import expect, offsets
from evalsuite_kernels.chunk_run import Run
from evalsuite_kernels.decode import decode_step


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    *,
    scale: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`delta_rule`, or without beta `linear_attention`: o [B, T, HV, V] in v's dtype and the last states in fp32."""
    B, T, _, K = q.shape
    HV, V = v.shape[2:]
    N = B if cu_seqlens is None else len(offsets(cu_seqlens, B, T)) - 1
    if initial_state is None:
        initial_state = v.new_zeros(N, HV, K, V, dtype=torch.float32)
    else:
        expect("initial_state", initial_state, N, HV, K, V)
    if T == 0 or N == 0:
        return v.new_zeros(v.shape), initial_state.float()
    if T == 1 and cu_seqlens is None and not torch.is_grad_enabled():
        state = initial_state.float().clone(memory_format=torch.contiguous_format)
        gate = g if g is None or g.dim() == 1 else g[:, 0]
        step = (q[:, 0], k[:, 0], v[:, 0], gate, None if beta is None else beta[:, 0], state)
        return decode_step(*step, scale=scale)[:, None], state
    return torch.ops.evalsuite.recurrence(q, k, v, g, beta, initial_state.float(), cu_seqlens, scale)


@torch.library.custom_op("evalsuite::recurrence", mutates_args=())
def _recurrence(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, S: Tensor, cu: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    o, last, _ = Run(q, k, v, g, beta, S, cu, scale, keep=False).forward()
    assert o is not None
    return o, last


@_recurrence.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    v, S = inputs[2], inputs[5]
    return v.new_empty(v.shape), torch.empty_like(S)


@torch.library.custom_op("evalsuite::recurrence_back", mutates_args=())
def _recurrence_back(  # noqa: PLR0913, PLR0917 - the forward pass's arguments and two gradients
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    S: Tensor,
    cu: Tensor | None,
    scale: float,
    d_o: Tensor,
    d_S: Tensor,
) -> list[Tensor]:
    return Run(q, k, v, g, beta, S, cu, scale, keep=True).backward(d_o, d_S)


@_recurrence_back.register_fake
def _(*inputs: Any) -> list[Tensor]:
    q, *_ = inputs
    return [q.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs[:6]]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, scale = inputs
    ctx.save_for_backward(*tensors)
    ctx.scale = scale


def _backward(ctx: Any, d_o: Tensor | None, d_S: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, g, beta, S, cu = ctx.saved_tensors
    d_o = v.new_zeros(v.shape) if d_o is None else d_o
    d_S = torch.zeros_like(S) if d_S is None else d_S
    grads = torch.ops.evalsuite.recurrence_back(q, k, v, g, beta, S, cu, ctx.scale, d_o, d_S)
    d_q, d_k, d_v, d_g, d_beta, d_S0 = grads
    return d_q, d_k, d_v, None if g is None else d_g, None if beta is None else d_beta, d_S0, None, None


_recurrence.register_autograd(_backward, setup_context=_save)
