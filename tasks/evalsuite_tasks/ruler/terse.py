"""RULER in the closed lexicon: every word one token, for models trained from scratch.

The structure (keys, values, queries, hops, counts) is RULER's; the text is statements of three words.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

from evalsuite.lexicon import FILLER, NAMES
from evalsuite_tasks.ruler.specs import CHAINS, COMMON, FREQUENT, HOPS, NIAH, zeta_counts

Statement = tuple[str, str, str]
TASKS = (*NIAH, "vt", "cwe", "fwe")
GRASS: tuple[Statement, ...] = (  # the terse form of RULER's one repeated noise text
    ("noise", "grass", "green"), ("noise", "sky", "blue"), ("noise", "sun", "yellow"),
    ("noise", "here", "often"), ("noise", "there", "again"),
)  # fmt: skip


_NAMES = frozenset(NAMES)


class TooShortError(ValueError):
    """The size asked for does not hold even the smallest form of the task."""


@dataclass(frozen=True, slots=True)
class Question:
    """Words of a context and its question, the words that answer it, and where the gold statement lies in [0, 1]."""

    words: tuple[str, ...]
    answer: tuple[str, ...]
    depth: float | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """Statements as one list of words, and the index of each gold statement."""

    words: list[str]
    places: list[int]


def answers(subtask: str) -> int:
    """Words in the answer."""
    return NIAH[subtask].answers if subtask in NIAH else {"vt": HOPS + 1, "cwe": COMMON, "fwe": FREQUENT}[subtask]


def noise(rng: random.Random, number: int, *, same: bool) -> list[Statement]:
    """`number` statements that say nothing: RULER's five over and over, or random ones."""
    if same:
        return [GRASS[i % len(GRASS)] for i in range(number)]
    filler = rng.choices(FILLER, k=2 * number)
    return list(zip(["noise"] * number, filler[::2], filler[1::2], strict=True))


def scatter(
    rng: random.Random, gold: list[Statement], rest: list[Statement], spare: int, *, keep: bool = False
) -> Context:
    """Put the gold statements at random places among the rest; `keep` keeps their order. `spare` words fill up."""
    places = rng.sample(range(len(gold) + len(rest)), len(gold))
    if keep:
        places.sort()
    others = iter(rest)
    at = dict(zip(places, gold, strict=True))
    statements = [at[i] if i in at else next(others) for i in range(len(gold) + len(rest))]
    return Context(["noise", "often"][:spare] + list(chain.from_iterable(statements)), places)


def room(words: int, statements: int) -> tuple[int, int]:
    """How many three-word statements a context of `words` holds, and the words left over."""
    if words < 3 * statements:
        raise TooShortError(f"{statements} statements need {3 * statements} words")
    return words // 3, words % 3


def edges(keys: list[str], values: list[str]) -> list[Statement]:
    return list(zip(["edge"] * len(keys), keys, values, strict=True))


def needles(rng: random.Random, names: list[str], number: int, gold: Sequence[Statement] = ()) -> list[Statement]:
    """Needles with distinct keys and distinct values, neither of them the gold's; `names` are those still unused.

    Where these do not suffice, any name is a key here and a value there, the gold's too: it must not stand out.
    """
    if 2 * number <= len(names):
        return edges(names[:number], names[number : 2 * number])
    used = {key for _, key, _ in gold}, {value for _, _, value in gold}
    keys, values = ([name for name in NAMES if name not in taken] for taken in used)
    number = min(number, len(keys), len(values))
    return edges(rng.sample(keys, number), rng.sample(values, number))


def niah(rng: random.Random, subtask: str, size: int) -> Question:
    """One needle question of `size` words, the last of which is `next` or `are`."""
    config = NIAH[subtask]
    names = rng.sample(NAMES, len(NAMES))
    keys, names = names[: config.keys], names[config.keys :]
    total = config.keys * config.values
    values, names = names[:total], names[total:]
    gold = edges([key for key in keys for _ in range(config.values)], values)
    asked = rng.sample(range(config.keys), config.queries)
    one = config.answers == 1
    ask = ["ask", keys[asked[0]], "next"] if one else ["find", *(keys[i] for i in asked), "are"]
    number, spare = room(size - len(ask), total)
    rest = needles(rng, names, number - total, gold) if config.haystack == "needle" else []
    rest += noise(rng, number - total - len(rest), same=config.haystack == "noise")
    rng.shuffle(rest)
    context = scatter(rng, gold, rest, spare, keep=config.values > 1)
    answer = [values[i * config.values + j] for i in asked for j in range(config.values)]
    depth = context.places[asked[0]] / max(1, number - 1) if one else None
    return Question((*context.words, *ask), tuple(answer), depth)


def chains(names: list[str], number: int, hops: int) -> tuple[list[list[str]], list[Statement]]:
    """Chains [value, name, name, ...] and their `set` statements, chain after chain, each in forward order."""
    rows = [names[i * (hops + 2) : (i + 1) * (hops + 2)] for i in range(number)]
    return rows, [("set", row[i + 1], row[i]) for row in rows for i in range(hops + 1)]


def vt(rng: random.Random, size: int, variant: str) -> Question:
    """Variable tracking: the names that hold a value, over chains of `set NAME VALUE` and `set NAME NAME`."""
    rows, gold = chains(rng.sample(NAMES, len(NAMES)), CHAINS[variant], HOPS)
    ask = ["trace", rows[0][0], "are"]
    number, spare = room(size - len(ask), len(gold))
    context = scatter(rng, gold, noise(rng, number - len(gold), same=True), spare, keep=variant == "nvidia")
    return Question((*context.words, *ask), tuple(rows[0][1:]))


def shuffled(rng: random.Random, words: list[str], variant: str) -> list[str]:
    """The words in random order; under `nvidia` in the order that every sample of this length shares."""
    (random.Random(42) if variant == "nvidia" else rng).shuffle(words)
    return words


def cwe(rng: random.Random, size: int, variant: str) -> Question:
    """Common words: ten appear six times as often as the others. Counts grow only when the names run out."""
    room_left = size - 3
    rare = -(-room_left // (6 * COMMON + len(NAMES) - COMMON))  # occurrences of an uncommon word
    often = min(6 * rare, room_left // (2 * COMMON))
    if often < 2:
        raise TooShortError(f"the common words alone need {4 * COMMON + 3} words")
    names = rng.sample(NAMES, len(NAMES))
    fill = room_left - often * COMMON
    uncommon = chain.from_iterable([name] * rare for name in names[COMMON:])
    words = shuffled(rng, names[:COMMON] * often + list(uncommon)[:fill], variant)
    return Question(("words", *words, "common", "are"), _first_seen(words, names[:COMMON]))


def _first_seen(words: list[str], wanted: list[str]) -> tuple[str, ...]:
    keep = set(wanted)
    return tuple(word for word in dict.fromkeys(words) if word in keep)


def fwe(rng: random.Random, size: int, variant: str) -> Question:
    """Frequent words: Zipf-like counts; rank 1 is the dot, ranks 2 to 4 the answer; more dots fill up."""
    total = size - 3
    spread = max(FREQUENT + 2, min(len(NAMES), total // 50))
    for zipf in range(total, 29, -1):  # the first four names must differ in count
        counts = zeta_counts(zipf, spread)
        if all(counts[i] > counts[i + 1] for i in range(FREQUENT + 1)):
            break
    else:
        raise TooShortError("33 words are the fewest in which the frequent words differ in count")
    names = rng.sample(NAMES, len(counts) - 1)
    words = [name for name, count in zip(names, counts[1:], strict=True) for _ in range(count)]
    words = shuffled(rng, ["."] * (total - len(words)) + words, variant)
    return Question(("words", *words, "frequent", "are"), tuple(names[:FREQUENT]))


def question(rng: random.Random, subtask: str, size: int, variant: str = "default") -> Question:
    """An evaluation question of exactly `size` words; raises TooShortError where that cannot hold one."""
    if subtask in NIAH:
        return niah(rng, subtask, size)
    return {"vt": vt, "cwe": cwe, "fwe": fwe}[subtask](rng, size, variant)


@cache
def chance(subtask: str, length: int, variant: str) -> float:
    """Expected score of naming names of the text at random: many of them in a short text, where few are not answers."""
    try:
        made = question(random.Random(0), subtask, length - 1 - answers(subtask), variant)
    except TooShortError:
        return 0.0
    return len(made.answer) / len(_NAMES.intersection(made.words))


def least(subtask: str, variant: str = "default") -> int:
    """The fewest words in which a question can be asked."""
    if subtask in NIAH:
        config = NIAH[subtask]
        return 3 * config.keys * config.values + (3 if config.answers == 1 else 2 + config.queries)
    return {"vt": 3 * CHAINS[variant] * (HOPS + 1) + 3, "cwe": 4 * COMMON + 3, "fwe": 33}[subtask]
