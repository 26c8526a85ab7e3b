"""The public face of the short convolution."""

from collections.abc import Callable

import torch
from torch import Tensor

from evalsuite_kernels.arguments import choose, compute_dtype, expect, meant, note, offsets, remembered
from evalsuite_kernels.conv.chunked import shifted
from evalsuite_kernels.conv.reference import recurrence

FORMS = {"reference": recurrence, "chunked": shifted}


def short_convolution(
    x: Tensor,
    weight: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Depthwise causal convolution, y_t = sum_w weight[:, w] x_{t - W + 1 + w}: no activation, no residual, no bias.

    Args:
        x: [B, T, D].
        weight: [D, W]; weight[:, -1] meets the current token.
        initial_state: [N, D, W - 1], the inputs before the first token, oldest first; zeros if None. N is B, or the
            number of packed sequences.
        output_final_state: also return the last W - 1 inputs.
        cu_seqlens: integers [N + 1], bounds of sequences packed along T; B must be 1. Empty sequences are allowed.
        impl: "auto", "reference" (token by token) or "chunked".

    Returns:
        y [B, T, D] in x's dtype, and the final state [N, D, W - 1] in x's dtype (it holds inputs) or None.

    Raises:
        ValueError: shapes that do not fit, wrong bounds, or an unknown impl.
    """
    if impl == "triton":
        raise ValueError("impl='triton' cannot run here: the short convolution has none; use impl='auto' or 'chunked'")
    name = "chunked" if impl == "auto" and meant(impl) in ("auto", "triton") else choose(impl, x)
    form = FORMS[name]
    expect("x", x, "B", "T", "D")
    B, T, D = x.shape
    expect("weight", weight, D, "W")
    note("short_convolution", name)
    past = weight.shape[1] - 1
    bounds = None if cu_seqlens is None else offsets(cu_seqlens, B, T)
    N = B if bounds is None else len(bounds) - 1
    if initial_state is None:
        state = x.new_zeros(N, D, past)
    else:
        expect("initial_state", initial_state, N, D, past)
        state = initial_state.to(x.dtype)
    dtype = compute_dtype(x, weight)
    if bounds is None:
        stream = torch.cat([state.mT, x], 1)
        y = form(stream.to(dtype), weight.to(dtype)) if T else x
        final = stream[:, stream.shape[1] - past :].mT
    else:
        y, final = _packed(form, x[0], weight.to(dtype), state, bounds)
    return y.to(x.dtype), final if output_final_state else None


def _packed(
    form: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, state: Tensor, bounds: list[int]
) -> tuple[Tensor, Tensor]:
    """One stream in which every sequence follows its own past, so that no tap reaches into its neighbour."""
    past = state.shape[-1]
    layout, results, ends = _places(tuple(bounds), past, x.device)
    stream = torch.cat([x, state.mT.flatten(0, 1)])[layout]
    final = stream[ends].mT
    if not len(x):
        return x[None], final
    return form(stream[None].to(weight.dtype), weight)[:, results], final


@remembered
def _places(bounds: tuple[int, ...], past: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of the stream's tokens, where each comes from, in the packed tokens with all pasts [N * past] behind them; of the
    packed tokens, where their results are, the first of which is of the stream's token number `past`; and of each
    sequence, where in the stream its last `past` tokens are [N, past]."""
    starts, lengths = torch.tensor(bounds[:-1]), torch.tensor(bounds).diff()
    numbers = torch.arange(len(starts))
    sequence, packed = numbers.repeat_interleave(lengths), torch.arange(bounds[-1])
    at = (starts + numbers * past)[:, None] + torch.arange(past)  # of the pasts in the stream
    results = packed + sequence * past
    layout = torch.empty(bounds[-1] + at.numel(), dtype=torch.long)
    layout[at.flatten()] = torch.arange(bounds[-1], len(layout))
    layout[results + past] = packed
    return layout.to(device), results.to(device), (at + lengths[:, None]).to(device)
