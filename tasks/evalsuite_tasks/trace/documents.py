"""Training documents in the closed lexicon: a program among noise, with a label after each step, then questions.

A label stands where the state can be told: at the end of a line that hands a value on, the value handed on; at each
`]` of a nested expression, what it has reached; at a `pop`, what is popped. Values are never fed back as words, so
every step has to be made from the state, with the step before it supervised next door (Depo, arXiv 2512.17351); only
the names of a palindrome follow each other as in an answer. In half of the documents of `assign`, `swap` and `index`
questions also stand between the lines; the others put all of them at the end, as evaluations do. Sizes n are drawn
with weight 1 / (sqrt(N) + n), N the largest.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evalsuite.errors import UserError, unknown
from evalsuite.lexicon import DIGITS, WORDS
from evalsuite.records import Facet
from evalsuite.task import Document, generator
from evalsuite_tasks.multihop.names import MOST, draw
from evalsuite_tasks.multihop.scatter import Line, Word, noise, scattered, weighted_size

Query = Callable[[], Line]
Most = Mapping[str, int]

ROOM = 24  # words kept for questions at the end
AS_IT_IS: dict[Word, str] = dict(zip(WORDS, WORDS, strict=True))


def size_of(rng: random.Random, least: int, most: int, largest: int) -> int:
    """A number in least..most and no larger than largest, n with weight 1 / (sqrt(largest) + n)."""
    return weighted_size(rng, least, min(most, largest), largest)


def named(rng: random.Random, words: Sequence[Word], labels: Sequence[Word | None]) -> Document:
    """Names for numbers: as many as the text has, so that their set is the one on the training side of the split."""
    numbers = [word for word in dict.fromkeys(words) if isinstance(word, int)]
    table = AS_IT_IS.copy()
    table.update(zip(numbers, draw(rng, len(numbers), train=True), strict=True))
    return Document(tuple([table[w] for w in words]), tuple([None if a is None else table[a] for a in labels]))


def laid_out(rng: random.Random, lines: list[Line], query: Query, longest: int, budget: int) -> Document:
    """Lines among noise, then queries of at most `longest` words, as long as they fit."""
    return named(rng, *scattered(rng, lines, query, longest, budget))


def get(name: int, value: Word) -> Line:
    """`get x`, with the value as label."""
    return ("get", name), (None, value)


def pace_of(rng: random.Random) -> float:
    """Questions after each line of a document: none in half of them, else one after every other line."""
    return 0.5 if rng.random() < 0.5 else 0.0


def assign(rng: random.Random, budget: int, most: Most) -> Document:
    """`x = 3` and `y = x`, with the value handed on as label; `get x` and the value now."""
    pace = pace_of(rng)
    size = size_of(rng, 2, (budget - ROOM) // (5 if pace else 3), most["lines"])
    variables, fresh = rng.randint(2, most["variables"]), rng.uniform(0.15, 0.6)
    state: dict[int, str] = {}
    known: list[int] = []
    lines: list[Line] = []
    for _ in range(size):
        target = int(rng.random() * variables)
        source = known[int(rng.random() * len(known))] if known else target
        if source == target or rng.random() < fresh:
            digit = DIGITS[int(rng.random() * 10)]
            lines.append(((target, "=", digit), (None, None, None)))
        else:
            digit = state[source]
            lines.append(((target, "=", source), (None, None, digit)))
        if target not in state:
            known.append(target)
        state[target] = digit
        if rng.random() < pace:
            asked = known[int(rng.random() * len(known))]
            lines.append(get(asked, state[asked]))

    def query() -> Line:
        asked = known[int(rng.random() * len(known))]
        return get(asked, state[asked])

    return laid_out(rng, lines, query, 2, budget)


def swap(rng: random.Random, budget: int, most: Most) -> Document:
    """`x = v` once for every variable, then `swap x y` with the new value of y as label; `get x`."""
    pace = pace_of(rng)
    variables = size_of(rng, 2, (budget - ROOM - 5) // 3, most["variables"])
    steps = size_of(rng, 1, (budget - ROOM - 3 * variables) // (5 if pace else 3), most["steps"])
    state = list(range(variables, 2 * variables))
    lines: list[Line] = [((name, "=", value), (None, None, None)) for name, value in enumerate(state)]
    for _ in range(steps):
        a = int(rng.random() * variables)
        b = (a + 1 + int(rng.random() * (variables - 1))) % variables
        state[a], state[b] = state[b], state[a]
        lines.append((("swap", a, b), (None, None, state[b])))
        if rng.random() < pace:
            asked = int(rng.random() * variables)
            lines.append(get(asked, state[asked]))

    def query() -> Line:
        asked = int(rng.random() * variables)
        return get(asked, state[asked])

    return laid_out(rng, lines, query, 2, budget)


def index(rng: random.Random, budget: int, most: Most) -> Document:
    """`a [ 2 ] = v` and `i = 2`; `get a [ 2 ]` or `get a [ i ]`, with the digit as label of i."""
    pace = pace_of(rng)
    writes = size_of(rng, 2, (budget - ROOM) // (9 if pace else 6), most["lines"])
    arrays, size = rng.randint(1, most["arrays"]), rng.randint(2, most["size"])
    values, indices = rng.randint(2, max(2, min(writes, arrays * size))), 4
    state: dict[tuple[int, str], int] = {}
    held: dict[int, str] = {}
    written: list[tuple[int, str]] = []
    lines: list[Line] = []

    def query() -> Line:
        array, digit = written[int(rng.random() * len(written))]
        value = state[array, digit]
        names = [name for name, at in held.items() if at == digit] if rng.random() < 0.5 else []
        if names:
            return ("get", array, "[", rng.choice(names), "]"), (None, None, None, digit, value)
        return ("get", array, "[", digit, "]"), (None, None, None, None, value)

    for _ in range(writes):
        digit = DIGITS[int(rng.random() * size)]
        if rng.random() < 0.2:
            name = -1 - int(rng.random() * indices)
            held[name] = digit
            lines.append(((name, "=", digit), (None, None, None)))
            continue
        key = int(rng.random() * arrays), digit
        if key not in state:
            written.append(key)
        state[key] = arrays + int(rng.random() * values)
        lines.append(((key[0], "[", digit, "]", "=", state[key]), (None,) * 6))
        if rng.random() < pace:
            lines.append(query())
    if not written:
        written.append((0, digit))
        state[0, digit] = arrays
        lines.append(((0, "[", digit, "]", "=", arrays), (None,) * 6))
    return laid_out(rng, lines, query, 5, budget)


def deref(rng: random.Random, budget: int, most: Most) -> Document:
    """`a [ x ] = y`, every array one cycle over the same names; `get a [ b [ x ] ]` with what each `]` has reached."""
    hops = most["hops"] if rng.random() < 0.5 else rng.randint(1, most["hops"])
    longest = 3 * hops + 2
    arrays = rng.randint(1, most["arrays"])
    room = min(most["facts"], max(0, budget - 2 * (3 * most["hops"] + 2)) // 6)
    arrays = max(1, min(arrays, room // 3))
    nodes = size_of(rng, 3, room // arrays, most["facts"])
    follow: list[list[int]] = []
    for _ in range(arrays):
        ring = rng.sample(range(nodes), nodes)
        after = [0] * nodes
        for a, b in zip(ring, [*ring[1:], ring[0]], strict=True):
            after[a] = b
        follow.append(after)
    lines: list[Line] = [
        ((-1 - i, "[", a, "]", "=", b), (None,) * 6) for i, after in enumerate(follow) for a, b in enumerate(after)
    ]
    rng.shuffle(lines)
    blank = (None,) * (2 * hops + 2)

    def query() -> Line:
        node = start = int(rng.random() * nodes)
        steps = [int(rng.random() * arrays) for _ in range(hops)]
        walk = [node := follow[i][node] for i in steps]
        head: list[Word] = ["get"]
        for i in reversed(steps):  # the first look-up is the innermost
            head += (-1 - i, "[")
        return (*head, start, *["]"] * hops), (*blank, *walk)

    return laid_out(rng, lines, query, longest, budget)


def palindrome(rng: random.Random, budget: int, most: Most) -> Document:
    """`list a b c ? c b`, with the name that comes next as label from the `?` on; several lists one after the other."""
    empty = noise(rng, int(rng.random() * 0.9 * max(0, budget - 5)) // 3)
    left = budget - 3 * len(empty)
    lists: list[list[str]] = []
    while left >= 5 or not lists:
        size = size_of(rng, 2, (left - 1) // 2, most["items"])
        lists.append(draw(rng, size, train=True))  # each list is on the training side of the split by itself
        left -= 2 * size + 1
    cuts = sorted(int(rng.random() * (len(empty) + 1)) for _ in range(2 * len(lists)))
    words: list[str] = []
    labels: list[str | None] = []
    done = 0
    for i, names in enumerate(lists):
        for part, until in enumerate(cuts[2 * i : 2 * i + 2]):
            for line in empty[done:until]:
                words += line
            done = until
            if not part:
                words += ("list", *names)
        labels += [None] * (len(words) - len(labels))
        words += ("?", *names[:0:-1])
        labels += names[::-1]
    return Document(tuple(words), tuple(labels))


def stack(rng: random.Random, budget: int, most: Most) -> Document:
    """`push s x` and `pop s`, with what is popped as label of the stack's name; towards the end mostly pops."""
    stacks = size_of(rng, 1, budget // 6, most["stacks"])
    operations = size_of(rng, 2, (budget - ROOM) // 3, most["operations"])
    often = rng.uniform(0.45, 0.7)
    state: list[list[int]] = [[] for _ in range(stacks)]
    items = iter(range(stacks, MOST))

    def step(push: float) -> Line:
        name = int(rng.random() * stacks)
        if not state[name] or rng.random() < push:
            state[name].append(next(items))
            return ("push", name, state[name][-1]), (None, None, None)
        return ("pop", name), (None, state[name].pop())

    lines = [step(often) for _ in range(operations)]
    return laid_out(rng, lines, lambda: step(0.1), 3, budget)


@dataclass(frozen=True, slots=True)
class Maker:
    """How one subtask's documents are made, and the most that they hold by its knobs."""

    make: Callable[[random.Random, int, Most], Document]
    most: Most


MAKERS = {
    "assign": Maker(assign, {"lines": 96, "variables": 24}),
    "swap": Maker(swap, {"steps": 96, "variables": 24}),
    "index": Maker(index, {"lines": 64, "arrays": 4, "size": 10}),
    "deref": Maker(deref, {"facts": 64, "arrays": 4, "hops": 6}),
    "palindrome": Maker(palindrome, {"items": 64}),
    "stack": Maker(stack, {"operations": 96, "stacks": 16}),
}
_LIMITS = {  # together they keep every text within the names that the lexicon has
    "lines": (2, 400),
    "variables": (2, 240),
    "steps": (1, 4096),
    "arrays": (1, 64),
    "size": (2, len(DIGITS)),
    "facts": (3, 400),
    "hops": (1, 16),
    "items": (2, MOST),
    "stacks": (1, 64),
    "operations": (2, 360),
}


def document(subtask: str, seed: int, index: int, budget: int, knobs: Mapping[str, Facet]) -> Document:
    """Training document number `index` of one subtask, at most `budget` words.

    A knob is the most that a document holds of something: see `MAKERS`. Raises UserError for any other.
    """
    return made("trace", MAKERS, _LIMITS, subtask, knobs)(generator("train", "trace", subtask, seed, index), budget)


def made(
    family: str,
    makers: Mapping[str, Maker],
    limits: Mapping[str, tuple[int, int]],
    subtask: str,
    knobs: Mapping[str, Facet],
) -> Callable[[random.Random, int], Document]:
    """What makes a subtask's documents with these knobs. Raises UserError for what it does not have."""
    if subtask not in makers:
        raise unknown("subtask", f"{family}.{subtask}", (f"{family}.{name}" for name in makers))
    maker = makers[subtask]
    most = dict(maker.most)
    for knob, value in knobs.items():
        if knob not in most:
            raise unknown("training knob", f"{family}.{subtask} {knob}", most)
        least, top = limits[knob]
        if not isinstance(value, int) or not least <= value <= top:
            raise UserError(f"{family}.{subtask} {knob}={value} is not possible; give {least} to {top}")
        most[knob] = value
    return lambda rng, budget: maker.make(rng, budget, most)
