"""Fitting a sample to its length with the model's own token count."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from evalsuite.errors import UserError
from evalsuite.task import Count

CLOSE = 0.01  # of the budget left unused is near enough; the promise is 0.03
PROBES = 80  # of one search, which converges in about five
MOST = 4  # units for a token of the budget, and some: a count that does not grow with the text must not fill the memory


@dataclass(frozen=True, slots=True)
class Draft:
    """A question of some size, before it is known to fit."""

    prompt: str
    prefix: str
    target: tuple[str, ...]
    depth: float | None = None  # where the gold lies, 0 first, 1 last
    cluster: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.prompt + self.prefix


Build = Callable[[int], Draft]


def fit(build: Build, least: int, budget: int, count: Count, start: int = 0) -> tuple[int, Draft]:
    """The largest size whose text has at most `budget` tokens, or one that leaves at most `CLOSE` of them unused.

    Brackets the size and interpolates in the bracket. Raises UserError where the smallest form (`least`) does not fit.
    """
    low, draft = least, build(least)
    low_cost = count(draft.text)
    if low_cost > budget:
        raise UserError(f"its smallest form takes {low_cost} tokens and {budget} are left for it")
    high = high_cost = 0
    probe = start if start > least else 2 * least + 16
    for turn in range(PROBES):
        if probe > MOST * budget + 1024:
            break
        trial = build(probe)
        cost = count(trial.text)
        if cost <= budget:
            slope = (cost - low_cost) / (probe - low)
            low, low_cost, draft = probe, cost, trial
        else:
            high, high_cost = probe, cost
        if budget - low_cost <= CLOSE * budget or high == low + 1:
            return low, draft
        aim = budget * (1 - CLOSE / 2) - low_cost
        if high:
            share = aim / (high_cost - low_cost) if turn % 3 < 2 else 0.5  # every third step halves whatever the slope
            probe = min(high - 1, max(low + 1, low + round((high - low) * share)))
        else:
            probe = low + max(1, min(3 * low, round(aim / slope))) if slope > 0 else 2 * low + 1
    if budget - low_cost <= 3 * CLOSE * budget:
        return low, draft
    raise UserError("no size of it comes near the budget with this token count")
