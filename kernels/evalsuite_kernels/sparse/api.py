"""The public face of sparse attention."""

from types import ModuleType

import torch
from torch import Tensor

from evalsuite_kernels.arguments import choose, compute_dtype, expect, expect_heads, expect_whole, meant, note
from evalsuite_kernels.sparse import chunked, reference
from evalsuite_kernels.sparse.places import Places, check_lists, names, places

FORMS = {"reference": reference, "chunked": chunked}
UNIT = 16  # tokens: what the kernels read blocks by


def lightning_index(  # noqa: PLR0913 - as `full_attention`
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    topk: int,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    key_lengths: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """The keys that each query is to read: the `topk` it may see whose index score is largest.

    The score of key s for query t is the sum over heads j of weights[t, j] ReLU(q[t, j] . k[s]), the lightning indexer
    of DeepSeek-V3.2 (arXiv:2512.02556, eq. 1). Of equal scores the earlier key is taken: ReLU makes many of exactly 0.
    NaN counts as the largest. There is no gradient; `index_loss` trains the scores.

    Args:
        q: [B, T, HI, DI].
        k: [B, S, DI], one for all heads; S >= T.
        weights: [B, T, HI], of any sign.
        topk: at least 1; where a query sees no more keys than that it reads them all.
        scale: of the scores, (HI * DI)^-0.5 if None; it does not change the choice if positive.
        cu_seqlens, cu_seqlens_k, key_lengths: bounds of packed sequences, or valid keys, as in `full_attention`.
        impl: "auto" ("triton" on a GPU where it can run, else "chunked"), "reference" (key by key), "chunked" or
            "triton", which computes 16-bit inputs on tensor cores.

    Returns:
        int32 [B, T, min(topk, S)]: positions in the query's own sequence, ascending, then -1.

    Raises:
        ValueError: shapes or bounds that do not fit, topk < 1, or an impl that cannot run here.
    """
    _check_index(q, k, weights, topk)
    HI, DI = q.shape[2:]
    scale = (HI * DI) ** -0.5 if scale is None else scale
    name = choose(impl, q, k, weights, widest=DI)
    where = _where(name, q, k, cu_seqlens, cu_seqlens_k, key_lengths)
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        # the kernels take weights of any dtype
        x, y, w = (*_alike(name, q, k), weights) if name == "triton" else _alike(name, q, k, weights)
        return _form(name, "lightning_index").index(x, y, w, topk, scale, where)


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Softmax attention over the keys that a list names, and no others: what is causal is the list's to say.

    Args:
        q: [B, T, HQ, K].
        k: [B, S, H, K]; query head h reads key head h // (HQ // H).
        v: [B, S, H, V].
        indices: int32 or int64 [B, T, N], one list for all heads, or [B, T, G, N], of which query head h reads list
            h // (HQ // G); G a divisor or a multiple of H. Positions in the query's own sequence, each once, in any
            order; -1 names nothing. A query with an empty list gives zeros.
        scale: of q, K^-0.5 if None.
        cu_seqlens, cu_seqlens_k: bounds of packed sequences and of their keys, as in `full_attention`.
        impl: as in `lightning_index`.

    Returns:
        o [B, T, HQ, V] in q's dtype; differentiable in q, k and v.

    Raises:
        ValueError: shapes, dtypes or bounds that do not fit, positions outside the sequence's keys (checked on a CPU
            alone), or an impl that cannot run here.
    """
    _check(q, k, v, indices, "indices")
    lists = indices if indices.dim() == 4 else indices[:, :, None]
    name = choose(impl, q, k, v, widest=max(q.shape[-1], v.shape[-1]))
    where = _where(name, q, k, cu_seqlens, cu_seqlens_k, None)
    check_lists("indices", indices, k.shape[1] if where is None else where.keys)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(q.device.type, enabled=False):
        x, y, z = _alike(name, q, k, v)
        return _form(name, "sparse_attention").attend(x, y, z, lists, scale, where).to(q.dtype)


def indexed_attention(  # noqa: PLR0913 - what the two that it stands for take
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index_q: Tensor,
    index_k: Tensor,
    weights: Tensor,
    topk: int,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    key_lengths: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """DeepSeek sparse attention (arXiv:2512.02556): `sparse_attention` over the keys that `lightning_index` chooses.

    A step of decoding, up to 8 queries a sequence over more than 8192 keys with up to 8 index heads and topk 2048,
    makes no list of them on a GPU where nobody asks for gradients: it agrees up to rounding, and takes less time.

    Args:
        q, k, v, scale: as in `sparse_attention`.
        index_q, index_k, weights, topk: q, k, weights and topk of `lightning_index`, with its own scale.
        cu_seqlens, cu_seqlens_k, key_lengths, impl: as in `lightning_index`.

    Returns:
        o [B, T, HQ, V] in q's dtype; differentiable in q, k and v.

    Raises:
        ValueError: as the two.
    """
    expect_heads(q, k, v)
    _check_index(index_q, index_k, weights, topk, (*q.shape[:2], k.shape[1]))
    given = (q, k, v, index_q, index_k, weights)
    name = choose(impl, *given, widest=max(q.shape[-1], v.shape[-1], index_q.shape[-1]))
    if name != "triton" or not _is_step(q, k, v, index_q, topk):
        chosen = lightning_index(
            index_q, index_k, weights, topk, cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k, key_lengths=key_lengths,
            impl=impl,
        )  # fmt: skip
        return sparse_attention(
            q, k, v, chosen, scale=scale, cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k, impl=impl
        )
    from evalsuite_kernels.sparse.step_run import sparse_step

    where = _where(name, q, k, cu_seqlens, cu_seqlens_k, key_lengths)
    scales = (index_q.shape[2] * index_q.shape[3]) ** -0.5, q.shape[-1] ** -0.5 if scale is None else scale
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        read, index = _alike(name, q, k, v), _alike(name, index_q, index_k)
        return sparse_step(*read, *index, weights, *names(where), topk, *scales).to(q.dtype)


def _is_step(q: Tensor, k: Tensor, v: Tensor, index_q: Tensor, topk: int) -> bool:
    """Whether kernels make no list, and nobody learns by the result."""
    from evalsuite_kernels.sparse.step_run import fits

    learned = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return not learned and fits(q, index_q, k.shape[1], topk)


def block_attention(  # noqa: PLR0913 - as `full_attention`
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    block_size: int,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    key_lengths: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Causal softmax attention over the blocks of keys that a list names: the selected branch of MoBA
    (arXiv:2502.13189), NSA (arXiv:2502.11089) and MiniMax-M3's MSA.

    Args:
        q, k, v: as in `sparse_attention`.
        blocks: int32 or int64 [B, T, N] or [B, T, G, N], as indices there; block n holds the positions n * block_size
            to (n + 1) * block_size - 1 of the query's own sequence, of which a query reads those up to its own.
        block_size: tokens, at least 1; "triton" takes multiples of 16, and "auto" takes "chunked" for others.
        scale, cu_seqlens, cu_seqlens_k, key_lengths: as in `full_attention`.
        impl: as in `lightning_index`.

    Returns:
        o [B, T, HQ, V] in q's dtype; differentiable in q, k and v.

    Raises:
        ValueError: as `sparse_attention`.
    """
    _check(q, k, v, blocks, "blocks")
    expect_whole("block_size", block_size)
    lists = blocks if blocks.dim() == 4 else blocks[:, :, None]
    name = choose(impl, q, k, v, widest=max(q.shape[-1], v.shape[-1]))
    if name == "triton" and block_size % UNIT:
        if meant(impl) == "triton":
            raise ValueError(
                f"impl='triton' cannot run here: block_size must be a multiple of {UNIT}, not {block_size}; "
                "use impl='auto' or 'chunked'"
            )
        name = "chunked"
    where = _where(name, q, k, cu_seqlens, cu_seqlens_k, key_lengths)
    check_lists("blocks", blocks, -(-k.shape[1] // block_size))  # a block beyond a sequence's own end holds nothing
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(q.device.type, enabled=False):
        x, y, z = _alike(name, q, k, v)
        form = _form(name, "block_attention")
        return form.attend_blocks(x, y, z, lists, block_size, scale, where).to(q.dtype)


def _where(name: str, q: Tensor, k: Tensor, *bounds: Tensor | None) -> Places | None:
    """Where queries stand; kernels know of themselves where there are no bounds."""
    return None if name == "triton" and all(x is None for x in bounds) else places(q, k.shape[1], *bounds)


def _form(name: str, operator: str) -> ModuleType:
    """The module of an implementation; it is told who runs, but of kernels, which tell of themselves."""
    if name == "triton":
        from evalsuite_kernels.sparse import triton

        return triton
    note(operator, name)
    return FORMS[name]


def _alike(name: str, *tensors: Tensor) -> list[Tensor]:
    """In the dtype that they are computed in: kernels take 16 bits where all tensors have the same ones."""
    first = tensors[0].dtype
    alike = name == "triton" and first.itemsize == 2 and all(x.dtype == first for x in tensors)
    dtype = first if alike else compute_dtype(*tensors)
    return [x.to(dtype) for x in tensors]


def _check_index(q: Tensor, k: Tensor, weights: Tensor, topk: int, shape: tuple[int, ...] | None = None) -> None:
    """An indexer's; shape is B, T and S of the attention that it is for."""
    name = "index_" if shape else ""
    expect(f"{name}q", q, *(shape[:2] if shape else "BT"), "HI", "DI")
    B, T, HI, DI = q.shape
    expect(f"{name}k", k, B, shape[2] if shape else "S", DI)
    expect("weights", weights, B, T, HI)
    expect_whole("topk", topk)
    if HI == 0 or DI == 0:
        raise ValueError(f"{name}q has {HI} index heads of dim {DI}, and needs at least 1 of each")


def _check(q: Tensor, k: Tensor, v: Tensor, lists: Tensor, name: str) -> None:
    expect_heads(q, k, v)
    if not isinstance(lists, Tensor) or lists.dtype not in {torch.int32, torch.int64}:
        raise ValueError(f"{name} must be int32 or int64, not {getattr(lists, 'dtype', lists)}")
    (B, T, HQ, _), H = q.shape, k.shape[2]
    if lists.dim() == 3:
        expect(name, lists, B, T, "N")
    else:
        expect(name, lists, B, T, "G", "N")
    G = 1 if lists.dim() == 3 else lists.shape[2]
    if G == 0 or HQ % G or (G % H and H % G):
        raise ValueError(
            f"{name} has {G} lists, which must divide {HQ} query heads, and {H} key heads or be their multiple"
        )
