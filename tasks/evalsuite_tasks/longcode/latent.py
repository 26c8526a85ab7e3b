"""latent_list: what an element of a list is after `steps` operations on it, among as many on every other list.

After the Latent List of Michelangelo (arXiv 2409.12640), whose text is not public: append, insert at the front, pop at
either end, reverse. All items are different names. The difficulty is the number of relevant operations; comments fill
the length, and the other lists are what has to be ignored.

The asked place is one that the list had at first, and the answer equally often each of the items that can come to
stand there: one of the initial list, or one that was added. What stood there itself is never the answer. So the place
alone says no more than what is in the list does, once there are enough steps to bring every item there. Few steps bring
few: the chance of a cell is what the best guess from the place alone scores.
"""

import random
from functools import cache
from statistics import fmean
from typing import TypeVar

from evalsuite.lexicon import DIGITS
from evalsuite.records import Facets
from evalsuite_tasks.multihop.content import Question, Statement
from evalsuite_tasks.multihop.names import MOST, draw
from evalsuite_tasks.trace.program import LAST, Kind, Program, content, number

Item = TypeVar("Item", str, int)
SLACK = 2  # a list grows and shrinks by no more than this
ADDED = -1  # in place of the number of an initial item
WORDS = {  # operation -> terse and natural, of a list and an item
    "append": ("push {0} {1}", '{0}.append("{1}")'),
    "insert": ("add {0} {1}", '{0}.insert(0, "{1}")'),
    "pop": ("pop {0}", "{0}.pop()"),
    "first": ("next {0}", "{0}.pop(0)"),
    "reverse": ("swap {0}", "{0}.reverse()"),
}


def apply(items: list[Item], operation: str, item: Item) -> None:
    """Do one operation to a list; `item` is for those that add one."""
    if operation == "append":
        items.append(item)
    elif operation == "insert":
        items.insert(0, item)
    elif operation == "reverse":
        items.reverse()
    else:
        items.pop(0 if operation == "first" else -1)


def walk(rng: random.Random, size: int, steps: int) -> list[str]:
    """A random walk of the length within `SLACK` of where it began."""
    length, found = size, list[str]()
    for _ in range(steps):
        possible = ["reverse"] if not found or found[-1] != "reverse" else []  # two of them would be none
        possible += ["append", "insert"] if length < size + SLACK else []
        possible += ["pop", "first"] if length > size - SLACK else []
        operation = rng.choice(possible)
        length += {"append": 1, "insert": 1, "reverse": 0}.get(operation, -1)
        found.append(operation)
    return found


def _origins(rng: random.Random, size: int, steps: int) -> list[dict[int, list[list[str]]]]:
    """For every place of a list: what can come to stand there -> walks that bring it, of some drawn at random."""
    found: list[dict[int, list[list[str]]]] = [{} for _ in range(size)]
    for _ in range(min(256, max(64, 2048 // steps))):  # enough that few of the rarest are missed
        operations, items = walk(rng, size, steps), list(range(size))
        for operation in operations:
            apply(items, operation, ADDED)
        for place, item in enumerate(items[:size]):
            if item != place:
                found[place].setdefault(item, []).append(operations)
    return found


def _asked(rng: random.Random, size: int, steps: int) -> tuple[int, list[str]]:
    """A place of the asked list, and the list's operations."""
    while True:
        places = [(place, origins) for place, origins in enumerate(_origins(rng, size, steps)) if origins]
        if places:
            place, origins = rng.choice(places)
            return place, rng.choice(origins[rng.choice(sorted(origins))])


@cache
def _blind(size: int, steps: int) -> float:
    """What the best guess from the asked place alone scores."""
    rng = random.Random(0)
    return fmean(fmean(1 / len(each) for each in _origins(rng, size, steps) if each) for _ in range(32))


def _latent(rng: random.Random, facets: Facets) -> Program:
    lists, size, steps = (number(facets, knob) for knob in ("lists", "size", "steps"))
    place, operations = _asked(rng, size, steps)
    walks = [operations, *(walk(rng, size, steps) for _ in range(lists - 1))]
    added = sum(operation in ("append", "insert") for each in walks for operation in each)
    names = draw(rng, lists * (size + 1) + added)
    owners, fresh = names[:lists], iter(names[lists:])
    state = {owner: [next(fresh) for _ in range(size)] for owner in owners}
    quoted = '", "'
    statements = [
        Statement(f"list {owner} {' '.join(items)}", f'{owner} = ["{quoted.join(items)}"]')
        for owner, items in state.items()
    ]
    turns = [i for i, each in enumerate(walks) for _ in each]
    rng.shuffle(turns)
    todo = [iter(each) for each in walks]
    gold = 0
    for i in turns:
        operation = next(todo[i])
        item = next(fresh) if operation in ("append", "insert") else ""
        apply(state[owners[i]], operation, item)
        terse, natural = (form.format(owners[i], item) for form in WORDS[operation])
        gold = len(statements) if i == 0 else gold
        statements.append(Statement(terse, natural))
    asked = owners[0]
    question = Question(
        terse=f"get {asked} [ {DIGITS[place]} ]",
        natural=f"What is the value of {asked}[{place}] at the end? {LAST}",
        prefix=f"The value of {asked}[{place}] is",
        target=(state[asked][place],),
        given=asked,
        gold=gold,
    )
    spots = sorted(rng.random() for _ in statements)
    return Program(content(statements, spots), question, (asked,))


def _fault(facets: Facets) -> str:
    lists, size, steps = (number(facets, knob) for knob in ("lists", "size", "steps"))
    least, most = SLACK + 1, len(DIGITS) - SLACK
    if not least <= size <= most:
        return f"size={size} is not possible; give a list {least} to {most} items"
    if lists * (size + 1 + steps) > MOST:
        return f"lists={lists} of size={size} with steps={steps} take more names than there are; give fewer of each"
    return ""


LATENT = Kind(
    name="latent_list",
    knobs=("steps", "lists", "size"),
    draw=_latent,
    fault=_fault,
    chance=lambda facets: max(1 / number(facets, "size"), _blind(number(facets, "size"), number(facets, "steps"))),
)
