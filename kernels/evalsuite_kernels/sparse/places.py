"""Where queries stand among the keys of their sequences."""

from typing import NamedTuple

import torch
from torch import Tensor

from evalsuite_kernels.arguments import expect, expect_integers, pieces


class Places(NamedTuple):
    """Of each query [B, T], int64: the row of its sequence's first key, its own position, -1 before all keys, and how
    many keys its sequence has."""

    first: Tensor
    position: Tensor
    keys: Tensor

    def rows(self, start: int, stop: int) -> "Places":
        """Those of the queries start .. stop - 1."""
        return Places(*(x[:, start:stop] for x in self))

    def span(self) -> tuple[int, int]:
        """The rows from the first to the last one that any of these queries may read."""
        last = self.first + self.position
        return int(self.first.min()), max(int(last.max()) + 1, int(self.first.min()))


def places(
    q: Tensor, S: int, cu_seqlens: Tensor | None, cu_seqlens_k: Tensor | None, key_lengths: Tensor | None
) -> Places:
    """For queries q [B, T, ...] over keys [B, S, ...], bounds and lengths as in `full_attention`: queries are the last
    of their sequence's keys. Nothing waits for a GPU whose memory holds the bounds; they are trusted there.

    Raises:
        ValueError: bounds or lengths that do not fit.
    """
    B, T = q.shape[:2]
    bounds = {"cu_seqlens": cu_seqlens, "cu_seqlens_k": cu_seqlens_k, "key_lengths": key_lengths}
    given = [x for x in bounds.values() if x is not None]
    for name, x in bounds.items():
        if x is not None:
            expect_integers(name, x)
    if not torch.compiler.is_compiling() and not any(x.is_cuda for x in given):
        pieces(B, T, S, cu_seqlens, cu_seqlens_k, key_lengths)
    if cu_seqlens is None and key_lengths is None:
        position = torch.arange(S - T, S, device=q.device).expand(B, T)
        first, keys = (torch.full((B, T), n, device=q.device) for n in (0, S))
        return Places(first, position if S >= T else position.clamp(min=-1), keys)
    token = torch.arange(T, device=q.device)
    if cu_seqlens is None:
        assert key_lengths is not None
        expect("key_lengths", key_lengths, B)
        keys = key_lengths.to(q.device).long()[:, None].expand(B, T)
        position = (token + keys - T).clamp(min=-1)
        return Places(torch.zeros_like(position), position, keys)
    starts = cu_seqlens.to(q.device).long()
    keys = starts if cu_seqlens_k is None else cu_seqlens_k.to(q.device).long()
    sequence = torch.searchsorted(starts, token, right=True) - 1  # the last that begins here: others are empty
    first = keys[sequence]
    count = keys[sequence + 1] - first
    return Places(first[None], (token - starts[sequence + 1] + count)[None], count[None])


def names(where: Places | None) -> tuple[Tensor | None, Tensor | None]:
    """first and position for kernels, which know of themselves where there are no bounds."""
    return (None, None) if where is None else (where.first.contiguous(), where.position.contiguous())


def dtype_of(name: Tensor | None) -> torch.dtype | None:
    """What a kernel is compiled for."""
    return None if name is None else name.dtype


def check_lists(name: str, lists: Tensor, end: Tensor | int) -> None:
    """Raise ValueError where lists [B, T, ..., N] on a CPU are not in -1 .. end [B, T] less one."""
    if lists.is_cuda or torch.compiler.is_compiling():
        return
    end = torch.as_tensor(end).expand(lists.shape[:2])
    wrong = (lists < -1) | (lists >= end.reshape(*end.shape, *[1] * (lists.dim() - 2)))
    if wrong.any():
        b, t = wrong.nonzero()[0, :2].tolist()
        raise ValueError(
            f"{name} of query {t} must lie in -1 .. {int(end[b, t]) - 1}, and one is {int(lists[wrong][0])}"
        )
