"""HumanEval and MBPP with lm-eval's prompts and stops, and EvalPlus: the same problems under many more inputs.

HumanEval (Chen et al. 2021, arXiv 2107.03374): a function's head and docstring, to be completed. Its tests may lean on
functions of the prompt (32, 38, 50), which therefore come from the benchmark, not from the candidate.
MBPP (Austin et al. 2021, arXiv 2108.07732): problems 11 to 510 after examples 2, 3 and 4.
EvalPlus (Liu et al. 2023, arXiv 2305.01210): the hub's columns, where `test` holds inputs and results; for HumanEval+
also the file of its release, where the canonical solution gives the results. For MBPP+ lm-eval runs MBPP's own three
tests; here EvalPlus' run. lm-eval ends every run after 3 s; here the clock also counts waiting for a core.
"""

import json
import re
from dataclasses import replace

from evalsuite import sandbox
from evalsuite_tasks.code import answers
from evalsuite_tasks.code.problems import Benchmark, Problem, check_python, check_test, text, texts
from evalsuite_tasks.rows import Row

SLOW = ("MBPP/123",)  # its reference sums the divisors of 10,000 numbers one by one, 5 s of a CPU
# EvalPlus' rules; INPUTS, ENTRY, REFERENCE and ATOL, the problem's, are set before them, never put into their text.
# Floats are close within 1e-6, or the problem's own tolerance; a root is any point near a zero.
PLUS = """
import copy, json, math

def _floats(x):
    return isinstance(x, float) or isinstance(x, (list, tuple)) and all(isinstance(y, float) for y in x)

def _close(x, y, within):
    if isinstance(x, (list, tuple)) and isinstance(y, (list, tuple)):
        return len(x) == len(y) and all(_close(a, b, within) for a, b in zip(x, y))
    numbers = isinstance(x, (int, float)) and isinstance(y, (int, float))
    return math.isclose(x, y, rel_tol=1e-07, abs_tol=within) if numbers else x == y

def check(candidate):
    for given in json.loads(INPUTS):
        found = candidate(*copy.deepcopy(given))
        if ENTRY == "find_zero":
            assert abs(poly(given[0], found)) <= (ATOL or 1e-4)
            continue
        wanted = REFERENCE(*copy.deepcopy(given))
        within = ATOL or (1e-6 if _floats(wanted) else 0)
        assert found == wanted or within and _close(found, wanted, within), f"{str(given)[:60]} gives {str(found)[:60]}"
"""


def _humaneval(row: Row) -> Problem:
    if {"base_input", "plus_input"} & row.keys() or ("test" in row and _inputs(text(row, "test"))):
        raise ValueError("its tests are HumanEval+'s, which is the data of humaneval_plus")
    return _function_test(row, text(row, "test"))


def _humaneval_plus(row: Row) -> Problem:
    """HumanEval+ in the hub's columns, or in those of its release."""
    if "test" in row:
        test = text(row, "test")
        _check_plus(test)
        return _function_test(row, test)
    base, more = row["base_input"], row["plus_input"]
    if not isinstance(base, list) or not isinstance(more, list) or not base:
        raise ValueError("its base_input and plus_input hold no inputs")
    solved, entry = text(row, "prompt") + text(row, "canonical_solution"), text(row, "entry_point")
    given = {"INPUTS": repr(json.dumps([*base, *more])), "ENTRY": repr(entry), "REFERENCE": entry}
    given["ATOL"] = repr(float(row["atol"]))
    known = "".join(f"{name} = {value}\n" for name, value in given.items())
    return _function_test(row, f"{solved}\n{known}{PLUS}", whole=True)


def _function_test(row: Row, test: str, whole: bool = False) -> Problem:
    """A problem whose test is `check`; unless it is whole, the prompt's helpers come before it."""
    prompt, solution, entry = (text(row, column) for column in ("prompt", "canonical_solution", "entry_point"))
    solved = prompt + solution
    check_python(solved, "prompt with its canonical_solution", entry)
    if "def check(" not in test:
        raise ValueError("its test defines no check")
    check_test(test)
    test = test if whole else sandbox.helpers(solved, entry) + test
    return Problem(
        text(row, "task_id"), prompt, "", prompt, f"{test}\ncheck(candidate)\n", solution.rstrip("\n"), entry
    )


def _inputs(test: str) -> bool:
    """Whether a test goes through a list of inputs, as EvalPlus' do and no other's."""
    return re.search(r"^[ \t]*inputs\s*=", test, re.MULTILINE) is not None


def _check_plus(test: str) -> None:
    """Raise ValueError where a test is not one of EvalPlus: inputs with results, or with a function that gives them."""
    if not _inputs(test) or not re.search(r"^[ \t]*results\s*=|\bref_func\b", test, re.MULTILINE):
        raise ValueError("its test has no inputs and results, as EvalPlus' tests have")
    if re.search(r"^[ \t]*(?:inputs|results)\s*=\s*\[\s*\]", test, re.MULTILINE):
        raise ValueError("its test has no inputs")


def _number(row: Row) -> int:
    return int(str(row["task_id"]).rpartition("/")[2])


def _mbpp(row: Row) -> Problem:
    """MBPP, and MBPP+ in the hub's columns, where `prompt` stands for `text` and `test` for more tests."""
    code, shown = text(row, "code"), texts(row, "test_list")
    check_python(code, "code")
    task = text(row, "prompt" if "test" in row else "text")
    before = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
    own = text(row, "test") if "test" in row else "\n".join([before, *shown])
    check_test(own)
    tests = "".join(f"{each}\n" for each in shown[:3])
    prompt = (
        f"You are an expert Python programmer, and here is your task: {task} Your code should pass these tests:\n\n"
    )
    name = f"MBPP/{_number(row)}"
    begin = "[BEGIN]\n"
    return Problem(
        name,
        prompt + tests,
        begin,
        "",
        own,
        code,
        names=tuple(sandbox.definitions(code)),
        example=f"{prompt}{tests}{begin}{code}\n[DONE]\n\n",
    )


def _mbpp_base(row: Row) -> Problem:
    if {"test", "base_input", "plus_input"} & row.keys():
        raise ValueError("its tests are MBPP+'s, which is the data of mbpp_plus")
    return _mbpp(row)


def _mbpp_plus(row: Row) -> Problem:
    if "test" not in row:
        raise ValueError("it has no column test, as the hub's evalplus/mbppplus has")
    _check_plus(text(row, "test"))
    return _mbpp(row)


def _function(answer: str, problem: Problem) -> str | None:
    """MBPP's answer: all of it where that is Python, else what stands in the fence that defines what is tested."""
    said = answer.partition("[BEGIN]")[2] if answer.lstrip().startswith("[BEGIN]") else answer
    asked = {name for name in problem.names if re.search(rf"\b{name}\b", problem.test)}
    return answers.code(said, lambda tree: not answers.defined(tree).isdisjoint(asked)) or None


HUMANEVAL = Benchmark(
    name="humaneval",
    data="humaneval",
    what="HumanEval's rows (task_id, prompt, canonical_solution, test, entry_point)",
    make=_humaneval,
    stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
    room=1024,
)
HUMANEVAL_PLUS = replace(
    HUMANEVAL,
    name="humaneval_plus",
    data="humaneval_plus",
    what="HumanEval+'s rows (task_id, prompt, canonical_solution, entry_point; test, or base_input, plus_input, atol)",
    make=_humaneval_plus,
    seconds=lambda problem: 60.0,
)
MBPP = Benchmark(
    name="mbpp",
    data="mbpp",
    config="full",
    what="MBPP's rows (task_id, text, code, test_list, test_setup_code)",
    make=_mbpp_base,
    stop=("[DONE]",),
    room=512,
    shots=3,
    wanted=lambda row: 11 <= _number(row) <= 510,
    code=_function,
    seconds=lambda problem: 40.0 if problem.name in SLOW else 10.0,
)
SHOTS = replace(MBPP, wanted=lambda row: _number(row) in (2, 3, 4))
MBPP_PLUS = replace(
    MBPP,
    name="mbpp_plus",
    data="mbpp_plus",
    what="MBPP+'s rows in the hub's columns (task_id, prompt, code, test_list, test_imports, test)",
    make=_mbpp_plus,
    wanted=lambda row: True,
    seconds=lambda problem: 60.0,
)
