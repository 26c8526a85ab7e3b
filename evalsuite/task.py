"""The Task protocol, and discovery of tasks through the entry-point group `evalsuite.tasks`."""

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from evalsuite.errors import unknown
from evalsuite.records import Completion, Facet, Facets, Sample, Score

GROUP = "evalsuite.tasks"
SOURCES = "evalsuite.task_sources"  # of tasks called SOURCE:NAME: callables `(name: str) -> Task`
Count = Callable[[str], int]  # tokens that a text costs the model, special tokens included


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked of one task family."""

    subtasks: tuple[str, ...] = ()  # "graph", "path"; none: all of them
    lengths: tuple[int, ...] = ()  # token budgets of prompt + answer; none: the task's own
    knobs: Mapping[str, tuple[Facet, ...]] = field(default_factory=dict)  # --set multihop.hops=1,2,4
    data: Mapping[str, str] = field(default_factory=dict)  # --data squad=PATH
    seed: int = 0
    wording: str = "natural"  # or "terse": the closed-lexicon form in which the small checkpoints are trained


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of question: every facet fixed, only the index still free."""

    task: str  # "multihop.graph"
    facets: Facets
    chance: float = 0.0  # expected score of an answer guessed among the possible ones


@dataclass(frozen=True, slots=True)
class Document:
    """A training text in words of the lexicon; `labels` are the words that should follow, None where none is asked."""

    words: tuple[str, ...]
    labels: tuple[str | None, ...]


@runtime_checkable
class Task(Protocol):
    """A family of questions. A sample's content depends on (family, version, facets, seed, index) alone."""

    name: str
    version: int
    licence: str
    source: str  # where the benchmark is defined
    needs: str  # data that must be given, by the names that --data takes; "" for none

    def subtasks(self) -> tuple[str, ...]:
        """Names of the parts, as in `multihop.graph`."""
        ...

    def knobs(self) -> Mapping[str, tuple[Facet, ...]]:
        """Every knob with its default values; `--set` replaces them."""
        ...

    def cells(self, request: Request) -> Sequence[Cell]:
        """The cells that the request asks for and that can be made."""
        ...

    def missing(self, request: Request) -> Mapping[str, str]:
        """What was asked for and cannot be made: name -> the reason and the fix, one line."""
        ...

    def sample(self, cell: Cell, index: int, request: Request, count: Count) -> Sample:
        """Sample number `index` of a cell, fitted to its length with the model's own token count.

        Raises IndexError where the cell has no more questions, and UserError where the length is too short for one: the
        runner then leaves the cell out and says so.
        """
        ...

    def score(self, sample: Sample, completion: Completion) -> Score:
        """Judge one completion."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """A task that the lab can train on."""

    def document(self, subtask: str, seed: int, index: int, budget: int, **knobs: Facet) -> Document:
        """Training document number `index` of at most `budget` words; never equal to an evaluation item.

        Raises UserError for a knob that the task's documents do not have.
        """
        ...


@runtime_checkable
class Summarised(Protocol):
    """A task whose field reads figures of its own off the scores."""

    def summary(self, scores: Mapping[int, Mapping[str, float]]) -> Mapping[str, str]:
        """Name of a figure -> its text, from length -> task -> mean score; only figures that mean something."""
        ...


@runtime_checkable
class Sourced(Protocol):
    """A task that reads sets of the hub, and knows which state of them."""

    def revisions(self, data: Mapping[str, str]) -> Mapping[str, str]:
        """Name of `--data` -> `OWNER/DATASET@REVISION` of what `data` takes from the hub, for the run's record."""
        ...


@runtime_checkable
class Measured(Protocol):
    """A task whose details are metrics of another harness, named `METRIC,FILTER`."""

    def higher_is_better(self) -> Mapping[str, Mapping[str, bool]]:
        """Cell's task -> metric -> whether more of it is better, for the run's record; only where somebody knows."""
        ...


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer with its score, as a run keeps it."""

    task: str
    facets: Facets
    answer: str  # as the scorer read it
    score: float


@runtime_checkable
class Averaged(Protocol):
    """A task whose field averages its scores in ways of its own."""

    def averages(self, judged: Sequence[Judged]) -> Mapping[str, str]:
        """Name of a figure -> its text, from all of the family's answers; only figures that mean something."""
        ...


@runtime_checkable
class Executing(Protocol):
    """A task that runs what the model wrote. Its answers are scored many at once, because running is mostly waiting."""

    def tier(self) -> str:
        """The sandbox in which answers run, for the run's record. Raises UserError where this machine has none."""
        ...

    def scores(self, answered: Sequence[tuple[Sample, Completion]]) -> Sequence[Score]:
        """Judge several completions, in their order; none of them is an error."""
        ...


def generator(*key: object) -> random.Random:
    """A random generator that depends on the key alone: same draws on every machine and PYTHONHASHSEED."""
    text = "\x1f".join(map(str, key))
    return random.Random(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest()))


def uses(task: Task, data: str) -> bool:
    """Whether a task needs data of that name."""
    return re.search(rf"\b{re.escape(data)}\b", task.needs) is not None


def sample_id(task: str, facets: Facets, index: int) -> str:
    """`multihop/graph/2048/facts=32,hops=4/17`; the facets in alphabetical order, length apart."""
    knobs = ",".join(f"{k}={v}" for k, v in sorted(facets.items()) if k != "length")
    parts = [task.replace(".", "/"), str(facets["length"])] if "length" in facets else [task.replace(".", "/")]
    return "/".join([*parts, *([knobs] if knobs else []), str(index)])


def names() -> list[str]:
    """Every task family that is installed."""
    return sorted(entry.name for entry in entry_points(group=GROUP))


def load(name: str) -> Task:
    """The task family of that name, or NAME of another harness, `SOURCE:NAME`. Raises UserError, with the nearest name,
    where there is none."""
    source, colon, rest = name.partition(":")
    for entry in entry_points(group=SOURCES) if colon else ():
        if entry.name == source:
            other: Task = entry.load()(rest)
            return other
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            task: Task = entry.load()()
            return task
    raise unknown("task", name, names())
