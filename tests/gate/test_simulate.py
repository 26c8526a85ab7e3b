"""The gate's promises on its own tests, kept over 2,000 simulated runs; and where no interval can keep its own."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as reference

from evalsuite import stats
from evalsuite.gate import simulate


def test_every_promise_is_kept() -> None:
    lines = [*simulate.promises()]
    assert len(lines) >= 6
    assert not [line for line in lines if not line.kept]


def test_the_simulation_can_fail() -> None:
    """Sign flips are what keeps the clustered null: McNemar's test, told of no clusters, breaks it three times over."""
    assert simulate.rate(300, 4, simulate.ignoring_clusters) > 0.12
    assert simulate.rate(300, 4, simulate.in_clusters) <= 0.07
    assert not simulate.Line("", 0.051, 0, 0.05).kept


def test_coverage_is_within_a_point_of_95_wherever_it_can_be() -> None:
    """Six cells of nine hold. In three no interval that treats right and wrong alike and is monotone in the count
    could: near 1 a single count has more than the two points, and at one half counts enter in twos."""
    measured = {line.name.removeprefix("coverage, "): line for line in simulate.coverages()}
    assert {name: round(line.measured, 4) for name, line in measured.items()} == {
        "n = 20, p = 0.5": 0.9586,
        "n = 20, p = 0.9": 0.9568,
        "n = 20, p = 0.99": 0.9831,
        "n = 50, p = 0.5": 0.9351,
        "n = 50, p = 0.9": 0.9417,
        "n = 50, p = 0.99": 0.9862,
        "n = 200, p = 0.5": 0.9440,
        "n = 200, p = 0.9": 0.9561,
        "n = 200, p = 0.99": 0.9483,
    }
    assert {name: line.note for name, line in measured.items() if not line.kept} == {
        "n = 20, p = 0.99": "no interval can: the nearest are 0.8179 and 0.9831",
        "n = 50, p = 0.5": "no interval can: the nearest are 0.9351 and 0.9672",
        "n = 50, p = 0.99": "no interval can: the nearest are 0.9106 and 0.9862",
    }
    assert all(line.possible == line.kept for line in measured.values())


@pytest.mark.parametrize(
    ("weight", "cells"), [(0.5, 5), (0.64, 5), (0.66, 6), (0.7, 6), (0.84, 6), (0.86, 5), (1.0, 5)]
)
def test_the_weight_is_one_of_those_that_reach_all_six(
    weight: float, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "PRIOR", weight)
    assert sum(line.kept for line in simulate.coverages()) == cells


def test_wilsons_interval_misses_one_that_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "beta_interval", stats.wilson)
    missed = {line.name: line.measured for line in simulate.coverages() if line.possible and not line.kept}
    assert missed == {"coverage, n = 50, p = 0.9": pytest.approx(0.9703, abs=5e-5)}


@pytest.mark.parametrize("n", simulate.SIZES)
@pytest.mark.parametrize("share", simulate.SHARES)
def test_coverage_is_the_sum_over_counts(n: int, share: float) -> None:
    """By scipy's binomial, and one of those that an interval of its kind can have, on one side of 95 % or the other."""
    counts = np.arange(n + 1)
    ends = np.array([stats.beta_interval(k, n) for k in range(n + 1)])
    held = (ends[:, 0] <= share) & (share <= ends[:, 1])
    assert simulate.coverage(n, share) == pytest.approx(reference.binom.pmf(counts, n, share)[held].sum())
    assert np.flatnonzero(np.diff(held)).size <= 2, "a run of counts"
    assert min(abs(simulate.coverage(n, share) - near) for near in simulate.attainable(n, share)) < 0.01


def test_attainable_is_every_run_of_counts() -> None:
    for n, share in ((1, 0.9), (1, 0.5), (2, 0.5), (20, 0.99), (50, 0.99), (50, 0.5), (20, 0.9)):
        chance = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]
        runs = [(a, b) for a in range(n + 1) for b in range(a, n + 1) if share != 0.5 or a + b == n]
        sums = [0.0] + [math.fsum(chance[a : b + 1]) for a, b in runs]
        nearest = (max(each for each in sums if each < 0.95), min(each for each in sums if each >= 0.95))
        assert simulate.attainable(n, share) == pytest.approx(nearest)


@pytest.mark.parametrize(("line", "code"), [(("", 0.5, 0, 0.05), 1), (("", 0.5, 0, 0.05, "", False), 0)])
def test_a_broken_promise_that_could_be_kept_is_an_exit_code(
    line: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulate, "promises", lambda: [])
    monkeypatch.setattr(simulate, "coverages", lambda: [simulate.Line(*line)])
    with pytest.raises(SystemExit) as ended:
        simulate.main()
    assert ended.value.code == code
    assert capsys.readouterr().out.startswith("MISS" if code else "none")
