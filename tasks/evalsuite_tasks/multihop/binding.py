"""binding: who has what, and where is it now. Every statement may be overwritten by a later one, and the latest counts.

After bAbI's supporting-fact questions (arXiv 1502.05698) and Michelangelo's latent lists (arXiv 2409.12640): a thing
is held by a person, who sits in a wagon, which stands on a ship, which lies in a city. One hop asks for the person,
two for the wagon, four for the city. A stale statement always comes before the one that replaces it; the place of the
latest one is uniform in the text.
"""

import random

from evalsuite.records import Facets
from evalsuite_tasks.multihop.content import Content, Kind, Question, Statement
from evalsuite_tasks.multihop.names import draw

_LEVELS = 4
_LINES = (
    "Thing {} is now held by person {}.",
    "Person {} is now in wagon {}.",
    "Wagon {} is now on ship {}.",
    "Ship {} is now in city {}.",
)
_KINDS = ("thing", "person", "wagon", "ship", "city")


def _width(facets: Facets, size: int) -> int:
    """Things, and as many persons, wagons, ships and cities."""
    return size // (_LEVELS * (1 + int(facets["overwrites"])))


def _draw(rng: random.Random, facets: Facets, size: int) -> Content:
    width = _width(facets, size)
    names = draw(rng, (_LEVELS + 1) * width)
    levels = [names[i : i + width] for i in range(0, len(names), width)]
    latest: dict[str, str] = {}
    placed: list[tuple[float, Statement]] = []
    final: dict[str, Statement] = {}
    for line, sources, goals in zip(_LINES, levels, levels[1:], strict=False):
        for a, goal in zip(sources, goals, strict=True):  # the names are in random order already
            spot, latest[a] = rng.random(), goal
            final[a] = Statement(f"edge {a} {goal}", line.format(a, goal))
            placed.append((spot, final[a]))
            for _ in range(int(facets["overwrites"])):
                stale = rng.choice([b for b in goals if b != goal])
                placed.append((spot * rng.random(), Statement(f"edge {a} {stale}", line.format(a, stale))))
    placed.sort()
    walk = [levels[0][0]]
    while walk[-1] in latest:
        walk.append(latest[walk[-1]])
    statements = tuple(each for _, each in placed)

    def ask(hops: int) -> Question:
        return Question(
            terse=f"ask {walk[0]}" + " next" * hops,
            natural=f"By the latest statements, with which {_KINDS[hops]} is thing {walk[0]} now? "
            f"Reply with the single name of the {_KINDS[hops]}.",
            prefix=f"The {_KINDS[hops]} is",
            target=(walk[hops],),
            given=walk[0],
            gold=statements.index(final[walk[0]]),
            walk=tuple(walk),
        )

    return Content(statements, tuple(spot for spot, _ in placed), ask)


BINDING = Kind(
    name="binding",
    knobs=("overwrites",),
    intro="Below are statements in the order of time, mixed with sentences that do not matter. "
    "A later statement about the same thing, person, wagon or ship replaces the earlier one.",
    draw=_draw,
    reach=lambda facets, size: _LEVELS if _width(facets, size) >= 2 else -1,
    chance=lambda facets, size: 1 / _width(facets, size),
)
