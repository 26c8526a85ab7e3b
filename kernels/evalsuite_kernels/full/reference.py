"""The definition: one query token after the other, each over the keys it may see."""

import torch
from torch import Tensor


def token_by_token(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int | None,
    sinks: Tensor | None,
    lengths: list[int],
) -> Tensor:
    """q [B, T, HQ, K], k [B, S, H, K], v [B, S, H, V]; of row b the first lengths[b] keys are valid, and its last
    query meets the last of them -> o [B, T, HQ, V]. A query with no key to see gives zeros.
    """
    B, T, HQ, _ = q.shape
    group = HQ // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    rows = []
    for b in range(B):
        for t in range(T):
            stop = lengths[b] - T + t + 1
            start = 0 if window is None else max(0, stop - window)
            if stop <= 0:
                rows.append(v.new_zeros(HQ, v.shape[-1]))
                continue
            logits = torch.einsum("hd,shd->hs", q[b, t] * scale, k[b, start:stop])
            if sinks is not None:
                logits = torch.cat([logits, sinks[:, None]], -1)
            weights = logits.softmax(-1)[:, : stop - start]
            rows.append(torch.einsum("hs,shd->hd", weights, v[b, start:stop]))
    return torch.stack(rows).view(B, T, HQ, v.shape[-1])
