"""Which blocks of keys a query is to read: the choices of MoBA, NSA and MiniMax-M3, for `block_attention`."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evalsuite_kernels.arguments import compute_dtype, expect, expect_heads, expect_whole, pieces
from evalsuite_kernels.sparse import chunked
from evalsuite_kernels.sparse.places import Places, places


class NSA(NamedTuple):
    """The sizes of NSA's branches (arXiv:2502.11089), in tokens: of compressed keys their `length` and the `stride`
    from one to the next; of the choice `topk` blocks, among them always the first `initial` and the last `local`."""

    length: int = 32
    stride: int = 16
    block_size: int = 64
    topk: int = 16
    initial: int = 1
    local: int = 2


Choice = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, positions [B, T] -> blocks [B, T, G, N]


def moba_blocks(
    q: Tensor,
    k: Tensor,
    block_size: int,
    topk: int,
    *,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> Tensor:
    """MoBA's choice (arXiv:2502.13189): a query's own block, and of the earlier ones the topk - 1 whose mean key has
    the largest product with the query; of equal ones the earlier.

    Args:
        q: [B, T, HQ, K].
        k: [B, S, H, K]; each query head chooses for itself.
        block_size: tokens.
        topk: blocks, the query's own included.
        cu_seqlens, cu_seqlens_k, key_lengths: as in `full_attention`.

    Returns:
        int32 [B, T, HQ, topk], ascending, then -1. No gradient.

    Raises:
        ValueError: shapes or bounds that do not fit.
    """
    expect_heads(q, k)
    expect_whole("block_size", block_size)
    expect_whole("topk", topk)
    group = q.shape[2] // k.shape[2]

    def choice(q: Tensor, k: Tensor, position: Tensor) -> Tensor:
        means = F.pad(k, (0, 0, 0, 0, 0, -k.shape[1] % block_size)).unflatten(1, (-1, block_size)).mean(2)

        def values(start: int, stop: int) -> Tensor:
            x = q[:, start:stop].unflatten(2, (-1, group))
            return torch.einsum("bthgk,bnhk->bthgn", x, means).flatten(2, 3)

        return _chosen(values, position, q.shape[2], means.shape[1], block_size, topk, initial=0, local=1)

    return _of_each(choice, q, k, cu_seqlens, cu_seqlens_k, key_lengths)


def index_blocks(  # noqa: PLR0913 - as `full_attention`
    q: Tensor,
    k: Tensor,
    block_size: int,
    topk: int,
    *,
    initial: int = 0,
    local: int = 1,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> Tensor:
    """MiniMax-M3's choice: the topk blocks whose best key, of those that the query sees, has the largest product with
    an index query; the first `initial` blocks and the last `local` ones always.

    Args:
        q: [B, T, H, DI], one index query for each key head of the attention.
        k: [B, S, DI], one index key for all.
        block_size, topk: as in `moba_blocks`; topk counts the blocks that are always chosen.
        initial, local: blocks at the sequence's start, and up to the query's own.
        cu_seqlens, cu_seqlens_k, key_lengths: as in `full_attention`.

    Returns:
        int32 [B, T, H, topk], ascending, then -1. No gradient.

    Raises:
        ValueError: shapes or bounds that do not fit, or more blocks always than topk.
    """
    expect("q", q, "B", "T", "H", "DI")
    expect("k", k, q.shape[0], "S", q.shape[3])
    expect_whole("block_size", block_size)
    expect_whole("topk", topk)

    def choice(q: Tensor, k: Tensor, position: Tensor) -> Tensor:
        where = Places(torch.zeros_like(position), position, torch.full_like(position, k.shape[1]))
        count = -(-k.shape[1] // block_size)

        def values(start: int, stop: int) -> Tensor:
            seen = chunked.visible(where.rows(start, stop), 0, k.shape[1])
            products = torch.einsum("bthd,bsd->bths", q[:, start:stop], k).masked_fill(~seen[:, :, None], -torch.inf)
            padded = F.pad(products, (0, count * block_size - k.shape[1]), value=-torch.inf)
            return padded.unflatten(3, (count, block_size)).amax(4)

        return _chosen(values, position, q.shape[2], count, block_size, topk, initial=initial, local=local)

    return _of_each(choice, q, k, cu_seqlens, cu_seqlens_k, key_lengths)


def nsa_blocks(weights: Tensor, position: Tensor, tokens: int, sizes: NSA) -> Tensor:
    """NSA's choice (arXiv:2502.11089, eq. 9 to 12): a block's score is what its tokens' compressed keys were given, a
    compressed key counting by the share of its stride that lies in the block, summed over the heads of a key head.

    Args:
        weights: [B, T, H, M], softmax over compressed keys, summed over the heads of a group; key m stands for the
            tokens m * stride to m * stride + length - 1 of `sizes`.
        position: [B, T], of each query in its sequence.
        tokens: keys of the sequence.

    Returns:
        int32 [B, T, H, topk], ascending, then -1. No gradient.

    Raises:
        ValueError: shapes or sizes that do not fit, or more blocks always than topk.
    """
    expect("weights", weights, "B", "T", "H", "M")
    expect("position", position, *weights.shape[:2])
    for name, size in zip(NSA._fields[:4], sizes, strict=False):
        expect_whole(f"NSA's {name}", size)
    length, stride, block_size, topk, initial, local = sizes
    count = max(1, -(-tokens // block_size))
    start = torch.arange(weights.shape[-1], device=weights.device)[:, None] * stride
    begin = torch.arange(count, device=weights.device)[None, :] * block_size
    shared = torch.minimum(start + length, begin + block_size) - torch.maximum(start, begin)
    scores = weights.detach() @ (shared.clamp(min=0) / stride).to(weights.dtype)

    def values(start: int, stop: int) -> Tensor:
        return scores[:, start:stop]

    return _chosen(values, position, weights.shape[2], shared.shape[1], block_size, topk, initial=initial, local=local)


def _of_each(
    choice: Choice, q: Tensor, k: Tensor, cu_q: Tensor | None, cu_k: Tensor | None, key_lengths: Tensor | None
) -> Tensor:
    """The choice in every sequence alone, without gradients and in fp32 or wider."""
    dtype = compute_dtype(q, k)
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        q, k = q.to(dtype), k.to(dtype)
        if cu_q is None:
            return choice(q, k, places(q, k.shape[1], None, None, key_lengths).position)
        parts = [choice(q[:, :0], k[:, :0], torch.empty(1, 0, dtype=torch.long, device=q.device))]
        for a, b, c, d, _ in pieces(q.shape[0], q.shape[1], k.shape[1], cu_q, cu_k, key_lengths):
            position = torch.arange(d - c - (b - a), d - c, device=q.device)[None]
            parts.append(choice(q[:, a:b], k[:, c:d], position))
    return torch.cat(parts, 1)


def _chosen(
    values: Callable[[int, int], Tensor],
    position: Tensor,
    lists: int,
    count: int,
    block_size: int,
    topk: int,
    *,
    initial: int,
    local: int,
) -> Tensor:
    """The topk blocks by values(start, stop) [B, stop - start, lists, count], those always chosen among them."""
    if initial < 0 or local < 0 or topk < max(1, initial + local):
        raise ValueError(f"topk = {topk} must be at least 1 and hold {initial} first and {local} last blocks")
    B, T = position.shape
    block = torch.arange(count, device=position.device)
    found = torch.full((B, T, lists, topk), -1, dtype=torch.int32, device=position.device)
    for start, stop in chunked.query_blocks(T, B * lists * max(count, 1) * block_size, position.device):
        own = torch.div(position[:, start:stop, None, None], block_size, rounding_mode="floor")
        always = (block < initial) | (block > own - local)
        scores = values(start, stop)
        most = torch.finfo(scores.dtype).max  # nothing is as large as what is always chosen
        scores = scores.nan_to_num(most, most, -most).masked_fill(always, torch.inf)
        mask = chunked.chosen(scores, (block <= own).expand(scores.shape), topk)
        found[:, start:stop] = chunked.listed(mask, topk)
    return found
