"""graph: k hops along one cycle. path: k hops over typed edges, the types known only at the question.

graph is Depo (Physics of Language Models 4.1, arXiv 2512.17351) in words: on a single cycle of n names no walk of
fewer than n hops comes back, so every other name is equally likely and the answer tells how many hops were really
done. In path every relation is a cycle of its own over the same names; tables of composed hops cannot be made before
the question is read.
"""

import random
from dataclasses import replace

from evalsuite.lexicon import RELATIONS
from evalsuite.records import Facets
from evalsuite_tasks.multihop.content import Content, Kind, Question, Statement, arrange
from evalsuite_tasks.multihop.names import draw

_LOOK = 16  # hops followed beyond the question, for the profile of hops really done
_STEPS = 64  # longest path


def _graph(rng: random.Random, facets: Facets, size: int) -> Content:
    ring = draw(rng, size)
    start = rng.randrange(max(1, size - _LOOK))  # forward, up to 16 hops do not wrap round the end of the text
    edges = [Statement(f"edge {a} {b}", f"{a} -> {b}") for a, b in zip(ring, ring[1:] + ring[:1], strict=True)]
    content = arrange(rng, [edges], facets["order"])
    first, gold = ring[start], content.statements.index(edges[start])

    def ask(hops: int) -> Question:
        walk = tuple(ring[(start + j) % size] for j in range(min(size, max(hops, _LOOK) + 1)))
        return Question(
            terse=f"ask {first}" + " next" * hops,
            natural=f"Start at {first} and follow the arrow {hops} time{'s' * (hops > 1)}. Which name do you reach? "
            "Reply with that single name.",
            prefix="You reach",
            target=(walk[hops],),
            given=first,
            gold=gold,
            walk=walk,
        )

    return replace(content, ask=ask)


def _nodes(facets: Facets, size: int) -> int:
    return size // int(facets["relations"])


def _path(rng: random.Random, facets: Facets, size: int) -> Content:
    kinds = rng.sample(RELATIONS, int(facets["relations"]))
    nodes = draw(rng, _nodes(facets, size))
    follow: dict[tuple[str, str], str] = {}
    groups = []
    for kind in kinds:
        ring = rng.sample(nodes, len(nodes))
        pairs = list(zip(ring, ring[1:] + ring[:1], strict=True))
        follow.update(((a, kind), b) for a, b in pairs)
        groups.append([Statement(f"edge {a} {kind} {b}", f"The {kind} of {a} is {b}.") for a, b in pairs])
    content = arrange(rng, groups, "shuffled")
    first, steps = rng.choice(nodes), rng.choices(kinds, k=_STEPS)
    beginning = f"edge {first} {steps[0]} "
    gold = next(i for i, each in enumerate(content.statements) if each.terse.startswith(beginning))

    def ask(hops: int) -> Question:
        walk = [first]
        for step in steps[:hops]:
            walk.append(follow[walk[-1], step])
        return Question(
            terse=" ".join(("ask", first, *steps[:hops])),
            natural=f"Start at {first} and go, one after the other, to its: {', '.join(steps[:hops])}. "
            "Which name do you reach? Reply with that single name.",
            prefix="You reach",
            target=(walk[hops],),
            given=first,
            gold=gold,
            walk=tuple(walk),
        )

    return replace(content, ask=ask)


GRAPH = Kind(
    name="graph",
    knobs=("order",),
    intro="Below is a list of arrows between names, mixed with sentences that do not matter. "
    "Every name has exactly one arrow leaving it.",
    draw=_graph,
    reach=lambda facets, size: size - 2,
    chance=lambda facets, size: 1 / (size - 1),
)
PATH = Kind(
    name="path",
    knobs=("relations",),
    intro="Below are facts about names, mixed with sentences that do not matter.",
    draw=_path,
    reach=lambda facets, size: _STEPS if _nodes(facets, size) >= 3 else -1,
    chance=lambda facets, size: 1 / _nodes(facets, size),
)
