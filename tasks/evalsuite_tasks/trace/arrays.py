"""index: the latest value of one element. deref: an element whose index is an element, `a [ a [ i ] ]`.

In index every element and every index variable is written 1 + `overwrites` times. As in multihop's binding, the place
of the latest write is uniform in the text, stale ones stand before it, and a stale value is the latest of some other
element. The index is asked as a digit, one look-up, or on the same text as a variable, two.

deref is the multi-hop form in code. Arrays are indexed by names, so that their size is no limit; each is one cycle over
the same names, which means that a single array, `a [ a [ i ] ]`, comes back after all of its elements only. Lines are
in random order and each is final.
"""

import random

from evalsuite.lexicon import DIGITS
from evalsuite.records import Facets
from evalsuite_tasks.multihop.content import Question, Statement
from evalsuite_tasks.multihop.names import draw
from evalsuite_tasks.trace.program import LAST, Kind, Program, content, number, spread

INDICES = 4  # index variables of a text
_DEEPEST = 16  # look-ups of the longest question
_SHARED = 6  # questions up to this depth share their text: see `Trace`

Write = tuple[float, str, str, str]  # place; array, index and value, or variable, "" and digit


def element(array: str, index: str) -> str:
    """`a [ 2 ]`, every sign a word."""
    return f"{array} [ {index} ]"


def _times(rng: random.Random, overwrites: int) -> list[float]:
    """Places of the writes of one element, the latest one first."""
    last = rng.random()
    return [last, *(last * rng.random() for _ in range(overwrites))]


def _writes(
    rng: random.Random, arrays: list[str], held: dict[str, str], values: list[str], facets: Facets
) -> list[Write]:
    """Every write in the order of time; `held` are index variables and their latest digit, `values` those of the
    elements, array after array."""
    size, overwrites = number(facets, "size"), number(facets, "overwrites")
    placed: list[Write] = []

    def write(name: str, index: str, latest: str, possible: list[str]) -> None:
        first, *stale = _times(rng, overwrites)
        placed.append((first, name, index, latest))
        placed.extend((spot, name, index, rng.choice([v for v in possible if v != latest])) for spot in stale)

    for variable, digit in held.items():
        write(variable, "", digit, list(DIGITS[:size]))
    for i, value in enumerate(values):
        write(arrays[i // size], DIGITS[i % size], value, values)
    return sorted(placed)


def _index(rng: random.Random, facets: Facets) -> Program:
    count, size = number(facets, "arrays"), number(facets, "size")
    names = draw(rng, count + INDICES + count * size)
    arrays, variables, values = names[:count], names[count : count + INDICES], names[count + INDICES :]
    held = {variable: rng.choice(DIGITS[:size]) for variable in variables}
    array, variable = rng.choice(arrays), rng.choice(variables)
    writes = _writes(rng, arrays, held, values, facets)
    state: dict[str, str] = {}
    place: dict[str, int] = {}
    statements = []
    for i, (_, name, index, value) in enumerate(writes):
        key = element(name, index) if index else name
        state[key], place[key] = value, i
        natural = f'{name}[{index}] = "{value}"' if index else f"{name} = {value}"
        statements.append(Statement(f"{key} = {value}", natural))
    asked = element(array, digit := state[variable])
    assert digit == held[variable]
    assert state[asked] == values[arrays.index(array) * size + int(digit)]

    def ask(index: str, gold: int) -> Question:
        return Question(
            terse=f"get {element(array, index)}",
            natural=f"What is the value of {array}[{index}] at the end? {LAST}",
            prefix=f"The value of {array}[{index}] is",
            target=(state[asked],),
            given=array,
            gold=gold,
        )

    forms = {"digit": ask(digit, place[asked]), "variable": ask(variable, place[variable])}
    return Program(
        content(statements, [write[0] for write in writes]),
        forms[str(facets["by"])],
        (array, variable),
        tuple(f"{name} = [None] * {size}" for name in arrays),
        tuple(forms.values()),
    )


def _index_fault(facets: Facets) -> str:
    size = number(facets, "size")
    return "" if 2 <= size <= len(DIGITS) else f"size={size} is not possible; give an array 2 to {len(DIGITS)} elements"


def _nodes(facets: Facets) -> int:
    return number(facets, "facts") // number(facets, "arrays")


def _deref(rng: random.Random, facets: Facets) -> Program:
    count, nodes = number(facets, "arrays"), _nodes(facets)
    names = draw(rng, count + nodes)
    arrays, keys = names[:count], names[count:]
    state: dict[tuple[str, str], str] = {}
    for array in arrays:
        ring = rng.sample(keys, nodes)
        state.update(((array, a), b) for a, b in zip(ring, ring[1:] + ring[:1], strict=True))
    lines = list(state.items())
    rng.shuffle(lines)
    statements = [Statement(f"{element(a, i)} = {v}", f'{a}["{i}"] = "{v}"') for (a, i), v in lines]
    start, steps = rng.choice(keys), rng.choices(arrays, k=_DEEPEST)
    walk = [start]
    for array in steps:
        walk.append(state[array, walk[-1]])
    gold = lines.index(((steps[0], start), walk[1]))

    def ask(hops: int) -> Question:
        terse, natural = start, f'"{start}"'
        for array in steps[:hops]:  # the first look-up is the innermost
            terse, natural = element(array, terse), f"{array}[{natural}]"
        return Question(
            terse=f"get {terse}",
            natural=f"What is the value of {natural} at the end? {LAST}",
            prefix=f"The value of {natural} is",
            target=(walk[hops],),
            given=start,
            gold=gold,
            walk=tuple(walk) if count > 1 else tuple(walk[:nodes]),
        )

    hops = number(facets, "hops")
    siblings = range(1, min(_SHARED, _reach(facets)) + 1) if hops <= _SHARED else (hops,)
    return Program(
        spread(rng, statements),
        ask(hops),
        (*dict.fromkeys(steps[:hops]), start),
        tuple(f"{name} = {{}}" for name in arrays),
        tuple(map(ask, siblings)),
    )


def _reach(facets: Facets) -> int:
    """Most look-ups that can be asked."""
    return min(_DEEPEST, _nodes(facets) - 2) if number(facets, "arrays") == 1 else _DEEPEST


def _deref_fault(facets: Facets) -> str:
    if _nodes(facets) < 3:
        return f"facts={facets['facts']} are too few for arrays={facets['arrays']}; give an array at least 3 elements"
    reach = _reach(facets)
    return "" if 1 <= number(facets, "hops") <= reach else f"hops={facets['hops']} is not possible; give 1 to {reach}"


INDEX = Kind(
    name="index",
    knobs=("arrays", "size", "overwrites", "by"),
    draw=_index,
    fault=_index_fault,
    chance=lambda facets: 1 / number(facets, "size"),  # the array's name alone leaves its latest values
    free=("by",),
)
DEREF = Kind(
    name="deref",
    knobs=("hops", "facts", "arrays"),
    draw=_deref,
    fault=_deref_fault,
    chance=lambda facets: 1 / (_nodes(facets) - (number(facets, "arrays") == 1)),  # one cycle never comes back
    free=("hops",),
)
