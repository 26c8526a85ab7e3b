"""Which walls this machine can put up: a canary tries each, from the strongest down."""

import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from typing import Any

from evalsuite.errors import UserError
from evalsuite.sandbox import client, filters

ABOUT = {
    "T1": "bubblewrap namespaces, seccomp, resource limits, memory watchdog",
    "T1r": "bubblewrap namespaces as root with a user of its own inside, seccomp, resource limits, memory watchdog",
    "T2": "Landlock, seccomp and resource limits, without namespaces: no files, no second process",
}
MENDS = {  # what bubblewrap says where namespaces are forbidden, and what helps
    "setting up uid map": "AppArmor forbids user namespaces: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    "No permissions to create new namespace": "namespaces are forbidden here, as in a container",
    "Unknown option": "bubblewrap is too old: 0.8 or newer is needed",
}
# Runs inside and tells what it could do; a sound tier leaves the list empty.
CANARY = """
def escapes(path, user):
    import ctypes, os, socket
    found = []
    def attempt(name, act):
        try:
            if act() is not False:
                found.append(name)
        except (OSError, MemoryError):
            pass
    attempt("reads files", lambda: open(path).read())
    attempt("writes files", lambda: open(path, "r+").close())
    attempt("writes /usr", lambda: open("/usr/canary", "w").close())
    for family in (socket.AF_INET, 40):
        attempt("opens sockets", lambda: socket.socket(family, socket.SOCK_STREAM).close())
    attempt("makes namespaces", lambda: ctypes.CDLL(None).unshare(0x10000000) == 0)
    attempt("sees processes", lambda: sum(name.isdigit() for name in os.listdir("/proc")) > 3)
    attempt("keeps its user", lambda: os.getuid() == user or bool(set(os.getgroups()) - {65534}))
    attempt("has capabilities", lambda: "CapEff:\\t0000000000000000" not in open("/proc/self/status").read())
    attempt("takes memory", lambda: bytearray(1 << 33))
    read, write = os.pipe()
    def start():
        for _ in range(60):
            if os.fork() == 0:
                os.close(write)
                os.read(read, 1)
                os._exit(0)
    attempt("starts processes", start)
    return found
"""


@dataclass(frozen=True, slots=True)
class Tier:
    """A set of walls: T1, T1r, T2 or none, and one line about it."""

    name: str
    says: str


_lock = threading.Lock()
_found: Tier | None = None
_unsandboxed = False


def tier() -> Tier:
    """The strongest tier whose canary stays in; found once a process."""
    global _found  # noqa: PLW0603
    with _lock:
        if _found is None:
            _found = _best()
        return _found


def allow_unsandboxed(flag: bool) -> None:
    """Whether code may run without walls where the machine has none to offer."""
    global _unsandboxed  # noqa: PLW0603
    _unsandboxed = flag


def chosen() -> str:
    """The tier to run in. Raises UserError where there is none and nobody has allowed that."""
    best = tier()
    if best.name == "none" and not _unsandboxed:
        raise UserError(f"{best.says}; to run code without walls: --allow-unsandboxed, or allow_unsandboxed(True)")
    return best.name


def available() -> dict[str, str]:
    """Every tier that this user could have, and what is wrong with it: "" for a sound one."""
    strongest = "T1" if os.geteuid() else "T1r"
    return {strongest: probe(strongest), "T2": probe("T2")}


def _best() -> Tier:
    lacks: list[str] = []
    for name in ("T1" if os.geteuid() else "T1r", "T2"):
        wrong = probe(name)
        if not wrong:
            because = f" (no namespaces: {'; '.join(lacks)})" if lacks else ""
            return Tier(name, ABOUT[name] + because)
        lacks.append(wrong)
    return Tier("none", f"no sandbox on this machine: {'; '.join(lacks)}")


def probe(name: str) -> str:
    """What is wrong with a tier here, one line; "" when its canary could do nothing that it must not."""
    if not filters.supported():
        return "needs Linux on x86_64 or aarch64"
    if name in ("T1", "T1r") and shutil.which("bwrap") is None:
        return "bubblewrap is missing: apt-get install bubblewrap"
    if name == "T2" and filters.landlock_abi() < 3:
        return f"Landlock is at version {filters.landlock_abi()}, 3 is needed: use Linux 6.2 or newer"
    with tempfile.NamedTemporaryFile(prefix="evalsuite-canary-") as canary:
        os.chmod(canary.name, 0o666)
        canary.write(b"canary")
        canary.flush()
        # in a user namespace everybody is nobody, so there the number alone tells nothing
        user = os.getuid() if name == "T1r" or not os.getuid() else -1
        job = {
            "mode": "expression",
            "program": CANARY,
            "expression": f"escapes({canary.name!r}, {user})",
            "limits": {
                "seconds": 20.0,
                "memory": 1 << 30,
                "output": 1 << 16,
                "processes": 32,
                "files": 64,
                "disk": 1 << 24,
            },
        }
        try:
            ok, reason, _, value = client.run(job, name)
        except UserError as error:
            return next((mend for said, mend in MENDS.items() if said in str(error)), str(error))
    return verdict(ok, reason, value)


def verdict(ok: bool, reason: str, value: Any) -> str:
    """A canary's answer as one line."""
    if not ok:
        return f"the canary did not answer: {reason}"
    found = value.strip('[]"l ').replace('"', "").strip(", ")
    return f"the canary {found}" if found else ""
