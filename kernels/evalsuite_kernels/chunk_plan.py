"""Where the chunks of 64 tokens and the groups of chunks of a call's sequences stand."""

from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 64
PROGRAMS = 264  # that an H200 runs at once, two on each of its 132 multiprocessors


class Plan(NamedTuple):
    """Chunks: the first token and the end of each, and the first chunk of each sequence; groups of up to `size` chunks
    of one sequence: the first chunk of each, and its sequence. All but `size` as int32 tensors."""

    starts: Tensor
    stops: Tensor
    firsts: Tensor
    begins: Tensor
    owners: Tensor
    size: int

    def segments(self, length: int) -> "Segments":
        """Of `length` chunks each, but for a sequence's last, which may have none: the state between two segments is
        the same whether or not a sequence ends there."""
        bounds = self.firsts.tolist()
        firsts: list[int] = []
        edges = [0]
        for first, end in pairwise(bounds):
            firsts += range(first, end + 1, length)
            edges.append(len(firsts))
        numbers = partial(torch.tensor, dtype=torch.int32, device=self.firsts.device)
        return Segments(numbers([*firsts, bounds[-1]]), numbers(edges))


class Segments(NamedTuple):
    """The first chunk of each, and the first segment of each sequence, as int32 tensors."""

    firsts: Tensor
    edges: Tensor


def planned(bounds: Sequence[int], columns: int, device: torch.device) -> Plan:
    """There are as many groups as fill the GPU, where each has as many programs as `columns`."""
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
    return Plan(numbers(starts), numbers(stops), numbers(firsts), numbers(begins), numbers(owners), size)


@cache  # for good: a CUDA graph that was captured goes on reading it
def even_plan(B: int, T: int, columns: int, device: torch.device) -> Plan:
    return planned(range(0, B * T + 1, T), columns, device)
