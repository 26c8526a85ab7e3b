"""Padded batches as packed sequences: padding is taken out, so that nothing can attend it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evalsuite.errors import UserError


@dataclass(frozen=True, slots=True)
class Packing:
    """Which of B x T queries and B x S keys are tokens: flat places [n] and bounds [B + 1] of the packed sequences."""

    queries: Tensor
    keys: Tensor
    cu_queries: Tensor
    cu_keys: Tensor
    shape: tuple[int, int]  # B, T

    def pack_queries(self, x: Tensor) -> Tensor:
        """x [B, T, ...] -> [1, n, ...]."""
        return x.flatten(0, 1)[self.queries][None]

    def pack_keys(self, x: Tensor) -> Tensor:
        """x [B, S, ...] -> [1, m, ...]."""
        return x.flatten(0, 1)[self.keys][None]

    def spread(self, x: Tensor) -> Tensor:
        """x [1, n, ...] of the queries -> [B, T, ...], zeros at padding."""
        B, T = self.shape
        return x.new_zeros(B * T, *x.shape[2:]).index_copy(0, self.queries, x[0]).unflatten(0, (B, T))


def packing(mask: Tensor | None, T: int, S: int, window: int | None = None) -> Packing | None:
    """How to take padding out of T queries, the last of S keys; None where every key is a token.

    Args:
        mask: boolean [B, n], n >= S: which of the tokens so far are no padding, of which the keys are the last S.
        T: queries.
        S: keys.
        window: keys that a query sees. It is counted in places, and so the tokens of a row must stand together.

    Raises:
        UserError: the mask is too short, or has gaps where there is a window.
    """
    if mask is None:
        return None
    if mask.shape[1] < S:
        raise UserError(
            f"attention_mask covers {mask.shape[1]} tokens and there are {S} keys; pass it for the cached tokens too"
        )
    valid = mask[:, mask.shape[1] - S :]
    if bool(valid.all()):
        return None
    if window is not None:
        expect_together(valid)
    asked = valid[:, S - T :]
    return Packing(_places(asked), _places(valid), _bounds(asked), _bounds(valid), (len(valid), T))


def expect_together(mask: Tensor) -> None:
    """Raise UserError where padding stands between the tokens of a row of a mask [B, n].

    A window counts its places. So does a short convolution, and a state behind it has been decayed by then.
    """
    begins = torch.cat([mask[:, :1], mask[:, 1:] & ~mask[:, :-1]], 1)
    if bool((begins.sum(1) > 1).any()):
        raise UserError(
            "attention_mask has padding between tokens, which windows and recurrent layers cannot take; pad at the left"
        )


def _places(valid: Tensor) -> Tensor:
    return valid.flatten().nonzero()[:, 0]


def _bounds(valid: Tensor) -> Tensor:
    return F.pad(valid.sum(1).cumsum(0), (1, 0)).to(torch.int32)
