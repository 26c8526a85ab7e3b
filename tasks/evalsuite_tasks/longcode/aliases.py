"""aliases: several names for one object, and the latest write through any of them counts.

Ten objects hold a digit each. Every object has a first name and a chain of aliases, each bound to the one before it;
before that, every alias was bound `overwrites` times to another object, and the object was written `overwrites` times
through one of its names. Its last write comes after all of that, through its first name, at a uniform place of the
text. Asked is an alias `hops` steps down the chain, whose own name the last write does not show; hops=0 asks the first
name on the same text, the control. Last values are all different, so that whatever does not look at the asked name is
right in one of ten, and what was last written through the asked alias itself is wrong.
"""

import random

from evalsuite.lexicon import DIGITS
from evalsuite.records import Facets
from evalsuite_tasks.multihop.content import Question, Statement
from evalsuite_tasks.multihop.names import MOST, draw
from evalsuite_tasks.trace.program import LAST, Kind, Program, content, number

TIERS = (4, 8, 16)  # questions up to the tier share their text
OBJECTS = len(DIGITS)

Event = tuple[float, int, Statement]  # place, object, what happens


def _bind(name: str, other: str) -> Statement:
    return Statement(f"{name} = {other}", f"{name} = {other}")


def _write(name: str, digit: str) -> Statement:
    return Statement(f"set {name} {digit}", f"{name}[0] = {digit}")


def _reach(facets: Facets) -> int:
    """Aliases of every object."""
    return next((tier for tier in TIERS if number(facets, "hops") <= tier), TIERS[-1])


def _history(rng: random.Random, chain: list[str], roots: list[str], last: str, overwrites: int) -> list[Event]:
    """What happens to one object after it was made: `chain` are its names, `last` its digit at the end."""
    end = rng.random()
    others = [root for root in roots if root != chain[0]]
    digits = [digit for digit in DIGITS if digit != last]
    bound = sorted(end * rng.random() for _ in chain[1:])
    events = [(end, 1, _write(chain[0], last))]
    for name, before, place in zip(chain[1:], chain, bound, strict=False):
        events.append((place, 0, _bind(name, before)))
        events += ((place * rng.random(), 0, _bind(name, rng.choice(others))) for _ in range(overwrites))
        shown = place + (end - place) * rng.random()  # once through each alias, so that it shows a stale value
        events.append((shown, 0, _write(name, rng.choice(digits))))
    events += ((end * rng.random(), 0, _write(chain[0], rng.choice(digits))) for _ in range(overwrites))
    return events


def _aliases(rng: random.Random, facets: Facets) -> Program:
    reach = _reach(facets)
    names = draw(rng, OBJECTS * (reach + 1))
    chains = [names[i : i + reach + 1] for i in range(0, len(names), reach + 1)]
    roots = [chain[0] for chain in chains]
    finals = rng.sample(DIGITS, OBJECTS)
    events: list[Event] = []
    for chain, last in zip(chains, finals, strict=True):
        events += _history(rng, chain, roots, last, number(facets, "overwrites"))
    events.sort(key=lambda event: event[0])
    made = [
        Statement(f"{root} = {digit}", f"{root} = [{digit}]")
        for root, digit in zip(roots, rng.choices(DIGITS, k=OBJECTS), strict=True)
    ]
    first = events[0][0]
    spots = [*sorted(first * rng.random() for _ in made), *(place for place, _, _ in events)]
    statements = [*made, *(statement for _, _, statement in events)]
    chain, answer = chains[0], finals[0]
    gold = OBJECTS + [statement for _, _, statement in events].index(_write(chain[0], answer))

    def ask(hops: int) -> Question:
        name = chain[hops]
        return Question(
            terse=f"get {name}",
            natural=f"What is the value of {name}[0] at the end? {LAST}",
            prefix=f"The value of {name}[0] is",
            target=(answer,),
            given=name,
            gold=gold,
        )

    hops = number(facets, "hops")
    return Program(content(statements, spots), ask(hops), (chain[hops],), siblings=tuple(map(ask, range(reach + 1))))


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
