"""crux_exploded: what does a function return whose helpers stand far away, among others of the same signature?

A module holds `functions` helpers, each of which adds a digit of its own modulo ten, and four callers, each of which
sends a digit through `hops` different helpers. One caller is asked: it names what has to be looked up, all at once, so
that this is retrieval of several bodies and their composition, where multihop's `callchain` is one look-up after the
other. Who knows all bodies but one knows nothing: the digits are uniform and independent.

form=inlined is the control: the same module, and every caller with the bodies of its helpers written in. Nothing has to
be looked up but the caller itself.
"""

import random

from evalsuite.lexicon import DIGITS
from evalsuite.records import Facets
from evalsuite_tasks.multihop.content import Question, Statement
from evalsuite_tasks.multihop.names import MOST, draw
from evalsuite_tasks.trace.program import LAST, Kind, Program, number, spread

CALLERS = 4


def _caller(name: str, helpers: list[str], start: str, added: list[str], form: str) -> Statement:
    if form == "inlined":
        inner = start
        for digit in added:
            inner = f"({inner} + {digit}) % 10"
        return Statement(f"def {name} is {' + '.join([*added, start])}", f"def {name}():\n    return {inner}")
    inner = start
    for helper in helpers:
        inner = f"{helper}({inner})"
    terse = " ".join(f"call {helper}" for helper in reversed(helpers))
    return Statement(f"def {name} {terse} + {start}", f"def {name}():\n    return {inner}")


def _exploded(rng: random.Random, facets: Facets) -> Program:
    hops, functions = number(facets, "hops"), number(facets, "functions")
    names = draw(rng, functions + CALLERS)
    helpers = {name: rng.choice(DIGITS) for name in names[:functions]}
    lines = [
        (name, Statement(f"def {name} is {digit}", f"def {name}(x):\n    return (x + {digit}) % 10"))
        for name, digit in helpers.items()
    ]
    asked, answer, used = names[functions], "", list[str]()
    for name in names[functions:]:
        chosen, start = rng.sample(names[:functions], hops), rng.choice(DIGITS)
        added = [helpers[helper] for helper in chosen]
        lines.append((name, _caller(name, chosen, start, added, str(facets["form"]))))
        if name == asked:
            answer, used = str((int(start) + sum(map(int, added))) % 10), chosen
    rng.shuffle(lines)
    question = Question(
        terse=f"call {asked} answer",
        natural=f"What is the value of {asked}() at the end? {LAST}",
        prefix=f"The value of {asked}() is",
        target=(answer,),
        given=asked,
        gold=[name for name, _ in lines].index(asked),
    )
    return Program(spread(rng, [line for _, line in lines]), question, (asked, *used))


def _fault(facets: Facets) -> str:
    hops, functions = number(facets, "hops"), number(facets, "functions")
    if hops < 1:
        return "hops=0 is not possible, a caller calls at least one helper; form=inlined is the control"
    if functions < 2 * hops:
        return f"functions={functions} are too few to hide hops={hops}; give at least functions={2 * hops}"
    most = MOST - CALLERS
    return "" if functions <= most else f"functions={functions} are more than there are names for; give at most {most}"


EXPLODED = Kind(
    name="crux_exploded",
    knobs=("hops", "functions", "form"),
    draw=_exploded,
    fault=_fault,
    chance=lambda facets: 1 / len(DIGITS),
    form="digit",
    free=("form",),
)
