"""The bench on a CPU: every row judged, a failure no end."""

import json
from pathlib import Path

import pytest
import torch

from evalsuite.integrations.hf import bench


def run(tmp_path: Path, *options: str) -> tuple[int, list[bench.Row]]:
    out = tmp_path / "rows" / "bench.json"
    code = bench.main(["--out", str(out), "--device", "cpu", "--tiny", "--tokens", "40", *options])
    return code, json.loads(out.read_text())["rows"]


def test_rows_of_an_architecture(tmp_path: Path) -> None:
    code, rows = run(tmp_path, "--only", "memory", "minimax")
    assert code == 0
    assert rows[0]["what"] == "peak memory"
    assert rows[0]["passed"] is None
    whats = ["prefill", "padded", "stretches and steps", "64 greedy tokens"]
    assert [(row["dtype"], row["what"]) for row in rows[1:]] == [(d, w) for d in ("float32", "bfloat16") for w in whats]
    for row in rows[1:]:
        assert row["passed"]
        assert row["every layer counted"]
        if "limit" in row:
            assert row["without mixers beside torch"] > 10 * row["limit"]  # a fault would be seen
    assert rows[5]["torch beside fp32"] > 1e-3  # bf16's own distance is what the bound is read beside
    assert rows[1]["torch beside fp32"] == 0


def test_a_wrong_operator_and_a_case_that_raises_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bench.build

    def broken(name: str, **options: object) -> object:
        if name == "llama":
            raise RuntimeError("no memory")
        return real(name, **options)

    monkeypatch.setattr(bench, "build", broken)
    wrong = torch.nn.functional.softplus  # any function of one tensor that changes it
    monkeypatch.setattr("evalsuite.integrations.hf.mixers._unit", wrong)
    code, rows = run(tmp_path, "--only", "llama", "qwen3_next", "qwen3")
    assert code == 1
    assert rows[0]["error"] == "RuntimeError: no memory"
    judged = {(row["case"], row["dtype"], row["what"]): row["passed"] for row in rows[1:]}
    assert not judged["qwen3_next", "bfloat16", "prefill"]
    assert all(passed for (case, _, _), passed in judged.items() if case == "qwen3")


def test_no_case_is_begun_after_its_time(tmp_path: Path) -> None:
    code, rows = run(tmp_path, "--seconds", "0", "--only", "llama", "qwen3")
    assert code == 1
    assert [row["error"] for row in rows] == ["not begun within 0 seconds"] * 2


def test_another_kernel_in_the_place_of_torch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.record, "version", lambda name: "0.6.0")
    with pytest.raises(SystemExit):
        run(tmp_path, "--only", "llama")
    assert "flash-linear-attention is installed" in capsys.readouterr().err
