"""The frame around the two recurrences, whatever computes them: checks, dtypes, grouped heads, packed sequences."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evalsuite_kernels.arguments import Raw, choose, compute_dtype, expect, note, offsets

# (*inputs, state) -> (o, state): every input [B, T, HV, ...] in the compute dtype, q already scaled
Form = Callable[..., tuple[Tensor, Tensor]]

SEGMENT = {"cpu": 2**19}  # elements of q that run at once: a CPU's cache, by measurement; 2**26 elsewhere


def run(
    forms: dict[str, Form],
    impl: str,
    inputs: Sequence[Tensor | None],
    *,
    scale: float | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    raw: Raw = Raw(),  # noqa: B008 - a constant
    segment: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the form that `impl` names over inputs (q, k, v, g) or (q, k, v, g, beta) as the caller gave them.

    Where `form` is not token by token, long sequences run in segments, packed ones of like length as a padded batch.
    Returns o [B, T, HV, V] in v's dtype and the final state [N, HV, K, V].
    """
    q, k, v, g, beta, *_ = (*inputs, None)
    assert q is not None and k is not None and v is not None  # noqa: PT018
    B, T, _, K = q.shape
    scale = K**-0.5 if scale is None else scale
    name = choose(impl, *inputs, raw.A_log, raw.dt_bias, initial_state, widest=max(K, v.shape[3]))
    if name == "triton":
        from evalsuite_kernels.fused import recurrence

        return recurrence(
            q, k, v, g, beta, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens, raw=raw,
            segment=segment or 0,
        )  # fmt: skip
    note("linear_attention" if len(inputs) == 4 else "delta_rule", name)
    form, token_by_token = forms[name], name == "reference"
    bounds = None if cu_seqlens is None else offsets(cu_seqlens, B, T)
    N, HV, V = B if bounds is None else len(bounds) - 1, v.shape[2], v.shape[3]
    dtype = compute_dtype(*inputs, raw.A_log, raw.dt_bias, initial_state)
    if initial_state is None:
        state = v.new_zeros(N, HV, K, V, dtype=dtype)
    else:
        expect("initial_state", initial_state, N, HV, K, V)
        state = initial_state.to(dtype)
    inputs = activated(inputs, raw, dtype)
    ready = [x.expand(1, T, -1) if x is not None and x.dim() == 1 else x for x in inputs]  # a fixed decay, over time
    form = partial(_prepared, form, scale, dtype)
    if not token_by_token:
        form = partial(_in_segments, form)
    with torch.autocast(q.device.type, enabled=False):  # the recurrence is kept in fp32 whatever surrounds it
        if T == 0:
            o = v.new_zeros(v.shape, dtype=dtype)
        elif bounds is None:
            o, state = form(*ready, state)
        else:
            o, state = _packed(form, ready, state, bounds, token_by_token)
    return o.to(v.dtype), state


def activated(inputs: Sequence[Tensor | None], raw: Raw, dtype: torch.dtype) -> Sequence[Tensor | None]:
    """q, k, v, g and beta as the recurrence takes them, of what was given raw."""
    q, k, v, g, beta, *_ = (*inputs, None)
    assert q is not None and k is not None  # noqa: PT018
    if raw.l2norm:
        q, k = (F.normalize(x.to(dtype), dim=-1) for x in (q, k))
    if raw.A_log is not None:
        assert g is not None
        bias = 0.0 if raw.dt_bias is None else raw.dt_bias.to(dtype).view(g.shape[2:])
        rate = raw.A_log.to(dtype).exp()
        g = -(rate[:, None] if g.dim() == 4 else rate) * F.softplus(g.to(dtype) + bias)
    if raw.sigmoid and beta is not None:
        beta = raw.beta_max * beta.to(dtype).sigmoid()
    return (q, k, v, g, beta)[: len(inputs)]


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None = None,
    raw: Raw = Raw(),  # noqa: B008 - a constant
    segment: int | None = None,
) -> None:
    """Raise ValueError unless the arguments are those of `linear_attention` and `delta_rule`."""
    expect("q", q, "B", "T", "H", "K")
    B, T, H, K = q.shape
    expect("k", k, B, T, H, K)
    expect("v", v, B, T, "HV", "V")
    HV = v.shape[2]
    if H == 0 or HV % H:
        raise ValueError(f"v has {HV} heads, which is no multiple of the {H} heads of q and k")
    if beta is not None:
        expect("beta", beta, B, T, HV)
    if g is not None and tuple(g.shape) not in {(HV,), (B, T, HV), (B, T, HV, K)}:
        raise ValueError(f"g must be None, [{HV}], [{B}, {T}, {HV}] or [{B}, {T}, {HV}, {K}], not {list(g.shape)}")
    if raw.A_log is not None:
        if g is None or g.dim() == 1:
            raise ValueError("A_log makes gates of g, which must be given for each token")
        expect("A_log", raw.A_log, HV)
        if raw.dt_bias is not None:
            expect("dt_bias", raw.dt_bias, HV * K if g.dim() == 4 else HV)
    elif raw.dt_bias is not None:
        raise ValueError("dt_bias needs A_log")
    if segment is not None and (segment <= 0 or segment % 64):
        raise ValueError(f"segment must be a multiple of 64 tokens, not {segment}")


def _prepared(form: Form, scale: float, dtype: torch.dtype, *tensors: Any) -> tuple[Tensor, Tensor]:
    """Run `form` on inputs in its dtype, q scaled, every value head with its key head."""
    q, k, v, *rest = (None if x is None else x.to(dtype) for x in tensors)
    assert q is not None
    assert k is not None
    assert v is not None
    group = v.shape[2] // q.shape[2]
    q = q if scale == 1.0 else q * scale
    if group > 1:
        q, k = (x.repeat_interleave(group, dim=2) for x in (q, k))
    return form(q, k, v, *rest)


def _packed(
    form: Form, inputs: Sequence[Tensor | None], state: Tensor, bounds: list[int], alone: bool
) -> tuple[Tensor, Tensor]:
    """Run packed sequences, those of one power-of-two length class as one batch padded with neutral tokens.

    A neutral token is all zeros: it writes nothing and decays nothing, so the state after it is the state before it.
    """
    classes: dict[int, list[int]] = {}
    for n, (start, stop) in enumerate(pairwise(bounds)):
        if stop > start:
            classes.setdefault((stop - start - 1).bit_length() if not alone else n, []).append(n)
    device, outputs, places, states = state.device, [], [], list(state.unbind())
    for members in classes.values():
        lengths = torch.tensor([bounds[n + 1] - bounds[n] for n in members], device=device)
        starts = torch.tensor([bounds[n] for n in members], device=device)
        steps = torch.arange(int(lengths.max()), device=device)
        real = steps < lengths[:, None]
        index = torch.where(real, starts[:, None] + steps, 0)
        padded = [None if x is None else _gather(x[0], index, real) for x in inputs]
        o, final = form(*padded, torch.stack([states[n] for n in members]))
        outputs.append(o[real])
        places.append(index[real])
        for n, S in zip(members, final.unbind(), strict=True):
            states[n] = S
    order = torch.cat(places).argsort()
    return torch.cat(outputs)[order][None], torch.stack(states)


def _gather(x: Tensor, index: Tensor, real: Tensor) -> Tensor:
    return x[index].masked_fill(~real.view(*real.shape, *[1] * (x.dim() - 1)), 0)


def _in_segments(form: Form, *tensors: Any) -> tuple[Tensor, Tensor]:
    """Run `form` over one stretch of tokens after the other, so that memory in between does not grow with T."""
    *inputs, S = tensors
    B, T, _, K = inputs[0].shape
    n = max(1, SEGMENT.get(S.device.type, 2**26) // (64 * B * S.shape[1] * K)) * 64  # whole chunks
    if n >= T:
        return form(*inputs, S)
    outputs = []
    for start in range(0, T, n):
        o, S = form(*(None if x is None else x[:, start : start + n] for x in inputs), S)
        outputs.append(o)
    return torch.cat(outputs, 1), S
