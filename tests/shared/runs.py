"""Runs made up for the tests of tables and verdicts."""

from pathlib import Path
from typing import Any

from evalsuite import store
from evalsuite.records import Completion, Sample, Score
from evalsuite.store import Row, Run

PARTS = [f"part_{i}" for i in range(13)]
MODELS = {"full": (0.98, 0.97, 0.96), "hybrid-kda": (0.97, 0.9, 0.6), "hybrid-lightning": (0.95, 0.5, 0.03)}


def row(task: str, index: int, right: bool, *, prompt: str = "", finish: str = "stop", **cell: Any) -> Row:
    facets = ",".join(f"{k}={v}" for k, v in sorted(cell.items()))
    sample = Sample(f"{task}/{facets}/{index}", task, prompt or f"{facets} {index}", ("x",), cluster=f"{task}{index}")
    error = "server said no" if finish == "error" else ""
    completion = Completion(sample.id, "x", 9, finish=finish, error=error)
    chance = 0.25 if task == "knowledge" else 1 / 32 if task.startswith("multihop") else 0.0
    return store.make_row(sample, completion, Score(sample.id, float(right)), cell=cell, chance=chance)


def make(name: str, rows: list[Row], **meta: Any) -> Run:
    tasks = {
        "multihop": {"subtasks": ["graph", "chain"], "seed": 0, "wording": "terse"},
        "ruler": {"subtasks": PARTS, "seed": 0, "wording": "terse"},
        "knowledge": {"subtasks": [], "seed": 0, "wording": "terse"},
    }
    base = {"model": name, "created": "1", "tasks": tasks, "missing": {}, "cost": {}, "requests": []}
    timing = {"prefill_tokens": 100.0, "prefill_seconds": 0.5, "decode_tokens": 30.0, "decode_seconds": 1.0}
    return Run(Path("/none") / name, {**base, **meta}, rows, [timing, timing])


def hop_rows(scores: tuple[float, ...], n: int = 100, lengths: tuple[int, ...] = (1024,)) -> list[Row]:
    return [
        row("multihop.graph", i, i < score * n, length=length, hops=hops, facts=32)
        for length in lengths
        for hops, score in zip((1, 2, 4), scores, strict=True)
        for i in range(n)
    ]


def three() -> list[Run]:
    runs = []
    for name, scores in MODELS.items():
        rows = hop_rows(scores)
        rows += [row(f"ruler.{p}", i, i % 5 > 0, length=1024) for p in PARTS[:11] for i in range(20)]
        rows += [row("knowledge", i, i % 10 > 0) for i in range(50)]
        missing = {"ruler.qa_1": "SQuAD is not here; give --data squad=PATH"}
        cost = {"1024": {"kv": 3_145_728, "state": 524_288}, "2048": {"kv": 6_291_456, "state": 524_288}}
        runs.append(make(name, rows, missing=missing, cost=cost))
    return runs
