"""The lightning indexer in Triton: scores of a block of queries at a time, and the choice among them.

A query's bits depend on its own keys alone: tiles stand at fixed positions of its sequence, and sums have one order.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from evalsuite_kernels.arguments import INTERPRETED, note
from evalsuite_kernels.full.descriptors import early, pad, rows
from evalsuite_kernels.launches import Launches
from evalsuite_kernels.sparse import scores as scoring
from evalsuite_kernels.sparse import select
from evalsuite_kernels.sparse.places import dtype_of

ROOM = 2**29  # numbers that are kept at a time, of 4 bytes; with half of that 128k tokens take a tenth longer
# (bytes of a number, larger head dim) -> query heads with their tokens at most in a tile, keys in a tile, num_warps,
# num_stages
SETTINGS = {
    (2, 64): (64, 128, 4, 3),
    (2, 128): (64, 128, 4, 2),
    (2, 256): (64, 64, 4, 2),
    (4, 64): (32, 32, 4, 1),
    (4, 128): (32, 32, 4, 1),
    (4, 256): (16, 32, 4, 1),
}
SAMPLE = 4096  # scores by which the rest is sifted
APART = 8  # heads of an indexer up to here meet keys one after another, 64 queries at a time; more, side by side
ONE = 8  # queries of these up to here meet them one by one
SPAN, PROGRAMS = 16, 4096  # tiles of keys at most in a program that scores, where there are so many programs
FEW = 128  # rows up to here are sifted in parts of PART numbers, at once
PART = 2048
ONCE = 4096  # numbers at most that are chosen from at once


class Sifting(NamedTuple):
    """How far apart scores of the sample are (in runs of so many side by side), slack of the threshold and num_warps of
    `sample`; parts of a row (None: of PART numbers each), numbers in a tile and num_warps of `collect`; numbers in a
    tile and num_warps of `choose`. Few rows take those of `collect` for all.

    Many rows are walked over by few warps each, which wait for no others.
    """

    sample: tuple[int, float, int]
    collect: tuple[int | None, int, int]
    choose: tuple[int, int]


SIFTING = {  # few rows, or many
    True: Sifting((8, 1.25, 8), (None, 2048, 8), (2048, 8)),
    False: Sifting((8, 2.0, 8), (4, 512, 2), (1024, 8)),
}
OWN = 8  # numbers of a tile that a thread of `collect` owns


def wide(n: int) -> int:
    """As `scores.wide`."""
    return triton.cdiv(n, 4) * 4


def _kept(topk: int, S: int, slack: float) -> int:
    """How many numbers are kept for a choice of topk among S: what reaches the threshold seldom is a half more."""
    expected = topk * SAMPLE / S
    reach = (expected + slack * (expected / 8 + 2 * math.sqrt(expected) + 2)) * S / SAMPLE
    return max(16, triton.next_power_of_2(math.ceil(1.2 * reach)))


class Sieve(NamedTuple):
    """How rows of scores are sifted before the choice, and what is kept of so many at a time: see `select`."""

    few: bool
    parts: int  # of a row
    cap: int  # of a part
    once: int  # numbers at most that are chosen from at once
    step: int  # queries at a time of each batch row
    turns: Tensor | None
    low: Tensor
    sizes: Tensor
    values: Tensor
    places: Tensor

    @classmethod
    def of(cls, S: int, found: Tensor) -> "Sieve":
        """For rows of S scores, chosen into found [B, T, topk]."""
        B, T, topk = found.shape
        few = B * T <= FEW
        kept = _kept(topk, S, SIFTING[few].sample[1])
        parts = SIFTING[few].collect[0] or triton.cdiv(S, PART)
        cap = min(PART, kept) if few else kept
        step = min(T, max(1, ROOM // (B * (S + 2 * parts * cap))))
        rows = (B * step,)
        shapes = rows, (*rows, parts, 3), (*rows, parts, cap), (*rows, parts, cap)
        turns = found.new_empty(rows) if few else None
        return cls(few, parts, cap, min(kept, ONCE), step, turns, *(found.new_empty(shape) for shape in shapes))


def sift(
    launches: Launches, sieve: Sieve, given: tuple[Tensor | None, ...], found: Tensor, bounds: tuple[int, ...]
) -> tuple[Any, ...]:
    """Add the choice of the queries start .. stop - 1 of each batch row; `given` are scores [B, stop - start, wide(S)],
    first and position, and bounds start, stop, T and S. Returns the kind of these launches."""
    (B, _, topk), (start, stop, _, S) = found.shape, bounds
    few, parts, cap, once, _, turns, low, sizes, values, at = sieve
    (run, slack, warps), (_, tile, collecting), (numbers, choosing) = SIFTING[few]
    rows, bits, kept = B * (stop - start), (parts - 1).bit_length(), (values, at, sizes)
    sampled = {"COUNT": SAMPLE, "RUN": run, "SLACK": slack}
    if few:
        launches.add(
            select.choose_few, (rows * parts,), *given, *kept, turns, found, *bounds, topk, parts, **sampled, CAP=cap,
            OWN=OWN, ONCE=once, BITS=bits, TILE=tile, num_warps=collecting, **early(found.device),
        )  # fmt: skip
        return few, bits, cap, once
    launches.add(select.sample, (rows,), *given, low, *bounds, topk, **sampled, num_warps=warps)
    launches.add(
        select.collect, (rows * parts,), *given, low, *kept, *bounds, wide(S), topk, parts, CAP=cap, TILE=tile, OWN=OWN,
        num_warps=collecting,
    )  # fmt: skip
    launches.add(
        select.choose, (rows,), *given, low, *kept, found, *bounds, topk, parts, ONCE=once, CAP=cap, BITS=bits,
        TILE=numbers, num_warps=choosing,
    )  # fmt: skip
    return few, bits, cap, once


@torch.library.custom_op("evalsuite::sparse_index", mutates_args=())
def sparse_index(
    q: Tensor, k: Tensor, weights: Tensor, first: Tensor | None, position: Tensor | None, topk: int, scale: float
) -> Tensor:
    """int32 [B, T, min(topk, S)] as `lightning_index` gives it.

    q [B, T, HI, DI] and k [B, S, DI] of one dtype, weights [B, T, HI]; first and position int32 or int64 [B, T],
    contiguous: of each query the row of its sequence's first key, and its own position; None where queries are the last
    of all keys, since a step of decoding would wait for every kernel that says so.
    """
    note("lightning_index", "triton")
    q, k = rows(q), rows(k)
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
        heads = score(launches, (q, k, weights, *place, scores, sieve.turns), scale, bounds)
        sifted = sift(launches, sieve, (scores, *place), found, bounds)
    launches.run(("index", q.dtype, weights.dtype, dtype_of(first), D, heads, *sifted), q.device)
    return found


def score(launches: Launches, given: tuple[Any, ...], scale: float, bounds: tuple[int, ...]) -> int:
    """Add the scores of the queries start .. stop - 1 of each batch row; `given` are q, k, weights, first, position,
    what they come into and the turns of few rows. Returns how many heads meet keys side by side, 0 where it is by
    `score_one`."""
    (q, k, weights, *_), (start, stop, T, S) = given, bounds
    B, _, HI, D = q.shape
    most, BLOCK_N, warps, stages = SETTINGS[q.itemsize, max(64, triton.next_power_of_2(D))]
    strides = *q.stride()[:3], *k.stride()[:2], *weights.stride()
    one = HI <= APART and T <= ONE and stop - start == T
    BLOCK_N = min(BLOCK_N, 64) if one else BLOCK_N
    options = {"D": D, "BD": pad(D), "BLOCK_N": BLOCK_N, "WIDE": INTERPRETED, "num_warps": warps, "num_stages": stages}
    heads = 1 if HI <= APART else min(most, triton.next_power_of_2(HI))
    tiles, parts = T if one else triton.cdiv(stop - start, most // heads), triton.cdiv(S, BLOCK_N)
    each = max(1, min(SPAN, B * tiles * parts // PROGRAMS))
    parts = triton.cdiv(parts, each)
    if one:
        launches.add(
            scoring.score_one, (B * T * parts,), *given, scale, T, S, HI, parts, each, *strides, HEADS=pad(APART),
            **options, **early(q.device),
        )  # fmt: skip
        return 0
    launches.add(
        scoring.score, (B * tiles * parts,), *given, scale, *bounds, HI, tiles, parts, each, *strides,
        BLOCK_T=most // heads, BLOCK_H=heads, **options,
    )  # fmt: skip
    return heads


def _new_list(q: Tensor, k: Tensor, topk: int) -> Tensor:
    return torch.empty(*q.shape[:2], min(topk, k.shape[1]), dtype=torch.int32, device=q.device)


@sparse_index.register_fake
def _(q: Tensor, k: Tensor, weights: Tensor, first: Any, position: Any, topk: int, scale: float) -> Tensor:
    return _new_list(q, k, topk)
