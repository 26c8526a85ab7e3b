"""Tasks that run code: judged many at once, never without walls unasked, and never compared across walls in silence."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from evalsuite import compare, plan, runner, sandbox, store, table, verbs
from evalsuite.errors import UserError
from evalsuite.models.base import Speed
from evalsuite.records import Completion, Sample, Score
from evalsuite.sandbox import tiers
from evalsuite.task import Cell, Request, sample_id


class Runs:
    """Three draws of each problem; two of three pass."""

    name, version, licence, source, needs = "runs", 1, "CC0-1.0", "here", ""
    where = "T1"

    def __init__(self) -> None:
        self.pools: list[int] = []

    def subtasks(self) -> tuple[str, ...]:
        return ()

    def knobs(self) -> dict[str, tuple[int, ...]]:
        return {}

    def cells(self, request: Request) -> list[Cell]:
        return [Cell("runs", {"temperature": 0.5, "draw": draw}) for draw in range(3)]

    def missing(self, request: Request) -> dict[str, str]:
        return {}

    def sample(self, cell: Cell, index: int, request: Request, count: Any) -> Sample:
        made = sample_id(cell.task, cell.facets, index)
        return Sample(made, "runs", f"problem {index}", ("x",), cluster=f"runs/{index}", facets=cell.facets)

    def score(self, sample: Sample, completion: Completion) -> Score:
        raise AssertionError("answers that run are scored together")

    def tier(self) -> str:
        return self.where

    def scores(self, answered: Sequence[tuple[Sample, Completion]]) -> list[Score]:
        self.pools.append(len(answered))
        return [Score(s.id, float(int(s.facets["draw"]) < 2)) for s, _ in answered]


class Fake:
    name, context, wording = "fake", 128, "natural"

    def __init__(self, broken: int = -1) -> None:
        self.asked: list[str] = []
        self.speed, self.broken = Speed(), broken

    def identity(self) -> dict[str, Any]:
        return {"weights": 1}

    def count(self, text: str) -> int:
        return len(text.split())

    def cost(self, length: int) -> dict[str, int]:
        return {}

    def answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
        for sample in samples:
            self.asked.append(sample.id)
            error = "server said 500" if len(self.asked) - 1 == self.broken else ""
            yield Completion(sample.id, "word", 2, 2, finish="error" if error else "stop", error=error)


def go(out: Path, task: Runs, model: Fake | None = None, limit: int = 40) -> store.Run:
    selection = plan.Selection({"runs": task}, {"runs": ()}, limit=limit)
    return runner.run(model or Fake(), plan.make(selection, "natural"), out)


def test_answers_are_judged_in_pools_and_errors_never(tmp_path: Path) -> None:
    task = Runs()
    run = go(tmp_path, task, Fake(broken=5))
    assert sum(task.pools) == 119
    assert max(task.pools) <= runner.POOL
    assert len(task.pools) == 2
    assert run.meta["tasks"]["runs"]["tier"] == "T1"
    assert [row["score"] for row in run.rows if row["error"]] == [0.0]
    again = Fake()
    go(tmp_path, task, again)
    assert again.asked == []


def test_draws_are_one_line_with_clusters_of_problems(tmp_path: Path) -> None:
    result = compare.compare([go(tmp_path, Runs())])
    (line,) = result.scores
    (estimate,) = line.estimates
    assert estimate is not None
    assert (estimate.n, estimate.clusters) == (120, 40)
    assert estimate.value == pytest.approx(2 / 3)
    assert dict(result.cells[0].keys) == {"task": "runs", "temperature": 0.5}


def test_a_run_of_one_tier_is_not_gone_on_with_in_another(tmp_path: Path) -> None:
    task = Runs()
    go(tmp_path, task, limit=2)
    task.where = "none"
    with pytest.raises(UserError, match=r'runs\.tier: "T1" -> "none"'):
        go(tmp_path, task, limit=3)


def test_runs_of_different_tiers_are_compared_with_a_warning(tmp_path: Path) -> None:
    task = Runs()
    one = go(tmp_path / "one", task, limit=4)
    task.where = "T2"
    two = go(tmp_path / "two", task, limit=4)
    text = table.as_markdown(compare.compare([one, two]))
    assert "UNLIKE runs: the runs differ in the sandbox's tier (T1 and T2): the scores do not compare" in text
    assert "UNLIKE" not in table.as_markdown(compare.compare([one, one]))


def test_other_data_and_other_versions_are_compared_with_a_warning(tmp_path: Path) -> None:
    one, two, three = (go(tmp_path / name, Runs(), limit=4) for name in ("one", "two", "three"))
    two.meta["tasks"]["runs"]["version"] = 7
    for run, held in ((two, "aa"), (three, "bb")):
        run.meta["tasks"]["runs"]["data"] = {"humaneval": held}
    assert "UNLIKE runs: the runs differ in version: the" in table.as_markdown(compare.compare([one, two]))
    text = table.as_markdown(compare.compare([two, three]))
    assert "UNLIKE runs: the runs differ in version, data humaneval: the scores do not compare" in text


def test_a_run_without_walls_says_so(tmp_path: Path) -> None:
    task = Runs()
    task.where = "none"
    text = table.as_markdown(compare.compare([go(tmp_path, task, limit=4)]))
    assert "UNLIKE runs: its answers ran without a sandbox (--allow-unsandboxed)" in text


class Breaks(Fake):
    """A backend that fails after eleven answers."""

    def answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
        for i, completion in enumerate(super().answer(samples)):
            if i == 11:
                raise OSError("connection lost")
            yield completion


def test_what_was_answered_before_a_backend_fails_is_judged_and_kept(tmp_path: Path) -> None:
    task = Runs()
    with pytest.raises(OSError, match="connection lost"):
        go(tmp_path, task, Breaks(), limit=4)
    assert task.pools == [11]
    again = Fake()
    assert len(go(tmp_path, task, again, limit=4).rows) == 12
    assert len(again.asked) == 1


def test_what_cannot_be_judged_is_not_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def broken(self: Runs, answered: Sequence[tuple[Sample, Completion]]) -> list[Score]:
        tried.append(len(answered))
        raise UserError("the sandbox did not start")

    monkeypatch.setattr(Runs, "scores", broken)
    with pytest.raises(UserError, match="did not start"):
        go(tmp_path, Runs(), limit=4)
    assert tried == [12]


ROW = {
    "task_id": "HumanEval/0",
    "prompt": "def one():\n",
    "canonical_solution": "    return 1\n",
    "entry_point": "one",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}


def test_without_a_sandbox_no_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "h.jsonl").write_text(json.dumps(ROW))
    monkeypatch.setattr(
        tiers, "tier", lambda: sandbox.Tier("none", "no sandbox on this machine: bubblewrap is missing")
    )

    def unloaded(*_: Any, **__: Any) -> None:
        raise AssertionError("it comes to that only where code may run")

    monkeypatch.setattr("evalsuite.models.load", unloaded)
    asked: dict[str, Any] = {
        "models": ["full"],
        "tasks": ["code.humaneval"],
        "data": [f"humaneval={tmp_path / 'h.jsonl'}"],
        "wording": "natural",
        "out": str(tmp_path / "runs"),
    }
    with pytest.raises(UserError, match=r"bubblewrap is missing; .*--allow-unsandboxed") as caught:
        verbs.run(verbs.Asked(**asked))
    assert "\n" not in str(caught.value)
    try:
        with pytest.raises(AssertionError, match="where code may run"):
            verbs.run(verbs.Asked(**asked, unsandboxed=True))
    finally:
        sandbox.allow_unsandboxed(False)


def test_draws_of_our_own_model_differ_and_come_again(tmp_path: Path) -> None:
    from evalsuite import models

    model = models.load("full", device="cpu")
    samples = [
        Sample(f"s/{i}", "t", "edge bade kilo ask bade next", ("",), max_new_tokens=8, temperature=heat, top_p=0.95)
        for i, heat in enumerate([0.0, 0.0, 2.0, 2.0, 2.0, 2.0])
    ]
    texts = [{c.sample_id: c.text for c in model.answer(part)} for part in (samples, samples[::-1], samples[3:4])]
    assert texts[0] == texts[1]
    assert texts[2]["s/3"] == texts[0]["s/3"]
    assert texts[0]["s/0"] == texts[0]["s/1"]
    assert len({texts[0][f"s/{i}"] for i in range(2, 6)}) > 1


class Knows(Fake):
    """Right about everything."""

    context = 8192

    def answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
        for sample in samples:
            right = next((c for c in sample.choices if c.strip() in sample.target), sample.target[0])
            yield Completion(sample.id, right, 2, 2, choice_logprobs=tuple(float(c == right) for c in sample.choices))


@pytest.mark.skipif(sandbox.tier().name == "none", reason=sandbox.tier().says)
def test_code_and_mmlu_stand_beside_the_other_columns_where_data_are_given(tmp_path: Path) -> None:
    questions = [
        {"question": f"{i}?", "subject": "virology", "choices": ["a", "b", "c", "d"], "answer": i % 4} for i in range(6)
    ]
    for name, rows in (("mmlu-test", questions), ("mmlu-dev", questions[:5]), ("humaneval", [ROW])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    selection = plan.select(
        ["multihop.graph", "ruler.niah_single_1", "knowledge.letter", "mmlu", "code.humaneval", "longcode"],
        lengths=(2048,),
        limit=2,
        data=[f"mmlu={tmp_path / 'mmlu-test.jsonl'}", f"humaneval={tmp_path / 'humaneval.jsonl'}"],
    )
    run = runner.run(Knows(), plan.make(selection, "natural"), tmp_path / "runs")
    result = compare.compare([run])
    families = {str(line.get("family")): line.estimates[0] for line in result.families}
    assert set(families) == {"multihop", "ruler", "knowledge", "mmlu", "code", "longcode"}
    assert {name: e.value for name, e in families.items() if e is not None} == dict.fromkeys(families, 1.0)
    assert result.columns[0].summaries["code"] == {"humaneval pass@1": "100.0 [14.9, 100.0]"}
    text = table.as_markdown(result)
    assert all(
        f"| {name}" in text
        for name in ("multihop.graph", "ruler.niah", "knowledge.letter", "mmlu", "code.humaneval", "longcode")
    )
