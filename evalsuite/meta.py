"""run.json, everything that is needed to repeat a run: read, compared, and merged where a run goes on."""

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError

FORMAT = 1
SECRET = re.compile(  # an argument of a backend, a header or an address with a password
    r"(?i)(?<![\w-])((?:auth_token|api_key|token|password|key)=)[^,]+|(?<![\w-])(header=).+|(://)[^/@\s]+(?=@)"
)
META = {"format", "model", "identity", "tasks", "requests", "missing", "cost", "created"}


def typed(words: Iterable[str]) -> str:
    """A command as it may be recorded: records are shared, and keys in arguments are not."""
    return shlex.join(SECRET.sub(lambda found: f"{found[1] or found[2] or found[3]}***", word) for word in words)


def read_meta(folder: Path) -> dict[str, Any]:
    """A run's run.json. Raises UserError where there is none of this format, whole."""
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


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Why two records cannot be one run: other models, or one task asked otherwise."""
    shared = {name: task for name, task in new["tasks"].items() if name in old["tasks"]}
    return [
        *differences(old["model"], new["model"], "model"),
        *differences(old["identity"], new["identity"], "model"),
        *(line for name in shared for line in differences(_same(old["tasks"][name]), _same(shared[name]), name)),
    ]


def merged(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """run.json of a run that goes on, perhaps with more tasks. Raises UserError where it is another run."""
    found = changes(old, new)
    if found:
        raise UserError(f"{folder} holds another run; take another --out. It differs in {'; '.join(found)}")
    requests = old["requests"] + [r for r in new["requests"] if not any(asked(r) == asked(o) for o in old["requests"])]
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


def asked(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request without when and how it was typed, and what answered it."""
    return {k: v for k, v in request.items() if k not in ("time", "command", "versions", "revision", "ran")}


def _part(missing: str) -> str:
    """The task of an entry of `missing`, a part's name or a cell's: `ruler.qa_1`, `multihop/graph/256/hops=4`."""
    family, *rest = re.split(r"[./ ]", missing, maxsplit=2)
    return f"{family}.{rest[0]}" if rest else family


def _same(task: Mapping[str, Any]) -> dict[str, Any]:
    """What has to agree for two requests of one task to be one run."""
    return {**{k: task.get(k) for k in ("version", "seed", "wording", "tier")}, "data": task.get("data") or {}}
