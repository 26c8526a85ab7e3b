"""Selection and sparse attention by blocks of queries: no score matrix larger than a block."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from evalsuite_kernels.sparse.places import Places

EDGE = 192  # keys: matrix products round the last columns of another number of them otherwise
ROOM = {"cpu": 2**22}  # numbers of a block's largest tensor; 2**26 elsewhere


def query_blocks(T: int, each: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Bounds of blocks of queries, of which one makes `each` numbers."""
    size = max(1, ROOM.get(device.type, 2**26) // max(1, each))
    for start in range(0, T, size):
        yield start, min(start + size, T)


def scores(q: Tensor, k: Tensor, weights: Tensor, scale: float) -> Tensor:
    """The lightning indexer's I (arXiv:2512.02556, eq. 1): q [B, T, HI, DI], k [B, S, DI], weights [B, T, HI] ->
    [B, T, S]."""
    B, T, HI, _ = q.shape
    S = k.shape[1]
    k = F.pad(k, (0, 0, 0, -S % EDGE))  # equal keys have equal scores, to the bit
    products = (q.flatten(1, 2) @ k.mT).relu().view(B, T, HI, k.shape[1])
    return (weights[:, :, None] @ products)[:, :, 0, :S] * scale


def visible(where: Places, low: int, high: int) -> Tensor:
    """Which of the rows low .. high - 1 a query may read: [B, T, high - low]."""
    row = torch.arange(low, high, device=where.first.device)
    first = where.first[..., None]
    return (row >= first) & (row <= first + where.position[..., None])


def chosen(values: Tensor, seen: Tensor, count: int) -> Tensor:
    """Which values [..., S] are the `count` largest of those seen, of equal ones the first; NaN is the largest."""
    values = values.masked_fill(values.isnan(), torch.inf).masked_fill(~seen, -torch.inf)
    if count >= values.shape[-1]:
        return seen
    least = values.topk(count, dim=-1).values[..., -1:]  # the same whichever of equal ones it stands for
    above = values > least
    tied = (values == least) & seen
    return above | (tied & (tied.cumsum(-1) <= count - above.sum(-1, keepdim=True)))


def listed(mask: Tensor, count: int, shift: Tensor | int = 0) -> Tensor:
    """The positions where mask [..., S] holds, less `shift`, ascending, then -1: int32 [..., count]."""
    slot = torch.where(mask, mask.cumsum(-1) - 1, count)
    position = torch.arange(mask.shape[-1], device=mask.device) - shift
    found = mask.new_full((*mask.shape[:-1], count + 1), -1, dtype=torch.int32)
    return found.scatter_(-1, slot, position.expand(mask.shape).int())[..., :count]


def index(q: Tensor, k: Tensor, weights: Tensor, topk: int, scale: float, where: Places) -> Tensor:
    """Shapes as in `lightning_index`."""
    (B, T, HI, _), S = q.shape, k.shape[1]
    count = min(topk, S)
    found = torch.full((B, T, count), -1, dtype=torch.int32, device=q.device)
    if B == 0:
        return found
    for start, stop in query_blocks(T, B * S * HI, q.device):
        here = where.rows(start, stop)
        low, high = here.span()
        values = scores(q[:, start:stop], k[:, low:high], weights[:, start:stop], scale)
        mask = chosen(values, visible(here, low, high), count)
        found[:, start:stop] = listed(mask, count, here.first[..., None] - low)
    return found


def attend(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, scale: float, where: Places) -> Tensor:
    """Shapes as in `sparse_attention`, indices [B, T, G, N]."""
    (B, T, HQ, K), H, (G, N) = q.shape, k.shape[2], indices.shape[2:]
    lists = max(G, H)  # one for each head of queries that share both keys and choice

    def part(x: Tensor, k: Tensor, v: Tensor, start: int, stop: int) -> Tensor:
        listed = indices[:, start:stop].repeat_interleave(lists // G, 2)
        return _gathered(x, k, v, listed, listed + where.first[:, start:stop, None, None], scale)

    learned = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    parts = []
    for start, stop in query_blocks(T, B * lists * N * (K + v.shape[-1]), q.device):
        given = q[:, start:stop], k, v, start, stop
        # what a block has gathered is gathered again for its gradient
        parts.append(
            checkpoint(part, *given, use_reentrant=False, preserve_rng_state=False) if learned else part(*given)
        )
    return torch.cat(parts, 1) if parts else q.new_zeros(B, T, HQ, v.shape[-1])


def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, scale: float, where: Places
) -> Tensor:
    """Shapes as in `block_attention`, blocks [B, T, G, N]."""
    (B, T, HQ, _), (G, N) = q.shape, blocks.shape[2:]
    parts = [
        attend(q[:, a:b], k, v, tokens_of(blocks[:, a:b], block_size, where.rows(a, b)), scale, where.rows(a, b))
        for a, b in query_blocks(T, B * G * N * block_size, q.device)
    ]
    return torch.cat(parts, 1) if parts else q.new_zeros(B, T, HQ, v.shape[-1])


def tokens_of(blocks: Tensor, block_size: int, where: Places) -> Tensor:
    """The positions up to each query's own that blocks [B, T, G, N] hold: int64 [B, T, G, N * block_size]."""
    position = (blocks.long() * block_size)[..., None] + torch.arange(block_size, device=blocks.device)
    seen = (blocks >= 0)[..., None] & (position <= where.position[..., None, None, None])
    return torch.where(seen, position, -1).flatten(3)


def _gathered(q: Tensor, k: Tensor, v: Tensor, listed: Tensor, row: Tensor, scale: float) -> Tensor:
    """q [B, t, HQ, K], listed and row [B, t, lists, N] -> o [B, t, HQ, V]."""
    lists, H = listed.shape[2], k.shape[2]
    batch = torch.arange(len(q), device=q.device)[:, None, None, None]
    head = torch.arange(lists, device=q.device)[:, None] * H // lists
    row, missing = row.clamp(0, max(k.shape[1] - 1, 0)), listed < 0
    keys, values = k[batch, row, head], v[batch, row, head]  # [B, t, lists, N, D]
    x = q.unflatten(2, (lists, -1))
    blind = missing.all(-1)[..., None, None]
    logits = (x * scale @ keys.mT).masked_fill(missing[..., None, :] & ~blind, -torch.inf)
    return (logits.softmax(-1) @ values).masked_fill(blind, 0).flatten(2, 3)
