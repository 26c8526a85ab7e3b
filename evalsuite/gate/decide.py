"""The statistics of one family: what is measured, what is tested, and which verdict follows. Pure functions on arrays.

A drop is tested by the exact one-sided McNemar test where scores are right or wrong and samples are independent, and by
flipping the signs of whole clusters otherwise. Over the gated families Holm's procedure keeps the chance of any false
alarm at alpha. That a drop was not found proves nothing: PASS needs the interval's lower end above the margin too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from evalsuite import stats
from evalsuite.stats import Difference, Estimate, Values

PASS, REGRESSED, INCONCLUSIVE = "PASS", "REGRESSED", "INCONCLUSIVE"
INVALID, QUARANTINED, IMPROVED = "INVALID", "QUARANTINED", "IMPROVED"


@dataclass(frozen=True, slots=True)
class Level:
    """What a test may spend, and how it is done."""

    alpha: float = 0.05
    power: float = 0.8
    seed: int = 0  # of the permutations


@dataclass(frozen=True, slots=True)
class Outcome:
    """A family's samples, new beside old."""

    new: Estimate
    old: Estimate
    difference: Difference  # new - old, with its 95 % interval
    test: str  # "mcnemar" or "sign-flip"
    p_drop: float  # one-sided
    p_gain: float
    drop_bound: float  # the drop is below this, at 1 - alpha one-sided
    error: float  # standard error of the difference, padded

    @property
    def p_least(self) -> float:
        """The smallest p that any answers to these questions could reach."""
        return 0.5 ** min(self.new.clusters, 1000)

    def detectable(self, level: Level) -> float:
        """The smallest drop that such a test finds with the level's power."""
        return _quantiles(level) * self.error

    def needed(self, level: Level, margin: float) -> int:
        """Samples at which the drop seen, were it the true one, would be told from none or from the margin."""
        drop = -self.difference.value
        distance = max(drop, margin - drop, 1e-9)
        wanted = self.new.n * (self.detectable(level) / distance) ** 2
        clusters = math.log2(1 / level.alpha) * self.new.n / self.new.clusters  # fewer cannot reach alpha at all
        return max(self.new.n + 1, math.ceil(wanted), math.ceil(clusters))


@dataclass(frozen=True, slots=True)
class Rule:
    """What a family is held to."""

    margin: float
    floor: float = 0.0
    chance: float = 0.0


def measure(new: Values, old: Values, clusters: Sequence[str], level: Level) -> Outcome:
    """Everything that is known of one family's pairs [n], n > 0; an empty cluster label is a cluster of its own."""
    new, old = np.asarray(new, dtype=np.float64), np.asarray(old, dtype=np.float64)
    differences = new - old
    difference = stats.paired(new, old, clusters)
    estimate = stats.estimate(new, clusters)
    independent = estimate.clusters == estimate.n
    if independent and stats.whole(differences):
        test = "mcnemar"
        p_drop = stats.mcnemar(difference.wins, difference.losses, one_sided=True)
        p_gain = stats.mcnemar(difference.losses, difference.wins, one_sided=True)
    else:
        test = "sign-flip"
        p_drop = stats.sign_flip(differences, clusters, seed=level.seed)
        p_gain = stats.sign_flip(-differences, clusters, seed=level.seed)
    return Outcome(
        new=estimate,
        old=stats.estimate(old, clusters),
        difference=difference,
        test=test,
        p_drop=p_drop,
        p_gain=p_gain,
        drop_bound=-stats.paired(new, old, clusters, level=1 - 2 * level.alpha).low,
        error=stats.standard_error(differences, clusters),
    )


def verdict(
    outcome: Outcome, rule: Rule, level: Level, p_adjusted: float, gain_adjusted: float, tests: int
) -> tuple[str, str]:
    """A family's verdict and why; `p_adjusted` and `gain_adjusted` are corrected for so many `tests`."""
    seen = f"difference {points(outcome.difference.value)}"
    if outcome.new.value < rule.floor:
        return REGRESSED, f"score {outcome.new.value:.4f} is below the floor {rule.floor:g}"
    if p_adjusted <= level.alpha:
        return REGRESSED, f"{seen}, p {p_adjusted:.4f} of {tests} tests <= {level.alpha:g}"
    if outcome.p_least > level.alpha / tests:
        enough = math.ceil(math.log2(tests / level.alpha))
        return INCONCLUSIVE, (
            f"{outcome.new.clusters} independent clusters reach no p below {outcome.p_least:.2g}: no drop could fail "
            f"{tests} tests at {level.alpha:g}; needs {enough} clusters"
        )
    if outcome.old.includes(rule.chance) or outcome.old.value < rule.chance:
        return INCONCLUSIVE, f"the baseline's score {outcome.old.value:.4f} is at chance: nothing is left to lose"
    if outcome.drop_bound >= rule.margin:
        needed = outcome.needed(level, rule.margin)
        return INCONCLUSIVE, (
            f"{seen}; a drop of the margin {points(rule.margin, sign=False)} is not excluded (it may be "
            f"{points(outcome.drop_bound, sign=False)}); needs n = {needed}, has {outcome.new.n}"
        )
    if gain_adjusted <= level.alpha:
        return IMPROVED, f"{seen}, p {gain_adjusted:.4f} of {tests} tests <= {level.alpha:g}"
    return PASS, f"{seen}; the drop is below {points(outcome.drop_bound, sign=False)}"


def points(share: float, *, sign: bool = True) -> str:
    """0.021 -> `+2.10 points`"""
    return f"{100 * share:{'+' if sign else ''}.2f} points"


def _quantiles(level: Level) -> float:
    return float(special.ndtri(1 - level.alpha) + special.ndtri(level.power))
