"""What trains an indexer: the divergence of its scores from attention, and how much of attention its choice covers."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evalsuite_kernels.arguments import choose, compute_dtype, expect, expect_heads, expect_integers, meant, note
from evalsuite_kernels.sparse import chunked
from evalsuite_kernels.sparse.places import Places, check_lists, places


@torch.compiler.disable  # its blocks, unrolled, take a compiler minutes
def index_loss(  # noqa: PLR0913 - two attentions and one list
    q: Tensor,
    k: Tensor,
    index_q: Tensor,
    index_k: Tensor,
    weights: Tensor,
    indices: Tensor | None = None,
    *,
    scale: float | None = None,
    index_scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Mean over queries of KL(p || softmax(I)): p the attention of q over k, averaged over heads, and I the index
    scores (arXiv:2512.02556, eq. 3 and 4).

    Args:
        q: [B, T, HQ, K]; nothing is owed to it.
        k: [B, T, H, K]; nothing is owed to it.
        index_q, index_k, weights: [B, T, HI, DI], [B, T, DI] and [B, T, HI], as in `lightning_index`.
        indices: [B, T, N] as `lightning_index` gives them: both softmaxes are over these keys alone (sparse training).
            None: over all keys that a query sees (dense warm-up).
        scale: of q, K^-0.5 if None.
        index_scale: (HI * DI)^-0.5 if None.
        cu_seqlens: bounds of packed sequences.
        impl: "auto" ("triton" on a GPU where it can run, but "chunked" for an indexer of many wide heads), "chunked"
            (by blocks of queries; "reference" is the same here) or "triton" (bf16, fp16 and fp32 alone, by tiles that
            are never in memory; it computes 16-bit inputs on tensor cores).

    Returns:
        A scalar in fp32 or wider, differentiable in index_q, index_k and weights; a query that sees no key adds 0.
        Memory is that of a block of queries: the gradient is made beside the loss.

    Raises:
        ValueError: shapes or bounds that do not fit, or an impl that cannot run here.
    """
    expect_heads(q, k)
    B, T, _, K = q.shape
    expect("k", k, B, T, "H", K)
    expect("index_q", index_q, B, T, "HI", "DI")
    HI, DI = index_q.shape[2:]
    expect("index_k", index_k, B, T, DI)
    expect("weights", weights, B, T, HI)
    if HI == 0 or DI == 0:
        raise ValueError(f"index_q has {HI} heads of dim {DI}, and needs at least 1 of each")
    scale = K**-0.5 if scale is None else scale
    index_scale = (HI * DI) ** -0.5 if index_scale is None else index_scale
    where = places(q, T, cu_seqlens, None, None)
    if indices is not None:
        expect_integers("indices", indices)
        expect("indices", indices, B, T, "N")
        check_lists("indices", indices, where.position + 1)
    name = _form(impl, q, k, index_q, index_k, weights)
    given, options = (index_q, index_k, weights), (indices, scale, index_scale)
    taught = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    with torch.autocast(q.device.type, enabled=False):
        q, k = q.detach(), k.detach()
        if name == "triton":  # of themselves, kernels know where there are no bounds
            return _Divergence.apply(q, k, *given, *options, None if cu_seqlens is None else where, name, taught)
        note("index_loss", "chunked")
        dtype = compute_dtype(q, k, *given)
        return _Divergence.apply(*(x.to(dtype) for x in (q, k, *given)), *options, where, name, taught)


def selection_recall(
    q: Tensor, k: Tensor, indices: Tensor, *, scale: float | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    """The share of the attention of q over k, averaged over heads, that a choice of keys covers: [B, T] in 0 .. 1.

    q [B, T, HQ, K], k [B, T, H, K], indices [B, T, N] as `lightning_index` gives them. No gradient. Raises ValueError
    where shapes or bounds do not fit.
    """
    expect_heads(q, k)
    expect("k", k, *q.shape[:2], "H", q.shape[3])
    expect_integers("indices", indices)
    expect("indices", indices, *q.shape[:2], "N")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    where = places(q, k.shape[1], cu_seqlens, None, None)
    check_lists("indices", indices, where.position + 1)
    dtype = compute_dtype(q, k)
    found = torch.zeros(q.shape[:2], dtype=dtype, device=q.device)
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        q, k = q.to(dtype), k.to(dtype)
        for start, stop in chunked.query_blocks(q.shape[1], q.shape[0] * q.shape[2] * k.shape[1], q.device):
            here, listed = where.rows(start, stop), indices[:, start:stop]
            p = _attention(q[:, start:stop], k, scale, chunked.visible(here, 0, k.shape[1]))
            row = (listed + here.first[..., None]).clamp(0, k.shape[1] - 1)
            found[:, start:stop] = p.gather(-1, row).masked_fill(listed < 0, 0).sum(-1)
    return found


def _form(impl: str, q: Tensor, k: Tensor, index_q: Tensor, index_k: Tensor, weights: Tensor) -> str:
    """The implementation of `index_loss`: "triton" or another word for "chunked"."""
    HI, DI = index_q.shape[2:]
    name = choose(impl, q, k, index_q, index_k, weights, widest=max(q.shape[-1], DI))
    if name == "triton" and meant(impl) == "auto":
        from evalsuite_kernels.sparse.divergence_run import GROUPS, grouped

        return name if grouped(HI, DI)[1] <= GROUPS else "chunked"
    return name


def _attention(q: Tensor, k: Tensor, scale: float, seen: Tensor) -> Tensor:
    """q [B, t, HQ, K] over k [B, S, H, K] where seen [B, t, S]: the weights' mean over heads [B, t, S]."""
    x = q.unflatten(2, (k.shape[2], -1))
    logits = torch.einsum("bthgk,bshk->bthgs", x * scale, k).masked_fill(~seen[:, :, None, None], -torch.inf)
    return logits.softmax(-1).mean((2, 3))


def _named(listed: Tensor, here: Places, S: int) -> Tensor:
    """Which of S keys a list [B, t, N] names: [B, t, S]."""
    row = torch.where(listed < 0, S, listed + here.first[..., None])
    seen = torch.zeros(*listed.shape[:2], S + 1, dtype=torch.bool, device=listed.device)
    return seen.scatter_(-1, row.long(), True)[..., :S]


def _listed_attention(q: Tensor, k: Tensor, scale: float, row: Tensor, missing: Tensor) -> Tensor:
    """The same over the keys at row [B, t, N] but those missing: [B, t, N]."""
    keys = k[torch.arange(len(k), device=k.device)[:, None, None], row]  # [B, t, N, H, K]
    x = q.unflatten(2, (k.shape[2], -1))
    logits = torch.einsum("bthgk,btnhk->bthgn", x * scale, keys).masked_fill(missing[:, :, None, None], -torch.inf)
    return logits.softmax(-1).mean((2, 3))


def _listed_scores(q: Tensor, k: Tensor, weights: Tensor, scale: float, row: Tensor) -> Tensor:
    """`chunked.scores` of the keys at row [B, t, N]."""
    keys = k[torch.arange(len(k), device=k.device)[:, None, None], row]  # [B, t, N, DI]
    return (weights[:, :, None] @ (q @ keys.mT).relu())[:, :, 0] * scale


def _by_blocks(  # noqa: PLR0913, PLR0917 - as `_Divergence`
    q: Tensor,
    k: Tensor,
    index_q: Tensor,
    index_k: Tensor,
    weights: Tensor,
    indices: Tensor | None,
    scale: float,
    index_scale: float,
    where: Places,
    taught: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`index_loss`, and what it owes to index_q, index_k and weights: zeros unless `taught`."""
    (B, T, HQ, _), S, HI = q.shape, k.shape[1], index_q.shape[2]
    owed = tuple(torch.zeros_like(x) for x in (index_q, index_k, weights))
    total = q.new_zeros(())
    each, few = S * max(HQ, HI), None
    if indices is not None and (gathered := indices.shape[-1] * max(k.shape[2] * k.shape[3], HQ, HI)) < each:
        each, few = gathered, indices
    for start, stop in chunked.query_blocks(T, B * each, q.device):
        here, x = where.rows(start, stop), q[:, start:stop]
        a, b, c = (t.detach() for t in (index_q[:, start:stop], index_k, weights[:, start:stop]))
        if taught:
            a, b, c = (t.requires_grad_() for t in (a, b, c))
        if few is None:  # keys of each query's own would take more room than scores of all
            seen = chunked.visible(here, 0, S) if indices is None else _named(indices[:, start:stop], here, S)
            p = _attention(x, k, scale, seen)
            with torch.set_grad_enabled(taught):
                scores = chunked.scores(a, b, c, index_scale)
        else:
            listed = few[:, start:stop]
            row, seen = (listed + here.first[..., None]).clamp(0, S - 1), listed >= 0
            p = _listed_attention(x, k, scale, row, ~seen)
            with torch.set_grad_enabled(taught):
                scores = _listed_scores(a, b, c, index_scale, row)
        logs = scores.detach().masked_fill(~seen, -torch.inf).log_softmax(-1)
        total += torch.where(p > 0, p * (p.clamp(min=1e-30).log() - logs.masked_fill(~seen, 0)), 0).sum()
        if not taught:
            continue
        found = torch.autograd.grad(scores, (a, b, c), (logs.exp() - p).masked_fill(~seen, 0) / (B * T))
        owed[0][:, start:stop], owed[2][:, start:stop] = found[0], found[2]
        owed[1].add_(found[1])
    return total / max(1, B * T), owed


class _Divergence(torch.autograd.Function):
    """`index_loss`, whose gradient is made with it, part by part: that of the scores is softmax(I) - p."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - autograd's signature
        ctx: Any,
        q: Tensor,
        k: Tensor,
        index_q: Tensor,
        index_k: Tensor,
        weights: Tensor,
        indices: Tensor | None,
        scale: float,
        index_scale: float,
        where: Any,
        name: str,
        taught: bool,
    ) -> Tensor:
        given = index_q, index_k, weights
        if name == "triton":
            from evalsuite_kernels.sparse.divergence_run import divergence

            loss, owed = divergence(q, k, *given, indices, scale, index_scale, where, taught)
        else:
            loss, owed = _by_blocks(q, k, *given, indices, scale, index_scale, where, taught)
        ctx.save_for_backward(*owed)
        ctx.dtypes = [x.dtype for x in given]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        owed = ((d * x).to(dtype) for x, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return (None, None, *owed, *(None,) * 6)
