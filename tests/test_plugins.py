"""A third-party task and a third-party model, each one short file, found by entry point and run by the command line."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import installed
from evalsuite import store
from installed import PLUGINS


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder as pip would leave it: the metadata of an installed distribution with two entry points."""
    return installed.site(tmp_path, tasks="capitals = capitals:Capitals", models="parrot = parrot:Parrot")


def evalsuite(site: Path, *words: str, limit_bytes: int = 0, code: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line where both plugins are installed; no file may outgrow `limit_bytes` where it is given."""
    env = {**os.environ, "PYTHONPATH": f"{site}:{PLUGINS}", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    command = [sys.executable, "-B", *(("-c", code) if code else ("-m", "evalsuite.cli")), *words]
    if limit_bytes:
        command = ["prlimit", f"--fsize={limit_bytes}", *command]
    return subprocess.run(command, cwd=site, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_both_are_short() -> None:
    for name in ("capitals.py", "parrot.py"):
        assert len((PLUGINS / name).read_text().splitlines()) < 40


def test_run_compare_and_run_again(site: Path) -> None:
    words = ("run", "--model", "parrot:5,parrot:1", "--tasks", "capitals", "--limit", "40", "--out", "runs")
    first = evalsuite(site, *words)
    assert first.returncode == 0, first.stderr
    assert "parrot-5: 160/160" in first.stderr
    assert "LEFT OUT capitals.rivers: its map is not here; give --data map=PATH" in first.stdout
    assert "capitals.neighbour" in first.stdout
    assert "parrot-1: weakest at capitals." in first.stdout
    assert "below parrot-5" in first.stdout
    assert "KV cache, 256 tokens" in first.stdout
    rows = store.read(site / "runs" / "parrot-5").rows
    assert {row["score"] for row in rows} == {1.0}
    assert any("東京" in row["text"] for row in rows)
    again = evalsuite(site, *words, "--resume")
    assert "parrot-5: 160/160, 160 stored from before" in again.stderr
    assert again.stdout == first.stdout
    table = evalsuite(site, "compare", "runs", "--format", "csv")
    cells = [row for row in csv.DictReader(io.StringIO(table.stdout)) if row["table"] == "cell"]
    assert {cell["model"] for cell in cells} == {"parrot-5", "parrot-1"}
    assert len(cells) == 2 * 4


def test_knobs_lengths_and_over_context(site: Path) -> None:
    words = ("run", "--model", "parrot:3", "--tasks", "capitals.direct", "--limit", "3", "--json")
    good = evalsuite(site, *words, "--lengths", "128,256", "--set", "capitals.hops=2")
    assert good.returncode == 0, good.stderr
    cells = json.loads(good.stdout)["cells"]
    assert [(c["length"], c["hops"], c["n"]) for c in cells] == [(128, 2, 3), (256, 2, 3)]
    over = evalsuite(site, *words, "--lengths", "128,8k")
    assert over.returncode == 2
    assert over.stderr.splitlines()[-1].startswith("error: length 8192 is over the context of parrot-3 (512 tokens)")
    assert json.loads(over.stdout)["models"][0]["errors"]
    assert len(store.read(site / "runs" / "parrot-3").rows) == 2 * 3 + 3 + 6


def test_lists_and_nearest_names(site: Path) -> None:
    assert "capitals" in evalsuite(site, "list", "tasks").stdout
    assert "parrot" in evalsuite(site, "list", "models").stdout
    wrong = evalsuite(site, "run", "--model", "parot", "--tasks", "capitals")
    assert wrong.returncode == 2
    assert "did you mean 'parrot'" in wrong.stderr.splitlines()[-1]
    assert "Traceback" not in wrong.stderr


def test_a_folder_that_cannot_be_written_and_a_full_disk(site: Path) -> None:
    words = ("run", "--model", "parrot:3", "--tasks", "capitals", "--limit", "40")
    (site / "file").write_text("")
    nowhere = evalsuite(site, *words, "--out", "file/runs")
    assert nowhere.returncode == 2
    assert nowhere.stderr.splitlines()[-1].startswith("error: cannot write to file/runs/parrot-3: Not a directory")
    full = evalsuite(site, *words, limit_bytes=30_000)
    assert full.returncode == 2
    assert "Traceback" not in full.stderr
    last = full.stderr.splitlines()[-1]
    kept = len(store.read(site / "runs" / "parrot-3").rows)
    assert f"the {kept} stored samples are kept: make room and give the same command again" in last
    assert 10 < kept < 160
    again = evalsuite(site, *words)
    assert again.returncode == 0
    assert f"parrot-3: 160/160, {kept} stored from before" in again.stderr


def test_an_interrupt_is_one_line_and_keeps_what_was_answered(site: Path) -> None:
    code = "import parrot, os, signal\n" + (
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs begin without
        "real = parrot.Parrot.answer\n"
        "def answer(self, samples):\n"
        "    for i, completion in enumerate(real(self, samples)):\n"
        "        if i == 7: os.kill(os.getpid(), signal.SIGINT)\n"
        "        yield completion\n"
        "parrot.Parrot.answer = answer\n"
        "from evalsuite.cli import main\n"
        "main()\n"
    )
    words = ("run", "--model", "parrot", "--tasks", "capitals", "--limit", "10")
    stopped = evalsuite(site, *words, code=code)
    assert stopped.returncode == 130
    assert stopped.stderr.splitlines()[-1] == (
        "error: interrupted; what was answered is stored and the same command goes on"
    )
    assert "Traceback" not in stopped.stderr
    assert 7 <= len(store.read(site / "runs" / "parrot-1").rows) <= 8
    assert "40/40" in evalsuite(site, *words).stderr
