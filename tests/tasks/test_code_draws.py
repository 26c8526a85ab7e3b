"""What becomes of several judgements: of one answer that timed out, of many draws to one problem."""

import json
from pathlib import Path

import pytest

from evalsuite import sandbox
from evalsuite.records import Completion, Sample
from evalsuite.task import Judged, Request, load

CODE = load("code")


def samples(tmp_path: Path) -> list[Sample]:
    row = {
        "prompt": "def add(a, b):\n",
        "canonical_solution": "    return a + b\n",
        "entry_point": "add",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    }
    file = tmp_path / "humaneval.jsonl"
    file.write_text("\n".join(json.dumps({**row, "task_id": f"HumanEval/{i}"}) for i in range(2)))
    request = Request(("humaneval",), data={"humaneval": str(file)})
    (cell,) = CODE.cells(request)
    return [CODE.sample(cell, i, request, len) for i in range(2)]


@pytest.mark.parametrize("second", [True, False])
def test_what_timed_out_among_others_is_judged_once_more_alone(second, monkeypatch, tmp_path):
    asked, calls = samples(tmp_path), []

    def judge_many(jobs, workers):
        calls.append(len(jobs))
        late = len(jobs) > 1 or not second
        return [sandbox.Verdict(False, "timed out after 10 s", 10.0, "T1") for job in jobs[:1] if late] + [
            sandbox.Verdict(True, "", 0.1, "T1") for job in jobs[late:]
        ]

    monkeypatch.setattr(sandbox, "judge_many", judge_many)
    scores = CODE.scores([(s, Completion(s.id, s.target[0], 1, 1)) for s in asked])
    reason = "passed" if second else "timed out after 10 s"
    assert [(s.value, s.detail) for s in scores] == [
        (float(second), {"reason": reason, "judged": 2}),
        (1.0, {"reason": "passed", "judged": 1}),
    ]
    assert calls == [2, 1]
    assert CODE.score(asked[0], Completion(asked[0].id, "    return 3", 1, 1)).detail["judged"] == 1  # alone already


def test_pass_at_k_is_over_problems():
    def row(problem, draw, score):
        facets = {"temperature": 0.8, "draw": draw, "problem": problem}
        return Judged("code.humaneval", facets, "", score)

    rows = [row("a", i, float(i < 3)) for i in range(10)] + [row("b", i, 0.0) for i in range(10)]
    found = CODE.averages(rows)
    assert found["humaneval (temperature 0.8) pass@1"].startswith("15.0 [")
    assert found["humaneval (temperature 0.8) pass@5"].startswith(f"{50 * (1 - 21 / 252):.1f} [")
    assert found["humaneval (temperature 0.8) pass@10"].startswith("50.0 [")
    assert list(CODE.averages(rows[:1])) == ["humaneval (temperature 0.8) pass@1"]
    uneven = CODE.averages(rows[:12])  # all ten draws of a, two of b
    assert uneven["humaneval (temperature 0.8) pass@1"].startswith("15.0 [")  # by problem, not 3 of 12
    assert uneven["humaneval (temperature 0.8) pass@5"] == "- (1 of 2 problems have 2 draws)"
    assert uneven["humaneval (temperature 0.8) pass@10"] == "- (1 of 2 problems have 2 draws)"
    assert len(uneven) == 3
