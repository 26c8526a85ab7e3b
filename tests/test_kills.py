"""A run that is killed with SIGKILL at random moments and resumed is, in the end, the run that nobody killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from evalsuite import store

DRIVER = Path(__file__).parent / "plugins" / "kill_driver.py"
LIMIT, TOTAL, KILLS = 300, 900, 50


class Driver:
    """Starts runs in forks of one process, and says how they ended."""

    def __init__(self, out: Path, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), str(out), str(log), str(LIMIT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)

    def start(self) -> int:
        return int(self._line())

    def end(self) -> int:
        return int(self._line())

    def asked(self) -> list[str]:
        return self.log.read_text().split("\n")[:-1] if self.log.exists() else []

    def _line(self) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


def stored(folder: Path) -> set[str]:
    return {row["id"] for row in store.read(folder).rows} if (folder / "run.json").exists() else set()


def wait(moment: int, driver: Driver, draw: random.Random) -> None:
    """Until `moment` more samples are asked or all are, then a random little longer."""
    begin, deadline = len(driver.asked()), time.monotonic() + 20
    goal = min(begin + moment, TOTAL)
    while len(driver.asked()) < goal and time.monotonic() < deadline:
        time.sleep(2e-4)
    time.sleep(draw.random() * (2e-3 if goal < TOTAL else 0.8))


def test_fifty_kills_leave_the_samples_of_an_uninterrupted_run(tmp_path: Path) -> None:
    draw = random.Random(0)
    folder = tmp_path / "killed" / "logger"
    killed, before = 0, set[str]()
    with Driver(tmp_path / "killed", tmp_path / "asked") as driver:
        for _ in range(3 * KILLS):
            mark = len(driver.asked())
            child = driver.start()
            wait(draw.randrange(24) if killed < 40 else TOTAL, driver, draw)  # the last ten hit the finishing
            os.kill(child, signal.SIGKILL)
            killed += driver.end() == -signal.SIGKILL
            asked = driver.asked()[mark:]
            assert not before & set(asked), "a stored sample was asked again"
            assert len(set(asked)) == len(asked)
            after = stored(folder)
            assert before <= after
            assert len(set(asked) - after) <= 1, "more than the sample in flight was lost"
            before = after
            if killed == KILLS:
                break
        driver.start()
        assert driver.end() == 0
        mark = len(driver.asked())
        assert len(set(driver.asked())) == TOTAL
        assert mark <= TOTAL + KILLS
        driver.start()
        assert driver.end() == 0
        assert len(driver.asked()) == mark, "a finished run asked something"
    assert killed == KILLS
    with Driver(tmp_path / "whole", tmp_path / "asked-whole") as driver:
        driver.start()
        assert driver.end() == 0
        assert len(driver.asked()) == TOTAL
    whole = tmp_path / "whole" / "logger"
    ours, theirs = (pq.read_table(path / "samples.parquet") for path in (folder, whole))
    assert ours.num_rows == TOTAL
    assert ours.schema.equals(theirs.schema)
    for name in theirs.column_names:
        assert ours[name].equals(theirs[name]), name
    assert not list(folder.glob("samples-*.jsonl"))
    summaries = [json.loads((path / "summary.json").read_text()) for path in (folder, whole)]
    for summary in summaries:
        del summary["prefill_tokens_per_second"], summary["decode_tokens_per_second"]
    assert summaries[0] == summaries[1]
