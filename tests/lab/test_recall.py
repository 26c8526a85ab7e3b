"""What an indexer's choice covers, by hops."""

import json
from pathlib import Path

import pytest

from evalsuite.lab import recall
from evalsuite.lab.run import Plan, _say, train
from evalsuite.models.loading import read_json

ASK = ["--tasks", "multihop.graph", "--set", "multihop.hops=1,2", "--set", "multihop.facts=8", "--lengths", "128"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    (folder,) = train(
        Plan(("DKD",), out, steps=4, tokens_per_step=512, width=32, context=256, device="cpu"), lambda line: None
    )
    return folder


def test_recall_of_each_hop_and_layer(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recall.main([str(checkpoint), *ASK, "--limit", "3", "--json", str(tmp_path / "rows.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| task | hops | n | at the answer | everywhere | layer 0 | layer 2 |"
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["hops"], row["n"]) for row in rows] == [("1", 3), ("2", 3)]
    for row in rows:
        value, low, high = row["at_answer"]
        assert 0 <= low <= value <= high <= 1
        assert value == pytest.approx(sum(row["layers"]) / 2)
        assert row["everywhere"][0] > value  # early tokens see no more than they choose


def test_everything_is_recalled_where_everything_is_chosen(checkpoint: Path, tmp_path: Path) -> None:
    config = read_json(checkpoint / "config.json")
    whole = tmp_path / "whole"
    whole.mkdir()
    for path in checkpoint.iterdir():
        (whole / path.name).write_bytes(path.read_bytes())
    (whole / "config.json").write_text(json.dumps(config | {"index_topk": 256}))
    assert recall.main([str(whole), *ASK, "--limit", "2", "--json", str(tmp_path / "rows.json")]) == 0
    for row in json.loads((tmp_path / "rows.json").read_text()):
        assert row["layers"] == pytest.approx([1.0, 1.0], abs=1e-5)


@pytest.mark.parametrize(("arguments", "message"), [
    (["full"], "no indexer"), (["nobody"], "unknown model"), (["full", "--tasks", "multihop.grap"], "unknown"),
    (["CHECKPOINT", *ASK, "--by", "hop"], "no facet 'hop'; it has"),
    (["CHECKPOINT", *ASK, "--limit", "1", "--json", "/nonexistent/rows.json"], "there is no folder /nonexistent"),
])  # fmt: skip
def test_mistakes_are_one_line(
    arguments: list[str], message: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recall.main([str(checkpoint) if each == "CHECKPOINT" else each for each in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_training_tells_of_the_recall(checkpoint: Path) -> None:
    said: list[str] = []
    _say(said.append, "D", {"step": 1, "tokens": 2, "loss": 3.0, "accuracy": 0.5, "recall": 0.25, "seconds": 1})
    assert "right 0.500, recall 0.250, 2 tokens/s" in said[0]
    history = read_json(checkpoint / "training.json")["history"]
    assert all(0 < line["recall"] <= 1 for line in history)
