"""Nothing outlives its run: not a candidate, not the helper, not when the harness is killed."""

import os
import runpy
import signal
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest

from evalsuite import sandbox
from evalsuite.sandbox import Limits, boxes, client, wire

remains = runpy.run_path(str(Path(__file__).parent / "attacks.py"))["remains"]
SLOW = "import time\ndef f(): time.sleep(30)"


def gone(pids: list[int], seconds: float = 10.0) -> list[int]:
    """Those of the processes that still live after a while."""
    deadline = time.monotonic() + seconds
    while pids and time.monotonic() < deadline:
        time.sleep(0.02)
        pids = [pid for pid in pids if os.path.exists(f"/proc/{pid}") and not zombie(pid)]
    return pids


def zombie(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def test_nothing_survives_a_killed_harness(tier: str) -> None:
    code = f"""
        from evalsuite import sandbox
        sandbox.chosen = lambda: {tier!r}
        sandbox.judge("def f(): return 1", "assert f() == 1")
        print("up", flush=True)
        sandbox.judge({SLOW!r}, "f()", limits=sandbox.Limits(seconds=60))
    """
    harness = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd="/")
    assert harness.stdout
    with harness.stdout:
        assert harness.stdout.readline() == b"up\n"
    time.sleep(0.5)
    family = boxes.family(harness.pid)
    assert len(family) >= 5  # harness, helper, supervisor, judge, box
    harness.send_signal(signal.SIGKILL)
    harness.wait()
    assert gone(family) == []


def test_nothing_survives_close(tier: str) -> None:
    assert sandbox.judge("def f(): return 1", "assert f() == 1").passed
    family = remains()
    assert len(family) > 2  # the helper, and boxes started ahead
    sandbox.close()
    assert gone(family) == []


def test_nothing_survives_a_caller_that_has_gone(tier: str) -> None:
    """What an interrupted harness does: it closes its end and waits no more."""
    job = {
        "mode": "test",
        "program": SLOW,
        "test": "f()",
        "entry": "",
        "names": [],
        "limits": asdict(Limits(seconds=60)),
    }
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            client._hand_over(f'["{tier}", {1 << 24}]', theirs.fileno())
        wire.send(ours.fileno(), wire.encode(job, wire.no_other))
        time.sleep(0.5)
        family = remains()
    sandbox.close()
    assert gone(family) == []


def test_a_killed_helper_is_replaced() -> None:
    assert sandbox.judge("def f(): return 1", "assert f() == 1").passed
    assert client._helper
    client._helper.process.kill()
    client._helper.process.wait()
    assert sandbox.judge("def f(): return 1", "assert f() == 1").passed


def test_many_threads_share_the_helper_and_get_their_own_answers(tier: str) -> None:
    def one(i: int) -> bool:
        program = f"import time\ndef f(x):\n    time.sleep({0.05 * (i % 3)})\n    return x + {i}"
        return sandbox.judge(program, f"assert f(1) == {i + 1}").passed and not sandbox.judge(program, "f(1, 2)").passed

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(24)))


def test_a_forked_harness_has_a_helper_of_its_own() -> None:
    assert sandbox.judge("def f(): return 1", "assert f() == 1").passed
    code = textwrap.dedent("""
        import os
        from evalsuite import sandbox
        assert sandbox.evaluate("", "1") == (True, 1, "")
        child = os.fork()
        assert sandbox.evaluate("", "2") == (True, 2, "")
        sandbox.close()
        if child == 0:
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """)
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/", timeout=60)


def test_limits_of_one_size_do_not_leak_into_the_next(tier: str) -> None:
    if tier == "T2":
        pytest.skip("nothing can be written in T2")
    fill = "def f():\n    with open('/tmp/x', 'wb') as file:\n        file.write(bytes(3 << 20))\n    return 1"
    assert sandbox.judge(fill, "assert f() == 1").passed
    small = sandbox.judge(fill, "assert f() == 1", limits=Limits(disk=1 << 20))
    assert small.reason.startswith("OSError")
    assert sandbox.judge(fill, "assert f() == 1").passed


def test_folders_are_fresh(tier: str) -> None:
    if tier == "T2":
        pytest.skip("nothing can be written in T2")
    program = "import os\ndef f():\n    found = os.listdir('/tmp')\n    open('/tmp/x', 'w').close()\n    return found"
    for _ in range(3):
        assert sandbox.judge(program, "assert f() == []").passed


def test_nothing_is_left() -> None:
    sandbox.close()
    assert gone(remains()) == []
