"""What a multi-hop question is made of, before it is fitted to a length or worded."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evalsuite.records import Facets


class Statement(NamedTuple):
    """One fact in both wordings."""

    terse: str
    natural: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question over a content, in both wordings, and its answer."""

    terse: str
    natural: str
    prefix: str  # beginning of the natural answer
    target: tuple[str, ...]  # one name, one digit or a set of names
    given: str  # the name that the question starts from
    gold: int  # the statement that holds the first hop
    walk: tuple[
        str, ...
    ] = ()  # names after 0, 1, 2 .. hops, also beyond the hops asked; empty where they are not unique
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Content:
    """Statements in order of appearance, each with its place among the filler, ascending in [0, 1); and what to ask."""

    statements: tuple[Statement, ...]
    spots: tuple[float, ...]
    ask: Callable[[int], Question]  # hops -> question; defined up to the reach of the kind


@dataclass(frozen=True, slots=True)
class Kind:
    """One subtask. The functions take the facets of a cell and the number of facts."""

    name: str
    knobs: tuple[str, ...]  # beside hops, facts and answer
    intro: str  # natural instruction before the facts
    draw: Callable[[random.Random, Facets, int], Content]
    reach: Callable[[Facets, int], int]  # most hops that can be asked; negative where nothing can
    chance: Callable[[Facets, int], float]
    least: int = 1  # fewest hops


def arrange(rng: random.Random, groups: Sequence[Sequence[Statement]], order: object) -> Content:
    """Place groups of statements, each given in the order that one pass can follow, without a question yet.

    forward keeps that order within every group, reverse turns it round, and the groups are mixed at random; shuffled
    forgets it. Every statement's place is uniform on the whole, whatever the length.
    """
    turn = [i for i, group in enumerate(groups) for _ in group]
    rng.shuffle(turn)
    queues = [list(group) if order == "reverse" else list(group)[::-1] for group in groups]
    if order == "shuffled":
        for queue in queues:
            rng.shuffle(queue)
    statements = tuple(queues[i].pop() for i in turn)
    return Content(statements, tuple(sorted(rng.random() for _ in statements)), _nothing)


def _nothing(hops: int) -> Question:
    raise AssertionError("a content was asked before it had a question")
