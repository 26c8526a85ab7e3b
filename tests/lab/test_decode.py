"""Decoding speed is measured on caches that are full, one row a design."""

import json
from pathlib import Path

import pytest
import torch

from evalsuite.lab import decode
from evalsuite.lab.budget import TINY
from evalsuite.models.cache import HybridCache
from evalsuite.models.modeling import EvalsuiteModel


def test_every_step_is_behind_a_whole_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[list[int]] = []
    forward = EvalsuiteModel.forward

    def listening(self: EvalsuiteModel, input_ids: torch.Tensor, *, cache: HybridCache, **options: object) -> object:
        if input_ids.shape == (2, 1):
            lengths.append(cache.lengths.tolist())
        return forward(self, input_ids, cache=cache, **options)

    monkeypatch.setattr(EvalsuiteModel, "forward", listening)
    out = tmp_path / "speed.json"
    words = [
        "--budget",
        "tiny",
        "--models",
        "FFFF,SKLD",
        "--batch",
        "2",
        "--length",
        "24",
        "--steps",
        "3",
        "--device",
        "cpu",
        "--out",
    ]
    decode.main([*words, str(out)])
    steps = decode.WARM + 3
    assert lengths == [[24 + i, 24 + i] for i in range(steps)] * 2
    report = json.loads(out.read_text())
    assert [row["design"] for row in report["rows"]] == ["FFFF", "SKLD"]
    assert all(row["tokens_per_second"] == pytest.approx(2 / row["step_seconds"]) for row in report["rows"])
    assert report["rows"][0]["kept_bytes"] > 4 * 24 * 2 * TINY.width * 2


@pytest.mark.parametrize(
    "words", [["--models", "fulll"], ["--batch", "0"], ["--out", "/nowhere/x.json"], ["--budget", "x"]]
)
def test_what_cannot_be_is_one_line_before_any_work(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        decode.main(["--device", "cpu", *words])
    assert capsys.readouterr().err.startswith("error: ")
