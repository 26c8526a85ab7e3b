"""Training documents in the closed lexicon: facts among noise, then queries with a label after every hop.

The recipe is Depo's (Physics of Language Models 4.1, arXiv 2512.17351): a fresh instance per document, its size drawn
from 1 / (n + sqrt(N)), loss on answers only. A query `ask x next next next` has a label at each `next` (the node
after that many hops), and the labels are never fed back as words: hop k is supervised next to hop k - 1, and nothing
spells it out. A document has its own depth, as an evaluation question has. Queries follow the facts directly, as
there. With answer=cot a query of `graph` or `path` is `trace x next next are a b`: each node is written before the next
one is asked, so that every step is one hop.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from evalsuite.errors import UserError, unknown
from evalsuite.lexicon import DIGITS, RELATIONS
from evalsuite.records import Facet
from evalsuite.task import Document, generator
from evalsuite_tasks.multihop.names import draw
from evalsuite_tasks.multihop.scatter import scattered, weighted_size

Words = tuple[str, ...]
Labels = tuple[str | None, ...]
Query = Callable[[], tuple[Words, Labels]]


@dataclass(frozen=True, slots=True)
class Extent:
    """How much a document holds at most, and the form of its answers."""

    facts: int = 64
    hops: int = 6  # labels of the longest query
    answer: str = "direct"  # or "cot"

    @property
    def cot(self) -> bool:
        """Whether queries write down each node on the way."""
        return self.answer == "cot"

    def most(self, budget: int, words: int) -> int:
        """Facts of `words` words each that leave room for four of the longest queries."""
        return min(self.facts, (budget - 4 * ((2 if self.cot else 1) * self.hops + 2 + self.cot)) // words)

    def depth(self, rng: random.Random) -> int:
        """Labels of each query of a document: the most in half of them, any number in the others."""
        return self.hops if rng.random() < 0.5 else rng.randint(1, self.hops)

    def longest(self, depth: int) -> int:
        """Words of a query of so many hops."""
        return 2 * depth + 3 if self.cot else depth + 2

    def query(self, start: str, steps: Words, walk: Words) -> tuple[Words, Labels]:
        """Words and labels of a walk from `start`."""
        if self.cot:
            words = ("trace", start, *steps, "are", *walk)
            return words, (*[None] * (len(steps) + 2), *walk, None)
        return ("ask", start, *steps), (None, None, *walk)


def _size(rng: random.Random, least: int, most: int, extent: Extent) -> int:
    """A number of facts in least..most, n with weight 1 / (8 + n) where the largest number is 64."""
    return weighted_size(rng, least, most, extent.facts)


def _document(rng: random.Random, facts: list[Words], query: Query, longest: int, budget: int) -> Document:
    lines = [(fact, (None,) * len(fact)) for fact in facts]
    words, labels = scattered(rng, lines, query, longest, budget)
    return Document(tuple(map(str, words)), tuple(None if label is None else str(label) for label in labels))


def graph(rng: random.Random, budget: int, extent: Extent) -> Document:
    """`edge a b` over one cycle; `ask x next next next`."""
    size, depth = _size(rng, 3, extent.most(budget, 3), extent), extent.depth(rng)
    ring = draw(rng, size, train=True)
    ring += ring[:1]
    facts: list[Words] = [("edge", ring[i], ring[i + 1]) for i in range(size)]
    rng.shuffle(facts)
    ring = ring[:size] * (depth // size + 2)
    tail = ("next",) * depth

    def query() -> tuple[Words, Labels]:
        start = int(rng.random() * size)
        return extent.query(ring[start], tail, tuple(ring[start + 1 : start + 1 + depth]))

    return _document(rng, facts, query, extent.longest(depth), budget)


def path(rng: random.Random, budget: int, extent: Extent) -> Document:
    """`edge a r b`, one cycle over the same nodes for each of 2..4 relations; `ask x r1 r2 r3`."""
    kinds = rng.sample(RELATIONS, rng.randint(2, 4))
    size = _size(rng, 3, extent.most(budget, 4) // len(kinds), extent)
    nodes, depth = draw(rng, size, train=True), extent.depth(rng)
    follow: dict[tuple[str, str], str] = {}
    for kind in kinds:
        ring = rng.sample(nodes, size)
        follow.update(((a, kind), b) for a, b in zip(ring, ring[1:] + ring[:1], strict=True))
    facts: list[Words] = [("edge", a, kind, b) for (a, kind), b in follow.items()]
    rng.shuffle(facts)

    def query() -> tuple[Words, Labels]:
        node = start = rng.choice(nodes)
        steps = rng.choices(kinds, k=depth)
        walk = [node := follow[node, step] for step in steps]
        return extent.query(start, tuple(steps), tuple(walk))

    return _document(rng, facts, query, extent.longest(depth), budget)


def _chains(rng: random.Random, most: int, extent: Extent) -> tuple[int, int]:
    """Number of chains and statements of each: at least two chains of at most `extent.hops` statements."""
    size = _size(rng, 4, most, extent)
    length = rng.randint(1, min(extent.hops, size // 2))
    return size // length, length


def chains(rng: random.Random, budget: int, extent: Extent) -> Document:
    """`edge b a` links and `edge root value`; `ask tail next next ..` and, one query in four, `trace v are a b ..`."""
    number, length = _chains(rng, extent.most(budget, 3), extent)
    names = draw(rng, number * (length + 1), train=True)
    walks = [names[i : i + length + 1] for i in range(0, len(names), length + 1)]  # tail ... root value
    facts: list[Words] = [("edge", a, b) for walk in walks for a, b in pairwise(walk)]
    rng.shuffle(facts)

    def query() -> tuple[Words, Labels]:
        walk = rng.choice(walks)
        if rng.random() < 0.25:
            names = walk[-2::-1]  # from the root on; each name is the label of the word before
            return ("trace", walk[-1], "are", *names), (None, None, *names, None)
        rest = walk[rng.randrange(length) :]
        return ("ask", rest[0], *["next"] * (len(rest) - 1)), (None, None, *rest[1:])

    return _document(rng, facts, query, length + 3, budget)


def callchain(rng: random.Random, budget: int, extent: Extent) -> Document:
    """`def f call g` and `def f is v`, or `def f call g + 3` and digits modulo ten; `call f answer`.

    Every other query walks, `call f next next next`, with the function reached at each `next`, then the value.
    """
    arith = rng.random() < 0.5
    number, length = _chains(rng, extent.most(budget, 6 if arith else 4), extent)
    names = draw(rng, number * (length + (not arith)), train=True)
    step = length + (not arith)
    walks = [names[i : i + step] for i in range(0, len(names), step)]  # caller ... leaf value
    facts: list[Words] = []
    values: dict[str, str] = {}
    for walk in walks:
        if arith:
            walk.append(rng.choice(DIGITS))
        facts.append(("def", walk[-2], "is", walk[-1]))
        values[walk[-2]] = walk[-1]
        for i in range(length - 2, -1, -1):
            f, g, add = walk[i], walk[i + 1], rng.choice(DIGITS)
            facts.append(("def", f, "call", g, "+", add) if arith else ("def", f, "call", g))
            values[f] = DIGITS[(int(values[g]) + int(add)) % 10] if arith else values[g]
    rng.shuffle(facts)

    def query() -> tuple[Words, Labels]:
        walk = rng.choice(walks)
        start = rng.randrange(length)
        f, inner = walk[start], walk[start + 1 : -1]
        if rng.random() < 0.5:
            return ("call", f, "answer"), (None, None, values[f])
        return ("call", f, "next", *["next"] * len(inner)), (None, None, *inner, walk[-1])

    return _document(rng, facts, query, length + 3, budget)


def binding(rng: random.Random, budget: int, extent: Extent) -> Document:
    """`edge a b` in time order over five kinds of things, each stated 1..3 times and the latest counts."""
    times = rng.randint(1, 3)
    width = max(2, _size(rng, 8 * times, extent.most(budget, 3), extent) // (4 * times))
    names = draw(rng, 5 * width, train=True)
    levels = [names[i : i + width] for i in range(0, 5 * width, width)]
    latest: dict[str, str] = {}
    where: dict[str, list[str]] = {}
    for sources, goals in pairwise(levels):
        latest.update(zip(sources, goals, strict=True))  # the names are in random order already
        where.update((a, goals) for a in sources)
    order = list(latest) * times
    rng.shuffle(order)
    last = {a: i for i, a in enumerate(order)}
    facts: list[Words] = []
    for i, a in enumerate(order):
        b = latest[a]
        while i != last[a] and b == latest[a]:
            b = rng.choice(where[a])
        facts.append(("edge", a, b))

    def query() -> tuple[Words, Labels]:
        node = start = rng.choice(order)
        walk = []
        while node in latest:
            walk.append(node := latest[node])
        return ("ask", start, *["next"] * len(walk)), (None, None, *walk)

    return _document(rng, facts, query, 6, budget)


MAKERS = {"graph": graph, "path": path, "chain": chains, "binding": binding, "callchain": callchain}


def document(subtask: str, seed: int, index: int, budget: int, knobs: Mapping[str, Facet]) -> Document:
    """Training document number `index` of one subtask, at most `budget` words.

    Knobs: `facts`, how many there are at most (64), `hops`, labels of the longest query (6), and for `graph` and `path`
    `answer`, "direct" or "cot". Raises UserError for any other.
    """
    if subtask not in MAKERS:
        raise unknown("subtask", f"multihop.{subtask}", (f"multihop.{name}" for name in MAKERS))
    return MAKERS[subtask](generator("train", "multihop", subtask, seed, index), budget, _extent(subtask, knobs))


def _extent(subtask: str, knobs: Mapping[str, Facet]) -> Extent:
    own = ("facts", "hops", *(["answer"] if subtask in ("graph", "path") else []))
    for name, value in knobs.items():
        if name not in own:
            raise unknown("training knob", f"multihop.{subtask} {name}", own)
        possible = value in ("direct", "cot") if name == "answer" else isinstance(value, int) and value > 0
        if not possible:
            raise UserError(f"multihop.{subtask} {name}={value} is not possible in training documents")
    return Extent(**dict(knobs))  # type: ignore[arg-type]
