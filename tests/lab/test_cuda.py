"""On a GPU, with layers compiled and steps replayed from a CUDA graph: one seed gives one set of weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from micro import GPU

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
PROGRAM = str(Path(__file__).with_name("micro.py"))


def start(out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, PROGRAM, str(out), "cuda"], start_new_session=True)


def results(out: Path) -> dict[str, dict[str, Any]]:
    return {name: json.loads((out / name / "seed0" / "result.json").read_text()) for name in GPU.designs}


def steps(out: Path) -> list[int]:
    files = [out / name / "seed0" / "progress.json" for name in GPU.designs]
    return [json.loads(file.read_text())["step"] if file.exists() else 0 for file in files]


def plain(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in history]


def test_one_seed_one_set_of_weights_whatever_ends_between(tmp_path: Path) -> None:
    assert start(tmp_path / "whole").wait() == 0
    killed = start(tmp_path / "killed")
    while killed.poll() is None and max(steps(tmp_path / "killed")) < 350:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not any((tmp_path / "killed" / name / "seed0" / "result.json").exists() for name in GPU.designs)
    assert start(tmp_path / "killed").wait() == 0
    first, other = results(tmp_path / "whole"), results(tmp_path / "killed")
    for name in GPU.designs:
        assert plain(other[name]["history"]) == plain(first[name]["history"]), name
        assert other[name]["weights"] == first[name]["weights"], name
    assert len({each["weights"] for each in first.values()}) == 2
