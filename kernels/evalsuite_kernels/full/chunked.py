"""Softmax attention by blocks of queries: no score matrix larger than a block, and a window costs the window."""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256


def by_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int | None,
    sinks: Tensor | None,
    lengths: list[int],
) -> Tensor:
    """Shapes as in `reference.token_by_token`."""
    T, S = q.shape[1], k.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    even = all(n == S for n in lengths)
    if window is not None and window >= S:
        window = None
    if even and sinks is None and window is None and T in (S, 1):
        return _softmax(q, k, v, scale, None, causal=T > 1).transpose(1, 2)
    shift = torch.tensor(lengths, device=q.device)[:, None, None, None] - T if not even else S - T
    blocks = []
    for start in range(0, T, BLOCK):
        stop = min(start + BLOCK, T)
        first = 0 if window is None else max(0, min(lengths) - T + start - window + 1)
        last = max(0, max(lengths) - T + stop)
        position = torch.arange(start, stop, device=q.device)[:, None] + shift
        key = torch.arange(first, last, device=q.device)
        seen = key <= position
        if window is not None:
            seen = seen & (key > position - window)
        block, keys, values = q[:, :, start:stop], k[:, :, first:last], v[:, :, first:last]
        if even:
            blocks.append(_attend(block, keys, values, scale, seen, sinks))
            continue
        blind = ~seen.any(-1, keepdim=True)  # a query before its row's first key: give it keys, drop what it reads
        blocks.append(_attend(block, keys, values, scale, seen | blind, sinks).masked_fill(blind, 0))
    return torch.cat(blocks, 2).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, seen: Tensor, sinks: Tensor | None) -> Tensor:
    if sinks is None:
        return _softmax(q, k, v, scale, seen, causal=False)
    B, HQ, T, K = q.shape
    H = k.shape[1]
    logits = (q.reshape(B, H, -1, K) * scale @ k.mT).view(B, HQ, T, -1).masked_fill(~seen, -torch.inf)
    logits = torch.cat([logits, sinks[None, :, None, None].expand(B, -1, T, 1)], -1)
    weights = logits.softmax(-1)[..., :-1]
    return (weights.reshape(B, H, -1, k.shape[2]) @ v).view(B, HQ, T, -1)


def _softmax(q: Tensor, k: Tensor, v: Tensor, scale: float, seen: Tensor | None, *, causal: bool) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal, scale=scale, enable_gqa=grouped)
