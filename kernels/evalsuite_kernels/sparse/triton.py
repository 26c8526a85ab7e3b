"""Attention over lists of tokens or of blocks in Triton, forward and backward, one list a program.

A query's bits depend on its own list and keys alone: tiles follow the list. Sums have one order; a key's gradient is
summed over its readers in ascending order, without atomics. Few queries over more keys read their lists in parts that
are merged: they agree with many up to rounding. So does training on short sequences, which `masked_run` computes under
a mask.
"""

import math
from typing import Any

import torch
import triton
from torch import Tensor

from evalsuite_kernels.arguments import INTERPRETED, note
from evalsuite_kernels.full.decode import merge
from evalsuite_kernels.full.descriptors import early, pad, rows
from evalsuite_kernels.launches import Launches
from evalsuite_kernels.sparse.backward import backward_blocks, backward_queries, backward_rows, readers
from evalsuite_kernels.sparse.forward import forward
from evalsuite_kernels.sparse.indexer import sparse_index
from evalsuite_kernels.sparse.masked_run import attend_masked, fits
from evalsuite_kernels.sparse.places import Places, dtype_of, names, places

LOG2E = math.log2(math.e)
DECODE = 16  # queries up to here over more keys than these are decoding
SPLIT = 128  # keys of a list that a program then reads
# (op, bytes of a number, larger head dim) -> query heads (for "rows" and "blocks": with their tokens) at most in a
# tile, keys (for "blocks": at most) in a tile, num_warps, num_stages
SETTINGS = {
    ("forward", 2, 64): (64, 128, 4, 3),
    ("forward", 2, 128): (64, 64, 4, 2),
    ("forward", 2, 256): (64, 32, 8, 2),
    ("forward", 4, 64): (16, 64, 4, 2),
    ("forward", 4, 128): (16, 32, 8, 2),
    ("forward", 4, 256): (16, 16, 4, 2),
    ("few", 2, 64): (16, 128, 4, 2),
    ("few", 2, 128): (16, 128, 4, 2),
    ("few", 2, 256): (16, 32, 8, 2),
    ("few", 4, 64): (16, 64, 4, 2),
    ("few", 4, 128): (16, 32, 8, 2),
    ("few", 4, 256): (16, 16, 4, 2),
    ("queries", 2, 64): (64, 64, 4, 3),
    ("queries", 2, 128): (64, 64, 4, 2),
    ("queries", 2, 256): (32, 32, 8, 2),
    ("queries", 4, 64): (16, 32, 4, 2),
    ("queries", 4, 128): (16, 16, 4, 2),
    ("queries", 4, 256): (16, 16, 8, 2),
    ("rows", 2, 64): (64, 1, 4, 2),
    ("rows", 2, 128): (32, 1, 4, 2),
    ("rows", 2, 256): (16, 1, 4, 2),
    ("rows", 4, 64): (32, 1, 4, 2),
    ("rows", 4, 128): (16, 1, 4, 2),
    ("rows", 4, 256): (16, 1, 4, 1),
    ("blocks", 2, 64): (64, 128, 8, 2),
    ("blocks", 2, 128): (32, 64, 8, 2),
    ("blocks", 2, 256): (32, 32, 8, 2),
    ("blocks", 4, 64): (32, 32, 8, 1),
    ("blocks", 4, 128): (16, 32, 8, 1),
    ("blocks", 4, 256): (16, 16, 8, 1),
}


def settings(op: str, x: Tensor, widest: int) -> tuple[int, int, int, int]:
    """Rows and keys in a tile, num_warps and num_stages of an op; "few" is the forward pass of decoding."""
    return SETTINGS[op, x.itemsize, max(64, triton.next_power_of_2(widest))]


def _dividing(keys: int, block_size: int) -> int:
    """How many keys of a tile fit a block a whole number of times; all of them where there are no blocks."""
    return min(keys, block_size & -block_size) if block_size else keys


def _new_outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    B, T, HQ, _ = q.shape
    o = torch.empty(B, T, HQ, v.shape[-1], dtype=q.dtype, device=q.device)
    return o, torch.empty(B, HQ, T, dtype=torch.float32, device=q.device)


def shared(q: Tensor, k: Tensor, v: Tensor, G: int) -> tuple[int, int, int, tuple[int, ...], dict[str, Any]]:
    """Of a token with G lists of entries: how many it has of key heads or finer; how many of them share a key head, and
    how many query heads share a list; strides of q, k and v, and constants of the kernels."""
    HQ, H, K, V = q.shape[2], k.shape[2], q.shape[-1], v.shape[-1]
    lists = max(G, H)
    constants = {"K": K, "V": V, "BK": pad(K), "BV": pad(V), "WIDE": INTERPRETED}
    return lists, lists // H, HQ // lists, (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]), constants


def tile(op: str, q: Tensor, v: Tensor, heads: int, block_size: int) -> tuple[int, dict[str, int]]:
    """For kernels by queries: programs for one list of `heads` query heads, and their tile."""
    most, keys, warps, stages = settings(op, q, max(q.shape[-1], v.shape[-1]))
    most = min(most, pad(heads))
    keys = _dividing(keys, block_size)
    options = {"BLOCK": block_size, "BLOCK_M": most, "BLOCK_N": keys, "num_warps": warps, "num_stages": stages}
    return triton.cdiv(heads, most), options


def _kind(
    op: str, q: Tensor, v: Tensor, entries: Tensor, first: Tensor | None, heads: int, block_size: int
) -> tuple[Any, ...]:
    return op, q.dtype, entries.dtype, dtype_of(first), q.shape[-1], v.shape[-1], pad(heads), block_size


@torch.library.custom_op("evalsuite::sparse_forward", mutates_args=())
def sparse_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    entries: Tensor,
    first: Tensor | None,
    position: Tensor | None,
    block_size: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """o [B, T, HQ, V] in q's dtype and the logits' log2-sum-exp2 [B, HQ, T] in fp32 (inf where no key is read).

    q [B, T, HQ, K], k [B, S, H, K], v [B, S, H, V] of one dtype; entries int32 or int64 [B, T, G, N], contiguous: of
    tokens where block_size is 0, else of blocks of so many; first and position as in `sparse_index`.
    """
    note("block_attention" if block_size else "sparse_attention", "triton")
    q, k, v = rows(q), rows(k), rows(v)
    o, lse = _new_outputs(q, v)
    if o.numel() == 0:
        return o, lse
    (B, T, HQ, _), S, (G, N) = q.shape, k.shape[1], entries.shape[2:]
    lists, share, heads, strides, constants = shared(q, k, v, G)
    split = SPLIT if T <= DECODE and T < S else 0
    tiles, options = tile("few" if split else "forward", q, v, heads, block_size)
    splits = triton.cdiv(N * max(1, block_size), split) if split else 1
    parts: list[Tensor | None] = [None] * 3
    if split:
        fp32: Any = {"dtype": torch.float32, "device": q.device}
        shape = B, lists, max(1, splits), T * heads
        parts = [torch.empty(*shape, v.shape[-1], **fp32), *(torch.empty(shape, **fp32) for _ in range(2))]
    chained = early(q.device) if split else {"EARLY": False}
    options |= chained
    launches = Launches()
    launches.add(
        forward, (B * T * lists * tiles * splits,), q, k, v, entries, first, position, o, lse, *parts, scale * LOG2E,
        T, S, HQ, heads, G, lists, share, N, tiles, splits, *strides, SPLIT=split, **constants, **options,
    )  # fmt: skip
    if split:
        launches.add(
            merge, (B * T * HQ,), *parts, None, None, o, lse, 0, T, splits * split, lists, heads, splits,
            V=v.shape[-1], BV=constants["BV"], TILE=32, SPLIT=split, BLOCK_N=options["BLOCK_N"], PADDED=False,
            WINDOWED=False, SUNK=False, num_warps=4, **chained,
        )  # fmt: skip
    launches.run((*_kind("forward", q, v, entries, first, heads, block_size), split), q.device)
    return o, lse


@sparse_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _new_outputs(q, v)


@torch.library.custom_op("evalsuite::sparse_backward", mutates_args=())
def sparse_backward(  # noqa: PLR0913, PLR0917 - what the forward pass took and gave
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    entries: Tensor,
    first: Tensor,
    position: Tensor,
    block_size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv in the dtype of q, k, v from g = do [B, T, HQ, V] and what `sparse_forward` took and gave."""
    note("block_attention backward" if block_size else "sparse_attention backward", "triton")
    q, k, v, g, o = rows(q), rows(k), rows(v), rows(g), o.contiguous()
    (B, T, HQ, _), (S, H), (G, N) = q.shape, k.shape[1:3], entries.shape[2:]
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if q.numel() == 0 or k.numel() == 0:
        return dq, dk, dv
    delta = torch.empty_like(lse)
    lists, share, heads, strides, constants = shared(q, k, v, G)
    strides, sets = (*strides, *g.stride()[:3]), min(G, H)
    units, reader, bounds = readers(entries, first, position, S, H, block_size)
    launches = Launches()
    tiles, options = tile("queries", q, v, heads, block_size)
    launches.add(
        backward_queries, (B * T * lists * tiles,), q, k, v, entries, first, position, o, g, lse, dq, delta,
        scale * LOG2E, scale, T, S, HQ, heads, G, lists, share, N, tiles, *strides, **constants, **options,
    )  # fmt: skip
    op = "blocks" if block_size else "rows"
    most, keys, warps, stages = settings(op, q, max(q.shape[-1], v.shape[-1]))
    options = {"BLOCK_M": most, "num_warps": warps, "num_stages": stages}
    if block_size:
        slots, keys = triton.cdiv(S, block_size), _dividing(keys, block_size)
        launches.add(
            backward_blocks, (B * slots * (block_size // keys) * H,), q, k, v, g, first, position, lse, delta, units,
            reader, bounds, dk, dv, scale * LOG2E, scale, T, S, H, HQ, heads, G, lists, sets, slots, *strides,
            BLOCK=block_size, BLOCK_N=keys, **constants, **options,
        )  # fmt: skip
    else:
        launches.add(
            backward_rows, (B * S * H,), q, k, v, g, lse, delta, reader, bounds, dk, dv, scale * LOG2E, scale, T, S, H,
            HQ, heads, G, lists, sets, *strides, **constants, **options,
        )  # fmt: skip
    launches.run(_kind("backward", q, v, entries, first, heads, block_size), q.device)
    return dq, dk, dv


@sparse_backward.register_fake
def _(g: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    return dq, dk, dv


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, block_size, scale = inputs
    ctx.save_for_backward(*tensors[:3], *output, *tensors[3:])
    ctx.options = block_size, scale
    ctx.set_materialize_grads(False)


def _pull(ctx: Any, g: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if g is None:
        return (None,) * 8
    q, k, *rest, first, position = ctx.saved_tensors
    if first is None:
        first, position = names(places(q, k.shape[1], None, None, None))
    return *sparse_backward(g, q, k, *rest, first, position, *ctx.options), None, None, None, None, None


sparse_forward.register_autograd(_pull, setup_context=_keep)


def index(q: Tensor, k: Tensor, weights: Tensor, topk: int, scale: float, where: Places | None) -> Tensor:
    """Shapes as in `lightning_index`. q and k of one dtype: bf16 or fp16 (products on tensor cores, sums in fp32) or
    fp32; weights of any."""
    return sparse_index(q, k, weights, *names(where), topk, scale)


def attend(q: Tensor, k: Tensor, v: Tensor, lists: Tensor, scale: float, where: Places | None) -> Tensor:
    """Shapes as in `sparse_attention`, lists [B, T, G, N]; q, k and v of one dtype, as in `index`. Lists become a mask
    where that is sooner done, as `masked_run.fits` says."""
    return (attend_masked if fits(q, k, v, lists) else attend_gathered)(q, k, v, lists, scale, where)


def attend_gathered(q: Tensor, k: Tensor, v: Tensor, lists: Tensor, scale: float, where: Places | None) -> Tensor:
    """The same, list by list, whatever `fits` says."""
    return sparse_forward(q, k, v, lists.contiguous(), *names(where), 0, scale)[0]


def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, scale: float, where: Places | None
) -> Tensor:
    """Shapes as in `block_attention`, blocks [B, T, G, N]; block_size a multiple of 16, dtypes as in `attend`."""
    return sparse_forward(q, k, v, blocks.contiguous(), *names(where), block_size, scale)[0]
