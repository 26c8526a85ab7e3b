"""The training benchmark: it takes the trainer's own step, and says what it measured."""

import json
from pathlib import Path

import pytest

from evalsuite.lab import bench

TINY = ["--device", "cpu", "--sizes", "32x16", "--lengths", "32", "--tokens-per-step", "64"]


def report(tmp_path: Path, *words: str) -> dict[str, object]:
    bench.main([*TINY, *words, "--out", str(tmp_path / "made" / "report.json")])
    found: dict[str, object] = json.loads((tmp_path / "made" / "report.json").read_text())
    return found


def test_speed_of_every_model_and_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(tmp_path, "--models", "F,KL", "--lengths", "32,64", "--steps", "6")
    rows = found["rows"]
    assert isinstance(rows, list)
    assert [(row["model"], row["length"]) for row in rows] == [("F", 32), ("F", 64), ("KL", 32), ("KL", 64)]
    for row in rows:
        assert row["steps_timed"] == 2
        assert 0 < row["tokens_per_second_p10"] <= row["tokens_per_second"] <= row["tokens_per_second_p90"]
        assert row["ready_seconds"] >= row["first_step_seconds"] > 0
        assert not row["recorded"]
    kernels = found["kernels"]
    assert isinstance(kernels, dict)
    assert {"full_attention", "linear_attention", "delta_rule", "sparse_attention"} <= set(kernels)
    assert set(kernels.values()) == {"chunked"}
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_implementations_train_to_the_same_losses(tmp_path: Path) -> None:
    found = report(
        tmp_path, "--models", "KLF", "--steps", "8", "--fp32", "--compare-kernels", "--kernels", "reference", "chunked"
    )
    (row,) = found["rows"]  # type: ignore[misc]
    far, losses = row["max_difference"], row["losses"]
    assert losses["auto"][-1] < losses["auto"][0] - 1, "what does not learn shows no difference"
    assert losses["auto"] == losses["chunked"]
    assert 0 < far["chunked"] < 1e-3  # another order of sums, and no other result


def test_a_kernel_that_cannot_run_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalsuite_kernels.arguments.INTERPRETED", False)
    found = report(tmp_path, "--models", "K", "--steps", "1", "--compare-kernels", "--kernels", "chunked", "triton")
    (row,) = found["rows"]  # type: ignore[misc]
    assert "it needs a GPU" in row["left_out"]["triton"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "full,hybrid-kdb"], "unknown model 'hybrid-kdb'; did you mean 'hybrid-kda'?"),
        (["--sizes", "32"], "--sizes takes WIDTHxHEAD such as 256x64, not '32'"),
        (["--sizes", "40x16"], "--width 40 is no multiple of 16, the head dim"),
        (["--lengths", "48"], "--tokens-per-step 64 is no multiple of the row length 48"),
        (["--steps", "4"], "--steps must be over 4, the steps that warm up, not 4"),
        (["--compare-kernels", "--kernels", "trition"], "unknown kernels trition; known: reference, chunked, triton"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench.main([*TINY, *words])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"
