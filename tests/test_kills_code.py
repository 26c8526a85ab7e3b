"""A run whose candidates are half hostile, killed at random moments and resumed: every verdict is right all the same.

1,000 candidates: EVALSUITE_WHOLE=1 pytest tests/test_kills_code.py; 96 of them otherwise.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evalsuite import sandbox, store

DRIVER = Path(__file__).parent / "plugins" / "kill_code_driver.py"
DATA = Path(os.environ.get("EVALSUITE_DATA") or "/nowhere", "humaneval.jsonl.gz")
LIMIT, DRAWS, KILLS = (125, 8, 25) if os.environ.get("EVALSUITE_WHOLE") else (24, 4, 3)


def stored(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("samples-*.jsonl"))


def boxes() -> set[int]:
    """Processes of sandboxes that run here now."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(b'os.write(2, b"ready")' in word for word in words):
            found.add(int(path.parent.name))
    return found


@pytest.mark.skipif(not DATA.is_file(), reason="needs humaneval.jsonl.gz in the folder that EVALSUITE_DATA names")
@pytest.mark.skipif(sandbox.tier().name == "none", reason=sandbox.tier().says)
def test_kills_change_no_verdict_and_leave_nothing_running(tmp_path: Path) -> None:
    sandbox.close()
    draw, folder, before = random.Random(0), tmp_path / "half", boxes()
    command = [sys.executable, str(DRIVER), str(tmp_path), str(DATA), str(LIMIT), str(DRAWS)]
    killed = 0
    while killed < KILLS:
        with subprocess.Popen(command, start_new_session=True) as run:
            goal = stored(folder) + draw.randrange(1, max(2, LIMIT * DRAWS // KILLS))
            while run.poll() is None and stored(folder) < goal:
                time.sleep(0.02)
            time.sleep(draw.random() / 2)
            run.send_signal(signal.SIGKILL)
        assert run.returncode in (0, -signal.SIGKILL)
        killed += run.returncode < 0
        if run.returncode == 0:
            break
    subprocess.run(command, check=True)
    rows = store.read(folder).rows
    assert len(rows) == LIMIT * DRAWS
    wrong = {}
    right = 0
    for row in rows:
        good = row["text"] == row["target"][0]
        right += good
        if row["score"] != float(good):
            wrong[row["id"], row["facets"]["problem"]] = (row["text"][:300], row["detail"]["reason"])
    assert wrong == {}
    assert 0.3 < right / len(rows) < 0.7
    left, deadline = boxes() - before, time.monotonic() + 45  # another harness's end by themselves within that
    while left & boxes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left & boxes() == set()
    assert killed > KILLS // 2
