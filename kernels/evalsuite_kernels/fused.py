"""The kernels by chunks of both recurrences as torch operators with gradients."""

from typing import Any

import torch
from torch import Tensor

from evalsuite_kernels.arguments import INTERPRETED, Raw, expect, note, offsets
from evalsuite_kernels.chunk_plan import CHUNK
from evalsuite_kernels.chunk_run import Run
from evalsuite_kernels.decode import decode_step
from evalsuite_kernels.launches import Rehearsal, compile_all

REHEARSED: set[tuple[object, ...]] = set()  # kinds of calls with gradients
LIKE = 2048  # tokens of a call that launches all that longer ones do


def recurrence(  # noqa: PLR0913 - the public operators' arguments
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    *,
    scale: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    raw: Raw = Raw(),  # noqa: B008 - a constant
    segment: int = 0,
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
        named = {"beta_sigmoid" if name == "sigmoid" else name: x for name, x in raw._asdict().items()}
        return decode_step(*step, scale=scale, **named)[:, None], state
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        given = (q, k, v, g, beta, initial_state, raw.A_log, raw.dt_bias)
        if any(x is not None and x.requires_grad for x in given):
            rehearse(q, k, v, g, beta, raw, segment)
    return torch.ops.evalsuite.recurrence(
        q, k, v, g, beta, initial_state.float(), cu_seqlens, raw.A_log, raw.dt_bias, scale, raw.l2norm, raw.sigmoid,
        raw.beta_max, segment,
    )  # fmt: skip


def rehearse(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, raw: Raw, segment: int = 0
) -> None:
    """Compile the kernels of both passes of a new kind of call at a time, for inputs like these: each pass by itself
    would wait for its slowest."""
    tensors = (q, k, v, g, beta, raw.A_log, raw.dt_bias)
    owed = any(t is not None and t.requires_grad for t in (g, raw.A_log, raw.dt_bias))
    heads = (q.device, q.shape[3], v.shape[3], raw.l2norm, raw.sigmoid, segment > 0, owed)
    kind = (*heads, *(None if x is None else (x.dtype, x.dim()) for x in tensors))
    if kind in REHEARSED or INTERPRETED:
        return
    T = max(LIKE, segment + CHUNK)
    x: list[Any] = [t if t is None or t.dim() == 1 else t.new_empty(1, T, *t.shape[2:]) for t in tensors[:5]]
    S = v.new_empty(1, v.shape[2], q.shape[3], v.shape[3], dtype=torch.float32)

    def call(keep: bool, launches: Rehearsal) -> Run:
        return Run(
            x[0], x[1], x[2], x[3], x[4], S, None, 1.0, raw, segment=segment, keep=keep, gate_owed=owed,
            launches=launches,
        )  # fmt: skip

    there, back = Rehearsal(), Rehearsal()
    call(False, there).forward()
    call(True, back).backward(torch.empty_like(x[2]), S)
    compile_all({there.kind: there, back.kind: back}, q.device)
    REHEARSED.add(kind)


def _name(beta: Tensor | None) -> str:
    return "linear_attention" if beta is None else "delta_rule"


@torch.library.custom_op("evalsuite::recurrence", mutates_args=())
def _recurrence(  # noqa: PLR0913, PLR0917 - an operator takes no tuples
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    S: Tensor,
    cu: Tensor | None,
    A_log: Tensor | None,
    dt_bias: Tensor | None,
    scale: float,
    l2norm: bool,
    sigmoid: bool,
    beta_max: float,
    segment: int,
) -> tuple[Tensor, Tensor]:
    raw = Raw(l2norm, A_log, dt_bias, sigmoid, beta_max)
    run = Run(q, k, v, g, beta, S, cu, scale, raw, segment=segment, keep=False)
    note(_name(beta), run.language)
    o, last, _ = run.forward()
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
    A_log: Tensor | None,
    dt_bias: Tensor | None,
    scale: float,
    l2norm: bool,
    sigmoid: bool,
    beta_max: float,
    segment: int,
    gate_owed: bool,
    d_o: Tensor,
    d_S: Tensor,
) -> list[Tensor]:
    raw = Raw(l2norm, A_log, dt_bias, sigmoid, beta_max)
    run = Run(q, k, v, g, beta, S, cu, scale, raw, segment=segment, keep=True, gate_owed=gate_owed)
    note(_name(beta) + " backward", run.language)
    return run.backward(d_o, d_S)


@_recurrence_back.register_fake
def _(*inputs: Any) -> list[Tensor]:
    q = inputs[0]
    return [q.new_empty(0) if x is None else x.new_empty(x.shape) for x in (*inputs[:6], *inputs[7:9])]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:9])
    ctx.rest = inputs[9:]


def _backward(ctx: Any, d_o: Tensor | None, d_S: Tensor | None) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    v, S = tensors[2], tensors[5]
    d_o = v.new_zeros(v.shape) if d_o is None else d_o
    d_S = torch.zeros_like(S) if d_S is None else d_S
    gate_owed = any(ctx.needs_input_grad[i] for i in (3, 7, 8))
    grads = torch.ops.evalsuite.recurrence_back(*tensors, *ctx.rest, gate_owed, d_o, d_S)
    owed = iter(grads)
    kept = [None if i == 6 else next(owed) for i in range(len(tensors))]  # bounds of sequences are owed nothing
    return (*(None if x is None else d for x, d in zip(tensors, kept, strict=True)), *(None for _ in ctx.rest))


_recurrence.register_autograd(_backward, setup_context=_save)
