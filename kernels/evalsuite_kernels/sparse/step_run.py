"""A step of decoding over what an indexer chooses: the choice is never written down, but where a sample misled."""

from typing import Any

import torch
import triton
from torch import Tensor

from evalsuite_kernels.arguments import note
from evalsuite_kernels.full.decode import merge
from evalsuite_kernels.full.descriptors import early, rows
from evalsuite_kernels.launches import Launches
from evalsuite_kernels.sparse import indexer, select, step
from evalsuite_kernels.sparse.places import dtype_of
from evalsuite_kernels.sparse.triton import LOG2E, SPLIT, shared, tile

MOST = 2048  # chosen at most: as many again may come near
LIMIT = 4096  # numbers of a row at most that a program chooses from
QUERIES = 8  # of a sequence up to here are a step
SAMPLE = 4096  # scores by which the rest is sifted
RUN = 1  # of them side by side
SLACK = 1.0  # of the threshold, as in `indexer.Sifting`
PART = 512  # keys that a program scores and sifts: 256 programs at 128k keys
LOOK, FIND = 8, 8  # num_warps of `select.sample` and of `step.find`
TILE = 2048  # scores at a time where a choice is made among all of a row


def fits(q: Tensor, index_q: Tensor, S: int, topk: int) -> bool:
    """Whether queries [B, T, ...] over S keys are a step: few, with few index heads, over more keys than the sample
    tells of, and no more than can be counted. It depends on no other sequence of a batch."""
    T, HI = index_q.shape[1:3]
    return 0 < T <= QUERIES and HI <= indexer.APART and 2 * SAMPLE < S < 1 << 24 and topk <= MOST and q.numel() > 0


@torch.library.custom_op("evalsuite::sparse_step", mutates_args=())
def sparse_step(  # noqa: PLR0913, PLR0917 - what the two that it stands for take
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index_q: Tensor,
    index_k: Tensor,
    weights: Tensor,
    first: Tensor | None,
    position: Tensor | None,
    topk: int,
    index_scale: float,
    scale: float,
) -> Tensor:
    """o [B, T, HQ, V] in q's dtype: `triton.sparse_forward` over what `indexer.sparse_index` chooses, of inputs as
    there, that `fits`."""
    note("lightning_index", "triton")
    note("sparse_attention", "triton")
    q, k, v, index_q, index_k = rows(q), rows(k), rows(v), rows(index_q), rows(index_k)
    o = _new_output(q, v)
    B, T, S = *q.shape[:2], k.shape[1]
    most = max(1, min(indexer.FEW // T, indexer.ROOM // (T * (S + 2 * triton.cdiv(S, PART) * PART))))
    for start in range(0, B, most):  # sequences at a time
        own = slice(start, start + most)
        place = [None if x is None else x[own] for x in (first, position)]
        index = index_q[own], index_k[own], weights[own], *place
        _run((q[own], k[own], v[own]), index, o[own], topk, (index_scale, scale))
    return o


def _run(
    read: tuple[Tensor, Tensor, Tensor], index: tuple[Any, ...], o: Tensor, topk: int, scales: tuple[float, float]
) -> None:
    q, k, v = read
    index_q, _, weights, *place = index
    (B, T, HQ, K), S, V = q.shape, k.shape[1], v.shape[-1]
    device, launches, parts = q.device, Launches(), triton.cdiv(S, PART)
    soon = early(device)

    def new(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(B * T, *shape, dtype=dtype, device=device)

    values, places, sizes, dense = new(parts, PART), new(parts, PART), new(parts), new(LIMIT)
    low, tally, found = new(), new(dtype=torch.int64), new(topk)
    looked_at, scores = (new(n, dtype=torch.float32) for n in (SAMPLE, indexer.wide(S)))

    indexer.score_one(launches, (*index, looked_at), scales[0], SAMPLE, COUNT=SAMPLE, RUN=RUN)
    launches.add(
        select.sample, (B * T,), looked_at, *place, low, tally, 0, T, T, S, topk, COUNT=SAMPLE, RUN=RUN, SLACK=SLACK,
        APART=True, num_warps=LOOK, **soon,
    )  # fmt: skip
    indexer.score_one(
        launches, (*index, scores), scales[0], S, (low, values, places, sizes, dense, tally, found), topk, PART=PART,
        LIMIT=LIMIT, TILE=TILE, AHEAD=index_q.shape[-1] * index_q.itemsize % 16 == 0,
    )  # fmt: skip

    lists, share, heads, strides, constants = shared(q, k, v, 1)
    tiles, options = tile("few", q, v, heads, 0)
    splits = triton.cdiv(LIMIT, SPLIT)
    least = new(2)
    launches.add(step.find, (B * T,), dense, low, tally, least, topk, LIMIT=LIMIT, num_warps=FIND, **soon)
    fp32: Any = {"dtype": torch.float32, "device": device}
    shape = B, lists, splits, T * heads
    kept = [torch.empty(*shape, V, **fp32), *(torch.empty(shape, **fp32) for _ in range(2))]
    options.pop("BLOCK")
    launches.add(
        step.attend, (B * T * lists * tiles * splits,), q, k, v, *place, values, places, sizes, tally, least, found,
        *kept, scales[1] * LOG2E, topk, T, S, HQ, heads, lists, share, parts, tiles, splits, *strides, SPLIT=SPLIT,
        PART=PART, BITS=(parts - 1).bit_length(), LIMIT=LIMIT, **constants, **options, **soon,
    )  # fmt: skip
    lse = torch.empty(B, HQ, T, **fp32)
    launches.add(
        merge, (B * T * HQ,), *kept, None, None, o, lse, 0, T, LIMIT, lists, heads, splits, V=V, BV=constants["BV"],
        TILE=32, SPLIT=SPLIT, BLOCK_N=options["BLOCK_N"], PADDED=False, WINDOWED=False, SUNK=False, num_warps=4, **soon,
    )  # fmt: skip
    kind = q.dtype, index_q.dtype, weights.dtype, dtype_of(place[0]), K, V, *index_q.shape[2:], heads, tiles
    launches.run(("step", *kind, (parts - 1).bit_length()), device)


def _new_output(q: Tensor, v: Tensor) -> Tensor:
    return torch.empty(*q.shape[:3], v.shape[-1], dtype=q.dtype, device=q.device)


@sparse_step.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return _new_output(q, v)
