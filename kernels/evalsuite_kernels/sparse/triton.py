"""Sparse attention in Triton: the indexer's choice in four launches for each block of queries, and attention over lists
of tokens or of blocks, forward and backward, one list a program.

A query's bits depend on its own list and keys alone: tiles follow the list, or stand at fixed positions of the
sequence. Sums have one order; a key's gradient is summed over its readers in ascending order, without atomics. Few
queries over more keys read their lists in parts that are merged: they agree with many up to rounding.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from evalsuite_kernels.arguments import INTERPRETED, note
from evalsuite_kernels.full.decode import merge
from evalsuite_kernels.full.descriptors import pad
from evalsuite_kernels.launches import Launches
from evalsuite_kernels.sparse import select
from evalsuite_kernels.sparse.backward import backward_blocks, backward_queries, backward_rows, readers
from evalsuite_kernels.sparse.forward import forward
from evalsuite_kernels.sparse.places import Places

LOG2E = math.log2(math.e)
DECODE = 16  # queries up to here over more keys than these are decoding
SPLIT = 128  # keys of a list that a program then reads
ROOM = 2**29  # numbers that are kept at a time, of 4 bytes; with half of that 128k tokens take a tenth longer
# (op, bytes of a number, larger head dim) -> query heads (for "rows" and "blocks": with their tokens) at most in a
# tile, keys (for "blocks": at most) in a tile, num_warps, num_stages
SETTINGS = {
    ("forward", 2, 64): (64, 128, 4, 3),
    ("forward", 2, 128): (64, 64, 4, 2),
    ("forward", 2, 256): (64, 32, 8, 2),
    ("forward", 4, 64): (16, 64, 4, 2),
    ("forward", 4, 128): (16, 32, 8, 2),
    ("forward", 4, 256): (16, 16, 4, 2),
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
    ("scores", 2, 64): (64, 128, 4, 3),
    ("scores", 2, 128): (64, 128, 4, 2),
    ("scores", 2, 256): (64, 64, 4, 2),
    ("scores", 4, 64): (32, 32, 4, 1),
    ("scores", 4, 128): (32, 32, 4, 1),
    ("scores", 4, 256): (16, 32, 4, 1),
}
SAMPLE = (4096, 8)  # scores by which the rest is sifted, in runs of so many side by side
APART = 8  # heads of an indexer up to here meet keys one after another, 64 queries at a time; more, side by side
ONE = 8  # queries of these up to here meet them one by one
SPAN, PROGRAMS = 16, 4096  # tiles of keys at most in a program that scores, where there are so many programs
FEW = 128  # rows up to here are sifted in parts of PART numbers, at once
PART = 2048
ONCE = 4096  # numbers at most that are chosen from at once


class Sifting(NamedTuple):
    """num_warps of `sample`; parts of a row (None: of PART numbers each), numbers in a tile and num_warps of `collect`;
    numbers in a tile and num_warps of `choose`.

    Many rows are walked over by few warps each, which wait for no others.
    """

    sample: int
    collect: tuple[int | None, int, int]
    choose: tuple[int, int]


SIFTING = {True: Sifting(8, (None, 2048, 8), (2048, 8)), False: Sifting(8, (4, 512, 2), (1024, 8))}  # few rows, or many
OWN = 8  # numbers of a tile that a thread of `collect` owns


def settings(op: str, x: Tensor, widest: int) -> tuple[int, int, int, int]:
    """Rows and keys in a tile, num_warps and num_stages of "forward", "queries", "rows", "blocks" or "scores"."""
    return SETTINGS[op, x.itemsize, max(64, triton.next_power_of_2(widest))]


def _dividing(keys: int, block_size: int) -> int:
    """How many keys of a tile fit a block a whole number of times; all of them where there are no blocks."""
    return min(keys, block_size & -block_size) if block_size else keys


def _rows(x: Tensor) -> Tensor:
    """With a head's numbers side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _names(where: Places) -> tuple[Tensor, Tensor]:
    return where.first.contiguous(), where.position.contiguous()


def wide(n: int) -> int:
    """As `select.wide`."""
    return triton.cdiv(n, 4) * 4


def _kept(topk: int, S: int) -> int:
    """How many numbers are kept for a choice of topk among S: what reaches `sample`'s number seldom is a half more."""
    expected = topk * SAMPLE[0] / S
    reach = (1.25 * expected + 4 * math.sqrt(expected) + 4) * S / SAMPLE[0]
    return max(16, triton.next_power_of_2(math.ceil(1.2 * reach)))


class Sieve(NamedTuple):
    """How rows of scores are sifted before the choice, and what is kept of so many at a time: see `select.collect`."""

    few: bool
    parts: int  # of a row
    cap: int  # of a part
    step: int  # queries at a time of each batch row
    low: Tensor
    sizes: Tensor
    values: Tensor
    places: Tensor

    @classmethod
    def of(cls, S: int, found: Tensor) -> "Sieve":
        """For rows of S scores, chosen into found [B, T, topk]."""
        B, T, topk = found.shape
        few, kept = B * T <= FEW, _kept(topk, S)
        parts = SIFTING[few].collect[0] or triton.cdiv(S, PART)
        cap = min(PART, kept) if few else kept
        step = min(T, max(1, ROOM // (B * (S + 2 * parts * cap))))
        shapes = (B * step,), (B * step, parts, 2), (B * step, parts, cap), (B * step, parts, cap)
        return cls(few, parts, cap, step, *(found.new_empty(shape) for shape in shapes))


def sift(
    launches: Launches, sieve: Sieve, given: tuple[Tensor, ...], found: Tensor, bounds: tuple[int, ...]
) -> tuple[Any, ...]:
    """Add the choice of the queries start .. stop - 1 of each batch row; `given` are scores [B, stop - start, wide(S)],
    first and position, and bounds start, stop, T and S. Returns the kind of these launches."""
    (B, _, topk), (start, stop, _, S) = found.shape, bounds
    few, parts, cap, _, low, sizes, values, places = sieve
    warps, (_, tile, collecting), (numbers, choosing) = SIFTING[few]
    rows, bits, once = B * (stop - start), (parts - 1).bit_length(), min(_kept(topk, S), ONCE)
    launches.add(
        select.sample, (rows,), *given, low, *bounds, topk, COUNT=SAMPLE[0], RUN=SAMPLE[1], num_warps=warps,
    )  # fmt: skip
    launches.add(
        select.collect, (rows * parts,), *given, low, values, places, sizes, *bounds, wide(S), topk, parts, CAP=cap,
        TILE=tile, OWN=OWN, num_warps=collecting,
    )  # fmt: skip
    launches.add(
        select.choose, (rows,), *given, values, places, sizes, found, *bounds, topk, parts, ONCE=once, CAP=cap,
        BITS=bits, TILE=numbers, num_warps=choosing,
    )  # fmt: skip
    return few, bits, cap, once


@torch.library.custom_op("evalsuite::sparse_index", mutates_args=())
def sparse_index(
    q: Tensor, k: Tensor, weights: Tensor, first: Tensor, position: Tensor, topk: int, scale: float
) -> Tensor:
    """int32 [B, T, min(topk, S)] as `lightning_index` gives it.

    q [B, T, HI, DI] and k [B, S, DI] of one dtype, weights [B, T, HI]; first and position int32 or int64 [B, T],
    contiguous: of each query the row of its sequence's first key, and its own position.
    """
    note("lightning_index", "triton")
    q, k = _rows(q), _rows(k)
    found = _new_list(q, k, topk)
    (_, T, _, D), (B, S) = q.shape, k.shape[:2]
    if found.numel() == 0:
        return found
    sieve, launches, place = Sieve.of(S, found), Launches(), (first, position)
    scores = torch.empty(B * sieve.step * wide(S), dtype=torch.float32, device=q.device)
    heads: Any = None
    sifted: tuple[Any, ...] = ()
    for start in range(0, T, sieve.step):
        bounds = start, min(start + sieve.step, T), T, S
        heads = score(launches, (q, k, weights, *place, scores), scale, bounds)
        sifted = sift(launches, sieve, (scores, *place), found, bounds)
    launches.run(("index", q.dtype, weights.dtype, first.dtype, D, heads, *sifted), q.device)
    return found


def score(launches: Launches, given: tuple[Tensor, ...], scale: float, bounds: tuple[int, ...]) -> int:
    """Add the scores of the queries start .. stop - 1 of each batch row; `given` are q, k, weights, first, position
    and what they come into. Returns how many heads meet keys side by side, 0 where it is by `score_one`."""
    (q, k, weights, *_), (start, stop, T, S) = given, bounds
    B, _, HI, D = q.shape
    rows, BLOCK_N, warps, stages = settings("scores", q, D)
    strides = *q.stride()[:3], *k.stride()[:2], *weights.stride()
    options = {"D": D, "BD": pad(D), "BLOCK_N": BLOCK_N, "WIDE": INTERPRETED, "num_warps": warps, "num_stages": stages}
    one = HI <= APART and T <= ONE and stop - start == T
    heads = 1 if HI <= APART else min(rows, triton.next_power_of_2(HI))
    tiles, parts = T if one else triton.cdiv(stop - start, rows // heads), triton.cdiv(S, BLOCK_N)
    each = max(1, min(SPAN, B * tiles * parts // PROGRAMS))
    parts = triton.cdiv(parts, each)
    if one:
        launches.add(
            select.score_one, (B * T * parts,), *given, scale, T, S, HI, parts, each, *strides, HEADS=pad(APART),
            **options,
        )  # fmt: skip
        return 0
    launches.add(
        select.score, (B * tiles * parts,), *given, scale, *bounds, HI, tiles, parts, each, *strides,
        BLOCK_T=rows // heads, BLOCK_H=heads, **options,
    )  # fmt: skip
    return heads


def _new_list(q: Tensor, k: Tensor, topk: int) -> Tensor:
    return torch.empty(*q.shape[:2], min(topk, k.shape[1]), dtype=torch.int32, device=q.device)


@sparse_index.register_fake
def _(q: Tensor, k: Tensor, weights: Tensor, first: Tensor, position: Tensor, topk: int, scale: float) -> Tensor:
    return _new_list(q, k, topk)


def _new_outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    B, T, HQ, _ = q.shape
    o = torch.empty(B, T, HQ, v.shape[-1], dtype=q.dtype, device=q.device)
    return o, torch.empty(B, HQ, T, dtype=torch.float32, device=q.device)


def _shared(q: Tensor, k: Tensor, v: Tensor, entries: Tensor) -> tuple[int, int, int, tuple[int, ...], dict[str, Any]]:
    """A token's lists, of key heads or finer; how many of them share a key head, and how many query heads share a list;
    strides of q, k and v, and constants of the kernels."""
    HQ, H, G, K, V = q.shape[2], k.shape[2], entries.shape[2], q.shape[-1], v.shape[-1]
    lists = max(G, H)
    constants = {"K": K, "V": V, "BK": pad(K), "BV": pad(V), "WIDE": INTERPRETED}
    return lists, lists // H, HQ // lists, (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]), constants


def _tile(op: str, q: Tensor, v: Tensor, heads: int, block_size: int) -> tuple[int, dict[str, int]]:
    """For kernels by queries: programs for one list of `heads` query heads, and their tile."""
    most, keys, warps, stages = settings(op, q, max(q.shape[-1], v.shape[-1]))
    rows = min(most, pad(heads))
    keys = _dividing(keys, block_size)
    options = {"BLOCK": block_size, "BLOCK_M": rows, "BLOCK_N": keys, "num_warps": warps, "num_stages": stages}
    return triton.cdiv(heads, rows), options


def _kind(
    op: str, q: Tensor, v: Tensor, entries: Tensor, first: Tensor, heads: int, block_size: int
) -> tuple[Any, ...]:
    return op, q.dtype, entries.dtype, first.dtype, q.shape[-1], v.shape[-1], pad(heads), block_size


@torch.library.custom_op("evalsuite::sparse_forward", mutates_args=())
def sparse_forward(
    q: Tensor, k: Tensor, v: Tensor, entries: Tensor, first: Tensor, position: Tensor, block_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    """o [B, T, HQ, V] in q's dtype and the logits' log2-sum-exp2 [B, HQ, T] in fp32 (inf where no key is read).

    q [B, T, HQ, K], k [B, S, H, K], v [B, S, H, V] of one dtype; entries int32 or int64 [B, T, G, N], contiguous: of
    tokens where block_size is 0, else of blocks of so many; first and position as in `sparse_index`.
    """
    note("block_attention" if block_size else "sparse_attention", "triton")
    q, k, v = _rows(q), _rows(k), _rows(v)
    o, lse = _new_outputs(q, v)
    if o.numel() == 0:
        return o, lse
    (B, T, HQ, _), S, (G, N) = q.shape, k.shape[1], entries.shape[2:]
    lists, share, heads, strides, constants = _shared(q, k, v, entries)
    tiles, options = _tile("forward", q, v, heads, block_size)
    split = SPLIT if T <= DECODE and T < S else 0
    splits = triton.cdiv(N * max(1, block_size), split) if split else 1
    parts: list[Tensor | None] = [None] * 3
    if split:
        fp32: Any = {"dtype": torch.float32, "device": q.device}
        shape = B, lists, max(1, splits), T * heads
        parts = [torch.empty(*shape, v.shape[-1], **fp32), *(torch.empty(shape, **fp32) for _ in range(2))]
    launches = Launches()
    launches.add(
        forward, (B * T * lists * tiles * splits,), q, k, v, entries, first, position, o, lse, *parts, scale * LOG2E,
        T, S, HQ, heads, G, lists, share, N, tiles, splits, *strides, SPLIT=split, **constants, **options,
    )  # fmt: skip
    if split:
        launches.add(
            merge, (B * T * HQ,), *parts, None, None, o, lse, 0, T, splits * split, lists, heads, splits,
            V=v.shape[-1], BV=constants["BV"], TILE=16, SPLIT=split, BLOCK_N=options["BLOCK_N"], PADDED=False,
            WINDOWED=False, SUNK=False, num_warps=4,
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
    q, k, v, g, o = _rows(q), _rows(k), _rows(v), _rows(g), o.contiguous()
    (B, T, HQ, _), (S, H), (G, N) = q.shape, k.shape[1:3], entries.shape[2:]
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if q.numel() == 0 or k.numel() == 0:
        return dq, dk, dv
    delta = torch.empty_like(lse)
    lists, share, heads, strides, constants = _shared(q, k, v, entries)
    strides, sets = (*strides, *g.stride()[:3]), min(G, H)
    units, reader, bounds = readers(entries, first, position, S, H, block_size)
    launches = Launches()
    tiles, options = _tile("queries", q, v, heads, block_size)
    launches.add(
        backward_queries, (B * T * lists * tiles,), q, k, v, entries, first, position, o, g, lse, dq, delta,
        scale * LOG2E, scale, T, S, HQ, heads, G, lists, share, N, tiles, *strides, **constants, **options,
    )  # fmt: skip
    op = "blocks" if block_size else "rows"
    rows, keys, warps, stages = settings(op, q, max(q.shape[-1], v.shape[-1]))
    options = {"BLOCK_M": rows, "num_warps": warps, "num_stages": stages}
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
    return *sparse_backward(g, *ctx.saved_tensors, *ctx.options), None, None, None, None, None


sparse_forward.register_autograd(_pull, setup_context=_keep)


def index(q: Tensor, k: Tensor, weights: Tensor, topk: int, scale: float, where: Places) -> Tensor:
    """Shapes as in `lightning_index`. q and k of one dtype: bf16 or fp16 (products on tensor cores, sums in fp32) or
    fp32; weights of any."""
    return sparse_index(q, k, weights, *_names(where), topk, scale)


def attend(q: Tensor, k: Tensor, v: Tensor, lists: Tensor, scale: float, where: Places) -> Tensor:
    """Shapes as in `sparse_attention`, lists [B, T, G, N]; q, k and v of one dtype, as in `index`."""
    return sparse_forward(q, k, v, lists.contiguous(), *_names(where), 0, scale)[0]


def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, scale: float, where: Places
) -> Tensor:
    """Shapes as in `block_attention`, blocks [B, T, G, N]; block_size a multiple of 16, dtypes as in `attend`."""
    return sparse_forward(q, k, v, blocks.contiguous(), *_names(where), block_size, scale)[0]
