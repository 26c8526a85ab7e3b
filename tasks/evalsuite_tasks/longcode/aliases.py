"""aliases: several names for one object, and the latest write through any of them counts.

Ten objects hold a digit each. The names of an object are a path: of two neighbours one was bound to the other, outwards
from the first name to both ends. Before that, every alias was bound `overwrites` times to another object. Every name
shows a stale value once, and the object is written `overwrites` times more through any of its names. Its last write
goes through the name at one end of the path: the first name in one object of ten, else an alias, so that who leaves out
what is written through aliases is at chance. Asked is the name `hops` steps along the path, whose own name the last
write does not show; hops=0 asks the written name on the same text, the control.

All last writes come after one place that the ten objects share, each at a uniform place of the rest, so that what
stands before it says nothing of their order. Last values are all different: whatever does not look at the asked name is
right in one of ten, and what was last written through the asked name itself is wrong.
"""

import random

from evalsuite.lexicon import DIGITS
from evalsuite.records import Facets
from evalsuite_tasks.multihop.content import Question, Statement
from evalsuite_tasks.multihop.names import MOST, draw
from evalsuite_tasks.trace.program import LAST, Kind, Program, content, number

TIERS = (4, 8, 16)  # questions up to the tier share their text
OBJECTS = len(DIGITS)

Event = tuple[float, Statement]  # place, what happens


def _bind(name: str, other: str) -> Statement:
    return Statement(f"{name} = {other}", f"{name} = {other}")


def _write(name: str, digit: str) -> Statement:
    return Statement(f"set {name} {digit}", f"{name}[0] = {digit}")


def _reach(facets: Facets) -> int:
    """Aliases of every object."""
    return next((tier for tier in TIERS if number(facets, "hops") <= tier), TIERS[-1])


def _first(rng: random.Random, reach: int) -> int:
    """Where on its path an object's first name is; at 0 the last write goes through it."""
    return 0 if rng.random() < 1 / OBJECTS else rng.randint(1, reach)


def _bound(rng: random.Random, path: list[str], first: int, cut: float) -> list[tuple[float, str, str]]:
    """(place, alias, the name that it is bound to), each of them after the name that it is bound to."""
    found: list[tuple[float, str, str]] = []
    for arm in (path[first::-1], path[first:]):
        places = sorted(cut * rng.random() for _ in arm[1:])
        found += zip(places, arm[1:], arm, strict=False)
    return found


def _history(
    rng: random.Random, path: list[str], first: int, others: list[str], stale: list[str], overwrites: int, cut: float
) -> list[Event]:
    """What happens before `cut` to the object of the names `path`: bindings, and writes of `stale` digits."""
    events: list[Event] = []
    since = {path[first]: 0.0}
    for place, name, before in _bound(rng, path, first, cut):
        since[name] = place
        events.append((place, _bind(name, before)))
        events += ((place * rng.random(), _bind(name, rng.choice(others))) for _ in range(overwrites))
    for name in [*path, *rng.choices(path, k=overwrites)]:
        place = since[name] + (cut - since[name]) * rng.random()
        events.append((place, _write(name, rng.choice(stale))))
    return events


def _aliases(rng: random.Random, facets: Facets) -> Program:
    reach = _reach(facets)
    names = draw(rng, OBJECTS * (reach + 1))
    paths = [names[i : i + reach + 1] for i in range(0, len(names), reach + 1)]
    firsts = [_first(rng, reach) for _ in paths]
    roots = [path[first] for path, first in zip(paths, firsts, strict=True)]
    finals = rng.sample(DIGITS, OBJECTS)
    cut = rng.random() / 2
    events: list[Event] = []
    for path, first, last in zip(paths, firsts, finals, strict=True):
        others = [root for root in roots if root != path[first]]
        stale = [digit for digit in DIGITS if digit != last]
        events += _history(rng, path, first, others, stale, number(facets, "overwrites"), cut)
        events.append((cut + (1 - cut) * rng.random(), _write(path[0], last)))
    events.sort(key=lambda event: event[0])
    made = [
        Statement(f"{root} = {digit}", f"{root} = [{digit}]")
        for root, digit in zip(roots, rng.choices(DIGITS, k=OBJECTS), strict=True)
    ]
    rng.shuffle(made)  # the asked object is not the one that was made first
    start = events[0][0]
    spots = [*sorted(start * rng.random() for _ in made), *(place for place, _ in events)]
    statements = [*made, *(statement for _, statement in events)]
    path, answer = paths[0], finals[0]
    gold = statements.index(_write(path[0], answer))  # no other write of the object is of this digit

    def ask(hops: int) -> Question:
        name = path[hops]
        return Question(
            terse=f"get {name}",
            natural=f"What is the value of {name}[0] at the end? {LAST}",
            prefix=f"The value of {name}[0] is",
            target=(answer,),
            given=name,
            gold=gold,
        )

    hops = number(facets, "hops")
    return Program(content(statements, spots), ask(hops), (path[hops],), siblings=tuple(map(ask, range(reach + 1))))


def _fault(facets: Facets) -> str:
    if number(facets, "hops") > TIERS[-1]:
        return f"hops={facets['hops']} is not possible; give 0 to {TIERS[-1]}"
    assert OBJECTS * (TIERS[-1] + 1) <= MOST
    return ""


ALIASES = Kind(
    name="aliases",
    knobs=("hops", "overwrites"),
    draw=_aliases,
    fault=_fault,
    chance=lambda facets: 1 / len(DIGITS),
    form="digit",
    free=("hops",),
)
