"""Names of one question, split so that a training document and an evaluation question never share a set of names."""

import random
from functools import cache

from evalsuite.errors import UserError
from evalsuite.lexicon import NAMES

MOST = 500  # of the 512 names: with all of them there would be one set only, on one side of the split
_SPLIT = 8  # one set of names in eight is kept for evaluation


@cache
def _index() -> dict[str, int]:
    return {name: i for i, name in enumerate(NAMES)}


def held_out(names: list[str] | tuple[str, ...]) -> bool:
    """Whether a set of names belongs to evaluation: the sum of their numbers in the lexicon is a multiple of eight."""
    return sum(map(_index().__getitem__, names)) % _SPLIT == 0


def draw(rng: random.Random, count: int, *, train: bool = False) -> list[str]:
    """`count` different names in random order, from the evaluation side of the split or the training side.

    Two texts with the same facts have the same set of names, so no training document holds an evaluation question.
    """
    if count > MOST:
        raise UserError(f"{count} names asked of a lexicon that gives at most {MOST}; ask for fewer facts")
    while True:
        picks = rng.sample(range(len(NAMES)), count)
        if (sum(picks) % _SPLIT == 0) != train:
            return [NAMES[i] for i in picks]
