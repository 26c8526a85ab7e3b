"""Softmax attention of swapped models: what transformers' two attention interfaces call."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from evalsuite.errors import UserError
from evalsuite.integrations.hf.packing import expect_together, packing
from evalsuite.integrations.hf.tally import tally_of
from evalsuite_kernels import full_attention, sparse_attention

NAME = "evalsuite"  # "flash" or "/" in it would send it to other loaders, which knows only what is installed for them


def register() -> None:
    """Make the name known to transformers. Without a mask function of this name it would pass on no mask at all, and
    padding would be attended in silence."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, valid_keys)


def valid_keys(  # noqa: PLR0913 - transformers' signature
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    q_offset: int = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    config: object = None,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Tensor | None:
    """The mask that layers are handed: boolean [B, 1, 1, n], which of the n tokens so far are no padding; None where
    all are, unless the caller wants a mask in any case.

    What a query may see otherwise is the operators' own affair, so the mask that transformers describes has to be that
    of a causal model, with a window or without: its diagonals are read to be sure.

    Raises:
        UserError: any other mask (packed or bidirectional sequences, chunks, one's own), a cache with unused places, or
            padding between the tokens of a row of a model with recurrent layers.
    """
    if use_vmap:
        raise _unfit("a mask of its own")
    if int(kv_offset + kv_length) != int(q_offset + q_length):
        raise _unfit("a cache whose keys do not end with the newest token, such as a static one,")
    queries = torch.arange(q_length, device=device) + q_offset
    _expect_causal(mask_function, torch.arange(batch_size, device=device)[:, None], queries, local_size)
    if attention_mask is None or bool(attention_mask.all()):
        return (
            None if allow_is_causal_skip else torch.ones(batch_size, 1, 1, kv_length, dtype=torch.bool, device=device)
        )
    if "linear_attention" in (getattr(config, "layer_types", None) or ()):
        expect_together(attention_mask.to(torch.bool))  # its layers are handed no more than the mask of new tokens
    # whole, not the part for `kv_length`: a cache whose first layer holds no keys tells too few (MiniMax's)
    return attention_mask[:, None, None, :].to(torch.bool)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """One layer's attention, counted in its tally.

    Args:
        module: the layer's attention module, of a swapped model.
        query: [B, HQ, T, K], the last T of S tokens.
        key: [B, H, S, K].
        value: [B, H, S, V].
        attention_mask: what `valid_keys` made.
        kwargs: scaling, sliding_window, s_aux (sinks [HQ]), dropout, and indices as `indexer` makes them.

    Returns:
        o [B, T, HQ, V] in query's dtype, zeros at padding; and None for the weights, which no operator makes.

    Raises:
        UserError: dropout, weights that are wanted, or a mask that `valid_keys` did not make.
    """
    count = tally_of(module)
    if kwargs.get("dropout"):
        raise UserError(
            "attention dropout has no operator here; set config.attention_dropout to 0 or call model.eval()"
        )
    if kwargs.get("output_attentions"):
        raise UserError(
            "the kernels make no attention weights; ask without output_attentions, or leave the kernels out"
        )
    window, sinks, indices = (kwargs.get(name) for name in ("sliding_window", "s_aux", "indices"))
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    packed = packing(plain(attention_mask), q.shape[1], k.shape[1], window)
    bounds: dict[str, Any] = {}
    if packed is not None:
        q, k, v = packed.pack_queries(q), packed.pack_keys(k), packed.pack_keys(v)
        bounds = {"cu_seqlens": packed.cu_queries, "cu_seqlens_k": packed.cu_keys}
    if indices is None:
        count("full_attention")
        o = full_attention(q, k, v, window=window, sinks=sinks, scale=kwargs.get("scaling"), **bounds)
    else:
        count("sparse_attention")
        o = sparse_attention(q, k, v, indices, scale=kwargs.get("scaling"), **bounds)
    return (o if packed is None else packed.spread(o)), None


def plain(mask: Tensor | None) -> Tensor | None:
    """A layer's mask [B, 1, 1, n] or [B, 1, n] as [B, n]; raises UserError for one that `valid_keys` did not make."""
    if mask is None:
        return None
    if mask.dtype != torch.bool or any(size != 1 for size in mask.shape[1:-1]):
        raise _unfit(f"an attention mask {list(mask.shape)} of {mask.dtype}")
    return mask.flatten(0, -2)


def _expect_causal(mask: Callable[..., Tensor], batch: Tensor, queries: Tensor, window: int | None) -> None:
    """Raise unless `mask` is causal and has that window, judged where masks differ: next to both ends of what a query
    sees, and at its own place."""
    head, end = torch.tensor(0, device=queries.device), int(queries[-1]) + 1
    oldest = torch.zeros_like(queries) if window is None else (queries - window + 1).clamp(min=0)
    edges = [(queries, True), (oldest, True), (torch.maximum(queries - 1, oldest), True)]
    edges += [(queries + 1, False), (oldest - 1, False)]
    for keys, seen in edges:
        there = (keys >= 0) & (keys < end)
        allowed = mask(batch, head, queries[None], keys.clamp(0, end - 1)[None])
        if not bool(((allowed == seen) | ~there).all()):
            raise _unfit("a mask that is not causal over one sequence a row, as packed or bidirectional ones")


def _unfit(what: str) -> UserError:
    return UserError(f"the kernels cannot take {what}; ask row by row with a padding mask, or leave the kernels out")
