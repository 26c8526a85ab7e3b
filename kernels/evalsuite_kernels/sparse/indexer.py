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
from evalsuite_kernels.sparse import select, single
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
PART = 512
ONCE = 4096  # numbers at most that are chosen from at once


class Sifting(NamedTuple):
    """How far apart scores of the sample are (in runs of so many side by side), slack of the threshold and num_warps of
    `sample`; parts of a row (None: of PART numbers each), numbers in a tile (None: PART) and num_warps of `collect`;
    numbers in a tile and num_warps of `choose`.

    Many rows are walked over by few warps each, which wait for no others.
    """

    sample: tuple[int, float, int]
    collect: tuple[int | None, int | None, int]
    choose: tuple[int, int]


SIFTING = {  # few rows, or many
    True: Sifting((8, 1.25, 8), (None, None, 4), (2048, 8)),
    False: Sifting((8, 2.0, 8), (4, 512, 2), (1024, 8)),
}
OWN = 8  # numbers of a tile that a thread of `collect` owns at most


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
        return cls(few, parts, cap, min(kept, ONCE), step, *(found.new_empty(shape) for shape in shapes))


def sift(
    launches: Launches, sieve: Sieve, given: tuple[Tensor | None, ...], found: Tensor, bounds: tuple[int, ...]
) -> tuple[Any, ...]:
    """Add the choice of the queries start .. stop - 1 of each batch row; `given` are scores [B, stop - start, wide(S)],
    first and position, and bounds start, stop, T and S. Returns the kind of these launches."""
    rows, soon = found.shape[0] * (bounds[1] - bounds[0]), _soon(sieve.few, found)
    tile, own, warps = _tile_of(sieve.few)
    look(launches, sieve, given, found, bounds)
    launches.add(
        select.collect, (rows * sieve.parts,), *given, sieve.low, sieve.values, sieve.places, sieve.sizes, *bounds,
        wide(bounds[3]), found.shape[-1], sieve.parts, CAP=sieve.cap, TILE=tile, OWN=own, num_warps=warps, **soon,
    )  # fmt: skip
    return choose(launches, sieve, (*given, sieve.low), found, bounds)


def _soon(few: bool, found: Tensor) -> dict[str, bool]:
    return early(found.device) if few else {"EARLY": False}


def _tile_of(few: bool) -> tuple[int, int, int]:
    """Numbers in a tile of `collect`, those of a thread, and num_warps."""
    _, tile, warps = SIFTING[few].collect
    tile = tile or PART
    return tile, max(1, min(OWN, tile // (32 * warps))) if few else OWN, warps


def look(
    launches: Launches, sieve: Sieve, given: tuple[Tensor | None, ...], found: Tensor, bounds: tuple[int, ...]
) -> None:
    """Add the search for each row's threshold."""
    run, slack, warps = SIFTING[sieve.few].sample
    launches.add(
        select.sample, (found.shape[0] * (bounds[1] - bounds[0]),), *given, sieve.low, None, *bounds, found.shape[-1],
        COUNT=SAMPLE, RUN=run, SLACK=slack, APART=False, num_warps=warps, **_soon(sieve.few, found),
    )  # fmt: skip


def choose(
    launches: Launches, sieve: Sieve, given: tuple[Tensor | None, ...], found: Tensor, bounds: tuple[int, ...]
) -> tuple[Any, ...]:
    """Add the choice among what is kept; `given` are scores, first, position and thresholds. Returns the kind."""
    bits, (tile, warps) = (sieve.parts - 1).bit_length(), SIFTING[sieve.few].choose
    launches.add(
        select.choose, (found.shape[0] * (bounds[1] - bounds[0]),), *given, sieve.values, sieve.places, sieve.sizes,
        found, *bounds, found.shape[-1], sieve.parts, ONCE=sieve.once, CAP=sieve.cap, BITS=bits, TILE=tile,
        num_warps=warps, **_soon(sieve.few, found),
    )  # fmt: skip
    return sieve.few, bits, sieve.cap, sieve.once


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
    given = q, k, weights, *place, scores
    one = q.shape[2] <= APART and T <= ONE and sieve.step == T
    kind: tuple[Any, ...] = ()
    for start in range(0, T, sieve.step):
        bounds = start, min(start + sieve.step, T), T, S
        heads = score(launches, given, scale, bounds, one)
        kind = heads, *sift(launches, sieve, (scores, *place), found, bounds)
    launches.run(("index", q.dtype, weights.dtype, dtype_of(first), D, one and q.shape[2], *kind), q.device)
    return found


def _setting(q: Tensor) -> tuple[int, int]:
    return q.itemsize, max(64, triton.next_power_of_2(q.shape[-1]))


def score_one(
    launches: Launches,
    given: tuple[Any, ...],
    scale: float,
    count: int,
    kept: tuple[Any, ...] = (None,) * 7,
    topk: int = 0,
    **options: Any,
) -> None:
    """Add `single.score_one` over `count` keys of each of few queries; `given` as in `score`. With PART, `kept` and
    topk are what `step.keep_part` takes: thresholds, and where to; else programs score as many keys as in `score`."""
    q, k, weights, *_ = given
    (B, T, HI, D), S = q.shape, k.shape[1]
    _, keys, warps, stages = SETTINGS[_setting(q)]
    part = options.get("PART", 0)
    keys = min(part or keys, keys, 64)
    parts = triton.cdiv(count, part or keys)
    each = part // keys if part else max(1, min(SPAN, B * T * parts // PROGRAMS))
    parts = parts if part else triton.cdiv(parts, each)
    constants = {"D": D, "BD": pad(D), "HI": HI, "HEADS": pad(APART), "BLOCK_N": keys, "WIDE": INTERPRETED}
    constants |= {"num_warps": warps, "num_stages": stages, **early(q.device)}
    constants |= {"COUNT": 0, "RUN": 0, "PART": 0, "LIMIT": 0, "TILE": 0, "AHEAD": False}
    constants["OWN"] = max(1, min(OWN, part // (32 * warps)))
    launches.add(
        single.score_one, (B * T * parts,), *given, *kept, scale, T, S, wide(S), topk, parts, each, *q.stride()[:3],
        *k.stride()[:2], *weights.stride(), **constants | options,
    )  # fmt: skip


def score(launches: Launches, given: tuple[Any, ...], scale: float, bounds: tuple[int, ...], one: bool) -> int:
    """Add the scores of the queries start .. stop - 1 of each batch row; `given` are q, k, weights, first, position and
    what they come into. Returns how many heads meet keys side by side, 0 where queries are `one` a program."""
    (q, k, weights, *_), (start, stop, _, S) = given, bounds
    B, _, HI, D = q.shape
    most, keys, warps, stages = SETTINGS[_setting(q)]
    if one:
        score_one(launches, given, scale, S)
        return 0
    heads = 1 if HI <= APART else min(most, triton.next_power_of_2(HI))
    tiles, parts = triton.cdiv(stop - start, most // heads), triton.cdiv(S, keys)
    each = max(1, min(SPAN, B * tiles * parts // PROGRAMS))
    parts = triton.cdiv(parts, each)
    launches.add(
        scoring.score, (B * tiles * parts,), *given, scale, *bounds, HI, tiles, parts, each, *q.stride()[:3],
        *k.stride()[:2], *weights.stride(), D=D, BD=pad(D), BLOCK_T=most // heads, BLOCK_H=heads, BLOCK_N=keys,
        WIDE=INTERPRETED, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return heads


def _new_list(q: Tensor, k: Tensor, topk: int) -> Tensor:
    return torch.empty(*q.shape[:2], min(topk, k.shape[1]), dtype=torch.int32, device=q.device)


@sparse_index.register_fake
def _(q: Tensor, k: Tensor, weights: Tensor, first: Any, position: Any, topk: int, scale: float) -> Tensor:
    return _new_list(q, k, topk)
