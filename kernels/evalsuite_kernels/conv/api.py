"""The public face of the short convolution."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from evalsuite_kernels.arguments import choose, compute_dtype, expect, note, offsets
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
    name = "chunked" if impl == "auto" else choose(impl, x)
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
    T, past = len(x), state.shape[-1]
    pool = torch.cat([x, state.mT.flatten(0, 1)])
    layout, tokens, ends, at = [], [], [], 0
    for n, (start, stop) in enumerate(pairwise(bounds)):
        layout += [torch.arange(T + n * past, T + (n + 1) * past), torch.arange(start, stop)]
        tokens.append(torch.arange(at, at + stop - start))
        at += past + stop - start
        ends.append(torch.arange(at - past, at))
    stream = pool[torch.cat(layout).to(x.device)]
    final = stream[torch.stack(ends).to(x.device)].mT
    if not T:
        return x[None], final
    y = form(stream[None].to(weight.dtype), weight)
    return y[:, torch.cat(tokens).to(x.device)], final
