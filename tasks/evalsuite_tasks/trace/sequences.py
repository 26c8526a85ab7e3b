"""palindrome: a list of names, read backwards. stack: what is popped next from one of several stacks.

Both are tests that Kimi Linear was chosen by (arXiv 2510.26692, section 5.1), where the answer is learned from a
recurrent state without a look back. Sizes and vocabularies are not given there; here the names of a list are different
and so are all pushed ones.

In stack the asked item is followed by 1 to R pushes on its own stack, all popped again, each number equally often: R is
half of what happens on one stack. The latest push is thus never the answer, and no other fixed push is in more than 1
of R questions.
"""

import random
from math import factorial

from evalsuite.records import Facets
from evalsuite_tasks.multihop.content import Question, Statement
from evalsuite_tasks.multihop.names import draw
from evalsuite_tasks.trace.program import LAST, Kind, Program, number, spread


def _palindrome(rng: random.Random, facets: Facets) -> Program:
    names = draw(rng, number(facets, "items"))
    quoted = ", ".join(f'"{name}"' for name in names)
    question = Question(
        terse="?",
        natural="What does print(*reversed(items)) print at the end? Reply with that line alone.",
        prefix="It prints:",
        target=tuple(reversed(names)),
        given="",
        gold=0,
    )
    statement = Statement(f"list {' '.join(names)}", f"items = [{quoted}]")
    return Program(spread(rng, [statement]), question, ())


def _palindrome_fault(facets: Facets) -> str:
    return "" if number(facets, "items") >= 2 else "a list to turn round has at least items=2"


def _valid(rng: random.Random, pushes: int, pops: int) -> list[bool]:
    """A random order of pushes (True) and pops in which no pop finds an empty stack."""
    order = [True] * pushes + [False] * pops
    while True:
        rng.shuffle(order)
        height = 0
        for push in order:
            height += 1 if push else -1
            if height < 0:
                break
        else:
            return order


def _covers(operations: int) -> int:
    """Most pushes that can follow the asked item on its stack."""
    return (operations - 1) // 2


def _history(rng: random.Random, operations: int) -> list[bool]:
    """What happens on one stack: anything, the push of the item that is on top at the end, and what covers it."""
    covers = rng.randint(1, _covers(operations))
    before = operations - 1 - 2 * covers
    return [*_valid(rng, -(-before // 2), before // 2), True, *_valid(rng, covers, covers)]


def _stack(rng: random.Random, facets: Facets) -> Program:
    stacks, operations = number(facets, "stacks"), number(facets, "operations")
    histories = [_history(rng, (operations + i) // stacks) for i in range(stacks)]
    pushes = sum(map(sum, histories))
    names = draw(rng, stacks + pushes)
    owners, items = names[:stacks], iter(names[stacks:])
    turns = [i for i, history in enumerate(histories) for _ in history]
    rng.shuffle(turns)
    state: list[list[tuple[str, int]]] = [[] for _ in owners]  # item, and the line that pushed it
    todo = [iter(history) for history in histories]
    statements: list[Statement] = []
    for i in turns:
        name = owners[i]
        if next(todo[i]):
            item = next(items)
            state[i].append((item, len(statements)))
            statements.append(Statement(f"push {name} {item}", f'{name}.append("{item}")'))
        else:
            state[i].pop()
            statements.append(Statement(f"pop {name}", f"{name}.pop()"))
    asked = rng.randrange(stacks)
    answer, gold = state[asked][-1]
    question = Question(
        terse=f"pop {owners[asked]}",
        natural=f"What would {owners[asked]}.pop() return at the end? {LAST}",
        prefix=f"{owners[asked]}.pop() returns",
        target=(answer,),
        given=owners[asked],
        gold=gold,
    )
    header = tuple(f"{name} = []" for name in owners)
    return Program(spread(rng, statements), question, (owners[asked],), header)


def _stack_fault(facets: Facets) -> str:
    least = 5 * number(facets, "stacks")
    if number(facets, "operations") >= least:
        return ""
    return f"operations={facets['operations']} are too few for stacks={facets['stacks']}; give at least {least}"


PALINDROME = Kind(
    name="palindrome",
    knobs=("items",),
    draw=_palindrome,
    fault=_palindrome_fault,
    chance=lambda facets: 1 / factorial(min(number(facets, "items"), 20)),
    form="list",
)
STACK = Kind(
    name="stack",
    knobs=("stacks", "operations"),
    draw=_stack,
    fault=_stack_fault,
    chance=lambda facets: 1 / _covers(number(facets, "operations") // number(facets, "stacks")),
)
