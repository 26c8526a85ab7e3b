"""What the gate's own tests do, on runs made at random whose truth is known: `python -m evalsuite.gate.simulate`.

Every line calls `decide.measure` and `decide.verdict` as the gate does, 2,000 times. Scores are right or wrong, three
quarters right; a run differs from its baseline in a share of flips, as many each way where nothing changed. The
coverage of `stats.estimate` is no simulation: the chance of every number of right answers is summed.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from evalsuite import stats
from evalsuite.gate import decide
from evalsuite.gate.decide import INCONCLUSIVE, PASS, REGRESSED, Level, Outcome, Rule
from evalsuite.stats import Array

RUNS = 2000
LEVEL = Level()
SIZES, SHARES = (20, 50, 200), (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Line:
    """One promise: what was measured, and between which values it must lie."""

    name: str
    measured: float
    low: float
    high: float
    note: str = ""
    possible: bool = True  # False where nothing of its kind could keep it

    @property
    def kept(self) -> bool:
        """Whether the promise holds."""
        return self.low <= self.measured <= self.high


def scores(draw: np.random.Generator, n: int, flips: float, change: float) -> tuple[Array, Array]:
    """New and old scores of n independent items: a share of `flips` differ, and the mean changes by `change`."""
    kind = draw.random(n)
    lost, won = kind < (flips - change) / 2, kind >= 1 - (flips + change) / 2
    old = np.where(lost, 1.0, np.where(won, 0.0, (draw.random(n) < 0.75) * 1.0))
    return np.where(lost, 0.0, np.where(won, 1.0, old)), old


def clustered(draw: np.random.Generator, clusters: int, size: int) -> tuple[Array, Array, list[str]]:
    """Nothing changed, but the items of a cluster flip together: one cluster in four flips about 4 in 10, one way."""
    way = np.repeat(draw.choice([-1, 0, 0, 0, 0, 0, 0, 1], clusters), size)
    flipped = draw.random(clusters * size) < 0.4
    old = np.where(flipped & (way != 0), way < 0, draw.random(clusters * size) < 0.75) * 1.0
    new = np.where(flipped & (way != 0), way > 0, old) * 1.0
    return new, old, [str(i // size) for i in range(clusters * size)]


def verdicts(outcomes: Sequence[Outcome], level: Level = LEVEL, margin: float = 0.02) -> list[str]:
    """The verdicts of families that are gated together."""
    drops = stats.holm([outcome.p_drop for outcome in outcomes])
    gains = stats.holm([outcome.p_gain for outcome in outcomes])
    rule = Rule(margin)
    return [
        decide.verdict(outcome, rule, level, drop, gain, len(outcomes))[0]
        for outcome, drop, gain in zip(outcomes, drops, gains, strict=True)
    ]


def rate(runs: int, seed: int, what: Callable[[np.random.Generator], bool]) -> float:
    """Share of the simulated runs in which something happens."""
    draw = np.random.default_rng(seed)
    return sum(what(draw) for _ in range(runs)) / runs


def failing(n: int, flips: float, change: float, verdict: str = REGRESSED) -> Callable[[np.random.Generator], bool]:
    """Whether one family of independent items gets a verdict."""

    def once(draw: np.random.Generator) -> bool:
        new, old = scores(draw, n, flips, change)
        return verdicts([decide.measure(new, old, [""] * n, LEVEL)]) == [verdict]

    return once


def together(draw: np.random.Generator) -> bool:
    """Whether any of ten unchanged families of 500 fails."""
    pairs = [scores(draw, 500, 0.04, 0.0) for _ in range(10)]
    return REGRESSED in verdicts([decide.measure(*pair, [""] * 500, LEVEL) for pair in pairs])


def in_clusters(draw: np.random.Generator) -> bool:
    """Whether an unchanged family of 50 clusters of 10 fails."""
    return verdicts([decide.measure(*clustered(draw, 50, 10), LEVEL)]) == [REGRESSED]


def ignoring_clusters(draw: np.random.Generator) -> bool:
    """The same, were the clusters not known: what the sign flips are for."""
    new, old, _ = clustered(draw, 50, 10)
    return verdicts([decide.measure(new, old, [""] * 500, LEVEL)]) == [REGRESSED]


def escalated(change: float) -> Callable[[np.random.Generator], bool]:
    """Whether a family fails at the first look (0.01), or undecided at the second (0.04), fresh questions added."""

    def once(draw: np.random.Generator) -> bool:
        new, old = scores(draw, 500, 0.04, change)
        first, second = Level(0.01), Level(0.04)
        seen = verdicts([decide.measure(new, old, [""] * 500, first)], first)
        if seen != [INCONCLUSIVE]:
            return seen == [REGRESSED]
        more = scores(draw, 500, 0.04, change)
        both = [np.concatenate(pair) for pair in zip((new, old), more, strict=True)]
        return verdicts([decide.measure(both[0], both[1], [""] * 1000, second)], second) == [REGRESSED]

    return once


def coverage(n: int, share: float) -> float:
    """Chance that the 95 % interval of `stats.estimate` for n right or wrong answers holds the true share, exact."""
    holds = [stats.estimate([1.0] * k + [0.0] * (n - k)).includes(share) for k in range(n + 1)]
    return float(_binomial(n, share)[holds].sum())


def attainable(n: int, share: float) -> tuple[float, float]:
    """The two coverages nearest to 95 %, one below and one not, that an interval can have for this share and n.

    Of the kind meant both ends rise with the number of right answers, none is drawn at random, and right and wrong are
    treated alike. Then a share is held by a run of counts, whose chances are what they are; and one half by a run that
    is the same from either end, so that counts enter in twos there.
    """
    sums = np.concatenate([[0.0], np.cumsum(_binomial(n, share))])
    first, last = np.triu_indices(n + 2, 1)
    every = (sums[last] - sums[first])[(first + last == n + 1) | (share != 0.5)]
    below = every[every < 0.95]
    return float(below.max(initial=0.0)), float(every[every >= 0.95].min())


def _binomial(n: int, share: float) -> Array:
    k = np.arange(n + 1)
    chances = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    return np.asarray(np.exp(chances + k * math.log(share) + (n - k) * math.log1p(-share)))


def promises(runs: int = RUNS) -> Iterator[Line]:
    """Every promise on the gate's tests, measured."""
    yield Line("false alarms, n = 500, 4 % flips, no change", rate(runs, 1, failing(500, 0.04, 0.0)), 0, 0.05)
    yield Line("power at -2 points, 4 % flips", rate(runs, 2, failing(500, 0.04, -0.02)), 0.65, 1)
    yield Line("power at -4 points, 6 % flips", rate(runs, 3, failing(500, 0.06, -0.04)), 0.97, 1)
    told = "McNemar without clusters: "
    naive = rate(max(runs // 4, 100), 4, ignoring_clusters)
    yield Line("false alarms, 50 clusters of 10", rate(runs, 4, in_clusters), 0, 0.06, f"{told}{naive:.3f}")
    yield Line("any false alarm in ten families (Holm)", rate(runs, 5, together), 0, 0.05)
    yield Line("false alarms of an escalation, .01 + .04", rate(runs, 7, escalated(0.0)), 0, 0.05)
    yield Line("power of an escalation at -2 points", rate(runs, 8, escalated(-0.02)), 0.65, 1)
    wrong = rate(runs, 6, failing(2000, 0.04, -0.02, PASS))
    yield Line("PASS at a drop of just the margin, n = 2,000", wrong, 0, 0.05)


def coverages() -> Iterator[Line]:
    """Every cell of the interval's promise: 95 %, give or take 1, wherever that can be."""
    for n in SIZES:
        for share in SHARES:
            below, above = attainable(n, share)
            possible = below >= 0.94 or above <= 0.96
            note = "" if possible else f"no interval can: the nearest are {below:.4f} and {above:.4f}"
            yield Line(f"coverage, n = {n}, p = {share}", coverage(n, share), 0.94, 0.96, note, possible)


def main() -> None:
    """Print the table; exit code 1 where a promise that can be kept is not."""
    lines = [*promises(), *coverages()]
    for line in lines:
        mark = "ok  " if line.kept else "MISS" if line.possible else "none"
        print(f"{mark} {line.name:46} {line.measured:.4f}  [{line.low:g}, {line.high:g}]  {line.note}".rstrip())
    sys.exit(any(line.possible and not line.kept for line in lines))


if __name__ == "__main__":
    main()
