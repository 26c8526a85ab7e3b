"""assign: values handed from variable to variable. swap: values that change places.

Both are state tracking, where recurrent layers may be ahead of attention (on code, Olmo Hybrid claims as much of
hybrids): a line means something only beside the state that the lines before it left.

assign runs ten lineages side by side, one for each digit: a constant, copied `hops` times from a variable to the next.
A variable is free again once its value was handed on, and then mostly overwritten, so that the latest assignment of
`x` and the value that `x` had when it was copied are two things. Further lines overwrite free variables up to the
number of lines, so the load is the same at any number of hops. All lineages follow one law and one of them is asked:
whatever does not look at the asked variable scores 1 in 10. The last assignment of the asked variable stands at a
uniform place of the text.

swap sets every variable once. Of the swaps that follow, the asked value takes part in 2 * steps / variables, the number
expected of swaps drawn at random, and at least in two: it is then no more often where it began, or one swap away, than
anywhere else.
"""

import random
from math import log

from evalsuite.lexicon import DIGITS
from evalsuite.records import Facets
from evalsuite_tasks.multihop.content import Question, Statement
from evalsuite_tasks.multihop.names import draw
from evalsuite_tasks.trace.program import LAST, Kind, Program, content, number, spread

Assignment = tuple[int, int | str]  # variable; the variable copied, or a digit

_SPARE = 2  # variables beside those that lineages hold: some line must be free to be overwritten


def _value(name: str, answer: str, gold: int) -> Question:
    return Question(
        terse=f"get {name}",
        natural=f"What is the value of {name} at the end? {LAST}",
        prefix=f"The value of {name} is",
        target=(answer,),
        given=name,
        gold=gold,
    )


def _lineages(rng: random.Random, hops: int, lines: int) -> list[tuple[float, int]]:
    """(place, lineage) of every line in the order of time; lineage -1 is a line that hands nothing on.

    Before a last assignment at a uniform place there are `hops` others, which makes the beginning dense: -log(place)
    lines for each. Lines that hand nothing on make up for it, as far as there are enough of them, because otherwise
    the last assignment would stand in the second half of the words.
    """
    events = []
    for lineage in range(len(DIGITS)):
        last = rng.random()
        events += [(last, lineage), *((last * rng.random(), lineage) for _ in range(hops))]
    lack = len(DIGITS) * hops / max(1, lines - len(events))
    while len(events) < lines:
        spot = 1 - rng.random()
        if rng.random() < 1 + lack * log(spot):
            events.append((spot, -1))
    return sorted(events)


def _assignments(
    rng: random.Random, turns: list[int], variables: int, digits: list[str]
) -> tuple[list[Assignment], int]:
    """The lines, and the variable that holds lineage 0 at the end."""
    holder: dict[int, int] = {}  # lineage -> the variable that hands it on next
    known: list[int] = []
    lines: list[Assignment] = []
    for lineage in turns:
        target = rng.choice([v for v in range(variables) if v not in holder.values()])
        source: int | str
        if lineage >= 0:
            source = holder.get(lineage, digits[lineage])
            holder[lineage] = target
        else:
            others = [v for v in known if v != target]
            source = rng.choice(others) if others and rng.random() < 0.5 else rng.choice(DIGITS)
        lines.append((target, source))
        if target not in known:
            known.append(target)
    return lines, holder[0]


def _assign(rng: random.Random, facets: Facets) -> Program:
    events = _lineages(rng, number(facets, "hops"), number(facets, "lines"))
    digits = rng.sample(DIGITS, len(DIGITS))
    lines, asked = _assignments(rng, [lineage for _, lineage in events], number(facets, "variables"), digits)
    used = dict.fromkeys(target for target, _ in lines)
    names = dict(zip(used, draw(rng, len(used)), strict=True))
    state: dict[int, str] = {}
    statements = []
    for target, source in lines:
        state[target] = source if isinstance(source, str) else state[source]
        text = f"{names[target]} = {source if isinstance(source, str) else names[source]}"
        statements.append(Statement(text, text))
    assert state[asked] == digits[0]
    gold = max(i for i, (target, _) in enumerate(lines) if target == asked)
    question = _value(names[asked], state[asked], gold)
    return Program(content(statements, [spot for spot, _ in events]), question, (names[asked],))


def _assign_fault(facets: Facets) -> str:
    variables, lines, hops = (number(facets, knob) for knob in ("variables", "lines", "hops"))
    if variables < (least := len(DIGITS) + _SPARE):
        return f"{variables} variables are too few for {len(DIGITS)} values; give variables={least} or more"
    if lines < (least := len(DIGITS) * (hops + 1)):
        return f"{lines} lines hold fewer than {len(DIGITS)} values of {hops} hops; give lines={least} or fewer hops"
    return ""


def moves(facets: Facets) -> int:
    """Swaps in which the asked value takes part."""
    return max(2, round(2 * number(facets, "steps") / number(facets, "variables")))


def _swap(rng: random.Random, facets: Facets) -> Program:
    variables, steps = number(facets, "variables"), number(facets, "steps")
    names = draw(rng, 2 * variables)
    state = dict(zip(names[:variables], names[variables:], strict=True))  # in random order already
    statements = [Statement(f"{name} = {value}", f'{name} = "{value}"') for name, value in state.items()]
    moving = set(rng.sample(range(steps), moves(facets)))
    here = rng.choice(names[:variables])
    answer, gold = state[here], 0
    for step in range(steps):
        others = [name for name in names[:variables] if name != here]
        pair = [here, rng.choice(others)] if step in moving else rng.sample(others, 2)
        if step in moving:
            here, gold = pair[1], len(statements)
            rng.shuffle(pair)
        a, b = pair
        state[a], state[b] = state[b], state[a]
        statements.append(Statement(f"swap {a} {b}", f"{a}, {b} = {b}, {a}"))
    assert state[here] == answer
    return Program(spread(rng, statements), _value(here, answer, gold), (here,))


def _swap_fault(facets: Facets) -> str:
    if number(facets, "variables") < 3:
        return "a swap beside the asked value takes at least variables=3"
    return "" if number(facets, "steps") >= 2 else "the asked value changes places twice; give at least steps=2"


ASSIGN = Kind(
    name="assign",
    knobs=("hops", "lines", "variables"),
    draw=_assign,
    fault=_assign_fault,
    chance=lambda facets: 1 / len(DIGITS),
    form="digit",
)
SWAP = Kind(
    name="swap",
    knobs=("steps", "variables"),
    draw=_swap,
    fault=_swap_fault,
    chance=lambda facets: 1 / (number(facets, "variables") - 1),  # of a value to be back after two swaps
)
