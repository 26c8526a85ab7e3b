"""No hack passes any problem of HumanEval or MBPP through the task's own scoring.

Each HumanEval problem gets two of the hacks here, so that each hack meets six problems; every fifth MBPP problem too.
All pairs of HumanEval and two hacks for every MBPP problem, some minutes:
EVALSUITE_WHOLE=1 pytest tests/tasks/test_code_hacks.py
"""

import os
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from evalsuite import sandbox
from evalsuite.records import Completion
from evalsuite.task import Request, load
from evalsuite_tasks.code import functions, task
from evalsuite_tasks.code.problems import Benchmark, Problem

CODE = load("code")
FOUND = runpy.run_path(str(Path(__file__).parents[1] / "sandbox" / "hacks.py"))
HACKS, SLOW = FOUND["HACKS"], FOUND["SLOW"]
FOLDER = Path(os.environ.get("EVALSUITE_DATA") or "/nowhere")
WHOLE = bool(os.environ.get("EVALSUITE_WHOLE"))


@pytest.mark.skipif(sandbox.tier().name == "none", reason=sandbox.tier().says)
@pytest.mark.parametrize(
    ("bench", "number", "step", "each"),
    [
        (functions.HUMANEVAL, 164, 1, len(HACKS) if WHOLE else 2),
        (functions.MBPP, 500, 1 if WHOLE else 5, 2),
    ],
    ids=["humaneval", "mbpp"],
)
def test_no_hack_passes_any_problem(
    bench: Benchmark, number: int, step: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = FOLDER / f"{bench.name}.jsonl.gz"
    if not data.is_file():
        pytest.skip(f"needs {data.name} in the folder that EVALSUITE_DATA names")
    request = Request((bench.name,), knobs={"shots": (0,)}, data={bench.name: str(data)})
    (cell,) = CODE.cells(request)
    asked = [CODE.sample(cell, i, request, len) for i in range(0, number, step)]
    names = list(HACKS)
    chosen = [(s, names[(each * i + j) % len(names)]) for i, s in enumerate(asked) for j in range(each)]
    passed, silent = [], []
    for slow, seconds in ((True, 0.6), (False, 20.0)):
        pairs = [(s, hack) for s, hack in chosen if any(word in hack for word in SLOW) == slow]
        limited = replace(bench, seconds=lambda problem, most=seconds: most)
        monkeypatch.setattr(task, "PARTS", {bench.name: limited})
        answers = [forged(HACKS[hack], Problem(**s.meta)) for s, hack in pairs]
        scores = CODE.scores([(s, Completion(s.id, a, 1, 1)) for (s, _), a in zip(pairs, answers, strict=True)])
        for (sample, hack), score in zip(pairs, scores, strict=True):
            passed += [(hack, sample.facets["problem"])] if score.value else []
            silent += [(hack, sample.facets["problem"])] if score.detail["reason"] in ("", "no answer") else []
    assert len(chosen) == len(asked) * each
    assert passed == []
    assert silent == []


def forged(hack: str, problem: Problem) -> str:
    """A hack in the place of the function that is tested."""
    if problem.entry:
        return f"    pass\n{hack.replace('ENTRY', problem.entry)}"
    tested = re.findall(r"(\w+)\s*\(", problem.test.partition("assert")[2])
    return hack.replace("ENTRY", next(name for name in tested if name in problem.names))
