"""A problem as every benchmark of code comes down to, and how a benchmark's rows are read and checked."""

import ast
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

from evalsuite.errors import UserError
from evalsuite.sandbox import Job, Limits
from evalsuite.task import generator
from evalsuite_tasks import rows
from evalsuite_tasks.rows import Row

LARGE = 100_000  # characters of a test whose parsing to a tree would take long: EvalPlus has such
LONGEST = 7 << 20  # characters of a test: one that is not run must not look like one that fails


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. A program is `before` + the answer's code + `after`, in the sandbox; `test` runs outside it."""

    name: str  # "HumanEval/32"
    prompt: str
    prefix: str  # beginning of the answer
    before: str
    test: str
    reference: str  # an answer that is right, as a model would write it
    entry: str = ""
    names: tuple[str, ...] = ()  # what the program defines for the test, where no one entry is named
    example: str = ""  # the problem with its answer, for prompts that show examples
    after: str = ""

    def job(self, code: str, seconds: float) -> Job:
        """What the sandbox is to run and judge."""
        return Job(self.before + code + self.after, self.test, self.entry, self.names, Limits(seconds=seconds))


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One part of the family: where its rows are, and how they are asked and judged."""

    name: str
    data: str  # the name that --data takes
    what: str  # its columns, for an error
    make: Callable[[Row], Problem]
    stop: tuple[str, ...]
    room: int  # tokens of an answer
    config: str | None = None  # of the hub's set
    shots: int = 0  # examples before a problem, at most
    wanted: Callable[[Row], bool] = lambda row: True
    code: Callable[[str, Problem], str | None] = lambda text, problem: (
        text or None
    )  # an answer's code; None: it has none
    seconds: Callable[[Problem], float] = lambda problem: 10.0  # by the clock

    @property
    def advice(self) -> str:
        """How to give the data."""
        return f"give {self.what} with --data {self.data}=PATH, or --data {self.data}=hub"


def text(row: Row, column: str) -> str:
    """A column that is a text. Raises ValueError where it is none."""
    value = row[column]
    if not isinstance(value, str):
        raise ValueError(f"its {column} is a {type(value).__name__}, not a text")
    return value


def texts(row: Row, column: str) -> list[str]:
    """A column that is a list of texts, at least one. Raises ValueError where it is none."""
    value = row[column]
    found = value if isinstance(value, list) else getattr(value, "tolist", lambda: [])()
    if not found or not all(isinstance(each, str) for each in found):
        raise ValueError(f"its {column} is no list of texts")
    return list(found)


def check_python(program: str, what: str, defines: str = "") -> None:
    """Raise ValueError where a benchmark's own code is cut off or lacks the function that it is about."""
    try:
        with warnings.catch_warnings(action="ignore"):  # old escapes in old benchmarks
            body = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"its {what} is no Python: {error}") from None
    if defines and not any(getattr(node, "name", "") == defines for node in body):
        raise ValueError(f"its {what} defines no {defines}")


def parsed(program: str) -> ast.Module | None:
    """A model's program as a tree, None where it is no Python."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(program)
            ast.unparse(tree)  # what is too deep is no answer either
            return tree
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def check_test(test: str) -> None:
    """Raise ValueError where a test cannot run, whatever the answer: it is no Python, or imports what is not here."""
    if len(test) < LARGE:
        check_python(test, "test")
        found = _imports(ast.parse(test))
    else:
        try:
            compile(test, "<test>", "exec", dont_inherit=True)  # without a tree: a third of the time and memory
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"its test is no Python: {error}") from None
        found = set(re.findall(r"^(?:import|from)[ \t]+(\w+)", test, re.MULTILINE))
    for module in sorted(found):
        if not _installed(module):
            raise ValueError(f"its test imports {module}, which is not installed here (pip install {module})")


def _imports(tree: ast.AST) -> set[str]:
    """The modules that a program always imports: not what it tries to."""
    if isinstance(tree, ast.Import):
        return {alias.name.partition(".")[0] for alias in tree.names}
    if isinstance(tree, ast.ImportFrom):
        return {str(tree.module).partition(".")[0]}
    if isinstance(tree, ast.Try):
        return set()
    return set().union(*map(_imports, ast.iter_child_nodes(tree)))


@lru_cache(maxsize=256)
def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # of a module that was made by hand
        return True


@lru_cache(maxsize=64)
def fault(test: str) -> str:
    """What is wrong with a test itself, "" for nothing."""
    try:
        check_test(test)
    except ValueError as error:
        return str(error).splitlines()[0]
    return ""


@lru_cache(maxsize=16)
def load(bench: Benchmark, source: str, split: str = "test") -> Mapping[str, Problem]:
    """Name -> problem, in the file's order. Raises UserError, one line, for data that are missing or damaged."""
    found: dict[str, Problem] = {}
    for place, row in _rows(bench, source, split):
        try:
            if not bench.wanted(row):
                continue
            problem = bench.make(row)
            if len(problem.test) > LONGEST:
                raise ValueError(f"its test has {len(problem.test)} characters and the sandbox takes {LONGEST}")
        except (KeyError, ValueError, TypeError) as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise UserError(f"{place} of {source} is not a row of {bench.data}: {why}; {bench.advice}") from error
        if problem.name in found:
            raise UserError(f"--data {bench.data}={source} holds {problem.name} twice; give one file of it")
        found[problem.name] = problem
    if not found:
        raise UserError(f"--data {bench.data}={source} holds no problems of {bench.name}; {bench.advice}")
    return found


def _rows(bench: Benchmark, source: str, split: str) -> Iterator[tuple[str, Row]]:
    if rows.is_hub(source):
        given = rows.hub(bench.data, bench.config, split, source, bench.advice)
        yield from ((f"row {i}", row) for i, row in enumerate(given))
    else:
        found = rows.local(source, (split, *(["train"] if split == "test" else [])), bench.advice)
        yield from ((f"row {i} ({file.name})", row) for i, (file, row) in enumerate(found))


@lru_cache(maxsize=16)
def order(bench: Benchmark, source: str, seed: int) -> Sequence[Problem]:
    """The problems in an order of the seed: the first few are from everywhere in the file."""
    pool = list(load(bench, source).values())
    generator("code", "order", bench.name, seed).shuffle(pool)
    return tuple(pool)
