"""The helper process that a harness starts once: forks a supervisor a job, and has a few started ahead.

It is small and has one thread, so that forking is cheap and safe. It ends when the harness does, however that happens:
its control socket closes, or its parent changes. What it has started then ends with it.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import traceback
from typing import NoReturn

from evalsuite.sandbox import boxes, filters, wire, worker

AHEAD = 4  # boxes started before they are needed; starting one is mostly waiting for the kernel

Key = tuple[str, int]


class Keeper:
    """The supervisors that wait for a job, by tier and disk size."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.idle: list[tuple[Key, socket.socket]] = []

    def serve(self) -> None:
        """Hand out jobs until the harness is gone."""
        parent = os.getppid()
        while os.getppid() == parent:
            ready = select.select([self.control, *(end for _, end in self.idle)], [], [], 1.0)[0]
            self.idle = [(key, end) for key, end in self.idle if end not in ready]  # those have waited long enough
            if self.control in ready:
                data, found, _, _ = socket.recv_fds(self.control, 4096, 1)
                if not data:
                    return
                tier, disk = wire.parse(data.decode("ascii"))
                self.hand_out((tier, disk), found[0])

    def hand_out(self, key: Key, job: int) -> None:
        fitting = [end for at, end in self.idle if at == key]
        for at, end in self.idle:
            if at != key:  # of another size, not asked for now
                end.close()
        while True:
            chosen = fitting.pop(0) if fitting else self.start(key)
            with chosen, contextlib.suppress(OSError):
                socket.send_fds(chosen, [b"j"], [job])
                break
        os.close(job)  # before others are forked: who asks is to see the end when its own supervisor dies
        self.idle = [(key, end) for end in fitting]
        while len(self.idle) < AHEAD:
            self.idle.append((key, self.start(key)))

    def start(self, key: Key) -> socket.socket:
        ours, theirs = socket.socketpair()
        me = os.getpid()
        if os.fork() == 0:
            try:
                for _, end in self.idle:
                    end.close()
                self.control.close()
                ours.close()
                worker.main(theirs, me, *key)
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(1)
        theirs.close()
        return ours

    def end(self) -> None:
        """Let everything go, and wait until it has."""
        for _, end in self.idle:
            end.close()
        with contextlib.suppress(ChildProcessError):
            os.wait()


def main(control: int) -> NoReturn:
    """Serve the harness at the other end of the socket `control`."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a supervisor ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    boxes.guest_code(boxes.base())  # worked out once, not after every fork
    boxes.packages()
    for bare in (False, True):
        filters.seccomp(bare=bare)
    gc.freeze()  # a collection after a fork would copy every page that it marks
    keeper = Keeper(socket.socket(fileno=control))
    try:
        keeper.serve()
        keeper.end()
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)
