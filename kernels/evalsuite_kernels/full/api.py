"""The public face of softmax attention."""

import torch
from torch import Tensor

from evalsuite_kernels.arguments import choose, compute_dtype, expect, expect_heads, meant, note, pieces
from evalsuite_kernels.full import dispatch
from evalsuite_kernels.full.chunked import by_blocks
from evalsuite_kernels.full.reference import token_by_token

FORMS = {"reference": token_by_token, "chunked": by_blocks}


def full_attention(  # noqa: PLR0913 - the published operators take these, and no fewer say what is computed
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    key_lengths: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Causal softmax attention (Vaswani et al., 2017). Queries fewer than keys are the last of them, as in decoding.

    Args:
        q: [B, T, HQ, K].
        k: [B, S, H, K], S >= T; query head h reads key head h // (HQ // H).
        v: [B, S, H, V].
        window: keys that a query sees, itself included; all earlier ones if None.
        sinks: [HQ] logits that join each softmax's denominator and bring no value (gpt-oss, arXiv:2508.10925).
        scale: of q, K^-0.5 if None.
        cu_seqlens: integers [N + 1], bounds of sequences packed along T; B must be 1. Empty sequences are allowed.
        cu_seqlens_k: the same for k and v, where they differ (a cached prefix); a sequence's queries are the last of
            its keys.
        key_lengths: integers [B], how many keys of a padded cache are valid in each row; row b's last query is key
            key_lengths[b] - 1. A query that would stand before its row's first key gives zeros.
        impl: "auto" (on a GPU whichever of the last two is faster for the kind of call, dtype, head dims and with or
            without gradients: `full.dispatch`; elsewhere "chunked"), "reference" (token by token), "chunked" or
            "triton". "triton" computes 16-bit inputs on tensor cores, reads no bounds or lengths back from a GPU, and
            there trusts them.

    Returns:
        o [B, T, HQ, V] in q's dtype.

    Raises:
        ValueError: shapes that do not fit, more queries than keys, wrong bounds, or an unknown impl or one that cannot
            run here.
    """
    expect_heads(q, k, v)
    B, T, HQ, K = q.shape
    S = k.shape[1]
    if window is not None and window < 1:
        raise ValueError(f"window counts the query's own key, so it must be at least 1, not {window}")
    if sinks is not None:
        expect("sinks", sinks, HQ)
    scale = K**-0.5 if scale is None else scale
    exact = compute_dtype(q, k, v, sinks)
    name = choose(impl, q, k, v, sinks, widest=max(K, v.shape[-1]))
    if name == "triton" and meant(impl) == "auto":
        name = dispatch.faster(q, k, v, window, sinks, padded=key_lengths is not None, packed=cu_seqlens is not None)
    if name == "triton":
        _check_bounds(B, T, S, cu_seqlens, cu_seqlens_k, key_lengths)
        return _triton(
            q, k, v, window=window, sinks=sinks, scale=scale, cu_q=cu_seqlens, cu_k=cu_seqlens_k, lengths=key_lengths
        )
    note("full_attention", name)
    form = FORMS[name]
    bounds = pieces(B, T, S, cu_seqlens, cu_seqlens_k, key_lengths)
    # without sinks a GPU's fused kernels keep half precision's softmax and sums in fp32 by themselves
    dtype = q.dtype if q.is_cuda and sinks is None and exact != torch.float64 and q.dtype == k.dtype else exact
    with torch.autocast(q.device.type, enabled=False):
        x, y, z = (tensor.to(dtype) for tensor in (q, k, v))
        s = None if sinks is None else sinks.to(dtype)
        parts = [
            form(x[:, a:b], y[:, c:d], z[:, c:d], scale=scale, window=window, sinks=s, lengths=lengths)
            for a, b, c, d, lengths in bounds
        ]
    if not parts:
        return q.new_zeros(B, T, HQ, v.shape[-1])
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).to(q.dtype)


def _triton(  # noqa: PLR0913 - as above
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None,
    sinks: Tensor | None,
    scale: float,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    lengths: Tensor | None,
) -> Tensor:
    from evalsuite_kernels.full.triton import attention

    dtype = q.dtype if q.dtype == k.dtype == v.dtype else torch.float32
    x, y, z = (tensor.to(dtype) for tensor in (q, k, v))
    return attention(
        x, y, z, scale=scale, window=window, sinks=sinks, cu_seqlens=cu_q, cu_seqlens_k=cu_k, key_lengths=lengths
    ).to(q.dtype)


def _check_bounds(B: int, T: int, S: int, cu_q: Tensor | None, cu_k: Tensor | None, key_lengths: Tensor | None) -> None:
    """What can be said of bounds and lengths without waiting for a GPU: all of those on the host, else their shapes."""
    given = [x for x in (cu_q, cu_k, key_lengths) if x is not None]
    if not torch.compiler.is_compiling() and not any(x.is_cuda for x in given):
        pieces(B, T, S, cu_q, cu_k, key_lengths)
        return
    if cu_q is None and cu_k is not None:
        raise ValueError("cu_seqlens_k needs cu_seqlens for the queries")
    if cu_q is not None and key_lengths is not None:
        raise ValueError("key_lengths is for padded batches; packed sequences give cu_seqlens_k")
    if cu_q is not None and B != 1:
        raise ValueError(f"cu_seqlens packs sequences along time, so the batch size must be 1, not {B}")
    for name, x in (("cu_seqlens", cu_q), ("cu_seqlens_k", cu_k), ("key_lengths", key_lengths)):
        if x is not None and (x.dim() != 1 or x.is_floating_point()):
            raise ValueError(f"{name} must be a vector of integers, not {x.dtype} {list(x.shape)}")
    if cu_q is not None and (len(cu_q) < 2 or (cu_k is not None and len(cu_k) != len(cu_q))):
        raise ValueError("cu_seqlens and cu_seqlens_k must be integer tensors [N + 1] of one length")
    if cu_q is not None and cu_k is None and T != S:
        raise ValueError(f"cu_seqlens must rise to {T} queries and to {S} keys; give cu_seqlens_k")
    if key_lengths is not None:
        expect("key_lengths", key_lengths, B)
    elif cu_q is None and T > S:
        raise ValueError(f"{T} queries cannot be the last of {S} keys; pass k and v with the cache included")
