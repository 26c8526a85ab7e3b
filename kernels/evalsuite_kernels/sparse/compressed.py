"""NSA's compressed branch: attention over a key for every few tokens, which also says what blocks are worth a look."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from evalsuite_kernels.arguments import compute_dtype, expect, expect_heads
from evalsuite_kernels.sparse import chunked
from evalsuite_kernels.sparse.blocks import NSA, nsa_blocks


def compressed_attention(
    q: Tensor, k: Tensor, v: Tensor, position: Tensor, tokens: int, sizes: NSA, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention over compressed keys, and NSA's choice of blocks by its weights (arXiv:2502.11089).

    Args:
        q: [B, T, HQ, K].
        k: [B, M, H, K]; key m stands for the tokens m * stride to m * stride + length - 1, and is seen by queries from
            its last token on. Query head h reads key head h // (HQ // H).
        v: [B, M, H, V].
        position: [B, T], of each query in its sequence.
        tokens, sizes: as in `nsa_blocks`.
        scale: of q, K^-0.5 if None.

    Returns:
        o [B, T, HQ, V] in q's dtype, zeros for queries that see no compressed key yet, differentiable in q, k and v;
        and blocks int32 [B, T, H, N].

    Raises:
        ValueError: shapes that do not fit, or more blocks always than topk.
    """
    expect_heads(q, k, v)
    (B, T, HQ, K), (M, H) = q.shape, k.shape[1:3]
    expect("position", position, B, T)
    dtype = compute_dtype(q, k, v)
    end = torch.arange(M, device=q.device) * sizes.stride + sizes.length - 1
    scale = K**-0.5 if scale is None else scale

    def part(x: Tensor, k: Tensor, v: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
        seen = (end <= here[..., None])[:, :, None, None]  # [B, t, 1, 1, M]
        x = x.unflatten(2, (H, -1)) * scale
        weights = torch.einsum("bthgk,bmhk->bthgm", x, k).masked_fill(~seen, -torch.inf)
        blind = ~seen.any(-1, keepdim=True)
        weights = weights.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
        return torch.einsum("bthgm,bmhv->bthgv", weights, v).flatten(2, 3), nsa_blocks(
            weights.sum(3), here, tokens, sizes
        )

    learned = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    run: Any = partial(checkpoint, part, use_reentrant=False, preserve_rng_state=False) if learned else part
    outs = [q.new_zeros(B, 0, HQ, v.shape[-1], dtype=dtype)]
    blocks = [torch.empty(B, 0, H, sizes.topk, dtype=torch.int32, device=q.device)]
    with torch.autocast(q.device.type, enabled=False):
        x, y, z = (t.to(dtype) for t in (q, k, v))
        for start, stop in chunked.query_blocks(T, B * HQ * max(M, 1), q.device):
            o, listed = run(x[:, start:stop], y, z, position[:, start:stop])
            outs.append(o)
            blocks.append(listed)
    return torch.cat(outs, 1).to(q.dtype), torch.cat(blocks, 1)
