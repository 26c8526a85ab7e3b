"""python -m evalsuite.sandbox.bench: what one execution costs, beside starting a bare interpreter, in the same run."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from evalsuite import sandbox
from evalsuite.sandbox import boxes

PROGRAM = "def add(a, b):\n    return a + b\n"
TEST = "assert add(1, 2) == 3\nassert add('a', 'b') == 'ab'\nassert add([1], [2]) == [1, 2]\n"
N, PARALLEL = 60, 8


PEER = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else boxes.base()


def bare() -> None:
    """The peer: an interpreter that does nothing."""
    subprocess.run([PEER, "-I", "-c", "pass"], check=True)


def judged() -> None:
    """A program and three assertions."""
    found = sandbox.judge(PROGRAM, TEST, entry="add")
    assert found.passed, found


def one_by_one(act: Callable[[], None]) -> list[float]:
    """Milliseconds of each of N calls."""
    took = []
    for _ in range(N):
        start = time.perf_counter()
        act()
        took.append(1e3 * (time.perf_counter() - start))
    return took


def side_by_side(act: Callable[[], None]) -> float:
    """Milliseconds of the clock a call, PARALLEL of them at a time."""
    start = time.perf_counter()
    with ThreadPoolExecutor(PARALLEL) as pool:
        for done in [pool.submit(act) for _ in range(N)]:
            done.result()
    return 1e3 * (time.perf_counter() - start) / N


def main() -> None:
    """Print one line a contestant."""
    tier = sandbox.tier()
    judged()
    for name, act in ((f"judge in {tier.name}", judged), (f"{PEER} -I -c pass", bare)):
        took = one_by_one(act)
        low, middle, high = (statistics.quantiles(took, n=20)[i] for i in (0, 9, 18))
        sys.stdout.write(
            f"{name:28} median {middle:5.1f} ms (5-95%: {low:.1f}-{high:.1f}, n={N});"
            f" {PARALLEL} at a time {side_by_side(act):5.1f} ms each\n"
        )
    sandbox.close()


if __name__ == "__main__":
    main()
