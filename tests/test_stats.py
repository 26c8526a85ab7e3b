"""Intervals cover what they promise, also where the textbook ones fail."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as reference

from evalsuite import stats

Generator = np.random.Generator


def coverage(truth: float, draws: list[stats.Estimate]) -> float:
    return sum(e.includes(truth) for e in draws) / len(draws)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (81, 263), (1, 1)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    expected = reference.binomtest(successes, n).proportion_ci(method="wilson")
    assert stats.wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 20, 120, 5000])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_beta_interval_leaves_equal_tails(n: int, level: float) -> None:
    ends = [stats.beta_interval(k, n, level) for k in range(n + 1)]
    assert ends[0][0] == 0.0
    assert ends[n][1] == 1.0
    for k, (low, high) in enumerate(ends):
        posterior = reference.beta(k + 0.7, n - k + 0.7)
        assert k == 0 or posterior.cdf(low) == pytest.approx((1 - level) / 2, rel=1e-6)
        assert k == n or posterior.sf(high) == pytest.approx((1 - level) / 2, rel=1e-6)
        assert low <= k / n <= high
        assert (low, high) == pytest.approx((1 - ends[n - k][1], 1 - ends[n - k][0]), abs=1e-12)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(ends))


def test_beta_interval_beside_wilsons() -> None:
    """Over all shares, not the few for which its weight was chosen: no worse than Wilson's, and nowhere far too low."""
    shares = (np.arange(2000) + 0.5) / 2000
    for n in (20, 50, 200):
        chances = reference.binom.pmf(np.arange(n + 1)[:, None], n, shares)
        found = {}
        for interval in (stats.beta_interval, stats.wilson):
            ends = np.array([interval(k, n) for k in range(n + 1)])
            covers = (chances * ((ends[:, :1] <= shares) & (shares <= ends[:, 1:]))).sum(axis=0)
            found[interval.__name__] = covers
            assert 0.95 <= covers.mean() <= 0.9535
        ours, wilsons = found["beta_interval"], found["wilson"]
        assert ours.min() >= max(0.855, wilsons.min())
        assert np.sqrt(((ours - 0.95) ** 2).mean()) <= np.sqrt(((wilsons - 0.95) ** 2).mean()) + 0.0006


def test_only_independent_answers_have_a_beta_interval() -> None:
    values = [1.0] * 17 + [0.0] * 3
    expected = stats.beta_interval(17, 20)
    alone = stats.estimate(values)
    assert (alone.low, alone.high) == expected
    assert stats.estimate(values, [str(i) for i in range(20)]) == alone
    twice = stats.estimate(values * 2, [str(i % 20) for i in range(40)])
    assert twice.clusters == 20
    assert twice.high - twice.low == pytest.approx(expected[1] - expected[0], rel=0.1), "copies are no evidence"
    graded = stats.estimate([*values[:-1], 0.001])
    assert (graded.low, graded.high) != pytest.approx(expected, abs=1e-3)
    for k in (0, 20):
        certain = stats.estimate([1.0] * k + [0.0] * (20 - k))
        assert certain.low == 0 or certain.high == 1
        assert 0.1 < certain.high - certain.low < 0.2, "twenty answers are no certainty"


def test_nothing_and_one() -> None:
    empty = stats.estimate([])
    assert math.isnan(empty.value)
    assert (empty.low, empty.high, empty.n) == (0.0, 1.0, 0)
    for value in (0.0, 0.4, 1.0):
        one = stats.estimate([value])
        assert one.low <= value <= one.high
        assert one.high - one.low > 0.7
    assert stats.paired([], []).n == 0
    single = stats.paired([1.0], [0.0])
    assert single.low < 0 < single.high


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_unanimous_clusters_leave_room(value: float) -> None:
    """A hundred right answers out of five sources are five observations."""
    alike = stats.estimate([value] * 100, [str(i % 5) for i in range(100)])
    assert alike.high - alike.low == pytest.approx(stats.wilson(5, 5)[1] - stats.wilson(5, 5)[0])
    assert alike.clusters == 5
    independent = stats.estimate([value] * 100)
    assert independent.high - independent.low < 0.05
    one_source = stats.estimate([value] * 100, ["a"] * 100)
    assert one_source.high - one_source.low > 0.7


def test_an_empty_cluster_label_is_a_cluster_of_its_own() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    assert stats.estimate(values, [""] * 6) == stats.estimate(values)


def test_clusters_cover() -> None:
    """ICC 0.5, 25 clusters of 8: the unclustered interval covers far too rarely, ours does not."""
    draw = np.random.default_rng(1)
    ours, naive = [], []
    for _ in range(600):
        shared = draw.random((25, 1)) < 0.8
        own = draw.random((25, 8)) < 0.8
        copied = draw.random((25, 8)) < math.sqrt(0.5)
        values = np.where(copied, shared, own).astype(float).ravel()
        labels = np.repeat(np.arange(25), 8).astype(str)
        ours.append(stats.estimate(values, labels))
        naive.append(stats.estimate(values))
    assert 0.93 <= coverage(0.8, ours) <= 0.99
    assert coverage(0.8, naive) < 0.85


def test_near_perfect_clusters_cover() -> None:
    draw = np.random.default_rng(2)
    labels = np.repeat(np.arange(20), 5).astype(str)
    draws = [stats.estimate((draw.random(100) < 0.985).astype(float), labels) for _ in range(600)]
    assert coverage(0.985, draws) >= 0.93


def test_graded_scores_cover() -> None:
    draw = np.random.default_rng(3)
    draws = [stats.estimate(draw.beta(2, 1, 20)) for _ in range(600)]
    assert coverage(2 / 3, draws) >= 0.95
    many = [stats.estimate(draw.beta(2, 1, 300)) for _ in range(600)]
    assert 0.93 <= coverage(2 / 3, many) <= 0.98
    nearly = stats.estimate([0.0] * 9 + [0.1])
    assert nearly.high > 0.2, "one tenth of a point must not make nine zeros certain"
    rare = [stats.estimate(np.where(draw.random(30) < 0.04, 0.5, 1.0)) for _ in range(600)]
    assert coverage(0.98, rare) >= 0.93
    constant = stats.estimate([0.5] * 30)
    assert constant.low < 0.4
    assert constant.high > 0.6


@pytest.mark.parametrize("size", [1, 4])
def test_paired_differences_cover(size: int) -> None:
    """Few pairs disagree: the plain t interval is often of zero width, ours covers."""
    draw = np.random.default_rng(4)
    labels = [str(i // size) for i in range(80)]
    hits = 0
    for _ in range(600):
        shared = np.repeat(draw.random(80 // size), size)
        a = (shared < 0.9).astype(float)
        b = np.where(draw.random(80) < 0.03, 0.0, a)
        difference = stats.paired(a, b, labels)
        hits += difference.low <= 0.9 * 0.03 <= difference.high
        assert difference.high > difference.low
    assert hits / 600 >= 0.93


def test_paired_is_bonett_price_up_to_the_t_quantile() -> None:
    a, b = np.zeros(200), np.zeros(200)
    a[:30], b[30:40] = 1.0, 1.0
    p, q = 31 / 202, 11 / 202
    half = 1.95996 * math.sqrt((p + q - (p - q) ** 2) / 202)
    difference = stats.paired(a, b)
    assert difference.value == pytest.approx(0.1)
    assert (difference.low, difference.high) == pytest.approx((p - q - half, p - q + half), abs=2e-3)
    assert (difference.wins, difference.losses) == (30, 10)
    assert difference.p == pytest.approx(reference.binomtest(10, 40).pvalue)


def test_mcnemar_on_clusters_would_cry_wolf() -> None:
    """Copies of one pair are no evidence: ten clusters of ten equal pairs."""
    a = np.repeat([1, 1, 1, 1, 1, 1, 0, 1, 1, 0], 10).astype(float)
    b = 1 - a
    clusters = np.repeat(np.arange(10), 10).astype(str)
    assert stats.paired(a, b).p < 1e-6
    assert stats.paired(a, b, clusters).p > 0.02


def test_equal_models_differ_by_nothing() -> None:
    same = stats.paired([1.0] * 50, [1.0] * 50)
    assert same.value == 0
    assert same.p == 1
    assert -0.1 < same.low < 0 < same.high < 0.1


def test_mcnemar_is_scipys() -> None:
    for wins, losses in ((0, 0), (0, 5), (7, 3), (20, 20), (3, 30)):
        expected = reference.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert stats.mcnemar(wins, losses) == pytest.approx(expected)
    assert stats.mcnemar(2, 8, one_sided=True) == pytest.approx(reference.binomtest(2, 10, alternative="less").pvalue)
    assert stats.mcnemar(8, 2, one_sided=True) > 0.9


def test_detectable_difference_is_found_with_its_power() -> None:
    assert stats.detectable(0.04, 500) == pytest.approx(0.0222, abs=1e-4)
    assert stats.detectable(0.1, 0) == math.inf
    draw = np.random.default_rng(5)
    n, discordance = 2000, 0.1
    effect = stats.detectable(discordance, n)
    kinds = [(discordance - effect) / 2, (discordance + effect) / 2, 1 - discordance]
    counts = draw.multinomial(n, kinds, size=1500)
    found = np.mean([stats.mcnemar(int(w), int(b), one_sided=True) <= 0.05 for w, b, _ in counts])
    assert 0.74 <= found <= 0.86


def test_mean_of_tasks_weighs_tasks_and_covers() -> None:
    values = [1.0] * 90 + [0.0] * 10
    assert stats.stratified(values, ["a"] * 90 + ["b"] * 10).value == pytest.approx(0.5)
    draw = np.random.default_rng(6)
    strata = ["a"] * 60 + ["b"] * 30
    draws = [
        stats.stratified(np.concatenate([draw.random(60) < 0.9, draw.random(30) < 0.4]).astype(float), strata)
        for _ in range(600)
    ]
    assert 0.92 <= coverage(0.65, draws) <= 0.99
    alike = stats.stratified([0.0] * 109 + [0.1], [str(i % 11) for i in range(110)])
    assert alike.high > 0.02


def test_above_chance() -> None:
    assert stats.above_chance(0.25, 0.25) == 0
    assert stats.above_chance(1.0, 0.25) == 1
    assert stats.above_chance(1.0, 1.0) == 0


def test_pass_at_k() -> None:
    assert stats.pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert stats.pass_at_k(5, 0, 5) == 0.0
    assert stats.pass_at_k(5, 3, 3) == 1.0
    for draws, passed, k in ((7, 2, 3), (100, 1, 10), (12, 11, 1), (6, 6, 2), (6, 0, 2)):
        wanted = 1 - math.comb(draws - passed, k) / math.comb(draws, k)
        assert stats.pass_at_k(draws, passed, k) == pytest.approx(wanted)
    for draws, passed, k in ((3, 1, 4), (3, 4, 1), (3, 1, 0), (0, 0, 1)):
        with pytest.raises(ValueError, match="not defined"):
            stats.pass_at_k(draws, passed, k)


def flips(differences: list[float]) -> float:
    """Every flip of every sign, written out."""
    signs = itertools.product((-1, 1), repeat=len(differences))
    totals = [sum(s * d for s, d in zip(each, differences, strict=True)) for each in signs]
    return sum(total <= sum(differences) + 1e-9 for total in totals) / len(totals)


@pytest.mark.parametrize(
    "differences", [[-1.0], [-1.0, -1.0, 1.0], [-0.3, 0.1, -0.7, -0.2, 0.4], [1.0] * 4, [-2.0] * 10]
)
def test_sign_flips_are_all_flips_where_few_differ(differences: list[float]) -> None:
    assert stats.sign_flip(differences) == pytest.approx(flips(differences))
    assert stats.sign_flip([*differences, *[0.0] * 50]) == pytest.approx(flips(differences))


def test_sign_flips_drawn_are_near_all_flips() -> None:
    differences = [-0.9, 0.2, -0.4, 0.6, -0.5, -0.1, 0.3, -0.8, 0.7, -0.2, -0.6, 0.1]
    drawn = stats.sign_flip(differences, few=0)
    assert drawn == pytest.approx(flips(differences), abs=0.015)
    assert drawn == stats.sign_flip(differences, few=0)
    assert drawn != stats.sign_flip(differences, few=0, seed=1)
    assert stats.sign_flip([-1.0] * 60) == pytest.approx(1e-4), "never 0: the data's own signs are counted"
    assert stats.sign_flip([0.0] * 60) == 1.0


def test_sign_flips_turn_whole_clusters() -> None:
    labels = [str(i // 10) for i in range(30)]
    assert stats.sign_flip([-1.0] * 30, labels) == 0.5**3
    assert stats.sign_flip([-1.0, 1.0] * 15, labels) == 1.0


def test_sign_flips_of_unclustered_pairs_are_mcnemars() -> None:
    for wins, losses in ((3, 9), (0, 5), (5, 5), (8, 2)):
        differences = [1.0] * wins + [-1.0] * losses + [0.0] * 20
        assert stats.sign_flip(differences, few=20) == pytest.approx(stats.mcnemar(wins, losses, one_sided=True))


def test_corrections_are_the_textbooks() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert stats.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    draw = np.random.default_rng(5)
    for n in (1, 2, 50):
        values = list(draw.random(n) ** 3)
        assert stats.benjamini_hochberg(values) == pytest.approx(list(reference.false_discovery_control(values)))
    assert stats.holm([]) == stats.benjamini_hochberg([]) == []


def test_standard_error_is_never_zero() -> None:
    assert 0 < stats.standard_error([0.0] * 500) < 0.005
    assert stats.standard_error([0.0] * 500, [str(i // 50) for i in range(500)]) > 0.05
    assert stats.standard_error([]) == math.inf
    draw = np.random.default_rng(6)
    means = [float((draw.random(400) < 0.2).mean()) for _ in range(2000)]
    one = stats.standard_error((draw.random(400) < 0.2) * 1.0)
    assert one == pytest.approx(float(np.std(means)), rel=0.12)
