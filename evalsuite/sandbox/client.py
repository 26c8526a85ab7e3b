"""The harness's end: one helper process for all threads, and a job's way to it and back."""

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError
from evalsuite.sandbox import wire

ROOT = str(Path(__file__).parents[2])
START = f"import sys; sys.path.insert(0, {ROOT!r}); from evalsuite.sandbox import keeper; keeper.main(int(sys.argv[1]))"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}


class _Helper:
    """The running helper, and the process that it belongs to."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", START, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=ENVIRONMENT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )


_lock = threading.Lock()
_helper: _Helper | None = None


def run(job: dict[str, Any], tier: str) -> tuple[bool, str, float, str]:
    """Do one job behind a tier's walls: whether it went well, why not, seconds, its value as a message.

    Raises UserError when no box starts.
    """
    try:
        message = wire.encode(job, wire.no_other)
        text = _ask(message, tier, job["limits"]["disk"]) or _ask(message, tier, job["limits"]["disk"])
    except wire.WireError as error:
        return False, f"the job cannot be sent: {error}", 0.0, ""
    passed, reason, seconds, value = _read(text)
    if not passed and reason.endswith("(SIGKILL)"):  # perhaps by somebody else, a machine that is short of memory
        passed, reason, seconds, value = _read(_ask(message, tier, job["limits"]["disk"]))
    # the candidate has a say in it: nothing that moves a cursor or cannot be written
    return passed, "".join(c if c.isprintable() else "?" for c in reason), seconds, value


def _read(text: str | None) -> tuple[bool, str, float, str]:
    if text is None:
        raise UserError("the sandbox's helper ended in the middle of a job; run it again")
    kind, *rest = wire.decode(wire.parse(text), wire.no_other)
    if kind == "broken":
        raise UserError(f"the sandbox did not start: {rest[0]}; evalsuite doctor says what this machine can do")
    passed, reason, seconds, value = rest
    return passed, reason, seconds, value


def _ask(message: str, tier: str, disk: int) -> str | None:
    """The reply; None when the supervisor ended without one, which asking again mends."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            _hand_over(f'["{tier}", {disk}]', theirs.fileno())
        try:
            wire.send(ours.fileno(), message)
            return wire.receive(ours.fileno())
        except OSError:
            return None


def _hand_over(header: str, job: int) -> None:
    global _helper  # noqa: PLW0603  one helper a process
    with _lock:
        for _ in range(2):  # the second time with a new helper, when somebody has killed the first
            if _helper is None or _helper.owner != os.getpid() or _helper.process.poll() is not None:
                if _helper is not None:
                    _helper.control.close()
                _helper = _Helper()
            with contextlib.suppress(OSError):
                socket.send_fds(_helper.control, [header.encode("ascii")], [job])
                return
            _helper.process.kill()
            _helper.process.wait()
    raise UserError("the sandbox's helper does not start; try --debug, or python -m evalsuite.sandbox.bench")


def close() -> None:
    """End the helper and every box it keeps. The next job starts another."""
    global _helper
    with _lock:
        helper, _helper = _helper, None
    if helper is None:
        return
    helper.control.close()
    if helper.owner == os.getpid():
        try:
            helper.process.wait(10)
        except subprocess.TimeoutExpired:
            helper.process.kill()
            helper.process.wait()


atexit.register(close)
