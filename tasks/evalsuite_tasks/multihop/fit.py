"""Filler, and how much of it a length holds."""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence

from evalsuite.lexicon import FILLER
from evalsuite_tasks.multihop.content import Content

_THINGS, _LOOKS, _WHEN = FILLER[:-23], FILLER[-23:-8], FILLER[-8:]  # grass .. flute, green .. simple, early .. always


class Filler:
    """Endless statements that say nothing, in words that no fact uses; the same sequence for any amount taken."""

    def __init__(self, rng: random.Random, terse: bool) -> None:
        self._rng, self._terse, self._made = rng, terse, list[str]()

    def take(self, amount: int) -> list[str]:
        """The first `amount` statements."""
        while len(self._made) < amount:
            self._made.append(self._one())
        return self._made[:amount]

    def _one(self) -> str:
        choice = self._rng.choice
        if self._terse:
            return f"noise {choice(FILLER)} {choice(FILLER)}"
        return f"The {choice(_LOOKS)} {choice(_THINGS)} is {choice(_WHEN)} {choice(_LOOKS)}."


def mix(content: Content, filler: Sequence[str], terse: bool) -> list[str]:
    """The statements of the text in order: each fact behind the share of the filler that its spot says."""
    lines: list[str] = []
    done = 0
    for statement, spot in zip(content.statements, content.spots, strict=True):
        until = int(spot * (len(filler) + 1))
        lines += filler[done:until]
        lines.append(statement.terse if terse else statement.natural)
        done = until
    return lines + list(filler[done:])


def depth(lines: Sequence[str], gold: str) -> float:
    """Where in the text the last statement `gold` stands: its middle, in characters, as a share of the whole."""
    place = len(lines) - 1 - list(reversed(lines)).index(gold)
    before = sum(len(line) + 1 for line in lines[:place])
    return round((before + len(gold) / 2) / sum(len(line) + 1 for line in lines), 4)


def largest(tokens: Callable[[int], int], budget: int) -> int:
    """The largest amount whose tokens stay within `budget`, to a unit or 0.2 %; -1 where not even 0 fits.

    `tokens` grows about linearly, so a straight line finds the amount in a few counts; bisection takes over where it
    does not.
    """
    low, cost, high = 0, tokens(0), 0
    if cost > budget:
        return -1
    trial = 16
    slope = max((tokens(trial) - cost) / trial, 0.1)
    for attempt in range(64):
        if budget - cost < max(slope, 0.002 * budget) or high == low + 1:
            break
        guess = low + max(1, int((budget - cost) / slope))
        if high:
            guess = (low + high) // 2 if attempt > 6 else min(guess, high - 1)
        found = tokens(guess)
        if found <= budget:
            low, cost = guess, found
        else:
            high = guess
    return low


def largest_size(fits: Callable[[int], bool], most: int) -> int:
    """The largest number of facts 1..most that fits, 0 for none; `fits` turns from true to false once."""
    return bisect_right(range(1, most + 1), False, key=lambda size: not fits(size))
