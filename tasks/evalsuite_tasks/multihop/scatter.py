"""What training documents of several families share: how many of a thing, and statements scattered among noise."""

import random
from bisect import bisect
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate

from evalsuite.errors import UserError
from evalsuite.lexicon import FILLER

Word = int | str  # a number stands for a name that is drawn later
Line = tuple[tuple[Word, ...], tuple[Word | None, ...]]  # words and labels
QUERIES = 64  # at the end of one document


@cache
def _weights(largest: int) -> list[float]:
    return list(accumulate(1 / (largest**0.5 + n) for n in range(1, largest + 1)))


def weighted_size(rng: random.Random, least: int, most: int, largest: int) -> int:
    """A number in least..most, n with weight 1 / (sqrt(largest) + n): few and many are both common.

    Raises UserError where most is less than least: the budget is too small.
    """
    if most < least:
        raise UserError(f"a document needs {least} statements and its budget holds {most}; give it more words")
    weights = _weights(largest)
    below = weights[least - 2] if least > 1 else 0.0
    return bisect(weights, below + rng.random() * (weights[most - 1] - below), least - 1, most - 1) + 1


def noise(rng: random.Random, number: int) -> list[tuple[str, str, str]]:
    """Statements that say nothing."""
    filler = iter(rng.choices(FILLER, k=2 * number))
    return [("noise", a, b) for a, b in zip(filler, filler, strict=True)]


def scattered(
    rng: random.Random,
    lines: Sequence[Line],
    query: Callable[[], Line],
    longest: int,
    budget: int,
) -> tuple[list[Word], list[Word | None]]:
    """Words and labels: lines in the given order among a random amount of noise, then queries as long as they fit.

    Room is left for one query of `longest` words.
    """
    free = budget - sum(len(words) for words, _ in lines) - longest
    body: list[Line] = [(words, (None,) * 3) for words in noise(rng, rng.randint(0, max(0, free) // 3))]
    for spot, line in zip(sorted(rng.sample(range(len(body) + len(lines)), len(lines))), lines, strict=True):
        body.insert(spot, line)  # ascending, so each lands on its final place
    words = [word for line, _ in body for word in line]
    labels = [label for _, line in body for label in line]
    for _ in range(QUERIES):
        asked, answers = query()
        if len(words) + len(asked) > budget:
            break
        words += asked
        labels += answers
    return words, labels
