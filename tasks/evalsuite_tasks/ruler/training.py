"""Training documents in the terse wording: one context, as many questions as it carries, a label at each answer."""

import random

from evalsuite.errors import UserError
from evalsuite.lexicon import NAMES
from evalsuite.task import Document, generator
from evalsuite_tasks.multihop.scatter import weighted_size
from evalsuite_tasks.ruler import terse
from evalsuite_tasks.ruler.specs import HOPS, NIAH

Question = tuple[list[str], list[str]]  # the words that ask, the words that answer
Text = tuple[list[str], list[Question]]
MIN, MAX = 4, 24  # questions asked in one document, where its context carries so many
VALUES = 4  # of one key in niah_multivalue, and keys of one question in niah_multiquery


def _draw(rng: random.Random, low: int, high: int) -> int:
    """A number of pairs or keys in low..high, or low."""
    return weighted_size(rng, low, max(low, high), max(low, high))


def _noise(rng: random.Random, config_haystack: str, number: int) -> list[terse.Statement]:
    return terse.noise(rng, number, same=config_haystack == "noise")


def _one(rng: random.Random, subtask: str, budget: int) -> Text:
    """Pairs asked one by one: `ask KEY next`."""
    number = min(rng.randint(MIN, MAX), budget // 6)
    most = min(len(NAMES), budget // 3 - number)
    pairs = rng.randint(1, min(8, most)) if subtask.startswith("niah_single") else _draw(rng, 2, most)
    number = min(number, pairs)
    names = rng.sample(NAMES, min(2 * pairs, len(NAMES)))
    slots, spare = divmod(budget - 3 * number, 3)
    gold = terse.needles(rng, names, pairs)
    context = terse.scatter(rng, gold, _noise(rng, NIAH[subtask].haystack, slots - pairs), spare)
    asked = rng.sample(gold, number)
    return context.words, [(["ask", key, "next"], [value]) for _, key, value in asked]


def _multivalue(rng: random.Random, budget: int) -> Text:
    """Keys of four values each: `find KEY are`."""
    most = min(len(NAMES) // (VALUES + 1), (budget - 3) // (3 * VALUES + VALUES - 1))
    keys = _draw(rng, 1, max(1, most))
    number = min(rng.randint(MIN, MAX), keys)
    while keys > 1 and (3 + VALUES - 1) * number + 3 * VALUES * keys > budget:
        keys, number = keys - 1, min(number, keys - 1)
    slots, spare = divmod(budget - (3 + VALUES - 1) * number, 3)
    names = rng.sample(NAMES, keys * (VALUES + 1))
    owners = [key for key in names[:keys] for _ in range(VALUES)]
    rng.shuffle(owners)
    gold = terse.edges(owners, names[keys:])
    context = terse.scatter(rng, gold, _noise(rng, "essay", slots - len(gold)), spare, keep=True)
    held: dict[str, list[str]] = {}
    for _, key, value in gold:
        held.setdefault(key, []).append(value)
    return context.words, [(["find", key, "are"], held[key]) for key in rng.sample(names[:keys], number)]


def _multiquery(rng: random.Random, budget: int) -> Text:
    """Pairs asked four by four: `find KEY KEY KEY KEY are`."""
    cost = 2 + 2 * VALUES - 1
    pairs = _draw(rng, VALUES, min(len(NAMES) // 2, (budget - cost) // 3))
    number = max(1, min(rng.randint(MIN, MAX) // 2, pairs // 2, (budget - 3 * pairs) // cost))
    slots, spare = divmod(budget - cost * number, 3)
    gold = terse.needles(rng, rng.sample(NAMES, 2 * pairs), pairs)
    context = terse.scatter(rng, gold, _noise(rng, "essay", slots - pairs), spare)
    value = {key: held for _, key, held in gold}
    asked = [rng.sample(list(value), VALUES) for _ in range(number)]
    return context.words, [(["find", *keys, "are"], [value[key] for key in keys]) for keys in asked]


def _vt(rng: random.Random, budget: int) -> Text:
    """Chains of one to four hops, traced one by one: `trace VALUE are`. Half of the texts are in forward order."""
    hops = rng.randint(1, HOPS) if budget >= 3 * (HOPS + 1) + 3 + HOPS else 1
    each, cost = 3 * (hops + 1), 3 + hops
    number = _draw(rng, 1, min(len(NAMES) // (hops + 2), max(1, (budget - cost) // each)))
    asked = max(1, min(number, rng.randint(MIN, MAX), (budget - each * number) // cost))
    rows, gold = terse.chains(rng.sample(NAMES, number * (hops + 2)), number, hops)
    slots, spare = divmod(budget - cost * asked, 3)
    forward = rng.random() < 0.5
    if forward:
        gold = [gold[i] for i in _merge(rng, number, hops + 1)]
    context = terse.scatter(rng, gold, _noise(rng, "noise", slots - len(gold)), spare, keep=forward)
    return context.words, [(["trace", row[0], "are"], row[1:]) for row in rng.sample(rows, asked)]


def _merge(rng: random.Random, rows: int, width: int) -> list[int]:
    """Indices of `rows` sequences interleaved at random, each in its own order."""
    turns = [row for row in range(rows) for _ in range(width)]
    rng.shuffle(turns)
    taken = [0] * rows
    order = []
    for row in turns:
        order.append(row * width + taken[row])
        taken[row] += 1
    return order


def _counts(rng: random.Random, subtask: str, budget: int) -> list[Text]:
    """One to four lists of words, and after each which of them are the most common or frequent."""
    parts = min(rng.choice((1, 2, 4)), max(1, budget // 64))
    number = terse.answers(subtask)
    texts = (terse.question(rng, subtask, budget // parts - number + 1) for _ in range(parts))
    return [(list(text.words), [([], list(text.answer))]) for text in texts]


def document(subtask: str, seed: int, index: int, budget: int, version: int) -> Document:
    """Training document of at most `budget` words; raises UserError where that is too few.

    `labels[i]` is the word that should follow `words[i]`; it is set before each word of an answer and nowhere else.
    """
    rng = generator("train", "ruler", version, subtask, budget, seed, index)
    make = {"niah_multivalue": _multivalue, "niah_multiquery": _multiquery, "vt": _vt}.get(subtask)
    try:
        if budget < 24:
            raise terse.TooShortError("it takes at least 24")
        if subtask in ("cwe", "fwe"):
            texts = _counts(rng, subtask, budget)
        else:
            texts = [make(rng, budget) if make else _one(rng, subtask, budget)]
    except terse.TooShortError as error:
        raise UserError(f"ruler.{subtask}: no training document of {budget} words: {error}") from error
    words: list[str] = []
    labels: list[str | None] = []
    for context, questions in texts:
        words += context
        labels += [None] * len(context)
        for ask, answer in questions:
            words += [*ask, *answer[:-1]]
            labels += [None] * len(ask)
            labels[-1:] = answer
    return Document(tuple(words), tuple(labels))
