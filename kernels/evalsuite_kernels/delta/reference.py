"""The definition: one token after the other."""

import torch
from torch import Tensor


def step(S: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor) -> tuple[Tensor, Tensor]:
    """One token: decay, read what the decayed state holds at k, write the difference.

    S [B, H, K, V], q, k [B, H, K], v [B, H, V], g [B or 1, H] or [B, H, K], beta [B, H] -> (o [B, H, V], S).
    """
    if g is not None:
        S = S * (g.exp()[..., None] if g.dim() == 3 else g.exp()[..., None, None])
    change = beta[..., None] * (v - (S * k[..., None]).sum(-2))
    S = S + k[..., None] * change[..., None, :]
    return (S * q[..., None]).sum(-2), S


def recurrence(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """q, k [B, T, H, K], v [B, T, H, V], g None, [B or 1, T, H] or [B, T, H, K], beta [B, T, H], S [B, H, K, V] ->
    (o [B, T, H, V], S).
    """
    outputs = []
    for t in range(q.shape[1]):
        o, S = step(S, q[:, t], k[:, t], v[:, t], None if g is None else g[:, t], beta[:, t])
        outputs.append(o)
    return torch.stack(outputs, 1), S
