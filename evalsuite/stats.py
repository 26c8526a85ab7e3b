"""Intervals, paired differences, tests and power: pure functions on arrays of scores in [0, 1].

Clusters follow Miller, "Adding Error Bars to Evals" (arXiv 2411.00640): samples that share a source are
not independent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]
Values = Sequence[float] | Array
Labels = Sequence[str] | NDArray[Any]
PRIOR = 0.7  # answers of each kind that `beta_interval` adds to those seen


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its interval; `n` samples in `clusters` independent groups. NaN and the full range where n is 0."""

    value: float
    low: float
    high: float
    n: int
    clusters: int

    def includes(self, point: float) -> bool:
        """Whether the interval holds the point."""
        return self.low <= point <= self.high


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean paired difference a - b with its interval; `wins` and `losses` count the pairs with a > b and a < b.

    `p` is two-sided: exact McNemar for independent binary pairs, else from the cluster-robust t.
    """

    value: float
    low: float
    high: float
    n: int
    wins: int
    losses: int
    p: float


def wilson(successes: float, n: float, level: float = 0.95, z: float | None = None) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927). Never of zero width for n > 0; (0, 1) for n = 0."""
    if n <= 0:
        return 0.0, 1.0
    z = _normal(level) if z is None else z
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(share * (1 - share), 0.0) / n + z * z / (4 * n * n))
    low = 0.0 if successes <= 0 else max(0.0, centre - half)
    high = 1.0 if successes >= n else min(1.0, centre + half)
    return low, high


def beta_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Equal-tailed interval of the share behind n independent right or wrong answers: quantiles of Beta(k + 0.7,
    n - k + 0.7), but from 0 where none is right and up to 1 where all are. (0, 1) for n = 0.

    Its form, moved ends included, is the Jeffreys interval of Brown, Cai and DasGupta (2001, doi
    10.1214/ss/1009213286), which adds 0.5. The 0.7 is ours, chosen by exact coverage at n = 20, 50, 200 and shares 0.5,
    0.9, 0.99: within a point of 95 % in the six of nine cells where an interval can be (`gate.simulate.attainable`), as
    with any weight from 0.66 to 0.84. With 0.5 it is so in five (98.4 % at 200, 0.99), and so is Wilson's (97.0 % at
    50, 0.9). Over all shares it is no closer to 95 % than Wilson's, and like that one falls to 86 % beside a few (of
    1,000 answers to 91 %, Wilson's to 94 %).
    """
    if n <= 0:
        return 0.0, 1.0
    right, wrong, tail = successes + PRIOR, n - successes + PRIOR, (1 - level) / 2
    low = 0.0 if successes <= 0 else float(special.betaincinv(right, wrong, tail))
    high = 1.0 if successes >= n else 1 - float(special.betaincinv(wrong, right, tail))
    return low, high


def estimate(values: Values, clusters: Labels | None = None, level: float = 0.95) -> Estimate:
    """Mean score with its interval.

    Independent binary scores: `beta_interval`. Clustered binary scores: Wilson with the effective sample size
    p(1-p)/V, V the CR1 variance, and the t quantile of C-1 degrees of freedom (Franco et al. 2019, doi
    10.1093/jssam/smy019). Graded scores: CR1 after adding one cluster at 0 and one at 1, as in `paired`. Where every
    cluster has the same mean there is nothing to estimate a variance from: Wilson with one observation a cluster, which
    bounds any distribution on [0, 1] with that mean.
    """
    y = np.asarray(values, dtype=np.float64)
    n = len(y)
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0, 0)
    codes, count = _codes(clusters, n)
    mean = float(y.mean())
    binary = whole(y)
    if binary and count == n:
        return Estimate(mean, *beta_interval(round(y.sum()), n, level), n, count)
    variance = _cr1(y - mean, codes, count)
    if count < 2 or variance <= 1e-18:
        return Estimate(mean, *wilson(mean * count, count, level), n, count)
    t = _student(level, count - 1)
    if binary:
        size = min(mean * (1 - mean) / variance, n)
        return Estimate(mean, *wilson(mean * size, size, z=t), n, count)
    return Estimate(mean, *_padded(y, codes, count, (0.0, 1.0), level), n, count)


def stratified(values: Values, strata: Labels, clusters: Labels | None = None, level: float = 0.95) -> Estimate:
    """Unweighted mean of the strata's means (RULER's "mean over tasks"), with a CR1 interval over all samples.

    Padded as in `estimate`: at the edge of the scale no variance is left to see.
    """
    y = np.asarray(values, dtype=np.float64)
    n = len(y)
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0, 0)
    groups, kinds = _codes(strata, n)
    if kinds == 1:
        return estimate(y, clusters, level)
    sizes = np.bincount(groups, minlength=kinds)
    means = np.bincount(groups, weights=y, minlength=kinds) / sizes
    mean = float(means.mean())
    codes, count = _codes(clusters, n)
    shares = (y - means[groups]) * n / (sizes[groups] * kinds)  # what each sample moves the mean of means, times n
    return Estimate(mean, *_padded(mean + shares, codes, count, (0.0, 1.0), level), n, count)


def paired(a: Values, b: Values, clusters: Labels | None = None, level: float = 0.95, reach: float = 1.0) -> Difference:
    """Mean of a - b over the same samples; `reach` is how far one sample may move it, times n.

    The interval is CR1 with C-1 degrees of freedom after adding one cluster of average size at +1 and one at -1: for
    binary pairs the adjusted Wald interval of Bonett and Price (2012, doi 10.3102/1076998611411915), which covers where
    few or no pairs disagree and is never of zero width.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert len(x) == len(y), "paired scores have the same samples"
    d = x - y
    n = len(d)
    if n == 0:
        return Difference(math.nan, -1.0, 1.0, 0, 0, 0, 1.0)
    codes, count = _codes(clusters, n)
    mean = float(d.mean())
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    if count == n and whole(d):
        p = mcnemar(wins, losses)
    else:
        robust = _cr1(d - mean, codes, count) if count > 1 else 0.0
        p = _two_sided(mean, robust, count)
    low, high = _padded(d, codes, count, (-reach, reach), level)
    return Difference(mean, max(low, -1.0), min(high, 1.0), n, wins, losses, p)


def mcnemar(wins: int, losses: int, *, one_sided: bool = False) -> float:
    """Exact McNemar test of binary pairs. One-sided: evidence that there are more losses than wins."""
    n = wins + losses
    if n == 0:
        return 1.0
    tail = float(special.bdtr(wins if one_sided else min(wins, losses), n, 0.5))
    return tail if one_sided else min(1.0, 2 * tail)


def detectable(discordance: float, n: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest paired difference that a one-sided test at `alpha` finds with `power`; infinite for n = 0.

    `discordance` is the share of pairs that disagree.
    """
    if n <= 0:
        return math.inf
    return float(special.ndtri(1 - alpha) + special.ndtri(power)) * math.sqrt(discordance / n)


def sign_flip(
    differences: Values, clusters: Labels | None = None, *, seed: int = 0, draws: int = 9999, few: int = 14
) -> float:
    """One-sided permutation test that the mean of paired differences is below 0: signs of whole clusters are flipped.

    Every flip is looked at where at most `few` clusters differ at all, else `draws` of a generator seeded with
    `seed`, the data's own signs counted among them (Phipson and Smyth 2010). It reaches no p below 0.5 to the number of
    clusters that differ. Exact where, without a change, each cluster's sum is as likely above 0 as below.
    """
    d = np.asarray(differences, dtype=np.float64)
    codes, count = _codes(clusters, len(d))
    sums = np.bincount(codes, weights=d, minlength=count)
    sums = sums[np.abs(sums) > 1e-12]
    seen = float(sums.sum()) + 1e-9
    if len(sums) <= few:
        totals = np.zeros(1)
        for each in sums:
            totals = np.concatenate([totals - each, totals + each])
        return float((totals <= seen).mean())
    draw = np.random.default_rng(seed)
    below, left = 1, draws
    while left:
        part = min(left, max(1, 2_000_000 // len(sums)))  # 16 MB of signs at a time
        signs = draw.integers(0, 2, (part, len(sums)), dtype=np.int8) * 2.0 - 1.0
        below += int((signs @ sums <= seen).sum())
        left -= part
    return below / (draws + 1)


def holm(values: Sequence[float]) -> list[float]:
    """Adjusted p-values: none below alpha keeps the chance of any false alarm at alpha, however the tests depend on
    each other (Holm 1979)."""
    p = np.asarray(values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(value) for value in adjusted]


def benjamini_hochberg(values: Sequence[float]) -> list[float]:
    """Adjusted p-values for the share of false ones among those found (Benjamini and Hochberg 1995)."""
    p = np.asarray(values, dtype=np.float64)
    order = np.argsort(p, kind="stable")[::-1]
    steps = np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(value) for value in adjusted]


def standard_error(differences: Values, clusters: Labels | None = None) -> float:
    """Of a mean of paired differences, padded as in `paired`: never 0, however alike the pairs are."""
    d = np.asarray(differences, dtype=np.float64)
    codes, count = _codes(clusters, len(d))
    return math.sqrt(_moments(d, codes, count, (-1.0, 1.0))[1]) if len(d) else math.inf


def pass_at_k(draws: int, passed: int, k: int) -> float:
    """Chance that one of k answers passes, from `draws` of which `passed` did: unbiased (Chen et al. 2021).

    Raises ValueError for more than was drawn: no unbiased estimate exists.
    """
    if not 0 < k <= draws or not 0 <= passed <= draws:
        raise ValueError(f"pass@{k} of {passed} passed among {draws} draws is not defined")
    return 1.0 - math.prod(1 - k / i for i in range(draws - passed + 1, draws + 1)) if draws - passed >= k else 1.0


def above_chance(score: float, chance: float) -> float:
    """Floor-corrected score: 0 at chance, 1 at perfect."""
    return (score - chance) / (1 - chance) if chance < 1 else 0.0


def whole(values: Array) -> bool:
    """Whether scores in [0, 1], or differences of them, are all right or wrong and none in between."""
    return bool((np.rint(values) == values).all())


def _codes(labels: Labels | None, n: int) -> tuple[NDArray[np.intp], int]:
    """Cluster numbers [n] and how many there are; an empty label is a cluster of its own."""
    if labels is None or not any(labels):
        assert labels is None or len(labels) == n, "one cluster label a sample"
        return np.arange(n), n
    numbers: dict[object, int] = {}
    codes = [numbers.setdefault((i,) if label == "" else label, len(numbers)) for i, label in enumerate(labels)]
    assert len(codes) == n, "one cluster label a sample"
    return np.asarray(codes, dtype=np.intp), len(numbers)


def _cr1(residuals: Array, codes: NDArray[np.intp], count: int) -> float:
    """Variance of a mean from cluster sums of residuals, with the small-sample factor C / (C - 1)."""
    if count < 2:
        return 0.0
    sums = np.bincount(codes, weights=residuals, minlength=count)
    return count / (count - 1) * float(sums @ sums) / len(residuals) ** 2


def _padded(
    values: Array, codes: NDArray[np.intp], count: int, ends: tuple[float, float], level: float
) -> tuple[float, float]:
    """CR1 interval of the mean after adding one cluster of average size at each end of the scale.

    The t interval alone is far too narrow where nearly all values are equal. It holds the mean and ends at the scale's
    ends.
    """
    centre, variance = _moments(values, codes, count, ends)
    half = _student(level, count + 1) * math.sqrt(variance)
    mean = float(values.mean())
    return max(ends[0], min(mean, centre - half)), min(ends[1], max(mean, centre + half))


def _moments(values: Array, codes: NDArray[np.intp], count: int, ends: tuple[float, float]) -> tuple[float, float]:
    """Mean and its CR1 variance with one more cluster of average size at each end of the scale."""
    n = len(values)
    weight = np.concatenate([np.ones(n), [n / count] * 2])
    padded = np.concatenate([values, ends])
    centre = float(weight @ padded / weight.sum())
    sums = np.bincount(np.concatenate([codes, [count, count + 1]]), weights=weight * (padded - centre))
    return centre, (count + 2) / (count + 1) * float(sums @ sums) / float(weight.sum()) ** 2


def _two_sided(mean: float, variance: float, count: int) -> float:
    if variance <= 1e-18:
        return 1.0 if mean == 0 or count < 2 else 2 * 0.5**count
    return float(2 * special.stdtr(count - 1, -abs(mean) / math.sqrt(variance)))


def _normal(level: float) -> float:
    return float(special.ndtri(0.5 + level / 2))


def _student(level: float, freedom: int) -> float:
    return float(special.stdtrit(freedom, 0.5 + level / 2))
