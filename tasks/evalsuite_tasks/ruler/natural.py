"""The natural wording: how each of the 13 tasks is built at a given size, and how the size is found.

Every builder draws from generators of its own sample only, and again from their beginning at every size, so that a
sample's needles, names and questions stay the same while its length is fitted.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

from evalsuite.errors import UserError
from evalsuite.task import Count
from evalsuite_tasks.ruler.counting import cwe, fwe
from evalsuite_tasks.ruler.fit import CLOSE, Build, Draft, fit
from evalsuite_tasks.ruler.item import Item
from evalsuite_tasks.ruler.needles import niah
from evalsuite_tasks.ruler.qa import qa, qa_nvidia
from evalsuite_tasks.ruler.specs import COMMON, FREQUENT, HOPS, NIAH
from evalsuite_tasks.ruler.tracking import vt, vt_example

EXAMPLE_TOKENS = 500  # of the solved example of variable tracking
STEPS = {"essay": 500, "needle": 25, "noise": 25, "vt": 10, "cwe": 10, "qa": 10}  # upstream's units
PADDED = {"vt", *(name for name, config in NIAH.items() if config.haystack != "essay")}

Plan = tuple[Callable[[Item, int], Draft], int, int]  # builder, smallest size, upstream's step


def plan(item: Item, budget: int, count: Count) -> Plan:
    """How the item is built at a size, its smallest size, and the step by which upstream shrinks it."""
    if item.subtask in NIAH:
        config = NIAH[item.subtask]
        short = config.haystack != "essay" and item.length < 4096
        return niah, config.keys * config.values if item.nvidia else 0, 5 if short else STEPS[config.haystack]
    if item.subtask == "vt":
        example = _example_size(item, count)
        step = 5 if item.length < 4096 else STEPS["vt"]
        return lambda item, size: vt(item, size, example), HOPS + 1 if item.nvidia else 0, step
    if item.subtask == "cwe":
        small = item.length < 4096 or (not item.nvidia and count(cwe(item, COMMON + 1, small=False).text) > budget)
        return lambda item, size: cwe(item, size, small), COMMON + 1, STEPS["cwe"]
    if item.subtask == "fwe":
        vocabulary = max(FREQUENT + 2, budget // 50)
        return lambda item, size: fwe(item, size, vocabulary), 53, max(1, item.length // 640)
    return (qa_nvidia, 10, STEPS["qa"]) if item.nvidia else (qa, 0, STEPS["qa"])


def _example_size(item: Item, count: Count) -> int:
    least = HOPS + 1 if item.nvidia else 0
    try:
        return fit(lambda size: vt_example(item, size), least, EXAMPLE_TOKENS, count)[0]
    except UserError:  # with this tokenizer even the shortest example is longer
        return least


def upstream_fit(first: Build, build: Build, limits: tuple[int, int, int], count: Count) -> Draft:
    """Upstream's procedure: one size for all samples, found on the first; a sample that is too long shrinks by steps.

    limits: smallest size, step, budget in tokens. At the floor upstream tries again for ever; here it is a UserError.
    """
    least, step, budget = limits
    size, _ = fit(first, least, budget, count)
    for smaller in chain(range(size, least, -step), [least]):
        draft = build(smaller)
        if count(draft.text) <= budget:
            return draft
    raise UserError(f"its smallest form takes {count(draft.text)} tokens and {budget} are left for it")


def make(item: Item, first: Item, budget: int, count: Count) -> Draft:
    """The item fitted to `budget` tokens. `first` is item 0 of the same cell, on which `nvidia` finds the size."""
    if item.nvidia:
        builder, least, step = plan(first, budget, count)
        limits = (least, step, budget)
        return upstream_fit(lambda size: builder(first, size), lambda size: builder(item, size), limits, count)
    builder, least, _ = plan(item, budget, count)
    size, draft = fit(lambda size: builder(item, size), least, budget, count)
    if item.subtask in PADDED and budget - count(draft.text) > CLOSE * budget:
        draft = fit(lambda pad: builder(replace(item, pad=pad), size), 0, budget, count)[1]
    return draft
