"""Which prompts are prefilled once for several, and which go through the model together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Tokens = Sequence[int]
WIDEST = 256  # sequences of one batch: beyond it a decode step gains nothing and waits for its longest


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts, by index, that begin with the same `shared` tokens; every one of them goes on after these."""

    shared: int
    members: tuple[int, ...]


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Tokens that two sequences have in common at their beginnings."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def share(prompts: Sequence[Tokens], least: int) -> list[Group]:
    """Groups that save the most tokens of prefill, among all ways to cut the sorted prompts into runs.

    A run of n prompts that share s >= `least` tokens saves (n - 1) s. Every prompt is in exactly one group.
    """
    order = sorted(range(len(prompts)), key=lambda i: list(prompts[i]))
    common = []  # of each prompt with the next; the last token is never shared: its hidden state is needed
    for i, j in pairwise(order):
        a, b = prompts[i], prompts[j]
        common.append(min(common_prefix(a, b), len(a) - 1, len(b) - 1))
    saved, cut, kept = [0], [0], [0]  # of the first j prompts: tokens saved, where the last run starts, what it shares
    for j in range(1, len(order) + 1):
        best = (saved[j - 1], j - 1, 0)
        shared = len(prompts[order[j - 1]])
        for i in range(j - 2, max(-1, j - 1 - WIDEST), -1):
            shared = min(shared, common[i])
            if shared < max(least, 1):
                break
            best = max(best, (saved[i] + (j - i - 1) * shared, i, shared), key=lambda option: option[0])
        for column, value in zip((saved, cut, kept), best, strict=True):
            column.append(value)
    groups, j = [], len(order)
    while j:
        groups.append(Group(kept[j], tuple(order[cut[j] : j])))
        j = cut[j]
    return groups[::-1]


def slices(
    groups: Sequence[Group], lengths: Sequence[int], rows: Sequence[int], size: Callable[[int], int], memory: int
) -> list[list[Group]]:
    """Batches of groups, the longest first, each within `memory` bytes (or a single prompt, where even that is more).

    `lengths` are the tokens that each prompt ends with, `rows` the sequences it becomes, `size(length)` the bytes that
    a sequence keeps. A padded cache costs every sequence the longest one.
    """

    def longest(group: Group) -> int:
        return max(lengths[i] for i in group.members)

    batches: list[list[Group]] = []
    room = 0
    for group in sorted(groups, key=longest, reverse=True):
        part: list[int] = []
        for i in group.members:
            if room < rows[i]:
                if part:
                    batches[-1].append(Group(group.shared, tuple(part)))
                batches.append([])
                part, room = [], capacity(size(longest(group)), memory)
            part.append(i)
            room -= rows[i]
        batches[-1].append(Group(group.shared, tuple(part)))
    return batches


def capacity(each: int, memory: int) -> int:
    """Sequences of `each` bytes that one batch may have."""
    return max(1, min(WIDEST, memory // max(1, each)))
