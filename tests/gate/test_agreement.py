"""A kernel's fault, at the gate: scores may hide it, hidden states and right answers do not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo import WHOLE, questions
from evalsuite import kernels, models, plan, runner
from evalsuite.errors import UserError
from evalsuite.gate import Report, judge, sides
from evalsuite.gate import policy as policies
from evalsuite.models.own import OwnModel
from evalsuite.plan import Plan
from planted import FAULTS, plant

POLICY = """
[identity]
may_differ = ["kernels"]

[[family]]
name = "graph"
tasks = ["multihop.graph"]
margin = 0.5

[kernels]
against = "chunked"
"""


def made() -> Plan:
    return questions() if WHOLE else plan.make(plan.select(["multihop.graph"], lengths=[256], limit=4), "terse")


def gated(place: Path, policy: str = POLICY, spoil: Callable[[dict[str, Any]], object] = lambda found: None) -> Report:
    """hybrid-kda-dsa under "reference" against itself under "chunked", its comparison of kernels spoilt on the way."""
    trusted, tried = (models.load("hybrid-kda-dsa", device="cpu", kernels=each) for each in ("chunked", "reference"))
    assert isinstance(trusted, OwnModel)
    old, new = (runner.run(each, made(), place / str(i)).folder for i, each in enumerate((trusted, tried)))
    found = json.loads(kernels.as_json(kernels.compare(trusted, "reference", replace(made(), missing={}), prompts=1)))
    spoil(found)
    file = place / "kernels.json"
    file.write_text(json.dumps(found))
    run, baseline = sides.read(new, "run"), sides.read(old, "baseline")
    return judge(run, baseline, policies.parse(policy), kernels=str(file))


def verdicts(report: Report) -> dict[str, str]:
    return {case.name: case.verdict for case in report.cases if case.kind == "kernels"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_a_regression(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, fault)
    report = gated(tmp_path)
    assert (report.verdict, report.exit_code()) == ("REGRESSED", 1)
    assert verdicts(report)["hidden states"] == "REGRESSED"
    assert "hidden states: layer" in report.reason


def test_rounding_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "none")
    report = gated(tmp_path)
    assert report.exit_code() == 0
    assert verdicts(report) == dict.fromkeys(("hidden states", "right answers", "greedy tokens"), "PASS")


SPOILT: dict[str, Callable[[dict[str, Any]], object]] = {
    "another model": lambda found: found["identities"][1].update(weights="w"),
    "two models": lambda found: found["identities"][0].update(weights="w"),
    "a layer left out": lambda found: found["layers"].pop(3),
    "no layer": lambda found: found["layers"].clear(),
    "no sample": lambda found: found["samples"].clear(),
    "no right answer": lambda found: [each.update(losses=[None, None]) for each in found["samples"]],
    "another version": lambda found: found.update(version=2),
    "no identity": lambda found: found.pop("identities"),
    "one sample less than the run": lambda found: found["samples"].pop(),
    "another seed": lambda found: [each.update(prompt_hash="0") for each in found["samples"]],
    "another subtask": lambda found: [each.update(task="multihop.path") for each in found["samples"]],
    "another length": lambda found: [each.update(length=128) for each in found["layers"]],
    "code of another day": lambda found: found.update(revision="0" * 40),
    "no revision": lambda found: found.pop("revision"),
    "no number after one": lambda found: found["layers"][-1].update(own=float("nan")),
    "the same operators": lambda found: found["identities"][0].update(kernels=found["identities"][1]["kernels"]),
    "trust in itself": lambda found: found.update(kernels=["reference", "reference"]),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, "none")
        gated(place)
    return place


@pytest.mark.parametrize("how", [*SPOILT, "no file", "no JSON"])
def test_a_comparison_of_kernels_that_proves_nothing_is_invalid(how: str, sound: Path, tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    if how in SPOILT:
        found = json.loads((sound / "kernels.json").read_text())
        SPOILT[how](found)
        file.write_text(json.dumps(found))
    elif how == "no JSON":
        file.write_text("kernels agree")
    given = "" if how == "no file" else str(file)
    run, baseline = (sides.read(sound / n / "hybrid-kda-dsa", role) for n, role in (("1", "run"), ("0", "baseline")))
    report = judge(run, baseline, policies.parse(POLICY), kernels=given)
    assert (report.verdict, report.exit_code()) == ("INVALID", 3)
    assert {problem.kind for problem in report.problems} <= {"agreement", "no-agreement"}


def test_worse_answers_alone_are_a_regression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states of a few prompts may miss what the answers of all show."""
    plant(monkeypatch, "none")

    def worse(found: dict[str, Any]) -> None:
        for each in found["samples"]:
            each["losses"][1] += 0.01
            each["agreed"] = 0

    report = gated(tmp_path, spoil=worse)
    assert verdicts(report) == {"hidden states": "PASS", "right answers": "REGRESSED", "greedy tokens": "REGRESSED"}
    assert report.exit_code() == 1


def test_a_tolerance_of_none_at_all_is_no_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 demands equal bits: whoever writes it does not mean what rounding explains."""
    plant(monkeypatch, "none")

    def rounded(found: dict[str, Any]) -> None:
        for each in found["layers"]:
            each["own"] = 1e-9

    report = gated(tmp_path, POLICY + "tolerance = 0\n", rounded)
    assert verdicts(report)["hidden states"] == "REGRESSED"


@pytest.mark.parametrize("line", ["tolerance = 0.5", "gap = 5", "tokens = 0.01", "gap = nan", "gap = -1"])
def test_limits_that_hold_nothing_are_refused(line: str) -> None:
    with pytest.raises(UserError, match=line.partition(" ")[0]):
        policies.parse(POLICY + line)


def test_the_run_s_own_choice_is_no_trusted_kernel() -> None:
    with pytest.raises(UserError, match="auto"):
        policies.parse(POLICY.replace('"chunked"', '"auto"'))
