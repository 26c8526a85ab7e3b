"""The verdicts: what fails, what is left open, and what may never pass."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

import gate_runs
from evalsuite.gate import Report, decide, judge, sides
from evalsuite.gate import policy as policies
from evalsuite.gate.decide import Level
from evalsuite.gate.judge import Case
from gate_runs import POLICY, Two, flip, row


def case(report: Report, name: str, kind: str = "family") -> Case:
    (found,) = (each for each in report.cases if (each.kind, each.name) == (kind, name))
    return found


def test_lost_answers_are_a_regression(tmp_path: Path) -> None:
    two = Two(tmp_path)
    two.new = flip(two.old, lost=6)
    report = two.judge()
    assert (report.verdict, report.exit_code(), report.exit_code(strict=True)) == ("REGRESSED", 1, 1)
    found = case(report, "toy").outcome
    assert found is not None
    assert (found.test, found.difference.losses, found.difference.wins) == ("mcnemar", 6, 0)
    assert found.p_drop == 0.5**6


def test_won_answers_are_an_improvement(tmp_path: Path) -> None:
    two = Two(tmp_path)
    two.new = flip(two.old, lost=0, won=8)
    report = two.judge()
    assert (report.verdict, report.exit_code(strict=True)) == ("IMPROVED", 0)


def test_what_is_not_shown_is_inconclusive_and_says_how_many_it_needs(tmp_path: Path) -> None:
    two = Two(tmp_path)
    two.new = flip(two.old, lost=8, won=6)
    report = two.judge()
    assert (report.verdict, report.exit_code(), report.exit_code(strict=True)) == ("INCONCLUSIVE", 0, 4)
    found = case(report, "toy")
    assert "needs n = " in found.reason
    needed = int(found.reason.partition("needs n = ")[2].partition(",")[0])
    assert 500 < needed < 10_000
    two.policy = 'mode = "release"' + POLICY
    assert two.judge().exit_code() == 4, "a release must be shown to be no worse"


def test_only_critical_families_must_be_decided(tmp_path: Path) -> None:
    two = Two(tmp_path, policy='mode = "release"' + POLICY + 'tier = "supporting"\n')
    two.new = flip(two.old, lost=8, won=6)
    report = two.judge()
    assert (report.verdict, report.exit_code(strict=True)) == ("INCONCLUSIVE", 0)
    two.new = flip(two.old, lost=16)
    assert two.judge().exit_code() == 1, "supporting families fail the gate all the same"


def test_advice_never_fails(tmp_path: Path) -> None:
    two = Two(
        tmp_path, policy=POLICY.replace("toy.*", "toy.a") + '[[family]]\nname="b"\ntasks=["toy.b"]\ntier="advisory"'
    )
    two.new = two.old[:150] + flip(two.old[150:], lost=60)
    report = two.judge()
    assert case(report, "b").verdict == "REGRESSED"
    assert case(report, "toy.b (length=256)", "cell").verdict == "REGRESSED"
    assert (report.verdict, report.exit_code(strict=True)) == ("PASS", 0)
    assert any("held by no gated family: toy.b" in note for note in report.notes)


def test_a_drop_in_few_clusters_can_neither_fail_nor_pass(tmp_path: Path) -> None:
    """Four texts of 75 questions each: all flips of four signs leave no p below 1/16."""
    two = Two(tmp_path)
    two.old = [row("toy.a", i, 1.0, cluster=f"text {i % 4}") for i in range(300)]
    two.new = flip(two.old, lost=200)
    found = case(two.judge(), "toy")
    assert found.verdict == "INCONCLUSIVE"
    assert "4 independent clusters reach no p below 0.062" in found.reason
    assert "needs 5 clusters" in found.reason
    two.new = deepcopy(two.old)
    assert two.judge().verdict == "INCONCLUSIVE", "equal scores on four texts are four observations"


def test_clusters_that_move_together_are_no_proof(tmp_path: Path) -> None:
    """Ten questions on one text lost at once: McNemar would call it p = 0.001."""
    two = Two(tmp_path)
    two.old = [row("toy.a", i, 1.0, cluster=f"text {i // 10}") for i in range(300)]
    two.new = flip(two.old, lost=10)
    found = case(two.judge(), "toy")
    assert found.outcome is not None
    assert (found.outcome.test, found.outcome.p_drop, found.verdict) == ("sign-flip", 0.5, "INCONCLUSIVE")


def test_graded_scores_are_tested_by_sign_flips(tmp_path: Path) -> None:
    two = Two(tmp_path)
    two.old = [row("toy.a", i, 0.5 + i / 1000) for i in range(300)]
    two.new = [row("toy.a", i, 0.4 + i / 1000 + (i % 3) / 20) for i in range(300)]
    found = case(two.judge(), "toy")
    assert found.outcome is not None
    assert (found.outcome.test, found.verdict) == ("sign-flip", "REGRESSED")
    assert found.outcome.p_drop == pytest.approx(1e-4)


def test_holm_over_the_gated_families(tmp_path: Path) -> None:
    """Five lost answers are p = 0.031: a regression alone, and none among ten families."""
    two = Two(tmp_path)
    two.new = flip(two.old, lost=5)
    assert two.judge().verdict == "REGRESSED"
    more = "".join(f'[[family]]\nname = "f{i}"\ntasks = ["toy.b"]\n' for i in range(9))
    two = Two(tmp_path / "ten", policy=POLICY + more)
    two.new = flip(two.old, lost=5)
    found = case(two.judge(), "toy")
    assert found.verdict != "REGRESSED"
    assert found.p_adjusted == pytest.approx(10 * 0.5**5)


def test_a_floor_holds_whatever_the_baseline_was(tmp_path: Path) -> None:
    two = Two(tmp_path, policy=POLICY + "floor = 0.81\n")
    report = two.judge()
    assert report.exit_code() == 1
    assert "score 0.8000 is below the floor 0.81" in report.reason
    assert Two(tmp_path / "met", policy=POLICY + "floor = 0.8\n").judge().exit_code() == 0


def test_a_baseline_at_chance_can_lose_nothing(tmp_path: Path) -> None:
    two = Two(tmp_path, gate_runs.rows(wrong=268), gate_runs.rows(wrong=268))
    report = two.judge()
    assert (report.verdict, report.exit_code(strict=True)) == ("INCONCLUSIVE", 4)
    assert "at chance: nothing is left to lose" in report.reason


def test_slow_drift_from_a_release(tmp_path: Path) -> None:
    """Four answers lost at a time, each step within the noise."""
    steps = [gate_runs.rows()]
    for _ in range(2):
        steps.append(flip(steps[-1], lost=4))
    folders = [gate_runs.write(tmp_path / f"s{i}", found, str(i)) for i, found in enumerate(steps)]
    rules = policies.parse(POLICY)
    first, second, third = (sides.read(folder, "run") for folder in folders)
    assert judge(second, first, rules).exit_code() == 0
    assert judge(third, second, rules).exit_code() == 0
    report = judge(third, second, rules, sides.read(folders[0], "release"))
    assert report.exit_code() == 1
    assert case(report, "toy", "drift").verdict == "REGRESSED"
    assert case(report, "toy").verdict != "REGRESSED"


def test_quarantined_tasks_are_shown_and_do_not_count(tmp_path: Path) -> None:
    until = '[[quarantine]]\ntask = "toy.b"\nreason = "flaky"\nissue = "#12"\nuntil = 2999-01-01\n'
    two = Two(tmp_path, policy=POLICY + until)
    two.new = two.old[:150] + flip(two.old[150:], lost=60)
    report = two.judge()
    assert report.verdict == "PASS"
    found = case(report, "toy.b", "quarantine")
    assert (found.verdict, found.reason) == ("QUARANTINED", "flaky (#12), until 2999-01-01")
    assert found.outcome is not None
    assert found.outcome.difference.losses == 60
    assert any("toy.b is quarantined" in note for note in report.notes)


METRICS = '[[metric]]\nname = "kv"\nratio = 1.2\n[[metric]]\nname = "decode"\nratio = 0.8\n'


@pytest.mark.parametrize(
    ("kv", "slices", "kv_verdict", "decode_verdict", "code"),
    [
        (1000, 1.0, "PASS", "PASS", 0),
        (1200, 1.2, "PASS", "PASS", 0),
        (1201, 1.0, "REGRESSED", "PASS", 1),
        (500, 0.5, "IMPROVED", "IMPROVED", 0),
        (1000, 1.3, "PASS", "REGRESSED", 1),
    ],
)
def test_memory_and_speed(
    kv: int, slices: float, kv_verdict: str, decode_verdict: str, code: int, tmp_path: Path
) -> None:
    old = gate_runs.write(tmp_path / "old", gate_runs.rows(), "1")
    meta = {"cost": {"256": {"kv": kv, "state": 50}}}
    new = gate_runs.write(tmp_path / "new", gate_runs.rows(), "2", meta, slices)
    report = judge(sides.read(new, "run"), sides.read(old, "baseline"), policies.parse(POLICY + METRICS))
    assert case(report, "kv", "metric").verdict == kv_verdict
    assert case(report, "decode", "metric").verdict == decode_verdict
    assert report.exit_code() == code


def test_speed_measured_otherwise_is_no_proof(tmp_path: Path) -> None:
    two = Two(tmp_path, policy=POLICY + METRICS)
    two.write()
    log = two.run / "timings-0.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    new, old = sides.read(two.run, "run"), sides.read(two.baseline, "baseline")
    report = judge(new, old, policies.load(tmp_path / "gate.toml"))
    assert case(report, "decode", "metric").verdict == "INCONCLUSIVE"
    log.write_text("")
    new = sides.read(two.run, "run")
    report = judge(new, old, policies.load(tmp_path / "gate.toml"))
    assert report.verdict == "INVALID"
    assert "no speed was measured in one of the runs" in report.reason
    report = judge(new, old, policies.parse(POLICY + METRICS + 'tier = "advisory"\n'))
    assert report.verdict == "PASS", "advice that cannot be given stops nothing"
    assert case(report, "decode", "metric").verdict == "INCONCLUSIVE"


def test_a_noisy_speed_is_inconclusive(tmp_path: Path) -> None:
    from evalsuite.gate import costs

    two = Two(tmp_path)
    two.write()
    new, old = sides.read(two.run, "run").run, sides.read(two.baseline, "baseline").run
    for timing, seconds in zip(new.timings, (0.7, 2.0, 1.0, 1.1), strict=True):
        timing["decode_seconds"] = seconds
    found = costs.measure(policies.Metric("decode", 0.9), new, old)
    assert found.verdict == "INCONCLUSIVE"
    assert found.low < 0.9 < found.high


def escalated(place: Path, first: tuple[int, int], second: tuple[int, int]) -> Report:
    """Two batches with so many answers lost and won."""
    two = Two(place, policy=POLICY + "[escalation]\nalpha = [0.01, 0.04]\nseed = 7\n")
    two.new = flip(two.old, *first)
    two.write()
    meta = deepcopy(gate_runs.META)
    meta["tasks"]["toy"]["seed"] = 7
    fresh = gate_runs.rows(seed=7)
    pair = (
        gate_runs.write(place / "new2", flip(fresh, *second), "3", meta),
        gate_runs.write(place / "old2", fresh, "4", meta),
    )
    rules = policies.load(place / "gate.toml")
    again = (sides.read(pair[0], "second run"), sides.read(pair[1], "second baseline"))
    return judge(sides.read(two.run, "run"), sides.read(two.baseline, "baseline"), rules, None, again)


@pytest.mark.parametrize(
    ("first", "second", "verdict", "look"),
    [
        ((5, 0), (3, 0), "REGRESSED", 2),  # both together: 8 lost, p = 0.004
        ((5, 0), (0, 0), "REGRESSED", 2),  # 5 lost of both, p = 0.031 <= 0.04
        ((5, 1), (0, 5), "PASS", 2),
        ((9, 6), (9, 6), "INCONCLUSIVE", 2),
        ((8, 0), (0, 20), "REGRESSED", 1),  # a fail stays a fail
        ((0, 0), (20, 0), "PASS", 1),  # a pass is not looked at again
    ],
)
def test_escalation(first: tuple[int, int], second: tuple[int, int], verdict: str, look: int, tmp_path: Path) -> None:
    report = escalated(tmp_path, first, second)
    assert (report.verdict, case(report, "toy").look) == (verdict, look)


def test_a_registered_escalation_costs_alpha_at_once(tmp_path: Path) -> None:
    two = Two(tmp_path, policy=POLICY + "[escalation]\nalpha = [0.01, 0.04]\nseed = 7\n")
    two.new = flip(two.old, lost=5)
    assert two.judge().verdict == "INCONCLUSIVE", "p = 0.031 fails at 0.05, and not at the first look's 0.01"


def test_clusters_of_two_batches_are_not_one(tmp_path: Path) -> None:
    level = Level()
    one = decide.measure([0.0] * 6, [1.0] * 6, [f"t{i}" for i in range(6)], level)
    both = decide.measure([0.0] * 12, [1.0] * 12, [*(f"t{i}" for i in range(6)), *(f"u{i}" for i in range(6))], level)
    assert both.p_drop < one.p_drop == 0.5**6
    report = escalated(tmp_path, (5, 0), (3, 0))
    found = case(report, "toy").outcome
    assert found is not None
    assert found.new.clusters == 600


def test_needed_is_about_right() -> None:
    """With as many samples as it names, a change of nothing passes about as often as the power says."""
    draw = np.random.default_rng(3)
    level = Level()

    def passes(n: int) -> bool:
        kind = draw.random(n)
        old = (kind < 0.02) * 1.0 + ((kind > 0.04) & (kind < 0.7)) * 1.0
        new = ((kind >= 0.02) & (kind < 0.04)) * 1.0 + ((kind > 0.04) & (kind < 0.7)) * 1.0
        found = decide.measure(new, old, [""] * n, level)
        return found.drop_bound < 0.02

    first = decide.measure([1.0] * 96 + [0.0] * 2 + [1.0] * 2, [1.0] * 96 + [1.0] * 2 + [0.0] * 2, [""] * 100, level)
    needed = first.needed(level, 0.02)
    assert 600 < needed < 1200
    assert 0.7 < np.mean([passes(needed) for _ in range(300)]) <= 1
