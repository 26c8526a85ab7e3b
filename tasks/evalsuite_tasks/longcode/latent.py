"""latent_list: what an element of a list is after `steps` operations on it, among as many on every other list.

After the Latent List of Michelangelo (arXiv 2409.12640), whose text is not public: append, insert at the front, pop at
either end, reverse. All items are different names, and what stood at the asked place at first is never the answer, so
that the initial list alone scores nothing. The difficulty is the number of relevant operations; comments fill the
length, and the other lists are what has to be ignored.
"""

import random
from typing import TypeVar

from evalsuite.lexicon import DIGITS
from evalsuite.records import Facets
from evalsuite_tasks.multihop.content import Question, Statement
from evalsuite_tasks.multihop.names import MOST, draw
from evalsuite_tasks.trace.program import LAST, Kind, Program, content, number

Item = TypeVar("Item", str, int)
SLACK = 2  # a list grows and shrinks by no more than this
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


def _latent(rng: random.Random, facets: Facets) -> Program:
    lists, size, steps = (number(facets, knob) for knob in ("lists", "size", "steps"))
    while True:
        program = _attempt(rng, lists, size, steps)
        if program:
            return program


def _attempt(rng: random.Random, lists: int, size: int, steps: int) -> Program | None:
    """A program, or None where the asked list is after all as it was."""
    walks = [walk(rng, size, steps) for _ in range(lists)]
    added = sum(operation in ("append", "insert") for each in walks for operation in each)
    names = draw(rng, lists * (size + 1) + added)
    owners, fresh = names[:lists], iter(names[lists:])
    state = {owner: [next(fresh) for _ in range(size)] for owner in owners}
    initial, quoted = list(state[owners[0]]), '", "'
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
    asked, final = owners[0], state[owners[0]]
    moved = [i for i, item in enumerate(final) if i >= len(initial) or item != initial[i]]
    if not moved:
        return None
    place = rng.choice(moved)
    question = Question(
        terse=f"get {asked} [ {DIGITS[place]} ]",
        natural=f"What is the value of {asked}[{place}] at the end? {LAST}",
        prefix=f"The value of {asked}[{place}] is",
        target=(final[place],),
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
    chance=lambda facets: 1 / number(facets, "size"),  # who knows what is in the list, but not in which order
)
