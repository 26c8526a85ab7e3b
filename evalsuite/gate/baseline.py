"""Baselines: a run's files under version control, with a lock that makes their change a diff one can review.

`baseline promote RUN --to results/baselines/demo --reason "..."` puts run.json, samples.parquet, summary.json and the
timings into results/baselines/demo/<model>/, and beside them baseline.lock: JSON with the sha256 of each file, the
revision, the model's identity, the versions, the reason and the score of each task. The gate checks the sums.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from evalsuite import store
from evalsuite.errors import UserError
from evalsuite.gate import outputs, sides
from evalsuite.gate.decide import INVALID, REGRESSED
from evalsuite.gate.policy import Policy
from evalsuite.store import Run

FILES = ("run.json", "samples.parquet", "summary.json")
TIMINGS = "timings-0.jsonl"


def promote(folder: Path, to: Path, reason: str) -> tuple[Path, list[str]]:
    """Make a run the baseline of its model; the folder, and what changed in its lock, one line each.

    Raises UserError for a run that is unfinished or damaged, that its last gate called REGRESSED or INVALID, and for an
    empty reason.
    """
    if not " ".join(reason.split()):
        raise UserError('--reason is empty: write why the scores may change, as in --reason "new tokenizer"')
    side = sides.read(folder, "run")
    lenient = Policy((), max_errors=1.0, max_truncated=1.0, gaps=("*",))  # how many are too many is the gate's question
    wrong = list(sides.problems(side, lenient))
    if wrong:
        raise UserError(f"{folder} cannot be a baseline: {wrong[0].message}")
    judged = outputs.judged(folder)
    if judged is not None and judged["verdict"] in (REGRESSED, INVALID):
        raise UserError(
            f"{folder} cannot be a baseline: the gate called it {judged['verdict']} ({judged['reason']}); mend that, "
            f"or remove {folder / outputs.NAME} where the change is wanted, and say so in --reason"
        )
    target = to / store.folder_name(side.run.name)
    if target.resolve() == folder.resolve():
        raise UserError(f"{folder} is that baseline already; promote a run of its own folder")
    before = _lock(target)
    contents = {name: (folder / name).read_bytes() for name in FILES}
    logs = sorted(folder.glob("timings-*.jsonl"))
    if logs:
        contents[TIMINGS] = b"".join(log.read_bytes() for log in logs)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            _put(target / name, content)
        if not logs:
            (target / TIMINGS).unlink(missing_ok=True)
        lock = _record(side.run, target, [*contents], reason, judged)
        store.write_json(target / sides.LOCK, lock)  # last: a promotion cut short leaves sums that do not agree
    except OSError as error:
        raise UserError(f"cannot write to {target}: {error.strerror or error}; take another --to") from error
    return target, [*store.differences(before, lock)]


def _record(run: Run, target: Path, names: list[str], reason: str, judged: Mapping[str, Any] | None) -> dict[str, Any]:
    request = run.meta["requests"][-1] if run.meta["requests"] else {}
    scores: dict[str, list[float]] = {}
    for row in run.rows:
        scores.setdefault(row["task"], []).append(row["score"])
    return {
        "format": store.FORMAT,
        "model": run.name,
        "reason": " ".join(reason.split()),
        "gate": judged["verdict"] if judged else "not gated",
        "revision": request.get("revision", ""),
        "versions": request.get("versions", {}),
        "identity": run.meta["identity"],
        "tasks": {
            name: {key: about.get(key) for key in ("version", "seed", "wording", "tier") if key in about}
            for name, about in run.meta["tasks"].items()
        },
        "scores": {name: {"n": len(values), "score": round(fmean(values), 6)} for name, values in scores.items()},
        "files": {name: sides.sha256(target / name) for name in names},
    }


def _lock(target: Path) -> Any:
    try:
        return json.loads((target / sides.LOCK).read_text())
    except (OSError, ValueError):
        return {}


def _put(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_bytes(content)
    os.replace(beside, path)
