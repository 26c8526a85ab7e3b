"""What CI servers and people are shown: valid, short, and impossible to misread."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from lxml import etree

import gate_runs
from evalsuite import cli
from evalsuite.gate import Report, junit, outputs, summary
from evalsuite.gate.judge import Case
from evalsuite.gate.sides import Problem
from gate_runs import POLICY, Two, flip

SCHEMA = etree.XMLSchema(etree.parse(Path(__file__).with_name("junit.xsd")))
NASTY = 'a<b> & "c" ]]> | `d` \x00\x08\ud83d\ufffe :: %0A,\n::error::e'
RULES = POLICY + '[[metric]]\nname = "kv"\nratio = 1.0\n[[quarantine]]\ntask = "toy.b"\nreason = "r"\nissue = "#1"\n'
RULES += "until = 2999-01-01\n"


def valid(report: Report, *, strict: bool = False) -> etree._Element:
    """The JUnit document, held against the schema."""
    root = etree.fromstring(junit.render(report, strict=strict).encode())
    assert SCHEMA.validate(root), SCHEMA.error_log
    return root


def of(root: etree._Element, name: str) -> etree._Element:
    (suite,) = (suite for suite in root if suite.get("name") == name)
    return suite


def test_the_schema_can_fail() -> None:
    suite = '<testsuite name="a" tests="1" failures="0" errors="0"><testcase name="b">{}</testcase></testsuite>'
    assert SCHEMA.validate(etree.fromstring(suite.format("<skipped/>")))
    for wrong in ("<properties/>", "<passed/>", '<failure mesage="x"/>'):
        assert not SCHEMA.validate(etree.fromstring(suite.format(wrong))), wrong


def test_junit(tmp_path: Path) -> None:
    two = Two(tmp_path, policy=RULES)
    two.new = flip(two.old, lost=12)
    root = valid(two.judge())
    assert (root.get("failures"), root.get("errors"), root.get("tests")) == ("1", "0", "4")
    suite = of(root, "family toy")
    found = {each.get("name"): each.get("value") for each in suite.iter("property")}
    assert {"difference", "ci_low", "ci_high", "p", "p_adj", "n", "b", "c", "mde", "verdict"} <= found.keys()
    assert (found["b"], found["c"], found["n"], found["verdict"]) == ("12", "0", "150", "REGRESSED")
    assert float(found["difference"] or 0) == pytest.approx(-0.08)
    assert float(found["p"] or 0) == pytest.approx(0.5**12)
    assert suite.find("testcase/failure").get("message").startswith("difference -8.00 points")
    assert of(root, "quarantine toy.b").find("testcase/skipped").get("message").startswith("QUARANTINED: r (#1)")
    cell = of(root, "cell toy.a (length=256)").find("testcase/skipped")
    assert cell.get("message").startswith("advice: REGRESSED")
    assert of(root, "metric kv").find("testcase/system-out") is not None


def test_what_fails_the_gate_fails_in_junit(tmp_path: Path) -> None:
    two = Two(tmp_path)
    two.new = flip(two.old, lost=8, won=6)
    report = two.judge()
    assert of(valid(report), "family toy").find("testcase/skipped").get("message").startswith("INCONCLUSIVE: ")
    root = valid(report, strict=True)
    assert of(root, "family toy").find("testcase/failure").get("type") == "INCONCLUSIVE"
    assert root.get("failures") == "1"
    assert summary.annotations(report)[0].startswith("::warning ")
    assert summary.annotations(report, strict=True)[0].startswith("::error ")
    two.policy = 'mode = "release"' + POLICY
    assert of(valid(two.judge()), "family toy").find("testcase/failure") is not None


def test_an_invalid_comparison_is_an_error_in_junit(tmp_path: Path) -> None:
    two = Two(tmp_path)
    two.new.pop()
    root = valid(two.judge())
    assert (root.get("tests"), root.get("errors"), root.get("failures")) == ("1", "1", "0")
    assert of(root, "validity missing").find("testcase/error").get("type") == "INVALID"


def nasty(report: Report, cells: int = 3) -> Report:
    """The report with names and reasons that would break out of anything."""
    case = next(case for case in report.cases if case.kind == "cell")
    more = tuple(replace(case, name=f"{NASTY} {i}", reason=NASTY, verdict="REGRESSED") for i in range(cells))
    return replace(report, cases=(*report.cases, *more), notes=(NASTY,), reason=NASTY)


def test_names_break_out_of_nothing(tmp_path: Path) -> None:
    report = nasty(Two(tmp_path).judge())
    valid(report)
    text = summary.markdown(report)
    assert text.encode()
    rows = [line for line in text.splitlines() if "::error" in line and line.startswith("|")]
    assert len(rows) == 3
    for line in rows:
        assert len(re.findall(r"(?<!\\)\|", line)) == len(summary.HEADER) + 1
        assert "<b>" not in line
    problems = replace(report, problems=(Problem("p", NASTY),))
    valid(problems)
    for line in summary.annotations(problems):
        assert "\n" not in line
        assert re.fullmatch(r"::(error|warning|notice) title=[^:,]*::.*", line)
        assert line.encode()


def test_at_most_ten_annotations(tmp_path: Path) -> None:
    report = nasty(Two(tmp_path).judge(), cells=30)
    lines = summary.annotations(report)
    assert len(lines) == 10
    assert lines[-1] == "::notice title=gate::21 more, in gate.json"
    gating = Case("family", "toy", "critical", "REGRESSED", "lost 5%\nof it")
    first = summary.annotations(replace(report, cases=(*report.cases, gating)))[0]
    assert first == "::error title=gate%3A family toy REGRESSED::lost 5%25%0Aof it", "the gravest is never left out"
    assert summary.annotations(Two(tmp_path / "same").judge()) == []


def test_a_step_summary_is_under_a_mebibyte(tmp_path: Path) -> None:
    report = nasty(Two(tmp_path).judge(), cells=20_000)
    text = summary.markdown(report)
    assert len(text.encode()) <= 1_000_000
    assert "cells are left out to keep this short" in text
    assert "PASS family toy" in text, "families are never dropped"
    left = int(re.search(r"(\d+) of 20002 cells are left out", text)[1])  # type: ignore[index]
    assert left + sum(line.startswith("| ❌ REGRESSED cell") for line in text.splitlines()) + 2 >= 20_002
    whole = summary.markdown(nasty(Two(tmp_path / "few").judge()))
    assert "left out" not in whole
    huge = replace(report, problems=tuple(Problem("missing", "x" * 100_000) for _ in range(1000)))
    assert len(summary.markdown(huge).encode()) <= 1_000_000


def test_the_worst_cells_stay(tmp_path: Path) -> None:
    report = Two(tmp_path).judge()
    quiet = next(case for case in report.cases if case.kind == "cell")
    loud = replace(quiet, name="loud", verdict="REGRESSED", p_adjusted=0.001)
    text = summary.markdown(replace(report, cases=(*[quiet] * 500, loud)), limit=5000)
    assert "REGRESSED cell loud" in text
    assert len(text.encode()) <= 5000


def test_gate_json_says_everything(tmp_path: Path) -> None:
    two = Two(tmp_path, policy=RULES)
    two.new = flip(two.old, lost=12)
    report = two.judge()
    outputs.write(report, tmp_path / "out", strict=True)
    record = json.loads((tmp_path / "out" / "gate.json").read_text(), parse_constant=pytest.fail)
    assert (record["version"], record["verdict"], record["exit_code"], record["strict"]) == (1, "REGRESSED", 1, True)
    assert record["run"]["samples"] == 300
    assert len(record["run"]["sha256"]) == len(record["baseline"]["sha256"]) == 64
    family = next(case for case in record["cases"] if case["kind"] == "family")
    assert (family["b"], family["c"], family["psi"]) == (12, 0, 0.08)
    assert family["ci_low"] < family["difference"] < family["ci_high"] < 0
    assert record["policy"]["families"][0]["margin"] == 0.02
    assert record["policy"]["quarantines"][0]["until"] == "2999-01-01"
    assert (two.run / "gate.json").read_text() == (tmp_path / "out" / "gate.json").read_text()


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of a command line."""
    monkeypatch.setattr(sys, "argv", ["evalsuite", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    two = Two(tmp_path)
    two.write()
    given = ("gate", two.run, "--baseline", two.baseline, "--policy", tmp_path / "gate.toml")
    assert typed(monkeypatch, *given) == 0
    assert {"gate.json", "gate.xml", "gate.md"} <= {path.name for path in two.run.iterdir()}
    assert typed(monkeypatch, *given[:3], two.run, *given[4:]) == 3
    two.new = flip(two.old, lost=8, won=6)
    two.write()
    assert typed(monkeypatch, *given) == 0
    assert typed(monkeypatch, *given, "--strict") == 4
    two.new = flip(two.old, lost=8)
    two.write()
    assert typed(monkeypatch, *given, "--strict") == 1
    capsys.readouterr()
    for wrong in (
        (*given[:3], tmp_path / "none", *given[4:]),
        given[:4],
        (*given, "--escalate", two.run),
        (*given[:5], tmp_path / "none.toml"),
    ):
        assert typed(monkeypatch, *wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_in_github_actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    two = Two(tmp_path)
    two.new = flip(two.old, lost=8)
    two.write()
    step = tmp_path / "step.md"
    step.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    given = ("gate", two.run, "--baseline", two.baseline, "--policy", tmp_path / "gate.toml", "--json")
    assert typed(monkeypatch, *given) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["verdict"] == "REGRESSED"
    assert err.startswith("::error title=gate%3A family toy REGRESSED::difference -2.67 points")
    assert step.read_text().startswith("before\n## ❌ evalsuite gate: REGRESSED")
    assert typed(monkeypatch, *given[:-1]) == 1
    assert "\n::error title=" in capsys.readouterr().out


def test_promote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    two = Two(tmp_path)
    two.write()
    to = tmp_path / "results" / "baselines" / "toy"
    assert typed(monkeypatch, "baseline", "promote", two.baseline, "--to", to, "--reason", "the first") == 0
    assert str(to / "small") in capsys.readouterr().out
    lock = json.loads((to / "small" / "baseline.lock").read_text())
    assert (lock["reason"], lock["gate"], lock["revision"]) == ("the first", "not gated", "abc")
    assert lock["scores"] == {"toy.a": {"n": 150, "score": 0.6}, "toy.b": {"n": 150, "score": 1.0}}
    assert set(lock["files"]) == {"run.json", "samples.parquet", "summary.json", "timings-0.jsonl"}
    two.new = flip(two.old, lost=0, won=9)
    two.write()
    given = ("gate", two.run, "--baseline", to, "--policy", tmp_path / "gate.toml")
    assert typed(monkeypatch, *given) == 0
    capsys.readouterr()
    assert typed(monkeypatch, "baseline", "promote", two.run, "--to", to, "--reason", "better") == 0
    shown = capsys.readouterr().out
    assert 'gate: "not gated" -> "IMPROVED"' in shown
    assert "scores.toy.a.score: 0.6 -> 0.66" in shown
    assert "scores.toy.b" not in shown
    assert typed(monkeypatch, *given) == 3, "the run equals the baseline that was made of it"


def test_promote_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    two = Two(tmp_path)
    two.new = flip(two.old, lost=9)
    two.write()
    given = ("baseline", "promote", two.run, "--to", tmp_path / "to", "--reason")

    def refused(words: str, *arguments: object) -> None:
        assert typed(monkeypatch, *arguments) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "to").exists()

    refused("--reason is empty", *given, " ")
    gate = ("gate", two.run, "--baseline", two.baseline, "--policy", tmp_path / "gate.toml", "--out", tmp_path / "out")
    assert typed(monkeypatch, *gate) == 1
    refused("the gate called it REGRESSED", *given, "worse")
    assert typed(monkeypatch, *gate[:3], two.run, *gate[4:]) == 3
    refused("the gate called it INVALID", *given, "worse")
    (two.run / "gate.json").write_text("{")
    refused("gate.json cannot be read", *given, "worse")
    (two.run / "gate.json").unlink()
    (two.run / "summary.json").unlink()
    refused("is not finished", *given, "worse")
    refused("it has no run.json", "baseline", "promote", tmp_path, "--to", tmp_path / "to", "--reason", "none")


def test_a_verdict_on_other_samples_is_none(tmp_path: Path) -> None:
    two = Two(tmp_path)
    two.new = flip(two.old, lost=9)
    outputs.write(two.judge(), tmp_path / "out")
    assert outputs.judged(two.run) is not None
    gate_runs.write(tmp_path / "again", two.old, "5")
    shutil.copy(tmp_path / "again" / "samples.parquet", two.run)
    assert outputs.judged(two.run) is None
