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


@cache  # for good, as above
def parts(device: torch.device) -> Tensor:
    """[5, C, C] in bf16: which steps of a chunk the decay of each token takes, as 0 and 1.

    From the start of its block of 16 on; from or to the boundary that a pair of blocks of 16, and of 32, meets at (rows
    of odd blocks from there, keys of even blocks to there); from the chunk's start; and to the chunk's end.
    """
    i, j = torch.arange(CHUNK, device=device)[:, None], torch.arange(CHUNK, device=device)[None, :]
    meet = [(i >> n == j >> n) & ((i >> n) % 2 == (j <= i).int()) for n in (4, 5)]
    return torch.stack([(i >> 4 == j >> 4) & (j <= i), *meet, j <= i, j > i]).bfloat16()
