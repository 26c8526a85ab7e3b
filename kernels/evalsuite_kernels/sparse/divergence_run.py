"""`index_loss` in Triton: which kernels run on what tiles, one launch configuration for each kind of inputs."""

import math
from typing import Any

import torch
import triton
from torch import Tensor

from evalsuite_kernels.arguments import INTERPRETED, note
from evalsuite_kernels.full.descriptors import pad, rows
from evalsuite_kernels.launches import Launches
from evalsuite_kernels.sparse.divergence import attention_sums, by_keys, by_queries, index_sums, mark
from evalsuite_kernels.sparse.places import Places, dtype_of

LOG2E = math.log2(math.e)
# (pass, bytes of a number, larger head dim) -> queries in a tile, keys in a tile (32 or 64), most numbers of a head of
# attention that are multiplied at once, num_warps, num_stages
SETTINGS = {
    ("sums", 2, 64): (64, 64, 64, 4, 2),
    ("sums", 2, 128): (64, 64, 128, 4, 2),
    ("sums", 2, 256): (64, 32, 128, 4, 2),
    ("sums", 4, 64): (32, 32, 32, 4, 1),
    ("sums", 4, 128): (16, 32, 32, 4, 1),
    ("sums", 4, 256): (16, 32, 32, 4, 1),
    ("queries", 2, 64): (64, 32, 64, 4, 2),
    ("queries", 2, 128): (64, 32, 128, 4, 2),
    ("queries", 2, 256): (64, 32, 128, 8, 2),
    ("queries", 4, 64): (32, 32, 32, 4, 1),
    ("queries", 4, 128): (16, 32, 32, 4, 1),
    ("queries", 4, 256): (16, 32, 32, 8, 1),
    ("keys", 2, 64): (64, 64, 64, 4, 2),
    ("keys", 2, 128): (64, 32, 128, 4, 2),
    ("keys", 2, 256): (64, 32, 128, 8, 2),
    ("keys", 4, 64): (32, 32, 32, 4, 1),
    ("keys", 4, 128): (16, 32, 32, 4, 1),
    ("keys", 4, 256): (16, 32, 32, 8, 1),
}
GROUP, WIDTH = 4, 128  # index heads that meet keys at once, at most, and the sum of their dims
GROUPS = 4  # of index heads up to here, kernels are chosen by themselves: by queries each group makes all tiles again
WORDS, ENTRIES = 64, 32  # words of a set of keys that are made at once, of so many entries of a list


def grouped(HI: int, DI: int) -> tuple[int, int]:
    """How many index heads of so many meet keys at once, and how many such groups there are."""
    group = max(1, min(GROUP, triton.next_power_of_2(HI), WIDTH // pad(DI)))
    return group, triton.cdiv(HI, group)


def _tile(settings: tuple[int, int, int, int, int], K: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A pass' constants of attention heads of dim K, and its tile and options."""
    BLOCK_M, BLOCK_N, most, warps, stages = settings
    options = {"BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "WIDE": INTERPRETED, "num_warps": warps, "num_stages": stages}
    return {"K": K, "BK": min(pad(K), most)}, options


def _new_outputs(index_q: Tensor, index_k: Tensor, taught: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    fp32: Any = {"dtype": torch.float32, "device": index_q.device}
    shapes = index_q.shape, index_k.shape, index_q.shape[:3]
    diq, dik, dw = (torch.empty(shape if taught else (0,), **fp32) for shape in shapes)
    return torch.empty(index_q.shape[:2], **fp32), diq, dik, dw


@torch.library.custom_op("evalsuite::sparse_divergence", mutates_args=())
def sparse_divergence(  # noqa: PLR0913, PLR0917 - two attentions, one list and their bounds
    q: Tensor,
    k: Tensor,
    index_q: Tensor,
    index_k: Tensor,
    weights: Tensor,
    indices: Tensor | None,
    first: Tensor | None,
    position: Tensor | None,
    keys: Tensor | None,
    scale: float,
    index_scale: float,
    taught: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL(p || softmax(I)) of each query, [B, T], and where `taught` what their mean owes to index_q, index_k and
    weights, in these shapes; all in fp32 (arXiv:2512.02556, eq. 3 and 4).

    q [B, T, HQ, K] and k [B, T, H, K] of one dtype, index_q [B, T, HI, DI] and index_k [B, T, DI] of one dtype: bf16 or
    fp16 (products on tensor cores, sums in fp32) or fp32; weights [B, T, HI] of any. indices int32 or int64 [B, T, N];
    what a list names beyond its query is not read. first, position and keys are `Places`' [B, T], contiguous, or None
    where there are no bounds. A query that sees no key gives 0.
    """
    note("index_loss", "triton")
    q, k, index_q, index_k = rows(q), rows(k), rows(index_q), rows(index_k)
    kl, diq, dik, dw = found = _new_outputs(index_q, index_k, taught)
    if kl.numel() == 0:
        return found
    (B, T, HQ, K), (HI, D) = q.shape, index_q.shape[2:]
    widest, size = triton.next_power_of_2(max(64, K, D)), max(q.itemsize, index_q.itemsize)
    heads, options = zip(*(_tile(SETTINGS[name, size, widest], K) for name in ("sums", "queries", "keys")), strict=True)
    of, groups = grouped(HI, D)
    indexer = {"D": D, "BD": pad(D), "GROUP": of, "RAGGED": HI % of > 0}
    words, named, launches = triton.cdiv(T, 64) * 2, None, Launches()
    if indices is not None:
        named = torch.empty(B, T, words, dtype=torch.int32, device=q.device)
        launches.add(
            mark, (B * T,), indices.contiguous(), first, named, T, indices.shape[-1], words, WORDS=WORDS,
            ENTRIES=ENTRIES, num_warps=1,
        )  # fmt: skip
    lse, lsi = kl.new_empty(B, HQ, T), torch.empty_like(kl)
    strides = *q.stride()[:3], *k.stride()[:3], *index_q.stride()[:3], *index_k.stride()[:2], *weights.stride()
    place, base, group = (named, first, position), (scale * LOG2E, index_scale * LOG2E), HQ // k.shape[2]
    tiles = triton.cdiv(T, options[0]["BLOCK_M"])
    launches.add(
        attention_sums, (B * tiles * HQ,), q, k, *place, lse, base[0], B, T, HQ, group, words, tiles, *strides[:6],
        **heads[0], **options[0],
    )  # fmt: skip
    launches.add(
        index_sums, (B * tiles,), index_q, index_k, weights, *place, lsi, base[1], B, T, HI, words, tiles, groups,
        *strides[6:], **indexer, **options[0],
    )  # fmt: skip
    given, slope = (q, k, index_q, index_k, weights, *place), index_scale / (B * T)
    mine, tiles, indexer["MANY"] = groups if taught else 1, triton.cdiv(T, options[1]["BLOCK_M"]), groups > 1
    launches.add(
        by_queries, (B * tiles * mine,), *given, lse, lsi, kl, diq, dw, *base, slope, B, T, HQ, group, HI, words, tiles,
        groups, mine, *strides, TAUGHT=taught, **heads[1], **indexer, **options[1],
    )  # fmt: skip
    if taught:
        ends = None if first is None or keys is None else first + keys
        launches.add(
            by_keys, (B * triton.cdiv(T, options[2]["BLOCK_N"]),), *given, ends, lse, lsi, dik, *base, slope, B, T, HQ,
            group, HI, words, groups, *strides, **heads[2], **indexer, **options[2],
        )  # fmt: skip
    named_by = None if indices is None else indices.dtype
    kind = q.dtype, index_q.dtype, weights.dtype, named_by, dtype_of(first), K, D, of, HI % of > 0, groups > 1, taught
    launches.run(("divergence", *kind), q.device)
    return found


@sparse_divergence.register_fake
def _(
    q: Tensor, k: Tensor, index_q: Tensor, index_k: Tensor, weights: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _new_outputs(index_q, index_k, rest[-1])


def divergence(  # noqa: PLR0913, PLR0917 - as `sparse_divergence`
    q: Tensor,
    k: Tensor,
    index_q: Tensor,
    index_k: Tensor,
    weights: Tensor,
    indices: Tensor | None,
    scale: float,
    index_scale: float,
    where: Places | None,
    taught: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`index_loss`, and what it owes to index_q, index_k and weights, all in fp32; shapes as there."""
    q, k = (x.to(torch.promote_types(q.dtype, k.dtype)) for x in (q, k))
    index_q, index_k = (x.to(torch.promote_types(index_q.dtype, index_k.dtype)) for x in (index_q, index_k))
    places = (None,) * 3 if where is None else tuple(x.contiguous() for x in where)
    given = q, k, index_q, index_k, weights, indices
    kl, *owed = sparse_divergence(*given, *places, scale, index_scale, taught)
    return kl.sum() / max(1, kl.numel()), tuple(owed)
