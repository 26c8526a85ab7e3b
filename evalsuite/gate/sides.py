"""One run as the gate sees it, and everything that makes it unfit to be compared with any other."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from evalsuite import columnar, store
from evalsuite.errors import UserError
from evalsuite.gate.policy import Policy
from evalsuite.groups import family_of, pick
from evalsuite.records import Sample
from evalsuite.store import Row, Run

LOCK = "baseline.lock"  # beside a promoted baseline's files: the sha256 of each


@dataclass(frozen=True, slots=True)
class Problem:
    """Why two runs must not be compared: a short name for machines, and one line that says what differs."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Side:
    """A run and its part in the comparison: run, baseline, release, second run, second baseline."""

    role: str
    run: Run
    problems: tuple[Problem, ...]  # that came up while reading

    @property
    def called(self) -> str:
        """`the baseline (results/baselines/demo/full)`."""
        return f"the {self.role} ({self.run.folder})"


def read(path: str | Path, role: str, model: str = "") -> Side:
    """Read a run or a promoted baseline; with `model`, a folder of baselines stands for that model's.

    Raises UserError where there is no run. A run that is there and cannot be read is a problem: a damaged baseline is
    no mistake at the keyboard.
    """
    folder = Path(path)
    inside = folder / store.folder_name(model) if model else folder
    if not (folder / "run.json").exists() and (inside / "run.json").exists():
        folder = inside
    if not (folder / "run.json").exists():
        raise UserError(f"{role}: {folder} is no run: it has no run.json; give the folder of one model's run")
    problems = [*_locked(folder, role)]
    try:
        return Side(role, store.read(folder), (*problems, *_twice(folder, role)))
    except UserError as error:
        empty = Run(folder, {"model": "?", "tasks": {}, "identity": {}, "requests": [], "missing": {}}, [], [])
        return Side(role, empty, (*problems, Problem("unreadable", f"the {role}: {error}")))


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def problems(side: Side, policy: Policy) -> Iterator[Problem]:
    """What is wrong with one run alone."""
    yield from side.problems
    if any(problem.kind == "unreadable" for problem in side.problems):
        return
    run = side.run
    if not run.rows:
        yield Problem("empty", f"{side.called} holds no sample")
        return
    if not (run.folder / "summary.json").exists() or any(run.folder.glob("samples-*.jsonl")):
        yield Problem("unfinished", f"{side.called} is not finished: {len(run.rows)} samples so far; run it to its end")
    if run.unreadable:
        yield Problem("unreadable", f"{side.called} has {run.unreadable} damaged lines in its log; run it again")
    for check in (_scores, _prompts, _unknown, _unsandboxed, _summary):
        yield from check(side)
    yield from _gaps(side, policy)
    yield from _rates(side, policy)


def some(items: Iterable[object], most: int = 2) -> str:
    """`7: a, b, ...`"""
    found = list(items)
    return f"{len(found)}: {', '.join(map(str, found[:most]))}{', ...' if len(found) > most else ''}"


def number(value: Any) -> bool:
    """Whether a score can be one."""
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1


def failed(row: Row) -> bool:
    """Whether a sample was not answered."""
    return row["finish"] == "error" or bool(row["error"])


def _locked(folder: Path, role: str) -> Iterator[Problem]:
    """A promoted baseline's files are those that were promoted."""
    path = folder / LOCK
    if not path.exists():
        return
    try:
        files = json.loads(path.read_text())["files"]
        changed = [name for name, digest in files.items() if sha256(folder / name) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield Problem("lock", f"the {role}'s {path} cannot be checked ({error}); promote the baseline again")
        return
    missing = {"run.json", "samples.parquet", "summary.json"} - files.keys()
    added = {log.name for log in folder.glob("timings-*.jsonl")} - files.keys()
    if changed or missing or added:
        what = ", ".join(sorted({*changed, *missing, *added}))
        yield Problem("lock", f"the {role}'s {what} in {folder} is not what was promoted: the sha256 differs")


def _twice(folder: Path, role: str) -> Iterator[Problem]:
    """Samples that the file holds twice; `store.read` would keep one of each in silence."""
    path = folder / "samples.parquet"
    if path.exists():
        counts = Counter((row["task"], row["id"]) for row in columnar.read(path, ["task", "id"]))
        twice = [name for (_, name), count in counts.items() if count > 1]
        if twice:
            yield Problem("duplicate", f"the {role} ({folder}) holds samples more than once, {some(twice)}")


def _scores(side: Side) -> Iterator[Problem]:
    bad = [row for row in side.run.rows if not number(row["score"])]
    if bad:
        shown = some(f"{row['id']} = {row['score']}" for row in bad)
        yield Problem("score", f"{side.called} has scores that are none in [0, 1], {shown}")
    forged = [row["id"] for row in side.run.rows if failed(row) and number(row["score"]) and row["score"] > 0]
    if forged:
        yield Problem("error-scored", f"{side.called} scores errors above 0, {some(forged)}")


def _prompts(side: Side) -> Iterator[Problem]:
    """The stored words are those that the stored hash is of."""
    edited = [row["id"] for row in side.run.rows if "prompt" in row and _hash(row) != row["prompt_hash"]]
    if edited:
        yield Problem("edited", f"{side.called} holds prompts or choices that are not what was asked, {some(edited)}")


def _hash(row: Row) -> str:
    sample = Sample("", "", row["prompt"], (), answer_prefix=row["answer_prefix"], choices=tuple(row["choices"]))
    try:
        return sample.prompt_hash
    except UnicodeEncodeError:
        return str(row["prompt_hash"])  # a lone surrogate was hashed by nobody


def _unknown(side: Side) -> Iterator[Problem]:
    families = sorted({family_of(row) for row in side.run.rows} - side.run.meta["tasks"].keys())
    if families:
        yield Problem("unrecorded", f"{side.called} holds samples of {', '.join(families)}, which its run.json lacks")


def _unsandboxed(side: Side) -> Iterator[Problem]:
    open_ = sorted(name for name, about in side.run.meta["tasks"].items() if about.get("tier") == "none")
    if open_:
        names = ", ".join(open_)
        yield Problem("unsandboxed", f"{side.called} ran answers of {names} without a sandbox: they could forge scores")


def _gaps(side: Side, policy: Policy) -> Iterator[Problem]:
    """Numbers of a cell's questions that are left out, where run.json does not say why: dropped samples."""
    cells: dict[tuple[str, str], set[int]] = {}
    for row in side.run.rows:
        match = re.fullmatch(r"(.*/)(\d+)", row["id"])
        if match and not any(fnmatchcase(row["task"], each) for each in policy.gaps):
            cells.setdefault((row["task"], match[1]), set()).add(int(match[2]))
    told = side.run.meta["missing"].keys()
    gone = [
        f"{cell}{index}"
        for (task, cell), found in cells.items()
        if len(found) <= max(found) and not any(name.startswith(task) for name in told)
        for index in sorted(set(range(max(found))) - found)
    ]
    if gone:
        yield Problem("dropped", f"{side.called} lacks samples in the middle of its cells (policy: gaps), {some(gone)}")


def _summary(side: Side) -> Iterator[Problem]:
    """summary.json, made when the run ended, and the samples tell the same."""
    path = side.run.folder / "summary.json"
    if not path.exists():
        return
    names = {"task"}.union(*(row["cell"] for row in side.run.rows)) - {"draw"}
    try:
        summary = json.loads(path.read_text())
        told = {
            "samples": summary["samples"],
            "errors": sum(summary["errors"].values()),
            **{_cell(cell, names): (cell["n"], round(cell["score"], 9)) for cell in summary["cells"]},
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield Problem("summary", f"{side.called} has a summary.json that cannot be read ({error})")
        return
    rows = [row for row in side.run.rows if number(row["score"])]
    cells: dict[str, list[float]] = {}
    for row in rows:
        keys = (("task", row["task"]), *pick(row, (name for name in row["cell"] if name != "draw")))
        cells.setdefault(_cell(dict(keys), names), []).append(row["score"])
    found = {
        "samples": len(side.run.rows),
        "errors": sum(map(failed, side.run.rows)),
        **{name: (len(scores), round(math.fsum(scores) / len(scores), 9)) for name, scores in cells.items()},
    }
    apart = [
        f"{name}: {_told(told.get(name))} there, {_told(found.get(name))} in the samples"
        for name in {**told, **found}
        if not _close(told.get(name), found.get(name))
    ]
    if apart:
        yield Problem("summary", f"{side.called} has a summary.json that disagrees with its samples, {some(apart, 1)}")


def _cell(record: Mapping[str, Any], names: Collection[str]) -> str:
    return ", ".join(f"{key} {_same(value)}" for key, value in sorted(record.items()) if key in names)


def _same(value: Any) -> str:
    """A facet as one text: Parquet's columns turn 2 beside 0.5 into 2.0, and beside words into a word."""
    try:
        return f"{float(value)!r}".removesuffix(".0")
    except (TypeError, ValueError):
        return str(value)


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return bool(a[0] == b[0] and abs(a[1] - b[1]) < 1e-6)
    return bool(a == b)


def _told(value: Any) -> str:
    return "nothing" if value is None else f"{value[1]:.4f} of {value[0]}" if isinstance(value, tuple) else str(value)


def _rates(side: Side, policy: Policy) -> Iterator[Problem]:
    """Errors and cut answers count as wrong: many of them make a score that is not the model's."""
    counts = Counter(row["task"] for row in side.run.rows)
    errors = Counter(row["task"] for row in side.run.rows if failed(row))
    cut = Counter(row["task"] for row in side.run.rows if row["finish"] == "length" and not _terse(side.run, row))
    for kind, found, most in (("errors", errors, policy.max_errors), ("truncated", cut, policy.max_truncated)):
        over = [f"{name} {n} of {counts[name]}" for name, n in found.items() if n > most * counts[name]]
        if over:
            what = "samples that failed" if kind == "errors" else "answers cut at max_new_tokens"
            example = next((row["error"] for row in side.run.rows if row["error"]), "") if kind == "errors" else ""
            more = f" ({example})" if example else ""
            yield Problem(kind, f"{side.called} has more {what} than the {most:.1%} allowed, in {some(over)}{more}")


def _terse(run: Run, row: Row) -> bool:
    """A terse answer ends at max_new_tokens because it is whole."""
    return run.meta["tasks"].get(family_of(row), {}).get("wording") == "terse"
