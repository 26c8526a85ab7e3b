"""Decays inside chunks, in forms whose every exponent is <= 0 and which look at no future token.

A chunk's rows i read its columns j <= i through exp(g_{j+1} + ... + g_i). Factoring that as exp(G_i) exp(-G_j) with
running sums G overflows for strong gates; differences of running sums in fp32 lose the small gates that follow a
strong one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = {"cpu": 32}  # by measurement; 64 elsewhere


def chunk_length(x: Tensor) -> int:
    """The chunk for x [B, T, ...]: a power of two, no longer than T needs."""
    return min(CHUNK.get(x.device.type, 64), 1 << (x.shape[1] - 1).bit_length())


def to_chunks(x: Tensor, C: int) -> Tensor:
    """[B, T, H, ...] -> [T / C, B, H, C, ...], zero-padded at the end: zeros are neutral tokens."""
    T = x.shape[1]
    if T % C:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, -T % C))
    return x.unflatten(1, (-1, C)).movedim((1, 3), (0, 2)).contiguous()


def from_chunks(x: Tensor, T: int) -> Tensor:
    """[N, B, H, C, D] -> [B, T, H, D], without the padding."""
    return x.movedim((0, 2), (1, 3)).flatten(1, 2)[:, :T]


def scalar_decays(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Decays of gates g [..., C]: between tokens [..., C, C] (0 above the diagonal), from the chunk's start to each
    token [..., C, 1], and from each token to the chunk's end [..., C, 1].

    The running sums are in fp64, so that their differences are exact enough after a gate of -200. A gate of -1000
    already decays to zero in fp64; the clamp keeps the sums finite.
    """
    G = g.clamp(min=-1000.0).double().cumsum(-1)
    future = torch.ones(g.shape[-1], g.shape[-1], dtype=torch.bool, device=g.device).triu(1)
    between = (G[..., :, None] - G[..., None, :]).to(g.dtype).masked_fill(future, -torch.inf).exp()
    return between, G.to(g.dtype).exp()[..., None], between[..., -1, :, None]
