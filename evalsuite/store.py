"""A run's folder: append-only JSONL while running, Parquet and a summary when done.

`run.json` holds everything needed to repeat the run. Each completion is one line of `samples-<rank>.jsonl`, written by
one `write` with O_APPEND: a kill at any instant loses at most the line in flight. `samples.parquet` and `summary.json`
replace the logs when the plan is done, by atomic renames. Timings stay apart: the samples of two equal runs are equal.

A folder has one writer, who holds the lock of `.lock`. Where the run is one of several ranks, the writer is rank 0, and
the others join by its invitation, each with a log of its own; a log is locked as long as its rank lives.
"""

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalsuite import files
from evalsuite.errors import UserError
from evalsuite.files import write_json
from evalsuite.meta import FORMAT, asked, changes, differences, merged, read_meta
from evalsuite.records import Completion, Sample, Score

__all__ = [
    "FORMAT", "Key", "Row", "Run", "Store", "differences", "folder_name", "make_row", "natural", "read", "read_meta",
    "write_json",
]  # fmt: skip

Row = dict[str, Any]
Key = tuple[str, str]  # task, sample id


@dataclass(slots=True)
class Run:
    """A run as read from its folder. `rows` in natural order of task and sample id."""

    folder: Path
    meta: dict[str, Any]  # run.json
    rows: list[Row]
    timings: list[dict[str, Any]]  # a slice each: tokens and seconds, and the sitting and rank that measured them
    unreadable: int = 0  # lines that could not be read; their samples are asked again on resume

    @property
    def name(self) -> str:
        return str(self.meta["model"])

    @property
    def finished(self) -> bool:
        """Whether all that was asked for is stored."""
        return (self.folder / "summary.json").exists() and not any(self.folder.glob("samples-*.jsonl"))


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


def agree(folder: Path, meta: Mapping[str, Any], rank: int) -> None:
    """Raise UserError where `meta`, a rank's, is not of the same model and tasks as that of rank 0's run."""
    found = changes(read_meta(folder), json.loads(json.dumps(meta)))
    if found:
        raise UserError(
            f"rank {rank} is not like rank 0, which opened {folder}; give all ranks one model, data and version. "
            f"It differs in {'; '.join(found)}"
        )


@dataclass(slots=True)
class Store:
    """Writes a run's folder, alone or as a rank. Use as a context manager; `done` maps what is stored to its prompt's
    hash. A sitting is one command's work on a folder, by however many ranks."""

    folder: Path
    rank: int = 0
    sitting: str = field(default_factory=lambda: secrets.token_hex(4))
    done: dict[Key, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    _lock: int = -1
    _log: int = -1
    _timings: int = -1
    _request: int = 0  # the place of this sitting's in run.json
    _sizes: dict[str, int] = field(default_factory=dict)  # of the logs, in bytes, when rank 0 opened the folder

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
        store = cls(path)
        with store._opening():
            path.mkdir(parents=True, exist_ok=True)
            store._acquire()
            store._begin(json.loads(json.dumps(meta)))
        return store

    @classmethod
    def join(cls, folder: str | os.PathLike[str], meta: Mapping[str, Any], rank: int, sitting: str) -> "Store":
        """Open a run's folder as one more rank in a sitting of rank 0's, who has it open.

        Raises UserError where `meta` is not of the same model and tasks as rank 0's, where another process writes this
        rank's log, and where it cannot be written.
        """
        path = Path(folder)
        agree(path, meta, rank)
        store = cls(path, rank, sitting)
        with store._opening():
            store._open_logs()
        return store

    def gather(self) -> None:
        """Add to `done` what other ranks stored in this sitting. Raises UserError where two answered one id."""
        for log in sorted(self.folder.glob("samples-*.jsonl")):
            if log.name == f"samples-{self.rank}.jsonl":
                continue
            for row, _ in files.lines(log, self._sizes.get(log.name, 0)):
                if row is None or not _whole(row):
                    continue
                if (row["task"], row["id"]) in self.done:
                    raise UserError(
                        f"task {row['task']} made two samples with the id {row['id']!r}: a fault of that task"
                    )
                self.done[row["task"], row["id"]] = row["prompt_hash"]

    def append(self, row: Row) -> None:
        """Store one answered sample. Raises UserError where the disk is full; what was stored before stays."""
        key = (row["task"], row["id"])
        assert key not in self.done, f"{key} is stored already"
        self._write(self._log, row)
        self.done[key] = row["prompt_hash"]

    def append_timing(self, timing: Mapping[str, Any]) -> None:
        """Add one slice's tokens and seconds, with who measured them and when they ended (seconds since 1970)."""
        self._write(self._timings, {"sitting": self.sitting, "rank": self.rank, "at": time.time(), **timing})

    def remember(self, missing: Mapping[str, str], ran: Mapping[str, list[str]]) -> None:
        """Add to run.json what turned out while running: what could not be asked, and what computed the answers."""
        requests = list(self.meta["requests"])
        told = requests[self._request].get("ran", {})
        ran = {name: sorted({*told.get(name, ()), *ran.get(name, ())}) for name in sorted({*told, *ran})}
        requests[self._request] = requests[self._request] | ({"ran": ran} if ran else {})
        self.meta = {**self.meta, "missing": {**self.meta["missing"], **missing}, "requests": requests}
        with files.room(self.folder, self.done):
            write_json(self.folder / "run.json", self.meta)

    def finish(self, rows: list[Row], summary: Mapping[str, Any]) -> None:
        """Put samples.parquet and summary.json in place of the log."""
        with files.room(self.folder, self.done):
            logs = [log for log in self.folder.glob("samples-*.jsonl") if log.stat().st_size]
            if logs or not (self.folder / "samples.parquet").exists():
                files.put(self.folder / "samples.parquet", _parquet(rows))
            write_json(self.folder / "summary.json", summary)
            for log in logs:
                log.unlink()

    def close(self) -> None:
        """Flush to the disk and let the next writer in."""
        with contextlib.ExitStack() as stack:
            if self._lock >= 0:
                stack.callback(os.close, self._lock)
            if self._log >= 0:
                stack.callback(files.remove_empty, self.folder / f"samples-{self.rank}.jsonl")
            for descriptor in (self._log, self._timings):
                if descriptor >= 0:
                    stack.callback(os.close, descriptor)
                    stack.callback(os.fsync, descriptor)
            self._log = self._timings = self._lock = -1

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        """Where it cannot be opened, all that was is closed again."""
        try:
            yield
        except OSError as error:
            self.close()
            raise files.unwritable(self.folder, error) from error
        except BaseException:
            self.close()
            raise

    def _acquire(self) -> None:
        self._lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        if not files.lock(self._lock):
            owner = os.read(self._lock, 32).decode() or "unknown"
            raise UserError(f"{self.folder} is being written by process {owner}; wait for it, or take another --out")
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        for log in sorted(self.folder.glob("samples-*.jsonl")):
            if files.locked(log):  # a rank whose rank 0 is gone
                raise UserError(
                    f"{log} is still being written by a rank of another run; wait for it, or take another --out"
                )

    def _begin(self, meta: dict[str, Any]) -> None:
        old = read_meta(self.folder) if (self.folder / "run.json").exists() else None
        if old is None and any(self.folder.glob("samples*")):
            raise UserError(f"{self.folder} holds samples but no run.json; take another --out")
        self.meta = meta if old is None else merged(self.folder, old, meta)
        self._request = [asked(r) for r in self.meta["requests"]].index(asked(meta["requests"][0]))
        if self.meta != old:
            write_json(self.folder / "run.json", self.meta)
        for log in self.folder.glob("samples-*.jsonl"):
            os.close(files.open_log(log))  # cuts off what a dead rank left torn
            self._sizes[log.name] = log.stat().st_size
        self._open_logs()

    def _open_logs(self) -> None:
        for row in _stored(self.folder, columns=["task", "id", "prompt_hash"])[0]:
            self.done.setdefault((row["task"], row["id"]), row["prompt_hash"])
        self._log = files.open_log(self.folder / f"samples-{self.rank}.jsonl")
        if not files.lock(self._log):
            raise UserError(f"{self.folder} is being written by another rank {self.rank}; wait for it")
        self._timings = files.open_log(self.folder / f"timings-{self.rank}.jsonl")

    def _write(self, descriptor: int, row: Mapping[str, Any]) -> None:
        with files.room(self.folder, self.done):
            files.append(descriptor, row)


def read(folder: str | os.PathLike[str], *, prompts: bool = True) -> Run:
    """Read a run, finished or not. Raises UserError where the folder holds none."""
    path = Path(folder)
    meta = read_meta(path)
    rows, bad = _stored(path, drop=() if prompts else ("prompt", "answer_prefix"))
    unique = {(row["task"], row["id"]): row for row in reversed(rows)}
    timings = [
        line
        for log in sorted(path.glob("timings-*.jsonl"))
        for line, _ in files.lines(log)
        if line is not None and line.keys() >= TIMING
    ]
    return Run(path, meta, sorted(unique.values(), key=natural), timings, bad)


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
        for row, complete in files.lines(log):
            if row is not None and _whole(row):
                rows.append({k: v for k, v in row.items() if k not in drop} if drop else row)
            elif complete:
                bad += 1
    return rows, bad


def _whole(row: Row) -> bool:
    """Whether a line is a row of ours, with a score that can be one."""
    score = row.get("score")
    return row.keys() >= ROW and isinstance(score, int | float) and 0 <= score <= 1


def _parquet(rows: list[Row]) -> bytes:
    from evalsuite import columnar

    return columnar.encode(sorted(rows, key=natural))
