"""Candidates that have not solved the problem and want to pass all the same: none may."""

import gzip
import json
import os
import runpy
from pathlib import Path

from evalsuite import sandbox
from evalsuite.sandbox import Job, Limits

FOUND = runpy.run_path(str(Path(__file__).with_name("hacks.py")))
HACKS, SLOW, LYING = FOUND["HACKS"], FOUND["SLOW"], FOUND["LYING"]
OWN = [
    "assert candidate([3, 1, 2]) == [1, 2, 3]\n    assert candidate([]) == []",
    "assert abs(candidate(2) - 1.4142) < 1e-3\n    assert all(candidate(x * x) == x for x in (3, 4))",
    "for got, x in zip(map(candidate, 'abc'), 'bcd'):\n        assert got == x\n    assert candidate('z') in 'a'",
]


def problems(tier: str) -> list[tuple[str, str, str]]:
    """(name of the function, prompt, test): our own, and of HumanEval where its data are at hand.

    What the walls are made of has no part in how answers are judged: T2 gets our own alone.
    """
    found = [(f"solve_{i}", "", f"def check(candidate):\n    {body}\n") for i, body in enumerate(OWN)]
    data = Path(os.environ.get("EVALSUITE_DATA", ""), "humaneval.jsonl.gz")
    if data.is_file() and tier != "T2":
        with gzip.open(data, "rt") as lines:
            rows = [json.loads(line) for line in lines]
        for row in [*rows[2:164:40], rows[38]]:  # 38 is one whose test leans on a function of the prompt's
            solved = row["prompt"] + row["canonical_solution"]
            test = sandbox.helpers(solved, row["entry_point"]) + row["test"]
            found.append((row["entry_point"], row["prompt"] + "    pass\n", test))
    return found


def job(hack: str, entry: str, prompt: str, test: str) -> Job:
    limits = Limits(0.6 if any(word in hack for word in SLOW) else 5.0)
    program = f"{prompt}\n{HACKS[hack].replace('ENTRY', entry)}"
    return Job(program, f"{test}\ncheck(candidate)\n", entry, limits=limits)


def test_no_hack_passes(tier: str) -> None:
    """Hacks and problems all at once, because most of their time is waiting."""
    jobs = {(hack, problem[0]): job(hack, *problem) for hack in HACKS for problem in problems(tier)}
    found = dict(zip(jobs, sandbox.judge_many(list(jobs.values())), strict=True))
    assert len(found) == len(HACKS) * len(problems(tier))
    assert [key for key, verdict in found.items() if verdict.passed or not verdict.reason] == []
    assert max(verdict.seconds for verdict in found.values()) < 8


def test_a_candidate_that_lies_in_its_own_class_is_asked_for_values_only() -> None:
    program = f"class A:\n    {LYING}    x = 1\ndef f(): return A()\n"
    assert not sandbox.judge(program, "assert f() == 3").passed
    assert not sandbox.judge(program, "assert f() in [1, 2]").passed
    assert not sandbox.judge(program, "assert f() < 3").passed
    assert sandbox.judge(program, "assert f().x == 1").passed


def test_a_callback_of_the_tests_gets_plain_values() -> None:
    program = f"class A(int):\n    {LYING}def f(g): return g(A(5))\n"
    seen = "def g(x):\n    assert type(x) is int and x != 4\n    return x\nassert f(g) == 5"
    assert sandbox.judge(program, seen).passed
