"""Small finished runs for the gate's tests, written as the runner writes them."""

import json
import shutil
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from evalsuite import compare, store, verbs
from evalsuite.gate import Report, judge, sides
from evalsuite.gate import policy as policies
from evalsuite.records import Completion, Sample, Score
from evalsuite.store import Row, Run

POLICY = """
[[family]]
name = "toy"
tasks = ["toy.*"]
"""
TASK = {"version": 1, "seed": 0, "wording": "natural", "subtasks": ["a", "b"], "data": {}, "licence": "", "source": ""}
META: dict[str, Any] = {
    "format": store.FORMAT,
    "model": "small",
    "identity": {"weights": "w1", "tokenizer": "t1", "config": "c1", "dtype": "float32", "kernels": {"delta": "fast"}},
    "context": 512,
    "tasks": {"toy": TASK},
    "missing": {},
    "cost": {"256": {"kv": 1000, "state": 50}},
    "requests": [{"limit": 150, "seed": 0, "versions": {"torch": "2"}, "revision": "abc", "ran": {"delta": ["fast"]}}],
}
TIMING = {"samples": 100, "prefill_tokens": 1000, "prefill_seconds": 1.0, "decode_tokens": 200, "decode_seconds": 1.0}


def row(task: str, index: int, score: float, *, seed: int = 0, cluster: str = "", **cell: Any) -> Row:
    """One answered sample, its score as it comes."""
    cell = cell or {"length": 256}
    facets = ",".join(f"{k}={v}" for k, v in sorted(cell.items()))
    sample = Sample(
        f"{task.replace('.', '/')}/{facets}/{index}", task, f"{task} {facets} {seed} {index}?", ("x",), cluster=cluster
    )
    completion = Completion(sample.id, "x", 9, 1)
    return store.make_row(sample, completion, Score(sample.id, score), cell=cell, chance=0.1)


def rows(n: int = 300, wrong: int = 60, **options: Any) -> list[Row]:
    """n samples of two tasks, the first `wrong` of them wrong."""
    half = n // 2
    return [row(f"toy.{'ab'[i // half]}", i % half, float(i >= wrong), **options) for i in range(n)]


def flip(found: list[Row], lost: int, won: int = 0) -> list[Row]:
    """A copy with so many right answers lost, and so many wrong ones won."""
    found = deepcopy(found)
    right = [each for each in found if each["score"] == 1.0]
    wrong = [each for each in found if each["score"] == 0.0]
    for each in [*right[:lost], *wrong[:won]]:
        each["score"] = 1.0 - each["score"]
    return found


def write(
    folder: Path, found: list[Row], created: str, meta: dict[str, Any] | None = None, slices: float = 1.0
) -> Path:
    """A finished run; `slices` scales its seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    record = deepcopy({**META, **(meta or {}), "created": created})
    with store.Store.open(folder, record) as target:
        for _ in range(4):
            target.append_timing({k: v * (slices if "seconds" in k else 1) for k, v in TIMING.items()})
        sound = [each for each in found if sides.number(each["score"])]
        target.finish(found, compare.summary(Run(folder, record, sound, [])) if sound else {"samples": 0})
    return folder


@dataclass
class Two:
    """A run and its baseline, before they are written: what a test spoils."""

    place: Path
    new: list[Row] = field(default_factory=rows)
    old: list[Row] = field(default_factory=rows)
    new_meta: dict[str, Any] = field(default_factory=lambda: deepcopy(META))
    old_meta: dict[str, Any] = field(default_factory=lambda: deepcopy(META))
    policy: str = POLICY

    @property
    def run(self) -> Path:
        return self.place / "new"

    @property
    def baseline(self) -> Path:
        return self.place / "old"

    def write(self) -> None:
        """Both runs and the policy on disk."""
        write(self.run, self.new, "2", self.new_meta)
        write(self.baseline, self.old, "1", self.old_meta)
        (self.place / "gate.toml").write_text(self.policy)

    def judge(self) -> Report:
        """The gate's report."""
        self.write()
        rules = policies.load(self.place / "gate.toml")
        return judge(sides.read(self.run, "run"), sides.read(self.baseline, "baseline"), rules)


def told(two: Two, capsys: pytest.CaptureFixture[str], **paths: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, what the terminal shows, and gate.json."""
    given = {
        "run": str(two.run),
        "baseline": str(two.baseline),
        "release": "",
        "escalate": "",
        "agreement": "",
        **paths,
    }
    code = verbs.gate(given, str(two.place / "gate.toml"), strict=False, out=str(two.place / "out"), as_json=False)
    return code, capsys.readouterr().out, json.loads((two.place / "out" / "gate.json").read_text())


def refused(code: int, text: str, record: dict[str, Any], kind: str, words: str) -> None:
    """A gate's outcome is INVALID, with a line of that kind that holds the words."""
    assert code == 3
    assert record["verdict"] == "INVALID"
    assert record["cases"] == [], "no figure of an invalid comparison is shown"
    lines = [line for line in text.splitlines() if line.startswith(f"  {kind}: ")]
    assert any(words in line for line in lines), text
