"""Runs for the report's tests: as the runner stores them, on disk."""

import json
from pathlib import Path
from typing import Any

from evalsuite import store
from evalsuite.records import Completion, Sample, Score
from evalsuite.store import Row, Store

EVIL = "</script><img src=x onerror=alert(1)><!--"


def row(task: str, index: int, right: float, *, prompt: str = "", text: str = "x", **more: Any) -> Row:
    """One stored answer; `more` are its cell's facets, or `target`, `depth`, `finish`, `error`, `cluster`, `detail`."""
    target = more.pop("target", ("x",))
    own = {name: more.pop(name) for name in ("depth",) if name in more}
    finish, error = more.pop("finish", "stop"), more.pop("error", "")
    cluster, detail = more.pop("cluster", f"{task}{index}"), more.pop("detail", {})
    facets = ",".join(f"{k}={v}" for k, v in sorted(more.items()))
    name = f"{task.replace('.', '/')}/{facets}/{index}"
    sample = Sample(name, task, prompt or f"{facets} {index}", target, cluster=cluster, facets={**more, **own})
    completion = Completion(sample.id, text, 9, 1, finish=finish, error=error)
    return store.make_row(sample, completion, Score(name, right, text.strip(), detail), cell=more, chance=0.03)


def meta(model: str, rows: list[Row], **more: Any) -> dict[str, Any]:
    families: dict[str, dict[str, None]] = {}
    for each in rows:
        family, _, part = each["task"].partition(".")
        families.setdefault(family, {}).update({part: None} if part else {})
    about = {"version": 1, "seed": 0, "wording": "natural", "licence": "", "source": "", "data": {}}
    request = {"tasks": {name: [] for name in families}, "seed": 0, "command": f"evalsuite run -m {model}", "limit": 9}
    request |= {"time": "2026-01-01T00:00:00+0000", "versions": {"python": "3.11"}, "revision": "abc", "knobs": {}}
    return {
        "format": store.FORMAT,
        "model": model,
        "created": more.pop("created", "1.0"),
        "identity": {"weights": f"w-{model}", "pattern": "KKKF"},
        "context": 4096,
        "tasks": {name: {**about, "subtasks": list(parts)} for name, parts in families.items()},
        "missing": {},
        "cost": {},
        "requests": [request],
        **more,
    }


def keep(place: Path, model: str, rows: list[Row], *, finished: bool = True, **more: Any) -> Path:
    """A run's folder as the runner leaves it, or with `finished=False` as it stands while one goes on."""
    folder = place / store.folder_name(model)
    with Store.open(folder, meta(model, rows, **more)) as writer:
        if finished:
            writer.finish(rows, {})
        else:
            for each in rows:
                writer.append(each)
    return folder


def hops(scores: dict[int, float], n: int = 20, **more: Any) -> list[Row]:
    """Walks over 32 facts at two lengths, right in so many of n."""
    return [
        row(
            "multihop.graph",
            i,
            float(i < score * n),
            prompt=f"edge a{i} b{i} noise tree edge b{i} gold{i} ask a{i}" + " next" * hop,
            target=(f"gold{i}",),
            text=f"gold{i}" if i < score * n else "other",
            hops=hop,
            facts=32,
            length=length,
            depth=round(i / n, 4),
            cluster=f"graph/{length}/{i}",
            **more,
        )
        for length in (256, 512)
        for hop, score in scores.items()
        for i in range(n)
    ]


def index_of(html: str) -> dict[str, Any]:
    """The samples' index as the page unpacks it."""
    return unpack(html.split('id="index">')[1].split("</script>", maxsplit=1)[0])


def unpack(block: str) -> Any:
    import base64
    import zlib

    return json.loads(zlib.decompress(base64.b64decode(block)), parse_constant=lambda name: 1 / 0)
