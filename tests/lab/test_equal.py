"""The equal-budget lab: every design gets the same, nothing is done twice, and no end loses what was done."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalsuite.errors import UserError
from evalsuite.lab import equal, report
from evalsuite.lab.budget import BUDGETS, chosen
from evalsuite.lab.equal import Job, Machine, run
from evalsuite.lab.report import Trained, gates, over_seeds, rates
from micro import LONG, MICRO

TWO = Machine(("cpu", "cpu"))
PROGRAM = str(Path(__file__).with_name("micro.py"))


def quiet(_: str) -> None:
    pass


def results(out: Path) -> dict[str, dict[str, Any]]:
    return {str(f.parent.relative_to(out)): json.loads(f.read_text()) for f in sorted(out.rglob("result.json"))}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lab")
    budget = replace(MICRO, rates=(1e-3, 4e-3))
    run(budget, budget.designs, out, TWO, quiet)
    return out


def test_every_design_gets_the_same(swept: Path) -> None:
    found = results(swept)
    finished = {name: each for name, each in found.items() if not each["sweep"]}
    assert list(finished) == ["CF/seed0", "FF/seed0", "FF/seed1"]
    assert len({each["tokens"] for each in finished.values()}) == 1
    assert all(abs(each["parameters"] / each["size"] - 1) <= 0.01 for each in finished.values())
    streams = {(each["seed"], json.dumps(each["provenance"]["stream"], sort_keys=True)) for each in finished.values()}
    assert len(streams) == 2  # one for each seed, whatever the design
    recipes = {json.dumps({**each["provenance"]["recipe"], "lr": 0, "seed": 0}) for each in finished.values()}
    assert len(recipes) == 1


def test_a_rate_is_chosen_of_those_tried_and_an_edge_is_tried_beyond(swept: Path) -> None:
    found = results(swept)
    for design in ("FF", "CF"):
        tried = {each["lr"]: each["loss"] for each in found.values() if each["sweep"] and each["design"] == design}
        assert len(tried) >= 3  # of a grid of two each is at an edge
        used = {each["lr"] for each in found.values() if not each["sweep"] and each["design"] == design}
        assert used == {chosen(tried, (1e-3, 4e-3))}
        assert not used & {min(tried), max(tried)}
        steps = {each["provenance"]["stream"]["steps"] for each in found.values() if each["sweep"]}
        assert steps == {10}


def test_probes_and_answers_come_with_a_result(swept: Path) -> None:
    each = results(swept)["FF/seed0"]
    assert each["history"][-1]["probe"].keys() == {
        f"multihop.graph (answer=direct, facts=12, hops={hops}, length=96, order=shuffled)" for hops in (1, 2)
    }
    assert each["cells"] == report.cells(swept / "FF" / "seed0" / "answers")
    (one, two, _) = report.trainings(report.read(swept))
    assert {dict(facets)["hops"] for _, facets in one.scores} == {1, 2}
    assert set(one.asked.values()) == {8}
    assert one.design == "CF"
    assert two.design == "FF"


def test_what_is_finished_is_not_done_again(swept: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in swept.rglob("*") if file.is_file() and file.name != ".lock"}
    budget = replace(MICRO, rates=(1e-3, 4e-3))
    run(budget, budget.designs, swept, TWO, quiet)
    after = {file: file.stat().st_mtime_ns for file in before}
    assert {file.name for file in before if before[file] != after[file]} <= {"budget.json"}


def test_the_table_names_designs_and_failed_gates(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUDGETS, "tiny", MICRO)
    text = report.report(swept)
    assert "| FF | FF | 2 |" in text
    assert "n = 8 a cell and seed" in text
    assert "**full attention reaches 0.95 at 1, 2 hops over 12 facts: FAILS**" in text  # 30 steps teach nothing
    plain = json.loads(report.report(swept, as_json=True))
    assert [row["design"] for row in plain["designs"]] == ["FF", "CF"]
    assert plain["designs"][1]["hops"]["1"]["mean"][1:] == [None, None]  # one seed has no interval


def test_another_budget_in_the_same_folder_is_refused(swept: Path) -> None:
    with pytest.raises(UserError, match="another budget"):
        run(MICRO, MICRO.designs, swept, TWO, quiet)


def test_a_failed_job_is_named_and_the_others_are_finished(tmp_path: Path) -> None:
    blocked = Job("CF", 0, MICRO.rates[0]).folder(tmp_path)
    blocked.mkdir(parents=True)
    (blocked / "trainer.pt").write_bytes(b"no state")
    with pytest.raises(UserError, match=r"CF seed 0: .*trainer.pt cannot be read"):
        run(MICRO, {"FF": 1, "CF": 1}, tmp_path, TWO, quiet)
    assert list(results(tmp_path)) == ["FF/seed0"]


def test_any_fault_of_one_job_leaves_the_others(tmp_path: Path) -> None:
    blocked = Job("CF", 0, MICRO.rates[0]).folder(tmp_path)
    blocked.mkdir(parents=True)
    (blocked / "result.json").write_text("{")  # no JSON: not an error that anybody foresaw
    with pytest.raises(UserError, match="CF seed 0: JSONDecodeError"):
        run(MICRO, {"FF": 1, "CF": 1}, tmp_path, TWO, quiet)
    assert (tmp_path / "FF" / "seed0" / "model.safetensors").exists()


def test_an_interrupt_ends_at_once_and_leaves_nobody(tmp_path: Path) -> None:
    started = subprocess.Popen([sys.executable, PROGRAM, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    _wait_for(tmp_path, "*/seed0/progress.json")
    began = time.monotonic()
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert time.monotonic() - began < 20
    time.sleep(0.5)
    assert not _running(str(tmp_path))
    assert not results(tmp_path)


def test_an_impossible_design_fails_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="full"):
        run(MICRO, {"FF": 1, "ful": 1}, tmp_path / "x", TWO, quiet)
    assert not (tmp_path / "x").exists()


def test_killed_at_once_it_leaves_nobody_and_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    run(LONG, LONG.designs, whole, TWO, quiet)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen([sys.executable, PROGRAM, str(part)], env=environment, stdout=subprocess.DEVNULL)
    _wait_for(part, "*/seed0/trainer.pt")
    started.send_signal(signal.SIGKILL)
    started.wait()
    time.sleep(0.5)
    assert not _running(str(part))
    assert not results(part)
    subprocess.run([sys.executable, PROGRAM, str(part)], check=True, env=environment, stdout=subprocess.DEVNULL)
    for design in LONG.designs:
        a, b = ((out / design / "seed0" / "model.safetensors").read_bytes() for out in (whole, part))
        assert a == b
        histories = [results(out)[f"{design}/seed0"]["history"] for out in (whole, part)]
        assert [(h["loss"], h.get("probe")) for h in histories[0]] == [
            (h["loss"], h.get("probe")) for h in histories[1]
        ]


def _wait_for(folder: Path, pattern: str) -> None:
    until = time.monotonic() + 300
    while not list(folder.glob(pattern)):
        assert time.monotonic() < until, f"no {pattern} in {folder}"
        time.sleep(0.05)


def _running(word: str) -> list[str]:
    """Processes whose working files are in a folder of the lab, by their open files."""
    found = []
    for process in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if word in os.readlink(process):
                found.append(str(process))
        except OSError:
            continue
    return found


def made(design: str, *, seed: int = 0, known: float = 1.0, hops: float = 1.0, **changes: Any) -> Trained:
    result = {"design": design, "pattern": design, "seed": seed, "parameters": 1000, "size": 1000, "tokens": 5}
    graph = ("multihop.graph", (("length", 96), ("facts", 12), ("hops", 1)))
    return Trained({**result, **changes}, {graph: hops, ("knowledge.cloze", ()): known})


@pytest.mark.parametrize(
    ("found", "failed"),
    [
        ([made("FF"), made("CF", hops=0.1)], set()),
        ([made("FF", hops=0.94), made("CF")], {"full attention reaches 0.95 at 1, 2 hops over 12 facts"}),
        ([made("FF"), made("FF", seed=1, hops=0.5)], {"full attention reaches 0.95 at 1, 2 hops over 12 facts"}),
        ([made("FF"), made("CF", known=0.97)], {"knowledge within 2 points"}),
        ([made("FF"), made("CF", tokens=6)], {"equal tokens"}),
        ([made("FF"), made("CF", parameters=1011)], {"parameters within 1 %"}),
        ([made("CF")], {"full attention is at its ceiling"}),
    ],
)
def test_each_gate_fails_on_what_it_is_for(found: list[Trained], failed: set[str]) -> None:
    assert {gate.name for gate in gates(found, MICRO, 12) if not gate.passed} == failed


def test_a_rate_at_the_edge_fails_its_gate() -> None:
    assert not rates([], {"FF": 1e-3})[0].passed  # nothing was tried
    tried = [{"design": "FF", "lr": lr, "loss": 1.0} for lr in (1e-3, 2e-3, 4e-3)]
    assert rates(tried, {"FF": 2e-3})[0].passed
    assert rates(tried, {"FF": 4e-3})[0].found == "FF at 0.004, an edge"
    assert rates(tried, {"FF": 2e-3, "CF": 2e-3})[0].found == "CF at 0.002, not swept"


def test_noise_leads_no_search_away() -> None:
    """Losses of Kimi Delta Attention 3:1 at a third of the reference's tokens, and some that differ."""
    start = (1e-3, 2e-3)
    flat = {1e-3: 2.933, 2e-3: 2.982}
    assert chosen(flat, start) == 1e-3
    assert chosen(flat | {5e-4: 2.836}, start) == 1e-3  # 3 % better, as another seed might be
    assert chosen(flat | {5e-4: 2.5}, start) == 5e-4
    assert chosen({1e-3: 2.563, 2e-3: 2.546, 4e-3: 2.128, 8e-3: 4.129}, start) == 4e-3
    assert chosen({1e-3: 2.0, 2e-3: 2.0}, start) in start


def test_an_interval_over_seeds_is_students() -> None:
    mean, low, high = over_seeds([0.8, 0.9, 1.0])
    assert mean == pytest.approx(0.9)
    assert (low, high) == pytest.approx((0.9 - 0.248414, 0.9 + 0.248414), abs=1e-5)


def test_machines() -> None:
    assert set(Machine.found("cpu").slots) == {"cpu"}
    with pytest.raises(UserError, match="--each must be at least 1"):
        Machine.found("cpu", 0)
    with pytest.raises(UserError, match="does not train"):
        Machine.found("tpu")


def test_progress_tells_of_what_is_under_way(tmp_path: Path) -> None:
    folder = tmp_path / "FF" / "seed0"
    folder.mkdir(parents=True)
    equal._note(folder, "FF seed 0", 100, {"step": 25, "tokens": 1000, "loss": 1.5, "seconds": 2.0})
    assert list(equal.progress(tmp_path)) == ["FF seed 0: 25%, loss 1.500, 500 tokens/s"]
    (folder / "result.json").write_text("{}")
    assert not list(equal.progress(tmp_path))
