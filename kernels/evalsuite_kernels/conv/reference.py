"""The definition: one token after the other."""

import torch
from torch import Tensor


def recurrence(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, W - 1 + T, D], opening with the W - 1 inputs before the first token, weight [D, W] -> y [B, T, D]."""
    W = weight.shape[1]
    steps = [(x[:, t : t + W] * weight.T).sum(1) for t in range(x.shape[1] - W + 1)]
    return torch.stack(steps, 1)
