"""Decayed dot products under a gate per channel, by doubling blocks.

Two neighbouring blocks of s tokens meet at the boundary between them: the later block's rows decay from the boundary
to themselves, the earlier block's keys from themselves to the boundary. Both decays are products of single tokens'
decays <= 1, never quotients, so nothing overflows and nothing cancels however strong a gate is; and the boundary lies
between column and row, so no row meets a later gate. log2(C) such meetings fill the lower triangle of a chunk, with no
product computed in vain, and one exponential a gate.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

CACHED = 2**17  # elements that a CPU works on at once: what is made from them stays in cache


@torch.compiler.disable  # its loop by doubling, unrolled, takes a compiler minutes and gains nothing
def vector_products(rows: Tensor, keys: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P_ij = sum_d rows_i,d keys_j,d exp(g_{j+1},d + ... + g_i,d) for j <= i, and 0 for j > i.

    Args:
        rows: [..., C, R, K], R vectors a token that read the keys; C a power of two.
        keys: [..., C, K].
        g: [..., C, K], natural-log decay <= 0.

    Returns:
        P [..., R, C, C], the decays from the chunk's start to each token (its own gate included) [..., C, K], and those
        from after each token to the chunk's end [..., C, K].
    """
    lead = g.shape[:-2]
    flat = (x.reshape(-1, *x.shape[len(lead) :]).contiguous() for x in (rows, keys, g))
    products, since, until = _Products.apply(*flat)
    return products.unflatten(0, lead), since.unflatten(0, lead), until.unflatten(0, lead)


def _pairs(x: Tensor, s: int) -> tuple[Tensor, ...]:
    """x [M, C, ...] -> its even and its odd blocks of s tokens, each a view [M, C / 2s, s, ...]."""
    return x.view(x.shape[0], -1, 2, s, *x.shape[2:]).unbind(2)


def _crossing(products: Tensor, s: int) -> Tensor:
    """Of products [M, R, C, C]: where odd blocks' rows meet the even block before them, a view [M, C / 2s, s, R, s]."""
    M, R, C, _ = products.shape
    blocks = products.view(M, R, C // (2 * s), 2, s, C // (2 * s), 2, s)[:, :, :, 1, :, :, 0]
    return blocks.diagonal(dim1=2, dim2=4).permute(0, 4, 2, 1, 3)


def _meetings(
    rows: Tensor, keys: Tensor, since: Tensor, until: Tensor
) -> Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor]]:
    """For s = 1, 2, 4 ...: s, decayed rows [M, n, s, R, K], decayed keys [M, n, s, K], and those decays.

    `since` (it starts as each token's own decay) and `until` (as ones) hold the decay from a token's block's start and
    to its block's end; each step doubles the blocks in place.
    """
    s = 1
    while s < keys.shape[1]:
        (since_0, since_1), (until_0, _) = _pairs(since, s), _pairs(until, s)
        yield s, _pairs(rows, s)[1] * since_1[..., None, :], _pairs(keys, s)[0] * until_0, since_1, until_0
        until_0 *= since_1[:, :, -1:]
        since_1 *= since_0[:, :, -1:]
        s *= 2


class _Products(torch.autograd.Function):
    """Written out because autograd would keep and copy every level's pieces; this computes them again."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, keys: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        M, C, R, _ = rows.shape
        products, since, until = rows.new_zeros(M, R, C, C), torch.empty_like(keys), torch.empty_like(keys)
        torch.exp(g, out=since)
        until.fill_(1)
        for part in zip(*(x.split(_batch(keys)) for x in (rows, keys, products, since, until)), strict=True):
            _fill(*part)
        ctx.save_for_backward(rows, keys, g, since, until)
        return products, since, until

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, keys, g, since, until = ctx.saved_tensors  # type: ignore[attr-defined]
        d_products, d_since, d_until = grads
        d_rows, d_keys, d_g, d_end = torch.empty_like(rows), torch.empty_like(keys), d_since * since, d_until * until
        tensors = (rows, keys, g, d_products.contiguous(), d_rows, d_keys, d_g, d_end)
        for part in zip(*(x.split(_batch(keys)) for x in tensors), strict=True):
            _fill_gradients(*part)
        return d_rows, d_keys, d_g


def _batch(keys: Tensor) -> int:
    """Chunks to work on at once: on a CPU so few that their pieces stay in cache, else all."""
    M, C, K = keys.shape
    return max(1, CACHED // (C * K)) if keys.device.type == "cpu" else M


def _fill(rows: Tensor, keys: Tensor, products: Tensor, since: Tensor, until: Tensor) -> None:
    """Write the products, and turn `since` from each token's own decay and `until` from ones into the decays."""
    M, _, R, _ = rows.shape
    products.diagonal(dim1=2, dim2=3).copy_((rows * keys[:, :, None]).sum(-1).transpose(1, 2))
    for s, later, earlier, _, _ in _meetings(rows, keys, since, until):
        cross = later.flatten(0, 1).flatten(1, 2) @ earlier.flatten(0, 1).mT
        _crossing(products, s).copy_(cross.view(M, -1, s, R, s))


def _fill_gradients(
    rows: Tensor,
    keys: Tensor,
    g: Tensor,
    d_products: Tensor,
    d_rows: Tensor,
    d_keys: Tensor,
    d_since: Tensor,
    d_until: Tensor,
) -> None:
    """Write d_rows and d_keys, and turn d_since and d_until, the gradients of the log decays, into g's, in d_since."""
    diagonal = d_products.diagonal(dim1=2, dim2=3).transpose(1, 2)[..., None]
    torch.mul(diagonal, keys[:, :, None], out=d_rows)
    torch.sum(diagonal * rows, 2, out=d_keys)
    levels = []
    for s, later, earlier, since_decay, until_decay in _meetings(rows, keys, g.exp(), torch.ones_like(g)):
        d_cross = _crossing(d_products, s).flatten(0, 1).flatten(1, 2)
        d_later = (d_cross @ earlier.flatten(0, 1)).view_as(later)
        d_earlier = (d_cross.mT @ later.flatten(0, 1).flatten(1, 2)).view_as(earlier)
        _pairs(d_rows, s)[1].addcmul_(d_later, since_decay[..., None, :])
        _pairs(d_keys, s)[0].addcmul_(d_earlier, until_decay)
        levels.append((s, d_later.mul_(later).sum(3), d_earlier.mul_(earlier)))
    for s, at_later, at_earlier in reversed(
        levels
    ):  # undo the doubling: each sum's gradient goes to what it was made of
        (since_0, since_1), (until_0, _) = _pairs(d_since, s), _pairs(d_until, s)
        since_0[:, :, -1] += since_1.sum(2)
        since_1[:, :, -1] += until_0.sum(2)
        since_1 += at_later
        until_0 += at_earlier
