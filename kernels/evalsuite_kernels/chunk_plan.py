"""Where the chunks of 64 tokens and the groups of chunks of a call's sequences stand."""

from collections.abc import Sequence
from functools import cache, partial
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from evalsuite_kernels.arguments import remembered

CHUNK = 64
PROGRAMS = 264  # that an H200 runs at once, two on each of its 132 multiprocessors
GRID = 65_535  # programs along its third axis


class Plan(NamedTuple):
    """Chunks: the first token and the end of each, and the first chunk of each sequence; groups of up to `size` chunks
    of one sequence: the first chunk of each, and its sequence; segments, if a sequence has more than one. All but the
    last two as int32 tensors."""

    starts: Tensor
    stops: Tensor
    firsts: Tensor
    begins: Tensor
    owners: Tensor
    size: int
    segments: "Segments | None"


class Segments(NamedTuple):
    """The first chunk of each segment and the first segment of each sequence, and each sequence's first and last
    segment, as int32 tensors."""

    firsts: Tensor
    edges: Tensor
    opening: Tensor
    closing: Tensor


def planned(bounds: Sequence[int], columns: int, device: torch.device, segment: int = 0) -> Plan:
    """There are as many groups as fill the GPU, where each has as many programs as `columns`; segments are of `segment`
    tokens, 0 for none. Raises ValueError for more sequences than one launch takes."""
    starts: list[int] = []
    stops: list[int] = []
    firsts = [0]
    for a, b in pairwise(bounds):
        starts += range(a, b, CHUNK)
        stops += [b] * -(-(b - a) // CHUNK)
        firsts.append(len(starts))
    longest = max(b - a for a, b in pairwise(firsts))
    fewest = max(8, len(starts) * columns / PROGRAMS)
    size = -(-longest // max(1, int(longest / fewest))) or 1
    groups = [(a, n) for n, (first, end) in enumerate(pairwise(firsts)) for a in range(first, end, size) or [first]]
    begins, owners = [*(a for a, _ in groups), len(starts)], [n for _, n in groups]
    numbers = partial(torch.tensor, dtype=torch.int32, device=device)
    segments = None
    if segment and longest * CHUNK >= segment:
        # a sequence that ends between two has one more, of no chunks: the state there is the same for those that go on
        each = [range(first, end + 1, segment // CHUNK) for first, end in pairwise(firsts)]
        edges = [0, *accumulate(map(len, each))]
        heads = [*chain.from_iterable(each), len(starts)]
        segments = Segments(*map(numbers, (heads, edges, edges[:-1], [edge - 1 for edge in edges[1:]])))
    if (most := max(len(groups), 0 if segments is None else len(segments.firsts) - 1)) > GRID:
        raise ValueError(
            f"a call has {most} sequences or parts of them, and a GPU's grid holds {GRID}: split the batch"
        )
    return Plan(numbers(starts), numbers(stops), numbers(firsts), numbers(begins), numbers(owners), size, segments)


@cache  # for good: a CUDA graph that was captured goes on reading it
def even_plan(B: int, T: int, columns: int, device: torch.device, segment: int = 0) -> Plan:
    return planned(range(0, B * T + 1, T), columns, device, segment)


packed_plan = remembered(planned)
