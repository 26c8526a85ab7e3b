"""Programs are judged by what they do: reference answers pass, whatever tries to look right does not."""

import json
import os
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from evalsuite import sandbox
from evalsuite.errors import UserError
from evalsuite.records import Completion, Sample
from evalsuite.task import Averaged, Executing, Request, load
from evalsuite_tasks.code import __main__ as check
from evalsuite_tasks.code import cruxeval, problems

CODE = load("code")
DATA = os.environ.get("EVALSUITE_DATA", "")
WHOLE = bool(os.environ.get("EVALSUITE_WHOLE"))  # every problem and not a share of them: some minutes
needs_data = pytest.mark.skipif(not DATA, reason="EVALSUITE_DATA is not set: no problems to ask")
needs_walls = pytest.mark.skipif(sandbox.tier().name == "none", reason=sandbox.tier().says)
SOLUTIONS = {"add": "    return a + b\n", "twice": "    return add(x, x)\n"}
HUMANEVAL = [
    {
        "task_id": f"HumanEval/{i}",
        "prompt": "def add(a, b):\n    return a + b\n\n\ndef twice(x):\n" if name == "twice" else "def add(a, b):\n",
        "canonical_solution": SOLUTIONS[name],
        "entry_point": name,
        "test": f"\ndef check(candidate):\n    assert {test}\n",
    }
    for i, (name, test) in enumerate([("add", "candidate(1, 2) == 3"), ("twice", "candidate(add(2, 1)) == 6")])
]
MBPP = [
    {
        "task_id": i,
        "text": f"Add {i}.",
        "code": f"def plus(x):\r\n  return x + {i}",
        "test_setup_code": "",
        "test_list": [f"assert plus({x}) == {x + i}" for x in (1, 2, 3)],
        "challenge_test_list": [],
    }
    for i in (1, 2, 3, 4, 10, 11, 12, 510, 511)
]
CRUX = [
    {"id": "sample_0", "code": "def f(x, y):\n    return x + y", "input": "'a == ', 'b'", "output": "'a == b'"},
    {"id": "sample_1", "code": "top = [1]\ndef f(x):\n    return x", "input": "top[:]", "output": "[1]"},
    {"id": "sample_2", "code": "def f():\n    return ()", "input": "", "output": "()"},
]
ROWS = {"humaneval": HUMANEVAL, "mbpp": MBPP, "cruxeval": CRUX}


def write(file: Path, rows) -> str:
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, str]:
    return {name: write(tmp_path / f"{name}.jsonl", rows) for name, rows in ROWS.items()}


def real() -> dict[str, str]:
    return {name: f"{DATA}/{name}.jsonl" + (".gz" if name != "cruxeval" else "") for name in ROWS}


def samples(part, given, **asked):
    request = Request((part,), data=given, **asked)
    made = []
    for cell in CODE.cells(request):
        for index in range(99999):
            try:
                made.append(CODE.sample(cell, index, request, len))
            except IndexError:
                break
    return made


def judged(asked, answer) -> dict[str, tuple[float, str]]:
    """Problem -> its score and the reason."""
    scores = CODE.scores([(s, Completion(s.id, answer(s), 1, 1)) for s in asked])
    return {
        str(s.facets["problem"]): (score.value, score.detail["reason"]) for s, score in zip(asked, scores, strict=True)
    }


def failing(found) -> dict[str, str]:
    return {name: reason for name, (value, reason) in found.items() if value != 1.0}


@needs_walls
@pytest.mark.parametrize("part", ["humaneval", "mbpp", "cruxeval_input", "cruxeval_output"])
def test_reference_answers_pass_and_empty_ones_do_not(part, given):
    asked = samples(part, given)
    assert failing(judged(asked, lambda s: s.target[0])) == {}
    assert {value for value, _ in judged(asked, lambda s: "").values()} == {0.0}
    assert {value for value, _ in judged(asked, lambda s: "    return None\n").values()} == {0.0}
    assert CODE.score(asked[0], Completion(asked[0].id, asked[0].target[0], 1, error="died")).value == 0.0


def test_a_task_that_runs_code_says_where():
    assert isinstance(CODE, Executing)
    assert isinstance(CODE, Averaged)
    if sandbox.tier().name != "none":
        assert CODE.tier() == sandbox.tier().name


def test_mbpp_asks_11_to_510_after_2_3_and_4(given):
    asked = samples("mbpp", given)
    assert sorted(str(s.facets["problem"]) for s in asked) == ["MBPP/11", "MBPP/12", "MBPP/510"]
    tests = "assert plus(1) == {}\nassert plus(2) == {}\nassert plus(3) == {}\n"
    head = "You are an expert Python programmer, and here is your task: Add {0}. Your code should pass these tests:\n\n"

    def shown(i):
        return head.format(i) + tests.format(1 + i, 2 + i, 3 + i) + "[BEGIN]\n"

    examples = "".join(f"{shown(i)}def plus(x):\r\n  return x + {i}\n[DONE]\n\n" for i in (2, 3, 4))
    (sample,) = (s for s in asked if s.facets["problem"] == "MBPP/12")
    assert sample.text == examples + shown(12)
    assert sample.stop == ("[DONE]",)
    assert samples("mbpp", given, knobs={"shots": (0,)})[0].text.count("[BEGIN]") == 1


@needs_walls
def test_mbpp_reads_code_out_of_a_fence(given):
    (sample,) = (s for s in samples("mbpp", given) if s.facets["problem"] == "MBPP/12")
    body = "def plus(x):\n    return x + 12"
    for text in (body, f"```python\n{body}\n```\nDone.", f"Here:\n```\n{body}\n```", f"```python\n{body}"):
        assert failing(judged([sample], lambda s, text=text: text)) == {}


@needs_walls
def test_a_helper_of_the_prompts_is_the_benchmarks_own(given):
    """A candidate that bends the helper on which the test leans bends nothing."""
    (sample,) = (s for s in samples("humaneval", given) if s.facets["problem"] == "HumanEval/1")
    assert failing(judged([sample], lambda s: "    return 6\n\ndef add(a, b): return 0\n")) == {}
    bent = "    return 1\n\ndef add(a, b):\n    class A(int):\n        __eq__ = lambda *a: True\n    return A()\n"
    assert judged([sample], lambda s: bent)["HumanEval/1"][0] == 0.0


OUTPUTS = {
    "assert f('a == ', 'b') == 'a == b'": 1.0,
    "'a == b'": 1.0,
    "assert f('a == ', 'b') == eval('\"a == b\"')": 0.0,
    "assert f('a == ', 'b') == (lambda: 'a == b')()": 0.0,
    "assert f('a == ', 'b') == (x := 'a == b')": 0.0,
    "assert f('a == ', 'b') == [x for x in ['a == b']][0]": 0.0,
    "assert f('a == ', 'b') == 'a == b')\nif 1: pass\n(": 0.0,
    "assert f('a == ', 'b') == 'a == b'\nimport os": 0.0,
    "'a == c'": 0.0,
    "[ANSWER]\nassert f('a == ', 'b') == 'a ' + '== b'": 1.0,
    "assert f('a == ', 'b') == f('a == ', 'b')": 0.0,
    "assert f('a == ', 'b') == type('A', (str,), {'__eq__': lambda *a: True})()": 0.0,
    "assert f('a == ', 'b') == 'a == c'": 0.0,
    "assert f('a == ', 'b') == __import__('os')._exit(0)": 0.0,
    "assert f('a == ', 'b') == '')\n__eq__ = (lambda *a: True": 0.0,
}
INPUTS = {
    "assert f('a == ', 'b') == 'a == b'": 1.0,
    "f('', 'a == b') == 'a == b'": 1.0,
    "assert f(y='b', x='a == ') == 'a == b'": 1.0,
    "assert f(*['a == ', 'b']) == 'a == b'": 1.0,
    "assert f('a', 'b') == 'ab'": 0.0,
    "assert f(type('A', (), {'__add__': lambda s, o: 'a == b'})(), 1) == 'a == b'": 0.0,
    "assert f(type('A', (str,), {'__add__': lambda s, o: 'a == b'})(), '') == 'a == b'": 0.0,
    "assert f(globals().update(f=lambda *a: 'a == b'), 1) == 'a == b'": 0.0,
    "assert f('a', 'b' * 10**9) == 'a == b'": 0.0,
    "assert f(iter(['a == b']), 1) == 'a == b'": 0.0,
    "assert f(exit(0)) == 'a == b'": 0.0,
    "no idea": 0.0,
}


@needs_walls
@pytest.mark.parametrize(("part", "answers"), [("cruxeval_output", OUTPUTS), ("cruxeval_input", INPUTS)])
def test_cruxeval_takes_values_and_nothing_else(part, answers, given):
    (sample,) = (s for s in samples(part, given) if s.facets["problem"] == "CRUXEval/0")
    asked = [(sample, Completion(sample.id, text, 1, 1)) for text in answers]
    found = {text: score.value for text, score in zip(answers, CODE.scores(asked), strict=True)}
    assert found == answers


@needs_walls
def test_cruxeval_takes_every_kind_of_literal(tmp_path):
    for value in ("-1", "set()", "{1, 2}", "(-1.5, [None, True], {'a': b'x'})", "1e400", "1 + 2j", "''", "()"):
        row = {"id": "sample_7", "code": f"def f(x):\n    return {value}", "input": "0", "output": value}
        asked = samples("cruxeval_output", {"cruxeval": write(tmp_path / "crux.jsonl", [row])})
        problems.load.cache_clear()
        problems.order.cache_clear()
        for answer in (f"assert f(0) == {value}", value, f"assert f(0) == ({value})"):
            assert failing(judged(asked, lambda s, a=answer: a)) == {}
    assert judged(asked, lambda s: "assert f(0) == f(0)") == {
        "CRUXEval/7": (0.0, "the answer is computed, not a literal")
    }


@needs_walls
def test_a_sample_is_all_that_scoring_takes(given):
    (sample,) = (s for s in samples("mbpp", given) if s.facets["problem"] == "MBPP/12")
    Path(given["mbpp"]).unlink()
    problems.load.cache_clear()
    far = Sample(**json.loads(json.dumps({name: getattr(sample, name) for name in Sample.__dataclass_fields__})))
    assert CODE.score(far, Completion(far.id, far.target[0], 1, 1)).value == 1.0


def test_draws_are_cells_of_one_problem_and_differ_in_their_id(given):
    asked = samples("humaneval", given, knobs={"draws": (3,), "temperature": (0.8,)})
    assert len(asked) == 6
    assert len({s.id for s in asked}) == 6
    assert {(s.temperature, s.top_p) for s in asked} == {(0.8, 0.95)}
    assert len({(s.cluster, s.prompt_hash) for s in asked}) == 2
    fewer = samples("humaneval", given, knobs={"draws": (2,), "temperature": (0.8,)})
    assert {s.id for s in fewer} < {s.id for s in asked}
    assert {s.temperature for s in samples("humaneval", given)} == {0.0}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"knobs": {"draws": (10,)}}, "code.temperature=0.8"),
        ({"knobs": {"draws": (0,)}}, "choose 1 to 1000"),
        ({"knobs": {"shots": (4,)}}, "choose 0 to 3"),
        ({"knobs": {"temperature": ("hot",)}}, "choose 0 to 2"),
        ({"knobs": {"draw": (1,)}}, "code.draws"),
    ],
)
def test_what_does_not_exist_is_one_clear_line(given, asked, said):
    with pytest.raises(UserError, match=said) as caught:
        CODE.cells(Request(data=given, **asked))
    assert "\n" not in str(caught.value)


def damaged(row, **columns):
    return {**row, **columns}


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("humaneval", damaged(HUMANEVAL[0], prompt="def ad"), "no Python"),
        ("humaneval", damaged(HUMANEVAL[0], prompt="def a(a, b):\n"), "defines no add"),
        ("humaneval", damaged(HUMANEVAL[0], test="def che"), "defines no check"),
        ("humaneval", damaged(HUMANEVAL[0], test="def check(candidate):\n    assert candidate(1"), "no Python"),
        ("humaneval", damaged(HUMANEVAL[0], prompt=None), "prompt is a NoneType"),
        (
            "humaneval",
            damaged(HUMANEVAL[0], test="def check(candidate): pass\n" + "#" * (7 << 20)),
            "the sandbox takes",
        ),
        ("humaneval", {"task_id": "x", "test": ""}, "lacks 'prompt'"),
        ("mbpp", damaged(MBPP[5], code="def plus(x):\n  return x +"), "no Python"),
        ("mbpp", damaged(MBPP[5], test_list=[]), "test_list"),
        ("mbpp", damaged(MBPP[5], task_id="eleven"), "eleven"),
        ("cruxeval", damaged(CRUX[0], output="'a =="), "no Python"),
        ("cruxeval", damaged(CRUX[0], code="def g(x): pass"), "defines no f"),
        ("cruxeval", [1], "laid out"),
    ],
)
def test_a_damaged_row_is_one_clear_line(name, row, said, given, tmp_path):
    source = write(tmp_path / "damaged.jsonl", [row])
    problems.load.cache_clear()
    with pytest.raises(UserError, match=said) as caught:
        CODE.cells(Request(data={**given, name: source}))
    assert "\n" not in str(caught.value)
    assert f"--data {name}=" in str(caught.value)


def test_missing_data_is_said_with_the_mend(given, tmp_path):
    lacks = CODE.missing(Request(data={"humaneval": given["humaneval"]}))
    assert list(lacks) == [f"code.{p}" for p in CODE.subtasks() if p != "humaneval"]
    assert lacks["code.mbpp"] == "no --data mbpp given"
    assert "--data mbpp=PATH" in CODE.missing(Request(("mbpp",)))["code.mbpp"]
    for asked in (Request(), Request(CODE.subtasks())):
        assert CODE.missing(asked) == {"code": f"no data given; it takes {CODE.needs}"}
    assert "closed lexicon" in CODE.missing(Request(wording="terse"))["code"]
    assert CODE.cells(Request(data=given, wording="terse")) == CODE.cells(Request()) == []
    with pytest.raises(UserError, match=r"--set code\.shots=0"):
        CODE.cells(Request(("mbpp",), data={"mbpp": write(tmp_path / "few.jsonl", MBPP[5:6])}))
    with pytest.raises(UserError, match="twice"):
        CODE.cells(Request(data={"humaneval": write(tmp_path / "two.jsonl", HUMANEVAL[:1] * 2)}))
    (tmp_path / "torn.jsonl").write_text(json.dumps(HUMANEVAL[0])[:-9])
    with pytest.raises(UserError, match="laid out"):
        CODE.cells(Request(data={"humaneval": str(tmp_path / "torn.jsonl")}))


def test_the_hubs_folder_of_mbpp_has_its_examples_in_a_split_of_their_own(tmp_path):
    for split, rows in (("prompt", MBPP[:5]), ("test", MBPP[5:8])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{split}-00000-of-00001.parquet")
    asked = samples("mbpp", {"mbpp": str(tmp_path)})
    assert len(asked) == 3
    assert "Add 4." in asked[0].text


PLUS_TEST = """
import numpy as np
def check(candidate):
    inputs = [[1, 2], [0.1, 0.2]]
    results = [3, 0.3]
    for given, wanted in zip(inputs, results):
        assert candidate(*given) == wanted or np.allclose(candidate(*given), wanted, rtol=1e-07, atol=1e-6)
"""


@needs_walls
def test_humaneval_plus_in_both_layouts(tmp_path):
    base = {name: HUMANEVAL[0][name] for name in ("task_id", "prompt", "canonical_solution", "entry_point")}
    hub = {**base, "test": PLUS_TEST}
    release = {**base, "base_input": [[1, 2]], "plus_input": [[0.1, 0.2], [[1], [2]]], "atol": 0, "contract": ""}
    for name, row in (("hub", hub), ("release", release)):
        asked = samples("humaneval_plus", {"humaneval_plus": write(tmp_path / f"{name}.jsonl", [row])})
        answers = {
            "    return a + b\n": 1.0,
            "    return a + b + 1e-9 if isinstance(a, float) else a + b\n": 1.0,
            "    return 3\n": 0.0,
            "    return type('A', (float,), {'__eq__': lambda *a: True})()\n": 0.0,
            "    import math\n    math.isclose = lambda *a, **k: True\n    return 3\n": 0.0,
        }
        for answer, wanted in answers.items():
            assert judged(asked, lambda s, a=answer: a)["HumanEval/0"][0] == wanted, (name, answer)


@needs_walls
def test_a_root_is_any_point_near_a_zero(tmp_path):
    head = "def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n\ndef find_zero(xs):\n"
    row = {
        "task_id": "HumanEval/32",
        "prompt": head,
        "canonical_solution": "    return -xs[0] / xs[1]\n",
        "entry_point": "find_zero",
        "base_input": [[[1, 2]]],
        "plus_input": [[[3, -6]]],
        "atol": 1e-4,
    }
    asked = samples("humaneval_plus", {"humaneval_plus": write(tmp_path / "plus.jsonl", [row])})
    assert judged(asked, lambda s: "    return 1e-7 - xs[0] / xs[1]\n")["HumanEval/32"][0] == 1.0
    assert judged(asked, lambda s: "    return 0.0\n\npoly = lambda *a: 0\n")["HumanEval/32"][0] == 0.0


@needs_walls
def test_mbpp_plus_has_the_hubs_columns_alone(given, tmp_path):
    row = {
        "task_id": 12,
        "prompt": "Add 12.",
        "code": MBPP[6]["code"],
        "test_imports": [],
        "test_list": MBPP[6]["test_list"],
        "test": "inputs = list(range(99))\nresults = [x + 12 for x in inputs]\n"
        "for x, y in zip(inputs, results):\n    assert plus(x) == y\n",
    }
    source = write(tmp_path / "plus.jsonl", [row])
    asked = samples("mbpp_plus", {**given, "mbpp_plus": source})
    assert failing(judged(asked, lambda s: s.target[0])) == {}
    assert judged(asked, lambda s: "def plus(x): return {1: 13, 2: 14, 3: 15}[x]")["MBPP/12"][0] == 0.0
    assert "--set code.shots=0" in CODE.missing(Request(("mbpp_plus",), data={"mbpp_plus": source}))["code.mbpp_plus"]
    del row["test"]
    with pytest.raises(UserError, match="no column test"):
        CODE.cells(Request(data={"mbpp_plus": write(tmp_path / "release.jsonl", [row])}))


@needs_walls
def test_a_benchmarks_own_answers_can_be_tried(given, tmp_path, capsys):
    assert check.main(["mbpp", "--data", given["mbpp"]]) == 0
    assert f"mbpp: 3 of 3 reference answers pass in {CODE.tier()}" in capsys.readouterr().out
    wrong = write(tmp_path / "wrong.jsonl", [HUMANEVAL[0], {**HUMANEVAL[1], "canonical_solution": "    return x\n"}])
    assert check.main(["humaneval", "--data", wrong]) == 1
    assert "HumanEval/1: AssertionError: assert candidate(add(2, 1)) == 6" in capsys.readouterr().out
    assert check.main(["cruxeval_input", "--data", str(tmp_path / "nowhere")]) == 2
    assert "--data cruxeval=PATH" in capsys.readouterr().err


@needs_data
@needs_walls
@pytest.mark.parametrize(
    ("part", "number"), [("humaneval", 164), ("mbpp", 500), ("cruxeval_input", 800), ("cruxeval_output", 800)]
)
def test_every_reference_answer_passes(part, number):
    asked = samples(part, real())
    assert len(asked) == number
    asked = asked[:: 1 if WHOLE else 8]
    assert failing(judged(asked, lambda s: s.target[0])) == {}


def test_cruxevals_prompts_end_where_the_answer_begins(given):
    for part, last in (
        ("cruxeval_output", "assert f('a == ', 'b') == ??"),
        ("cruxeval_input", "assert f(??) == 'a == b'"),
    ):
        (sample,) = (s for s in samples(part, given) if s.facets["problem"] == "CRUXEval/0")
        assert sample.text.endswith(f"[PYTHON]\ndef f(x, y):\n    return x + y\n{last}\n[/PYTHON]\n[ANSWER]\n")
        assert sample.text.count("[PYTHON]") == 3
        assert re.match(r"You (are|will be) given a ", cruxeval.OUTPUT + cruxeval.INPUT)
