"""No hack passes any HumanEval problem through the task's own scoring; every honest solution beside them does.

Each problem gets two of the hacks here, so that each hack meets seven problems. All 8,000 pairs, some minutes:
EVALSUITE_WHOLE=1 pytest tests/tasks/test_code_hacks.py
"""

import os
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from evalsuite import sandbox
from evalsuite.records import Completion
from evalsuite.task import Request, load
from evalsuite_tasks.code import functions, task

CODE = load("code")
FOUND = runpy.run_path(str(Path(__file__).parents[1] / "sandbox" / "hacks.py"))
HACKS, SLOW = FOUND["HACKS"], FOUND["SLOW"]
DATA = Path(os.environ.get("EVALSUITE_DATA") or "/nowhere", "humaneval.jsonl.gz")
EACH = len(HACKS) if os.environ.get("EVALSUITE_WHOLE") else 2


@pytest.mark.skipif(not DATA.is_file(), reason="needs humaneval.jsonl.gz in the folder that EVALSUITE_DATA names")
@pytest.mark.skipif(sandbox.tier().name == "none", reason=sandbox.tier().says)
def test_no_hack_passes_any_problem_of_humaneval(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(("humaneval",), data={"humaneval": str(DATA)})
    (cell,) = CODE.cells(request)
    asked = [CODE.sample(cell, i, request, len) for i in range(164)]
    names = list(HACKS)
    chosen = [(s, names[(EACH * i + j) % len(names)]) for i, s in enumerate(asked) for j in range(EACH)]
    passed, silent = [], []
    for slow, seconds in ((True, 0.6), (False, 20.0)):
        pairs = [(s, hack) for s, hack in chosen if any(word in hack for word in SLOW) == slow]
        limited = replace(functions.HUMANEVAL, seconds=lambda problem, most=seconds: most)
        monkeypatch.setattr(task, "PARTS", {"humaneval": limited})
        entries = {name: each.entry for name, each in task.load(limited, str(DATA)).items()}
        answers = [f"    pass\n{HACKS[hack].replace('ENTRY', entries[s.facets['problem']])}" for s, hack in pairs]
        scores = CODE.scores([(s, Completion(s.id, a, 1, 1)) for (s, _), a in zip(pairs, answers, strict=True)])
        for (sample, hack), score in zip(pairs, scores, strict=True):
            passed += [(hack, sample.facets["problem"])] if score.value else []
            silent += [(hack, sample.facets["problem"])] if score.detail["reason"] in ("", "no answer") else []
    assert len(chosen) == 164 * EACH
    assert passed == []
    assert silent == []
