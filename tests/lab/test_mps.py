"""The service that lets processes share a GPU: begun, tried, ended, and left alone where there is none."""

import os
from pathlib import Path

import pytest

from evalsuite.lab import mps

PIPE = "CUDA_MPS_PIPE_DIRECTORY"


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the service's program, that writes down what it is told, and its log."""
    log = tmp_path / "log"
    program = tmp_path / "bin" / mps.PROGRAM
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$1" "$(basename "${PIPE}")" $([ "$1" ] || cat) >> {log}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.delenv(PIPE, raising=False)
    return log


def test_it_is_begun_tried_and_ended(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mps, "_TRY", f"import os; raise SystemExit(not os.path.isdir(os.environ['{PIPE}']))")
    with mps.side_by_side() as served:
        assert served
        folder = Path(os.environ[PIPE])
        assert folder.is_dir()
    assert PIPE not in os.environ
    assert not folder.exists()
    assert control.read_text().splitlines() == ["-d pipe", " pipe quit -t 5"]


def test_a_service_that_serves_nobody_is_not_used(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mps, "_TRY", "raise SystemExit(805)")
    with mps.side_by_side() as served:
        assert not served
        assert PIPE not in os.environ
    assert control.read_text().splitlines()[-1] == " pipe quit -t 5"


def test_an_error_inside_ends_it_too(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mps, "_TRY", "")
    with pytest.raises(KeyError), mps.side_by_side():
        raise KeyError
    assert PIPE not in os.environ
    assert "quit" in control.read_text()


@pytest.mark.parametrize("case", ["not wanted", "the caller's own", "no program"])
def test_nothing_is_begun(case: str, control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if case == "the caller's own":
        monkeypatch.setenv(PIPE, "/run/mps")
    if case == "no program":
        monkeypatch.setenv("PATH", "")
    before = dict(os.environ)
    with mps.side_by_side(case != "not wanted") as served:
        assert not served
        assert dict(os.environ) == before
    assert not control.exists()


def test_the_service_has_every_gpu_and_clients_choose(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is left GPU 1 alone calls it 0, and a client that asks for 1 finds none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    program = Path(os.environ["PATH"].split(os.pathsep)[0]) / mps.PROGRAM
    program.write_text(f'#!/bin/sh\necho "${{CUDA_VISIBLE_DEVICES-all}}" >> {control}\n')
    monkeypatch.setattr(mps, "_TRY", "import os; raise SystemExit(os.environ['CUDA_VISIBLE_DEVICES'] != '1')")
    with mps.side_by_side() as served:
        assert served
    assert control.read_text().splitlines()[0] == "all"
