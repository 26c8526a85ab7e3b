"""Runs code that nobody trusts, and judges it by tests that it cannot touch.

The candidate's process only answers calls, as plain values over a pipe; the test runs in a trusted process with stubs
for the candidate's functions. So nothing that the candidate does to its own interpreter, prints or writes to the pipe
can say "passed": it can only give another answer. How strong the walls around it are here, `evalsuite doctor` says.
"""

import ast
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from evalsuite.errors import UserError
from evalsuite.sandbox import client, wire
from evalsuite.sandbox.client import close
from evalsuite.sandbox.tiers import Tier, allow_unsandboxed, available, chosen, tier

__all__ = [
    "Job",
    "Limits",
    "Tier",
    "Verdict",
    "allow_unsandboxed",
    "available",
    "chosen",
    "close",
    "definitions",
    "evaluate",
    "helpers",
    "judge",
    "judge_many",
    "run_program",
    "tier",
]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use; sizes in bytes."""

    seconds: float = 3.0  # by the clock, from the program's first line to the test's last
    memory: int = 1 << 30  # of each process, and of all of them together
    output: int = 1 << 20  # of a script's standard output
    processes: int = 32  # with threads; in T2 one process and its threads
    files: int = 64  # open at once
    disk: int = 16 << 20  # in the temporary folder; T2 has none

    def __post_init__(self) -> None:
        """Raises UserError for a limit that is none."""
        for name, value in asdict(self).items():
            if not 0 < value < 2**62:
                raise UserError(f"a sandbox's limit of {name} must be over 0 and finite, not {value}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a test went. `reason` is one line, empty when it passed."""

    passed: bool
    reason: str
    seconds: float
    tier: str


@dataclass(frozen=True, slots=True)
class Job:
    """The arguments of one call of `judge`."""

    program: str
    test: str
    entry: str = ""
    names: Sequence[str] = ()
    limits: Limits = Limits()


def judge(program: str, test: str, *, entry: str = "", names: Sequence[str] = (), limits: Limits = Limits()) -> Verdict:
    """Run `program` in the sandbox and `test` outside it; passed when the test runs to its end.

    What the program defines under a name that the test reads is there as a stub, `entry` as `candidate` too. A name of
    Python's own (sum, abs) is the program's only when it is the entry or in `names`: else it could bend the test.
    For the same reason put a benchmark's own helper functions into `test`, not `program`; `helpers` finds them.
    Raises UserError when there is no sandbox to run in.
    """
    job = {"mode": "test", "program": program, "test": test, "entry": entry, "names": list(names)}
    where = chosen()
    passed, reason, seconds, _ = client.run(job | {"limits": asdict(limits)}, where)
    return Verdict(passed, reason, seconds, where)


def judge_many(jobs: Sequence[Job], workers: int = 8) -> list[Verdict]:
    """`judge` for every job, `workers` at a time, in the jobs' order."""

    def one(job: Job) -> Verdict:
        return judge(job.program, job.test, entry=job.entry, names=job.names, limits=job.limits)

    pool = ThreadPoolExecutor(workers)
    try:
        return list(pool.map(one, jobs))
    finally:  # interrupted, it waits for those that run and starts no more
        pool.shutdown(cancel_futures=True)


def evaluate(program: str, expression: str, *, limits: Limits = Limits()) -> tuple[bool, Any, str]:
    """The value of an expression after a program, both untrusted: whether there is one, the value, why not.

    Only plain values come back (None, bool, numbers, strings, bytes, lists, tuples, dicts, sets, ranges).
    """
    job = {"mode": "expression", "program": program, "expression": expression, "limits": asdict(limits)}
    passed, reason, _, text = client.run(job, chosen())
    return passed, wire.decode(wire.parse(text), wire.no_other) if passed else None, reason


def run_program(program: str, stdin: str, *, limits: Limits = Limits()) -> tuple[bool, str, str]:
    """Run a whole script on an input: whether it ended well (exit 0 in time), its standard output, why not."""
    job = {"mode": "script", "program": program, "stdin": stdin, "limits": asdict(limits)}
    passed, reason, _, output = client.run(job, chosen())
    return passed, output, reason


def helpers(program: str, entry: str) -> str:
    """The top-level statements of a trusted program but the function `entry`: what a benchmark's tests may lean on."""
    kept = [node for node in _statements(program) if getattr(node, "name", "") != entry]
    return "\n".join(ast.unparse(node) for node in kept) + "\n"


def definitions(program: str) -> list[str]:
    """The functions and classes that a trusted program defines at its top level."""
    return [str(node.name) for node in _statements(program) if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def _statements(program: str) -> list[ast.stmt]:
    with warnings.catch_warnings(action="ignore"):  # old escapes in old benchmarks
        return ast.parse(program).body
