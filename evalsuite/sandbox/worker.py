"""One job's supervisor: starts a box ahead of its job, watches clock, memory and output, and leaves nothing running."""

import contextlib
import fcntl
import os
import select
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

from evalsuite.sandbox import boxes, filters, judging, wire

IDLE = 30.0  # seconds that a started box waits for a job
LOOK = 0.02  # seconds between two looks at memory
FILES = 10_000  # made in the temporary folder: empty ones fill the kernel's memory, not the folder's size
STDERR = 1 << 16  # bytes kept of a script's complaints
SUBREAPER = 36  # of prctl


def main(handoff: socket.socket, keeper: int, tier: str, disk: int) -> NoReturn:
    """Start a box, wait for one job on the socket that comes through `handoff`, answer it, end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    filters.die_with(keeper)
    filters.prctl(SUBREAPER, 1)  # what breaks away in a box without walls is ours to end
    box, broken = _start(tier, disk)
    try:
        caller = _job_socket(handoff)
        if caller is not None:
            if box and box.process.poll() is not None:  # ended while it waited: no candidate's doing
                box.close()
                box, broken = _start(tier, disk)
            job = wire.decode(wire.parse(wire.receive(caller) or "null"), wire.no_other)
            reply = Run(box, caller, job).reply() if box and job else ["broken", broken]
            with contextlib.suppress(OSError):
                try:
                    wire.send(caller, wire.encode(reply, wire.no_other))
                except wire.WireError as error:  # the last part is the value or the output
                    reply = ["done", False, f"the result cannot be sent: {error}", reply[3], ""]
                    wire.send(caller, wire.encode(reply, wire.no_other))
    finally:
        if box:
            box.close()
        for pid in boxes.family(os.getpid())[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(0)


def _start(tier: str, disk: int) -> tuple[boxes.Box | None, str]:
    """A box, or why there is none."""
    try:
        return boxes.start(tier, disk), ""
    except boxes.BoxError as error:
        return None, str(error)


def _job_socket(handoff: socket.socket) -> int | None:
    if not select.select([handoff], [], [], IDLE)[0]:
        return None
    _, found, _, _ = socket.recv_fds(handoff, 1, 1)
    handoff.close()
    return found[0] if found else None


@dataclass
class Run:
    """One job in one box. The reply: whether all went well, why not, seconds, and the value or output as a message."""

    box: boxes.Box
    caller: int
    job: dict[str, Any]
    started: float = field(default_factory=time.monotonic)
    why: str = ""
    looked: float = 0.0

    def reply(self) -> list[Any]:
        script = self.job["mode"] == "script"
        opening = ["script", self.bounds(), self.job["program"]] if script else ["serve", self.bounds(), ""]
        text = f"[{', '.join([wire.encode(part, wire.no_other) for part in opening])}]"
        passed, reason, value = self.script(text) if script else self.judged(text)
        took = time.monotonic() - self.started
        return ["done", passed and not self.why, self.why or reason, took, value]

    def bounds(self) -> dict[str, int]:
        """Resource limits for the guest to set."""
        limits = self.job["limits"]
        found = {
            "AS": limits["memory"],
            "CPU": int(limits["seconds"]) + 2,
            "FSIZE": limits["disk"],
            "NOFILE": limits["files"],
            "CORE": 0,
            "MEMLOCK": 1 << 16,
            "MSGQUEUE": 0,
            "SIGPENDING": 128,
        }
        if self.box.tier in ("T1", "T1r") or (self.box.tier == "T2" and not os.geteuid()):
            found["NPROC"] = limits["processes"] + 1  # with the namespace's init; elsewhere the user's own would count
        return found

    def over(self) -> bool:
        """Whether the run has to stop now; `why` then says it."""
        now = time.monotonic()
        limits = self.job["limits"]
        if now - self.started >= limits["seconds"]:
            self.why = f"timed out after {limits['seconds']:g} s"
        elif now - self.looked >= LOOK:
            self.looked = now
            memory, files = boxes.used(self.box.process.pid)
            if memory > limits["memory"]:
                self.why = f"used more than {limits['memory'] >> 20} MiB"
            elif files > FILES and self.box.tier in ("T1", "T1r"):
                self.why = f"made more than {FILES} files"
        if select.select([self.caller], [], [], 0)[0]:
            self.why = "nobody waits for the answer any more"
        return bool(self.why)

    def judged(self, opening: str) -> tuple[bool, str, str]:
        """Have the trusted process run the test or the expression."""
        source, report = os.pipe()
        me = os.getpid()
        judge = os.fork()
        if judge == 0:
            try:
                filters.die_with(me)
                _silence((self.box.to, self.box.source, report))
                judging.main((self.box.to, self.box.source, report), self.job, opening)
            finally:
                os._exit(0)
        os.close(report)
        heard = bytearray()
        ended = False
        while not ended and not self.over():
            if select.select([source], [], [], LOOK)[0]:
                part = os.read(source, 1 << 16)
                heard += part
                ended = not part
        status = self.box.wait(1.0) if not self.why and judging.ENDED.encode() in heard[:400] else None
        self.box.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(judge, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(judge, 0)[1])
        os.close(source)
        if len(heard) < 4 or len(heard) != 4 + int.from_bytes(heard[:4], "big"):
            return False, f"the test itself ended early ({_status(code)})", ""
        passed, reason, value = (wire.decode(part, wire.no_other) for part in wire.parse(heard[4:].decode("ascii")))
        if status is not None and reason == judging.ENDED:
            reason = f"{reason} ({_status(status)})"
        return passed, reason, value

    def script(self, opening: str) -> tuple[bool, str, str]:
        """Feed a script its source and its input, and collect what it writes."""
        box, limits = self.box, self.job["limits"]
        stdin = self.job["stdin"].encode("utf-8", "surrogatepass")
        left = memoryview(len(opening).to_bytes(4, "big") + opening.encode("ascii") + stdin)
        said: dict[int, bytearray] = {box.source: bytearray(), box.errors: bytearray()}
        with selectors.DefaultSelector() as ends:
            for end in said:
                ends.register(end, selectors.EVENT_READ)
            ends.register(box.to, selectors.EVENT_WRITE)
            os.set_blocking(box.to, False)
            while not self.over() and (box.process.poll() is None or box.source in ends.get_map()):
                for key, _ in ends.select(LOOK):
                    if key.fd == box.to:
                        left = _feed(box.to, left)
                        if not left:
                            ends.unregister(box.to)
                            os.close(box.to)
                            box.to = -1
                    elif part := os.read(key.fd, 1 << 16):
                        said[key.fd] += part
                        del said[box.errors][:-STDERR]
                    else:
                        ends.unregister(key.fd)
                if len(said[box.source]) > limits["output"]:
                    self.why = f"wrote more than {limits['output']} bytes"
        status = box.end()
        complaints = said[box.errors].decode(errors="replace").strip().splitlines()
        reason = "" if status == 0 else (complaints or [f"ended with {_status(status)}"])[-1][:300]
        output = bytes(said[box.source][: limits["output"]]).decode(errors="replace")
        return status == 0, reason, output


def _feed(to: int, left: memoryview) -> memoryview:
    """Write what fits; what is left. A reader that has gone wants no more."""
    try:
        return left[os.write(to, left[: 1 << 16]) :]
    except BlockingIOError:
        return left
    except OSError:
        return left[:0]


def _status(code: int) -> str:
    number = -code if code < 0 else code - 128 if code > 128 else 0
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name if number else f"exit {code}"
    return f"exit {code}"


def _silence(keep: tuple[int, ...]) -> None:
    """Close every descriptor but `keep`, and point the first three at nothing."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))
    for number in range(3):
        if number not in keep:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    for end in keep:
        fcntl.fcntl(end, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    sys.stdin = sys.stdout = sys.stderr = os.fdopen(os.open(os.devnull, os.O_RDWR), "r+")
