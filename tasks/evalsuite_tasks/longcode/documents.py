"""Training documents of longcode in the closed lexicon, made and labelled as those of `trace`.

crux_exploded: a caller's sum is the label of `answer`; an inlined caller has the sum so far at each of its digits.
aliases: the object's digit now is the label of a binding's last word and of `get x`. latent_list: what is popped is the
label of the list's name, an element that of `]`.
"""

import random
from collections.abc import Mapping
from itertools import accumulate

from evalsuite.lexicon import DIGITS
from evalsuite.records import Facet
from evalsuite.task import Document, generator
from evalsuite_tasks.longcode.latent import SLACK, apply, walk
from evalsuite_tasks.multihop.scatter import Line, Word
from evalsuite_tasks.trace.documents import ROOM, Maker, Most, get, laid_out, made, pace_of, size_of

TERSE = {"append": "push", "insert": "add", "pop": "pop", "first": "next", "reverse": "swap"}


def _sums(digits: list[str]) -> list[str]:
    return [str(total % 10) for total in accumulate(map(int, digits))]


def exploded(rng: random.Random, budget: int, most: Most) -> Document:
    """`def h is 3`, `def m call h call g + 2` or, in one of three documents, `def m is 3 + 5 + 2`; `call m answer`."""
    hops = rng.randint(1, most["hops"])
    each = 2 * hops + 4
    functions = size_of(rng, hops, (budget - ROOM - each) // 6, most["functions"])
    callers = max(1, min(functions, (budget - ROOM - 4 * functions) // each))
    inlined = rng.random() < 1 / 3
    added = [rng.choice(DIGITS) for _ in range(functions)]
    lines: list[Line] = [(("def", h, "is", digit), (None,) * 4) for h, digit in enumerate(added)]
    answers: dict[int, str] = {}
    for m in range(functions, functions + callers):
        chosen, start = rng.sample(range(functions), hops), rng.choice(DIGITS)
        sums = _sums([*(added[h] for h in chosen), start])
        answers[m] = sums[-1]
        if inlined:
            words: list[Word] = ["def", m, "is"]
            labels: list[Word | None] = [None, None, None]
            for digit, total in zip([*(added[h] for h in chosen), start], sums, strict=True):
                words += [digit, "+"]
                labels += [total, None]
            lines.append((tuple(words[:-1]), tuple(labels[:-1])))
        else:
            calls = [word for h in chosen for word in ("call", h)]
            lines.append((("def", m, *calls, "+", start), (None,) * (len(calls) + 4)))
    rng.shuffle(lines)

    def query() -> Line:
        asked = functions + int(rng.random() * callers)
        return ("call", asked, "answer"), (None, None, answers[asked])

    return laid_out(rng, lines, query, 3, budget)


def aliases(rng: random.Random, budget: int, most: Most) -> Document:
    """`x = 3` makes an object, `y = x` names it once more, `set y 7` changes it for all; `get x`."""
    pace = pace_of(rng)
    size = size_of(rng, 2, (budget - ROOM) // (5 if pace else 3), most["lines"])
    names, fresh, write = rng.randint(2, most["names"]), rng.uniform(0.1, 0.3), rng.uniform(0.2, 0.5)
    bound: dict[int, int] = {}
    objects: list[str] = []
    lines: list[Line] = []
    for _ in range(size):
        name, digit, kind = int(rng.random() * names), DIGITS[int(rng.random() * 10)], rng.random()
        others = [other for other in bound if other != name]
        if kind < fresh or not others:
            bound[name] = len(objects)
            objects.append(digit)
            lines.append(((name, "=", digit), (None, None, None)))
        elif kind < fresh + write and name in bound:
            objects[bound[name]] = digit
            lines.append((("set", name, digit), (None, None, None)))
        else:
            other = others[int(rng.random() * len(others))]
            bound[name] = bound[other]
            lines.append(((name, "=", other), (None, None, objects[bound[name]])))
        if rng.random() < pace:
            asked = list(bound)[int(rng.random() * len(bound))]
            lines.append(get(asked, objects[bound[asked]]))

    def query() -> Line:
        asked = list(bound)[int(rng.random() * len(bound))]
        return get(asked, objects[bound[asked]])

    return laid_out(rng, lines, query, 2, budget)


def latent(rng: random.Random, budget: int, most: Most) -> Document:
    """`list x a b c`, then `push x d`, `add x e`, `pop x`, `next x` and `swap x` in turn; `get x [ 2 ]`."""
    pace = pace_of(rng)
    size = rng.randint(SLACK + 1, max(SLACK + 1, min(most["size"], (budget - ROOM) // 3)))
    lists = size_of(rng, 1, max(1, (budget - ROOM) // (2 * size + 4)), most["lists"])
    room = max(1, (budget - ROOM - lists * (size + 2)) // (6 if pace else 3))
    steps = size_of(rng, 1, max(1, room // lists), most["steps"])
    fresh = iter(range(lists, 10**6))
    state = [[next(fresh) for _ in range(size)] for _ in range(lists)]
    lines: list[Line] = [(("list", i, *items), (None,) * (size + 2)) for i, items in enumerate(state)]

    def query() -> Line:
        asked = int(rng.random() * lists)
        place = int(rng.random() * len(state[asked]))
        return ("get", asked, "[", DIGITS[place], "]"), (None, None, None, None, state[asked][place])

    todo = [iter(walk(rng, size, steps)) for _ in range(lists)]
    turns = [i for i in range(lists) for _ in range(steps)]
    rng.shuffle(turns)
    for i in turns:
        operation = next(todo[i])
        if operation in ("append", "insert"):
            item = next(fresh)
            lines.append(((TERSE[operation], i, item), (None, None, None)))
        else:
            item = -1
            gone = {"pop": state[i][-1], "first": state[i][0]}.get(operation)
            lines.append(((TERSE[operation], i), (None, gone)))
        apply(state[i], operation, item)
        if rng.random() < pace:
            lines.append(query())
    return laid_out(rng, lines, query, 5, budget)


MAKERS = {
    "crux_exploded": Maker(exploded, {"hops": 4, "functions": 48}),
    "aliases": Maker(aliases, {"lines": 96, "names": 24}),
    "latent_list": Maker(latent, {"steps": 24, "lists": 6, "size": 8}),
}
_LIMITS = {  # together they keep every text within the names that the lexicon has
    "hops": (1, 16),
    "functions": (16, 240),
    "lines": (2, 400),
    "names": (2, 240),
    "steps": (1, 32),
    "lists": (1, 8),
    "size": (SLACK + 1, 8),
}


def document(subtask: str, seed: int, index: int, budget: int, knobs: Mapping[str, Facet]) -> Document:
    """Training document number `index` of one subtask, at most `budget` words.

    A knob is the most that a document holds of something: see `MAKERS`. Raises UserError for any other.
    """
    make = made("longcode", MAKERS, _LIMITS, subtask, knobs)
    return make(generator("train", "longcode", subtask, seed, index), budget)
