"""What a traced program is made of, before it is fitted to a length."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evalsuite.records import Facets
from evalsuite_tasks.multihop.content import Content, Question, Statement

QUIET = "Below is a Python program, which runs from top to bottom. Lines that begin with # are comments and do nothing."
LAST = "Reply with that single value."


@dataclass(frozen=True, slots=True)
class Program:
    """Lines in the order in which they run, and what is asked after the last one."""

    content: Content  # its `ask` is not used
    question: Question  # its `walk`, where there is one, holds the names after 0, 1, 2 .. look-ups
    given: tuple[str, ...]  # names that the question holds: an answer may repeat them
    header: tuple[str, ...] = ()  # natural lines that stand first: Python must make an array before it is written
    siblings: tuple[Question, ...] = ()  # every question that is asked on this same text


@dataclass(frozen=True, slots=True)
class Kind:
    """One subtask. The functions take the facets of a cell."""

    name: str
    knobs: tuple[str, ...]
    draw: Callable[[random.Random, Facets], Program]
    fault: Callable[[Facets], str]  # why the facets cannot be had; "" where they can
    chance: Callable[[Facets], float]
    form: str = "name"  # of the answer: "name", "digit" or "list"
    free: tuple[str, ...] = ()  # knobs on which the lines do not depend: their questions share a text


def content(statements: Sequence[Statement], spots: Sequence[float]) -> Content:
    """Lines with their places among the filler, ascending in [0, 1)."""
    return Content(tuple(statements), tuple(spots), _unasked)


def _unasked(hops: int) -> Question:
    raise AssertionError("a program carries its question beside its lines")


def spread(rng: random.Random, statements: Sequence[Statement]) -> Content:
    """Lines in the given order at random places of the text."""
    return content(statements, sorted(rng.random() for _ in statements))


def number(facets: Facets, knob: str) -> int:
    """A knob that is a whole number."""
    return int(facets[knob])
