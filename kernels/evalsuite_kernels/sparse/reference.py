"""The definitions: one query token after the other."""

import torch
from torch import Tensor

from evalsuite_kernels.sparse.chunked import tokens_of
from evalsuite_kernels.sparse.places import Places


def scores(q: Tensor, k: Tensor, weights: Tensor, scale: float) -> Tensor:
    """The lightning indexer's I (arXiv:2512.02556, eq. 1) for one query: q [HI, DI], k [S, DI], weights [HI] -> [S]."""
    products = (k[:, None] * q).sum(-1).relu()  # key by key: equal keys have equal scores, to the bit
    return (products * weights).sum(-1) * scale


def best(values: Tensor, count: int) -> Tensor:
    """The positions of the `count` largest values [S], of equal ones the first, in ascending order; NaN is largest."""
    return (
        values.nan_to_num(torch.inf, torch.inf, -torch.inf)
        .sort(descending=True, stable=True)
        .indices[:count]
        .sort()
        .values
    )


def index(q: Tensor, k: Tensor, weights: Tensor, topk: int, scale: float, where: Places) -> Tensor:
    """Shapes as in `lightning_index`."""
    B, T = q.shape[:2]
    found = torch.full((B, T, min(topk, k.shape[1])), -1, dtype=torch.int32, device=q.device)
    for b in range(B):
        for t in range(T):
            first, position = int(where.first[b, t]), int(where.position[b, t])
            chosen = best(scores(q[b, t], k[b, first : first + position + 1], weights[b, t], scale), topk)
            found[b, t, : len(chosen)] = chosen
    return found


def attend(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, scale: float, where: Places) -> Tensor:
    """Shapes as in `sparse_attention`, indices [B, T, G, N]."""
    B, T, HQ, _ = q.shape
    H, G = k.shape[2], indices.shape[2]
    rows = []
    for b in range(B):
        for t in range(T):
            for h in range(HQ):
                chosen = indices[b, t, h // (HQ // G)]
                row = chosen[chosen >= 0].long() + where.first[b, t]
                weight = (k[b, row, h // (HQ // H)] @ q[b, t, h] * scale).softmax(0)
                rows.append(weight @ v[b, row, h // (HQ // H)])  # of no key: zeros
    return torch.stack(rows).view(B, T, HQ, -1) if rows else q.new_zeros(B, T, HQ, v.shape[-1])


def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, scale: float, where: Places
) -> Tensor:
    """Shapes as in `block_attention`, blocks [B, T, G, N]."""
    return attend(q, k, v, tokens_of(blocks, block_size, where), scale, where)
