"""chain: variables set to variables, RULER's variable tracking (arXiv 2404.06654) repaired. callchain: as code.

RULER hides one chain in forward order, which a single pass resolves at any number of hops. Here C chains compete, so
that guessing gives 1 / C, and the order is a knob: shuffled or reversed, a pass that forgets unresolved links is
lost. callchain is InfiniteBench's code_run (arXiv 2402.13718) with the depth independent of the length; sums are
taken modulo ten, as there plain sums of nearby depths land close to each other.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from evalsuite.lexicon import DIGITS
from evalsuite.records import Facets
from evalsuite_tasks.multihop.content import Content, Kind, Question, Statement, arrange
from evalsuite_tasks.multihop.names import draw


def _sizes(facets: Facets, size: int) -> list[int]:
    """Statements of each chain, as even as possible; chain 0 is asked, and for a set it has exactly hops + 1."""
    number = int(facets["chains"])
    if facets.get("question") == "set":
        asked = int(facets["hops"]) + 1
        rest = number - 1
        return [asked, *((size - asked + i) // rest for i in range(rest))]
    return [(size + number - 1 - i) // number for i in range(number)]


def _reach(facets: Facets, size: int) -> int:
    if facets.get("question") == "set":
        return int(facets["hops"]) if min(_sizes(facets, size)) > 0 else -1
    return size // int(facets["chains"]) - 1


def _split(names: Sequence[str], sizes: Sequence[int]) -> list[list[str]]:
    rest = iter(names)
    return [[next(rest) for _ in range(size)] for size in sizes]


def _chain(rng: random.Random, facets: Facets, size: int) -> Content:
    sizes = _sizes(facets, size)
    *chains, values = _split(draw(rng, size + len(sizes)), [*sizes, len(sizes)])  # each chain from its root on
    groups = [
        [
            Statement(f"edge {chain[0]} {value}", f'VAR {chain[0]} = "{value}"'),
            *(Statement(f"edge {b} {a}", f"VAR {b} = VAR {a}") for a, b in pairwise(chain)),
        ]
        for chain, value in zip(chains, values, strict=True)
    ]
    content = arrange(rng, groups, facets["order"])
    listed = rng.sample(values, len(values))

    def ask(hops: int) -> Question:
        name, value = chains[0][hops], values[0]
        if facets["question"] == "set":
            plural = f"{hops + 1} variables have" if hops else "1 variable has"
            return Question(
                terse=f"trace {value} are",
                natural=f'{plural} the value "{value}", directly or through other variables. List all of them, and '
                "nothing else, on one line.",
                prefix=f'The variables with the value "{value}" are:',
                target=tuple(chains[0]),
                given=value,
                gold=content.statements.index(groups[0][0]),
            )
        return Question(
            terse=f"ask {name}" + " next" * (hops + 1),
            natural=f"What is the value of VAR {name}? Reply with that single value.",
            prefix=f"The value of VAR {name} is",
            target=(value,),
            given=name,
            gold=content.statements.index(groups[0][hops]),
            choices=tuple(listed),
        )

    return replace(content, ask=ask)


def _define(f: str, g: str, add: str) -> Statement:
    """A function that calls another; with `add` it adds a digit modulo ten."""
    if add:
        return Statement(f"def {f} call {g} + {add}", f"def {f}():\n    return ({g}() + {add}) % 10")
    return Statement(f"def {f} call {g}", f"def {f}():\n    return {g}()")


def _callchain(rng: random.Random, facets: Facets, size: int) -> Content:
    sizes, arith = _sizes(facets, size), facets["variant"] == "arith"
    *chains, names = _split(draw(rng, size + len(sizes)), [*sizes, len(sizes)])  # each chain from its leaf on
    leaves = rng.choices(DIGITS, k=len(sizes)) if arith else names
    groups, answers = [], list[list[str]]()
    for chain, leaf in zip(chains, leaves, strict=True):
        group = [
            Statement(f"def {chain[0]} is {leaf}", f"def {chain[0]}():\n    return {leaf if arith else repr(leaf)}")
        ]
        results = [leaf]
        for g, f in pairwise(chain):
            add = rng.choice(DIGITS) if arith else ""
            group.append(_define(f, g, add))
            results.append(DIGITS[(int(results[-1]) + int(add)) % 10] if arith else leaf)
        groups.append(group)
        answers.append(results)
    content = arrange(rng, groups, facets["order"])

    def ask(hops: int) -> Question:
        name = chains[0][hops]
        return Question(
            terse=f"call {name} answer",
            natural=f"What does {name}() return? Reply with that single value.",
            prefix=f"{name}() returns",
            target=(answers[0][hops],),
            given=name,
            gold=content.statements.index(groups[0][hops]),
        )

    return replace(content, ask=ask)


CHAIN = Kind(
    name="chain",
    knobs=("chains", "order", "question"),
    intro="Below are assignments of variables, mixed with sentences that do not matter. "
    "They hold all at once: their order means nothing.",
    draw=_chain,
    reach=_reach,
    chance=lambda facets, size: 0.0 if facets["question"] == "set" else 1 / int(facets["chains"]),
    least=0,
)
CALLCHAIN = Kind(
    name="callchain",
    knobs=("chains", "order", "variant"),
    intro="Below are Python functions, mixed with sentences that do not matter.",
    draw=_callchain,
    reach=_reach,
    chance=lambda facets, size: 1 / len(DIGITS) if facets["variant"] == "arith" else 1 / int(facets["chains"]),
    least=0,
)
