"""What makes a comparison invalid that is on disk, or in which folders were given."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import gate_runs
from evalsuite import columnar, store
from evalsuite.gate import baseline
from gate_runs import Two, refused, told


def spoiled(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value)))


DISK: dict[str, tuple[Callable[[Two], Any], str, str]] = {
    "no summary": (lambda two: (two.run / "summary.json").unlink(), "unfinished", "300 samples so far"),
    "a log left": (
        lambda two: (two.run / "samples-0.jsonl").write_text(json.dumps(two.new[0]) + "\n"),
        "unfinished",
        "is not finished",
    ),
    "damaged lines": (
        lambda two: (two.baseline / "samples-0.jsonl").write_text("{}\n{}\n"),
        "unreadable",
        "2 damaged lines",
    ),
    "a damaged file": (
        lambda two: (two.baseline / "samples.parquet").write_bytes(b"PAR1 no more"),
        "unreadable",
        "samples.parquet cannot be read",
    ),
    "a damaged record": (lambda two: (two.run / "run.json").write_text("{"), "unreadable", "run.json cannot be read"),
    "a summary of more samples": (
        lambda two: spoiled(two.run / "summary.json", lambda s: {**s, "samples": 301}),
        "summary",
        "samples: 301 there, 300 in the samples",
    ),
    "a summary of other scores": (
        lambda two: spoiled(two.run / "summary.json", lambda s: {**s, "cells": [{**s["cells"][0], "score": 1.0}]}),
        "summary",
        "disagrees with its samples",
    ),
    "rows taken out of the file": (
        lambda two: (two.run / "samples.parquet").write_bytes(columnar.encode(two.new[60:])),
        "summary",
        "samples: 300 there, 240 in the samples",
    ),
    "a summary that is none": (lambda two: (two.run / "summary.json").write_text("[]"), "summary", "cannot be read"),
}


@pytest.mark.parametrize("name", DISK)
def test_invalid_on_disk(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, kind, words = DISK[name]
    two = Two(tmp_path)
    two.write()
    spoil(two)
    refused(*told(two, capsys), kind, words)


def test_a_run_beside_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = Two(tmp_path)
    two.write()
    refused(*told(two, capsys, baseline=str(two.run)), "same-folder", "a run equals itself")
    (tmp_path / "link").symlink_to(two.run)
    refused(*told(two, capsys, baseline=str(tmp_path / "link")), "same-folder", "a run equals itself")
    shutil.copytree(two.run, tmp_path / "copy")
    refused(*told(two, capsys, baseline=str(tmp_path / "copy")), "same-run", "is a copy of")


def test_an_edited_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = Two(tmp_path)
    two.write()
    folder, _ = baseline.promote(two.baseline, tmp_path / "baselines", "the first")
    assert told(two, capsys, baseline=str(folder))[0] == 0
    assert told(two, capsys, baseline=str(tmp_path / "baselines"))[0] == 0, "found by the model's name"
    lock = (folder / "baseline.lock").read_text()
    worse = deepcopy(two.old)
    worse[299]["score"] = 0.0
    (folder / "samples.parquet").write_bytes(columnar.encode(worse))
    refused(*told(two, capsys, baseline=str(folder)), "lock", "samples.parquet")
    (folder / "samples.parquet").unlink()
    refused(*told(two, capsys, baseline=str(folder)), "lock", "No such file")
    shutil.copy(two.baseline / "samples.parquet", folder)
    (folder / "baseline.lock").write_text('{"files": {}}')
    refused(*told(two, capsys, baseline=str(folder)), "lock", "run.json, samples.parquet, summary.json")
    (folder / "baseline.lock").write_text(lock)
    (folder / "timings-1.jsonl").write_text("")  # would be read as one more slice of its times
    refused(*told(two, capsys, baseline=str(folder)), "lock", "timings-1.jsonl")
    (folder / "timings-1.jsonl").unlink()
    assert told(two, capsys, baseline=str(folder))[0] == 0


def test_a_release_that_does_not_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = Two(tmp_path)
    two.write()
    meta = deepcopy(gate_runs.META)
    meta["tasks"]["toy"]["version"] = 0
    release = gate_runs.write(tmp_path / "release", gate_runs.rows(), "0", meta)
    refused(*told(two, capsys, release=str(release)), "version", "differs from the release's in toy.version: 0 -> 1")


ESCALATED = gate_runs.POLICY + "[escalation]\nalpha = [0.01, 0.04]\nseed = 7\n"


@pytest.mark.parametrize(
    ("kind", "words", "policy", "seed", "told_seed", "model"),
    [
        ("unregistered", "registers no [escalation]", gate_runs.POLICY, 7, 7, "w1"),
        ("seed", "asked with seed 8: the policy registers seed 7", ESCALATED, 8, 8, "w1"),
        ("not-fresh", "asks what the first did, 300: toy/a", ESCALATED, 0, 7, "w1"),
        ("identity", 'not of one model: weights: "w1" -> "w2"', ESCALATED, 7, 7, "w2"),
    ],
)
def test_a_second_batch_that_is_a_retry(
    kind: str,
    words: str,
    policy: str,
    seed: int,
    told_seed: int,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    two = Two(tmp_path, policy=policy)
    two.write()
    meta = deepcopy(gate_runs.META)
    meta["tasks"]["toy"]["seed"] = told_seed
    meta["identity"]["weights"] = model
    again = [
        str(gate_runs.write(tmp_path / f"again{i}", gate_runs.rows(seed=seed), f"{3 + i}", meta)) for i in range(2)
    ]
    refused(*told(two, capsys, escalate=",".join(again)), kind, words)


def test_ids_that_do_not_count_on_are_named_in_the_policy(tmp_path: Path) -> None:
    two = Two(tmp_path, policy='gaps = ["toy.a"]' + gate_runs.POLICY)
    del two.new[7], two.old[7]
    assert two.judge().verdict == "PASS"
    del two.new[200], two.old[200]
    assert two.judge().verdict == "INVALID"


def test_a_lone_surrogate_in_an_answer_is_no_edit(tmp_path: Path) -> None:
    two = Two(tmp_path)
    two.new[5]["text"] = two.new[5]["answer"] = "\ud83d"
    assert two.judge().verdict == "PASS"
    assert store.read(two.run).rows[5]["text"] == "\ud83d"
