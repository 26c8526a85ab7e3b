"""A run's folder: append-only JSONL while running, Parquet and a summary when done.

`run.json` holds everything needed to repeat the run. Each completion is one line of `samples-<rank>.jsonl`, written by
one `write` with O_APPEND: a kill at any instant loses at most the line in flight. `samples.parquet` and `summary.json`
replace the log when the plan is done, by atomic renames. Timings stay apart: the samples of two equal runs are equal.
"""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError
from evalsuite.records import Completion, Sample, Score

FORMAT = 1
Row = dict[str, Any]
Key = tuple[str, str]  # task, sample id


@dataclass(slots=True)
class Run:
    """A run as read from its folder. `rows` in natural order of task and sample id."""

    folder: Path
    meta: dict[str, Any]  # run.json
    rows: list[Row]
    timings: list[dict[str, float]]
    unreadable: int = 0  # lines that could not be read; their samples are asked again on resume

    @property
    def name(self) -> str:
        return str(self.meta["model"])


def make_row(sample: Sample, completion: Completion, score: Score, *, cell: Mapping[str, Any], chance: float) -> Row:
    """One line of the log: the question, the answer and how it was judged."""
    return {
        "task": sample.task,
        "id": sample.id,
        "cluster": sample.cluster,
        "chance": chance,
        "facets": {**cell, **sample.facets},
        "cell": sorted(cell),  # the facets that are the cell's, the others being the sample's own
        "prompt_hash": sample.prompt_hash,
        "prompt": sample.prompt,
        "answer_prefix": sample.answer_prefix,
        "choices": list(sample.choices),
        "target": list(sample.target),
        "walk": [str(name) for name in sample.meta.get("walk", ())],
        "text": completion.text,
        "answer": score.answer,
        "score": float(score.value),
        "detail": dict(score.detail),
        "choice_logprobs": list(completion.choice_logprobs),
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "finish": completion.finish,
        "error": completion.error,
    }


TIMING = {"prefill_tokens", "prefill_seconds", "decode_tokens", "decode_seconds"}
META = {"format", "model", "identity", "tasks", "requests", "missing", "cost", "created"}  # of run.json
ROW = {
    "task", "id", "cluster", "chance", "facets", "cell", "prompt_hash", "score", "finish", "error",
}  # of a row, at least: another program's lines are none  # fmt: skip


def folder_name(model: str) -> str:
    """A model's name as a folder's name."""
    return re.sub(r"[^\w.+=-]+", "-", model).strip("-.") or "model"


def natural(row: Row) -> tuple[Any, ...]:
    """Order of rows that depends on no history: by task, then by id with its numbers as numbers."""
    parts = re.split(r"(\d+)", row["id"])
    return (row["task"], [(int(p), "") if i % 2 else (-1, p) for i, p in enumerate(parts)], row["id"])


@dataclass(slots=True)
class Store:
    """The one writer of a run's folder. Use as a context manager; `done` maps what is stored to its prompt's hash."""

    folder: Path
    rank: int = 0
    done: dict[Key, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    _lock: int = -1
    _log: int = -1
    _timings: int = -1
    _request: int = 0  # the place of this sitting's in run.json

    @classmethod
    def open(cls, folder: str | os.PathLike[str], meta: Mapping[str, Any], *, must_exist: bool = False) -> "Store":
        """Open or create a run's folder for writing and merge `meta` into its run.json.

        An existing folder goes on where the model and, for the tasks in both, version, seed and wording agree; new
        tasks are added. Raises UserError where they differ (naming what), where another process writes, where the
        folder cannot be written, and with `must_exist` where there is no run.
        """
        path = Path(folder)
        if must_exist and not (path / "run.json").exists():
            raise UserError(f"--resume: there is no run in {path}; leave --resume out to start one")
        try:
            path.mkdir(parents=True, exist_ok=True)
            store = cls(path)
            store._acquire()
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            store._begin(json.loads(json.dumps(meta)))
        except OSError as error:
            store.close()
            raise _unwritable(path, error) from error
        except BaseException:
            store.close()
            raise
        return store

    def append(self, row: Row) -> None:
        """Store one answered sample. Raises UserError where the disk is full; what was stored before stays."""
        key = (row["task"], row["id"])
        assert key not in self.done, f"{key} is stored already"
        self._write(self._log, row)
        self.done[key] = row["prompt_hash"]

    def append_timing(self, timing: Mapping[str, float]) -> None:
        """Add one slice's tokens and seconds."""
        self._write(self._timings, dict(timing))

    def remember(self, missing: Mapping[str, str], ran: Mapping[str, list[str]]) -> None:
        """Add to run.json what turned out while running: what could not be asked, and what computed the answers."""
        requests = list(self.meta["requests"])
        told = requests[self._request].get("ran", {})
        ran = {name: sorted({*told.get(name, ()), *ran.get(name, ())}) for name in sorted({*told, *ran})}
        requests[self._request] = requests[self._request] | ({"ran": ran} if ran else {})
        self.meta = {**self.meta, "missing": {**self.meta["missing"], **missing}, "requests": requests}
        with _room(self.folder, self.done):
            write_json(self.folder / "run.json", self.meta)

    def finish(self, rows: list[Row], summary: Mapping[str, Any]) -> None:
        """Put samples.parquet and summary.json in place of the log."""
        with _room(self.folder, self.done):
            logs = [log for log in self.folder.glob("samples-*.jsonl") if log.stat().st_size]
            if logs or not (self.folder / "samples.parquet").exists():
                _replace(self.folder / "samples.parquet", _parquet(rows))
            write_json(self.folder / "summary.json", summary)
            for log in logs:
                log.unlink()

    def close(self) -> None:
        """Flush to the disk and let the next writer in."""
        with contextlib.ExitStack() as stack:
            if self._lock >= 0:
                stack.callback(os.close, self._lock)
            if self._log >= 0:
                stack.callback(_remove_empty, self.folder / f"samples-{self.rank}.jsonl")
            for descriptor in (self._log, self._timings):
                if descriptor >= 0:
                    stack.callback(os.close, descriptor)
                    stack.callback(os.fsync, descriptor)
            self._log = self._timings = self._lock = -1

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _acquire(self) -> None:
        self._lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._lock, 32).decode() or "unknown"
            self.close()
            raise UserError(
                f"{self.folder} is being written by process {owner}; wait for it, or take another --out"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def _begin(self, meta: dict[str, Any]) -> None:
        old = read_meta(self.folder) if (self.folder / "run.json").exists() else None
        if old is None and any(self.folder.glob("samples*")):
            raise UserError(f"{self.folder} holds samples but no run.json; take another --out")
        self.meta = meta if old is None else _merged(self.folder, old, meta)
        self._request = [_asked(r) for r in self.meta["requests"]].index(_asked(meta["requests"][0]))
        if self.meta != old:
            write_json(self.folder / "run.json", self.meta)
        for row in _stored(self.folder, columns=["task", "id", "prompt_hash"])[0]:
            self.done.setdefault((row["task"], row["id"]), row["prompt_hash"])
        self._log = _open_log(self.folder / f"samples-{self.rank}.jsonl")
        self._timings = _open_log(self.folder / f"timings-{self.rank}.jsonl")

    def _write(self, descriptor: int, row: Mapping[str, Any]) -> None:
        line = json.dumps(row).encode() + b"\n"
        before = os.fstat(descriptor).st_size
        with _room(self.folder, self.done):
            if os.write(descriptor, line) < len(line):
                os.ftruncate(descriptor, before)
                raise OSError(28, os.strerror(28))


def read(folder: str | os.PathLike[str], *, prompts: bool = True) -> Run:
    """Read a run, finished or not. Raises UserError where the folder holds none."""
    path = Path(folder)
    meta = read_meta(path)
    rows, bad = _stored(path, drop=() if prompts else ("prompt", "answer_prefix"))
    unique = {(row["task"], row["id"]): row for row in reversed(rows)}
    timings = [
        line
        for log in sorted(path.glob("timings-*.jsonl"))
        for line, _ in _lines(log)
        if line is not None and line.keys() >= TIMING
    ]
    return Run(path, meta, sorted(unique.values(), key=natural), timings, bad)


def read_meta(folder: Path) -> dict[str, Any]:
    """A run's run.json."""
    try:
        meta: dict[str, Any] = json.loads((folder / "run.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} is no run: it has no run.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'run.json'} cannot be read: {error}") from error
    found = meta.get("format") if isinstance(meta, dict) else None
    if found != FORMAT:
        raise UserError(f"{folder} has run format {found}; this version reads {FORMAT}")
    lacking = sorted(META - meta.keys())
    if lacking:
        raise UserError(
            f"{folder / 'run.json'} lacks {', '.join(lacking)}: it is damaged; run again with another --out"
        )
    return meta


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Where two JSON values differ, one line each: `model.dtype: "bfloat16" -> "float32"`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path}: {json.dumps(old)} -> {json.dumps(new)}"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Put a JSON file in place by an atomic rename."""
    _replace(path, (json.dumps(value, indent=1) + "\n").encode())


def _merged(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """run.json of a run that goes on, perhaps with more tasks."""
    shared = {name: task for name, task in new["tasks"].items() if name in old["tasks"]}
    changes = [
        *differences(old["model"], new["model"], "model"),
        *differences(old["identity"], new["identity"], "model"),
        *(line for name in shared for line in differences(_same(old["tasks"][name]), _same(shared[name]), name)),
    ]
    if changes:
        raise UserError(f"{folder} holds another run; take another --out. It differs in {'; '.join(changes)}")
    requests = old["requests"] + [
        r for r in new["requests"] if not any(_asked(r) == _asked(o) for o in old["requests"])
    ]
    chosen: dict[str, list[str]] = new["requests"][0].get("tasks") or {name: [] for name in new["tasks"]}
    again = {f"{name}.{part}" for name, parts in chosen.items() for part in parts}
    again |= {name for name, parts in chosen.items() if not parts}
    missing = {k: v for k, v in old["missing"].items() if not {_part(k), _part(k).partition(".")[0]} & again}
    return {
        **old,
        "tasks": {**old["tasks"], **new["tasks"]},
        "requests": requests,
        "missing": {**missing, **new["missing"]},
        "cost": {**old["cost"], **new["cost"]},
    }


def _part(missing: str) -> str:
    """The task of an entry of `missing`, a part's name or a cell's: `ruler.qa_1`, `multihop/graph/256/hops=4`."""
    family, *rest = re.split(r"[./ ]", missing, maxsplit=2)
    return f"{family}.{rest[0]}" if rest else family


def _same(task: Mapping[str, Any]) -> dict[str, Any]:
    """What has to agree for two requests of one task to be one run."""
    return {**{k: task.get(k) for k in ("version", "seed", "wording", "tier")}, "data": task.get("data") or {}}


def _asked(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request without when and how it was typed, and what answered it."""
    return {k: v for k, v in request.items() if k not in ("time", "command", "versions", "revision", "ran")}


def _stored(folder: Path, columns: list[str] | None = None, drop: tuple[str, ...] = ()) -> tuple[list[Row], int]:
    """Rows of the Parquet file and of the logs, and how many lines could not be read."""
    rows: list[Row] = []
    bad = 0
    if (folder / "samples.parquet").exists():
        from evalsuite import columnar

        try:
            rows += columnar.read(folder / "samples.parquet", columns, drop)
        except (ValueError, KeyError, OSError) as error:  # what Arrow raises is a ValueError or an OSError
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{folder / 'samples.parquet'} cannot be read: {reason}; it is damaged: run again with another --out"
            ) from error
    for log in sorted(folder.glob("samples-*.jsonl")):
        for row, complete in _lines(log):
            if row is not None and _whole(row):
                rows.append({k: v for k, v in row.items() if k not in drop} if drop else row)
            elif complete:
                bad += 1
    return rows, bad


def _whole(row: Row) -> bool:
    """Whether a line is a row of ours, with a score that can be one."""
    score = row.get("score")
    return row.keys() >= ROW and isinstance(score, int | float) and 0 <= score <= 1


def _lines(path: Path) -> Iterator[tuple[Row | None, bool]]:
    """Each line parsed (None where it cannot be) and whether it is complete: a torn tail is neither."""
    with path.open("rb") as log:
        for line in log:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            yield row if isinstance(row, dict) else None, line.endswith(b"\n")


def _open_log(path: Path) -> int:
    """Open for appending, cutting off a torn last line so that the next one starts clean."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
    return descriptor


def _remove_empty(path: Path) -> None:
    if path.exists() and path.stat().st_size == 0:
        path.unlink()


def _parquet(rows: list[Row]) -> bytes:
    from evalsuite import columnar

    return columnar.encode(sorted(rows, key=natural))


def _replace(path: Path, content: bytes) -> None:
    """Write beside, flush, rename: readers see the old file or the new one, whole."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {folder}: {error.strerror or error}; take another --out")


@contextlib.contextmanager
def _room(folder: Path, done: Mapping[Key, str]) -> Iterator[None]:
    """Where the disk may be full, a clear error."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}; the {len(done)} stored samples are kept: "
            "make room and give the same command again"
        ) from error
