"""The folder for lm_eval's `--include_path`: one YAML file for each part of each installed task, and one a group."""

import contextlib
import hashlib
import os
import re
from pathlib import Path

from evalsuite import task as tasks
from evalsuite.errors import UserError
from evalsuite.task import Request, Task

CLASS = "evalsuite.integrations.lm_eval.tasks.EvalsuiteTask"


def name_of(task: str) -> str:
    """`multihop.graph` -> `evalsuite_multihop_graph`, the name inside lm_eval."""
    return "evalsuite_" + re.sub(r"\W+", "_", task)


def texts() -> dict[str, str]:
    """File name -> content. A family with parts is a group of those that can be asked without data; where none can, it
    is one task that asks what `evalsuite run --tasks FAMILY` does."""
    files: dict[str, str] = {}
    for family in tasks.names():
        plugin = tasks.load(family)
        parts = [f"{family}.{part}" for part in plugin.subtasks()]
        members = _offline(plugin, parts)
        version = f"metadata:\n  version: {plugin.version}\n"
        for part in parts if members else [family, *parts]:
            files[f"{name_of(part)}.yaml"] = (
                f"task: {name_of(part)}\nclass: !function {CLASS}\nevalsuite: {part}\n{version}"
            )
        if members:
            lines = "".join(f"  - {name_of(part)}\n" for part in members)
            files[f"{name_of(family)}.yaml"] = (
                f"group: {name_of(family)}\ntask:\n{lines}aggregate_metric_list:\n  - metric: score\n"
                f"    aggregation: mean\n    weight_by_size: false\n{version}"
            )
    return files


def _offline(plugin: Task, parts: list[str]) -> list[str]:
    """The parts that need no data, in one of the wordings at least."""
    if not parts:
        return []
    found: set[str] = set()
    for wording in ("natural", "terse"):
        with contextlib.suppress(UserError):  # it has no such wording
            request = Request(wording=wording)
            lack = plugin.missing(request)
            made = {cell.task for cell in plugin.cells(request)}
            found |= made - lack.keys()
    return [part for part in parts if part in found]


def write() -> Path:
    """Write the folder in the user's cache and return it. Raises UserError where that cannot be written."""
    files = texts()
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "evalsuite" / "lm-eval" / digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            if not (folder / name).is_file() or (folder / name).read_text() != text:
                new = folder / f".{name}.{os.getpid()}"
                new.write_text(text)
                new.replace(folder / name)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; set XDG_CACHE_HOME to another folder") from error
    return folder
