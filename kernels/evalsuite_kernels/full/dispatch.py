"""Which implementation of softmax attention "auto" takes on a GPU: the faster one of its shape class."""

import torch
from torch import Tensor

# (kind, bytes of a number, class of head dims, "forward" or "both") -> implementation; what is not named is "chunked".
# As `python -m evalsuite_kernels.sweep --only dispatch` printed it on an H200. Other GPUs have not been timed.
FASTER: dict[tuple[str, int, int, str], str] = {("square", 2, 128, "forward"): "triton"}
KINDS = ("square", "cached", "window", "sinks", "packed", "padded")
WIDTHS = (64, 128, 256)  # our kernels pad heads to the next one


def faster(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Tensor | None, *, padded: bool, packed: bool
) -> str:
    """The implementation for a call that the Triton kernels can take: neither its batch nor its length counts, so that
    no bit of a row depends on them through this choice."""
    each = [x for x in (q, k, v, sinks) if x is not None]
    learned = torch.is_grad_enabled() and any(x.requires_grad for x in each)
    shape_class = kind(q.shape[1], k.shape[1], window, sinks is not None, padded=padded, packed=packed)
    return of_class(shape_class, q, q.shape[-1], v.shape[-1], "both" if learned else "forward")


def of_class(kind: str, x: Tensor, K: int, V: int, passes: str) -> str:
    """The implementation for tensors like x and head dims K and V, at most 256; passes "forward" or "both"."""
    width = next(w for w in WIDTHS if max(K, V) <= w)
    # plain calls were timed with Hopper's own kernels, which take no head dims in between
    if not hopper(x.device) or (kind in {"square", "cached"} and not K == V == width):
        return "chunked"
    return FASTER.get((kind, x.itemsize, width, passes), "chunked")


def hopper(device: torch.device) -> bool:
    """Whether the table holds for a device; `arguments.hopper` in terms that torch.compile takes as a constant."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_properties(device).major == 9


def kind(T: int, S: int, window: int | None, sinks: bool, *, padded: bool, packed: bool) -> str:
    """The shape class: the first that fits of "packed", "padded", "sinks", "window", "cached" and "square".

    A window counts even where it is no shorter than the keys: later keys must not change the choice.
    """
    fits = {"packed": packed, "padded": padded, "sinks": sinks, "window": window is not None, "cached": T < S}
    return next((name for name, holds in fits.items() if holds), "square")
