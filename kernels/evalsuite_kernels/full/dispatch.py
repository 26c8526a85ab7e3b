"""Which implementation of softmax attention "auto" takes on a GPU: the faster one of its shape class."""

from torch import Tensor

# (kind, bytes of a number) -> implementation. "square" is plain causal attention with as many queries as keys: there
# cuDNN's kernel, which "chunked" reaches through torch, is 1.5 times as fast as ours on an H200 (results/kernels). The
# other kinds of ours have not been timed on a GPU yet, and wait until they have been.
FASTER: dict[tuple[str, int], str] = {}


def faster(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Tensor | None, *, padded: bool, packed: bool
) -> str:
    """The implementation for a call that the Triton kernels can take."""
    T, S = q.shape[1], k.shape[1]
    return FASTER.get((kind(T, S, window, sinks is not None, padded=padded, packed=packed), q.itemsize), "chunked")


def kind(T: int, S: int, window: int | None, sinks: bool, *, padded: bool, packed: bool) -> str:
    """The shape class: the first that fits of "packed", "padded", "sinks", "window", "cached" and "square"."""
    fits = {
        "packed": packed,
        "padded": padded,
        "sinks": sinks,
        "window": window is not None and window < S,
        "cached": T < S,
    }
    return next((name for name, holds in fits.items() if holds), "square")
