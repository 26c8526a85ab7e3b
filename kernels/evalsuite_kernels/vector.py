"""Decayed dot products under a gate per channel, by doubling blocks.

Two neighbouring blocks of s tokens meet at the boundary between them: the later block's rows decay from the boundary
to themselves, the earlier block's keys from themselves to the boundary. Both decays are products of single tokens'
decays <= 1, never quotients, so nothing overflows and nothing cancels however strong a gate is; and the boundary lies
between column and row, so no row meets a later gate. log2(C) such meetings fill the lower triangle of a chunk, with no
product computed in vain, and one exponential a gate.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

CACHED = 2**18  # elements that a CPU works on at once: what is made from them stays in cache


@torch.compiler.disable  # its loop by doubling, unrolled, takes a compiler minutes and gains nothing
def vector_products(q: Tensor, k: Tensor, g: Tensor, overlap: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """P_ij = sum_d x_i,d k_j,d exp(g_{j+1},d + ... + g_i,d) for x = q and j <= i and, with `overlap`, x = k and j < i.

    Args:
        q, k: [..., C, K], C a power of two.
        g: [..., C, K], natural-log decay <= 0.
        overlap: whether the keys read the keys too; R = 2 rows a token, else R = 1.

    Returns:
        P [..., R, C, C], 0 elsewhere; the rows decayed from the chunk's start, own gate included [..., C, R, K]; the
        keys decayed to the chunk's end [..., C, K]; the decay of the whole chunk [..., K].
    """
    lead = g.shape[:-2]
    flat = (x.reshape(-1, *x.shape[-2:]).contiguous() for x in (q, k, g))
    products, rows, keys, whole = _Products.apply(*flat, 2 if overlap else 1)
    return products.unflatten(0, lead), rows.unflatten(0, lead), keys.unflatten(0, lead), whole.unflatten(0, lead)


def _pairs(x: Tensor, s: int) -> tuple[Tensor, ...]:
    """x [M, C, ...] -> its even and its odd blocks of s tokens, each a view [M, C / 2s, s, ...]."""
    return x.view(x.shape[0], -1, 2, s, *x.shape[2:]).unbind(2)


def _crossing(products: Tensor, s: int) -> Tensor:
    """Of products [M, R, C, C]: where odd blocks' rows meet the even block before them, a view [M, C / 2s, s, R, s]."""
    M, R, C, _ = products.shape
    below = products[:, :, s:]  # strides of a block, a row, rows' kind, a column
    return below.as_strided((M, C // (2 * s), s, R, s), (R * C * C, 2 * s * (C + 1), C, C * C, 1))


class _Products(torch.autograd.Function):
    """Written out because autograd would keep and copy every level's pieces; this computes them again."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, g: Tensor, R: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        M, C, K = k.shape
        products, rows = k.new_zeros(M, R, C, C), k.new_empty(M, C, R, K)
        keys, whole = k.clone(), k.new_empty(M, K)
        for part in zip(*(x.split(_batch(k)) for x in (q, k, g, products, rows, keys, whole)), strict=True):
            _fill(*part)
        ctx.save_for_backward(q, k, g)
        return products, rows, keys, whole

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, g = ctx.saved_tensors  # type: ignore[attr-defined]
        d_q, d_k, d_g = torch.empty_like(q), torch.empty_like(k), torch.empty_like(g)
        tensors = (q, k, g, *(x.contiguous() for x in grads), d_q, d_k, d_g)
        for part in zip(*(x.split(_batch(k)) for x in tensors), strict=True):
            _fill_gradients(*part)
        return d_q, d_k, d_g, None


def _batch(k: Tensor) -> int:
    """Chunks to work on at once: on a CPU so few that their pieces stay in cache, else all."""
    M, C, K = k.shape
    return max(1, CACHED // (C * K)) if k.device.type == "cpu" else M


def _fill(q: Tensor, k: Tensor, g: Tensor, products: Tensor, rows: Tensor, keys: Tensor, whole: Tensor) -> None:
    """Write the products, the decayed rows and the whole decay, and decay the keys."""
    M, C, R, K = rows.shape
    decay = g.exp()
    for r, x in enumerate((q, k)[:R]):
        torch.mul(x, decay, out=rows[:, :, r])
    products[:, 0].diagonal(dim1=1, dim2=2).copy_((q * k).sum(-1))
    s = 1
    while s < C:  # rows decay from their block's start, keys to their block's end, `decay` is a block's
        later, earlier = rows.view(-1, 2, s * R, K)[:, 1], keys.view(-1, 2, s, K)[:, 0]
        first, second = decay.view(-1, 2, 1, K).unbind(1)
        _crossing(products, s).copy_((later @ earlier.mT).view(M, -1, s, R, s))
        later *= first
        earlier *= second
        decay = first * second
        s *= 2
    whole.copy_(decay[:, 0])


def _fill_gradients(*tensors: Tensor) -> None:
    """Write the gradients of q, k and g from those of the products, the decayed rows and keys and the whole decay.

    The decay from a token's block's start to it (`since`) and from it to its block's end (`until`) double with the
    blocks; what their logarithms are owed is collected level by level, and given to g by undoing the doubling.
    """
    q, k, g, d_products, d_in, d_out, d_whole, d_q, d_k, d_g = tensors
    R = d_in.shape[2]
    rows = torch.stack((q, k)[:R], 2)
    since, until = g.exp(), torch.ones_like(g)
    diagonal = d_products[:, 0].diagonal(dim1=1, dim2=2)[..., None]
    d_rows = torch.zeros_like(rows)
    torch.mul(diagonal, k, out=d_rows[:, :, 0])
    torch.mul(diagonal, q, out=d_k)
    levels, s = [], 1
    while s < k.shape[1]:
        (since_0, since_1), (until_0, _) = _pairs(since, s), _pairs(until, s)
        later, earlier = _pairs(rows, s)[1] * since_1[..., None, :], _pairs(k, s)[0] * until_0
        d_cross = _crossing(d_products, s).flatten(0, 1).flatten(1, 2)
        d_later = (d_cross @ earlier.flatten(0, 1)).view_as(later)
        d_earlier = (d_cross.mT @ later.flatten(0, 1).flatten(1, 2)).view_as(earlier)
        _pairs(d_rows, s)[1].addcmul_(d_later, since_1[..., None, :])
        _pairs(d_k, s)[0].addcmul_(d_earlier, until_0)
        levels.append((s, d_later.mul_(later).sum(3), d_earlier.mul_(earlier)))
        until_0 *= since_1[:, :, -1:]
        since_1 *= since_0[:, :, -1:]
        s *= 2
    d_rows.addcmul_(d_in, since[:, :, None])
    d_k.addcmul_(d_out, until)
    torch.mul((d_in * rows).sum(2), since, out=d_g)
    d_g[:, -1].addcmul_(d_whole, since[:, -1])
    d_end = (d_out * k).mul_(until)
    for s, at_later, at_earlier in reversed(levels):  # each sum's gradient goes to what it was made of
        (since_0, since_1), (until_0, _) = _pairs(d_g, s), _pairs(d_end, s)
        since_0[:, :, -1] += since_1.sum(2)
        since_1[:, :, -1] += until_0.sum(2)
        since_1 += at_later
        until_0 += at_earlier
    d_q.copy_(d_rows[:, :, 0])
    if R == 2:
        d_k += d_rows[:, :, 1]
