"""What is given under a benchmark's name is that benchmark, and whole: else one clear line, and no score."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evalsuite import sandbox
from evalsuite.errors import UserError
from evalsuite.records import Completion
from evalsuite.task import Request, load
from evalsuite_tasks.code import problems

CODE = load("code")
needs_walls = pytest.mark.skipif(sandbox.tier().name == "none", reason=sandbox.tier().says)
BASE = {
    "task_id": "HumanEval/0",
    "prompt": "def add(a, b):\n",
    "canonical_solution": "    return a + b\n",
    "entry_point": "add",
}
TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
PLUS_TEST = """
def check(candidate):
    inputs = [[1, 2], [0.1, 0.2]]
    results = [3, 0.3]
    for given, wanted in zip(inputs, results):
        assert abs(candidate(*given) - wanted) < 1e-6
"""
HUMANEVAL = {**BASE, "test": TEST}
HUB = {**BASE, "test": PLUS_TEST}
RELEASE = {**BASE, "base_input": [[1, 2]], "plus_input": [[3, 4]], "atol": 0}
MBPP = {
    "task_id": 12,
    "text": "Add 12.",
    "code": "def plus(x):\n    return x + 12",
    "test_setup_code": "",
    "test_list": ["assert plus(1) == 13"],
}
MBPP_PLUS = {
    "task_id": 12,
    "prompt": "Add 12.",
    "code": MBPP["code"],
    "test_imports": [],
    "test_list": MBPP["test_list"],
    "test": "inputs = [[1], [2]]\nresults = [13, 14]\nfor x, y in zip(inputs, results):\n    assert plus(*x) == y\n",
}


def samples(part: str, row: dict, tmp_path: Path) -> list:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    problems.load.cache_clear()
    problems.order.cache_clear()
    request = Request((part,), data={part: str(file)}, knobs={"shots": (0,)})
    return [CODE.sample(cell, 0, request, len) for cell in CODE.cells(request)]


def refused(part: str, row: dict, tmp_path: Path) -> str:
    with pytest.raises(UserError) as caught:
        samples(part, row, tmp_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("part", "row"),
    [
        ("humaneval", HUMANEVAL),
        ("humaneval_plus", HUB),
        ("humaneval_plus", RELEASE),
        ("mbpp", MBPP),
        ("mbpp_plus", MBPP_PLUS),
    ],
)
def test_a_benchmark_is_read_under_its_own_name(part, row, tmp_path):
    assert len(samples(part, row, tmp_path)) == 1


@pytest.mark.parametrize(
    ("part", "row", "said"),
    [
        ("humaneval_plus", HUMANEVAL, "no inputs and results"),
        ("humaneval", HUB, "humaneval_plus"),
        ("humaneval", {**RELEASE, "test": TEST}, "humaneval_plus"),
        ("humaneval", RELEASE, "humaneval_plus"),
        ("mbpp", MBPP_PLUS, "mbpp_plus"),
        ("mbpp", {**MBPP, "prompt": "Add.", "test": MBPP_PLUS["test"]}, "mbpp_plus"),
        ("mbpp_plus", MBPP, "no column test"),
        ("mbpp_plus", {**MBPP_PLUS, "test": "assert plus(1) == 13"}, "no inputs and results"),
        ("humaneval_plus", {**RELEASE, "base_input": [], "plus_input": []}, "no inputs"),
        ("humaneval_plus", {**RELEASE, "plus_input": None}, "no inputs"),
        ("humaneval_plus", {**HUB, "test": PLUS_TEST.replace("[[1, 2], [0.1, 0.2]]", "[]")}, "no inputs"),
    ],
)
def test_a_benchmark_under_anothers_name_or_without_inputs_is_refused(part, row, said, tmp_path):
    assert said in refused(part, row, tmp_path)


LONG = PLUS_TEST.replace("[0.1, 0.2]]", "[0.1, 0.2]" + ", [1, 2]" * 20000 + "]")


@pytest.mark.parametrize(
    ("part", "row", "said"),
    [
        ("humaneval_plus", {**HUB, "test": LONG + "    assert ("}, "its test is no Python"),
        ("humaneval_plus", {**HUB, "test": "import no_such\n" + LONG}, "no_such, which is not installed"),
        ("humaneval", {**HUMANEVAL, "test": TEST + "    import no_such\n"}, "no_such, which is not installed"),
        ("mbpp", {**MBPP, "test_setup_code": "from no_such import x"}, "no_such, which is not installed"),
    ],
)
def test_a_test_that_cannot_run_is_refused_before_anything_is_asked(part, row, said, tmp_path):
    assert len(LONG) > problems.LARGE
    assert said in refused(part, row, tmp_path)


@needs_walls
@pytest.mark.parametrize(
    ("end", "said"),
    [("assert (", "is no Python"), ("import no_such_module\n", "no_such_module, which is not installed")],
)
def test_a_fault_of_the_test_is_no_wrong_answer(end, said, tmp_path):
    (sample,) = samples("humaneval", HUMANEVAL, tmp_path)
    broken = replace(sample, meta={**sample.meta, "test": sample.meta["test"] + end})
    with pytest.raises(UserError, match=f"HumanEval/0 cannot be judged: its test .*{said}"):
        CODE.score(broken, Completion(sample.id, "    return a + b\n", 1))
    for wrong in ("    import no_such_module\n", "    return (\n", "    raise MemoryError\n"):
        assert CODE.score(sample, Completion(sample.id, wrong, 1)).value == 0.0


@needs_walls
def test_inputs_that_hold_the_rules_own_names_stay_as_they_are(tmp_path):
    texts = ["ENTRY", "REFERENCE", "ATOL", "INPUTS"]
    row = {**RELEASE, "base_input": [["", text] for text in texts], "plus_input": [["a", "b"]]}
    (sample,) = samples("humaneval_plus", row, tmp_path)
    assert CODE.score(sample, Completion(sample.id, "    return a + b\n", 1)).value == 1.0
    exact = f"    assert b == 'b' or b in {texts}\n    return a + b\n"
    assert CODE.score(sample, Completion(sample.id, exact, 1)).value == 1.0
