"""Boxes: a process that runs the guest behind one tier's walls, and what it takes to end it wholly.

T1   bubblewrap: user, pid, net, ipc, uts, cgroup and mount namespaces, a seccomp filter, a sized tmpfs
T1r  the same for root: no user namespace, which would leave root its exemption from RLIMIT_NPROC; the guest gives up
     root for a user that nobody else is
T2   Landlock and seccomp alone: one process that can write nowhere and start no other
none no wall at all; only where the user has asked for it
"""

import contextlib
import marshal
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evalsuite.sandbox import filters

NOBODY = 65534
BOOT = 60.0  # seconds that a box may take to start on a crowded machine
# What the interpreter inside is first told: give up root if asked to, say so, read the guest's code, become it.
HELLO = """
import os, sys
if sys.argv[1] != "-":
    user = int(sys.argv[1])
    os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
os.write(2, b"ready")
def take(size):
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part: os._exit(0)
        data += part
    return data
wire, guest = (take(int.from_bytes(take(4), "big")) for _ in range(2))
name = "evalsuite.sandbox.wire"
sys.modules[name] = type(sys)(name)
if sys.argv[2] == "marshal":
    import marshal
    wire, guest = marshal.loads(wire), marshal.loads(guest)
exec(wire, sys.modules[name].__dict__)
exec(guest, {"__name__": "__main__"})
"""
HERE = Path(__file__).parent
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp", "PYTHONHASHSEED": "0"}


class BoxError(Exception):
    """A box did not start; the message is one line."""


@dataclass
class Box:
    """A started box. The guest reads `to`, writes `source` and, for a script, `errors`."""

    tier: str
    process: subprocess.Popen[bytes]
    to: int
    source: int
    errors: int

    def kill(self) -> None:
        """Have the kernel end every process of the box. Safe to call again."""
        if self.process.poll() is not None:
            return
        doomed = family(self.process.pid)
        if self.tier in ("T1", "T1r") and len(doomed) > 1:
            doomed = doomed[1:2]  # the namespace's init: with it all end, and bubblewrap waits for that
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self, seconds: float) -> int | None:
        """The exit status when the box ends in time, else None."""
        if self.process.poll() is None:
            end = os.pidfd_open(self.process.pid)  # Popen's own wait sleeps in steps
            select.select([end], [], [], seconds)
            os.close(end)
        return self.process.poll()

    def end(self) -> int:
        """Kill, and wait until nothing is left; the exit status."""
        self.kill()
        if self.wait(5.0) is None:
            self.process.kill()
        return self.process.wait()

    def close(self) -> None:
        """End, and close the pipes."""
        self.end()
        for end in (self.to, self.source, self.errors):
            with contextlib.suppress(OSError):
                os.close(end)

    def ready(self) -> None:
        """Wait until the interpreter inside runs, then send it the guest. Raises BoxError."""
        heard, part = b"", b"-"
        deadline = time.monotonic() + BOOT
        while not heard.endswith(b"ready"):
            if part and len(heard) < 1 << 16 and select.select([self.errors], [], [], deadline - time.monotonic())[0]:
                part = os.read(self.errors, 4096)
                heard += part
                continue
            lines = heard.decode(errors="replace").strip().splitlines()
            raise BoxError(lines[-1][:300] if lines else f"it ended with status {self.end()}")
        try:
            for code in guest_code(interpreter(self.tier)):
                os.write(self.to, len(code).to_bytes(4, "big") + code)
        except OSError as error:
            raise BoxError(str(error)) from None


def start(tier: str, disk: int) -> Box:
    """Start a box of a tier with `disk` bytes to write. Raises BoxError.

    Must be called from a process of one thread, which does not mind that its children die with it.
    """
    pipes = [os.pipe() for _ in range(3)]
    inner, outer = (pipes[0][0], pipes[1][1], pipes[2][1]), (pipes[0][1], pipes[1][0], pipes[2][0])
    seccomp = os.memfd_create("seccomp")
    try:
        os.write(seccomp, filters.seccomp(bare=False))
        os.lseek(seccomp, 0, os.SEEK_SET)
        process = subprocess.Popen(
            command(tier, disk, seccomp),
            stdin=inner[0],
            stdout=inner[1],
            stderr=inner[2],
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
            pass_fds=(seccomp,) if tier in ("T1", "T1r") else (),
            preexec_fn=None if tier in ("T1", "T1r") else _before(tier),  # noqa: PLW1509  this process has one thread
        )
    except (OSError, subprocess.SubprocessError) as error:
        for end in outer:
            os.close(end)
        raise BoxError(str(error)) from None
    finally:
        for end in (*inner, seccomp):
            os.close(end)
    box = Box(tier, process, *outer)
    try:
        box.ready()
    except BoxError:
        box.close()
        raise
    return box


def command(tier: str, disk: int, seccomp: int) -> list[str]:
    """The command line of a box; `seccomp` is a descriptor that holds the filter for bubblewrap."""
    path = interpreter(tier)
    user = str(spare_user()) if tier == "T1r" else "-"
    form = "marshal" if path == base() else "source"
    argv = [path, "-s", "-P", "-S", "-B", "-c", HELLO, user, form]
    return argv if tier in ("T2", "none") else [*_bubblewrap(tier, disk, seccomp), "--", *argv]


def _bubblewrap(tier: str, disk: int, seccomp: int) -> list[str]:
    argv = [
        "bwrap",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
        "--die-with-parent",
    ]
    argv += ["--new-session", "--hostname", "sandbox", "--cap-drop", "ALL"]
    if tier == "T1":  # a second mapping inside would be a way to more rights
        argv += f"--unshare-user --disable-userns --uid {NOBODY} --gid {NOBODY}".split()
    else:
        argv += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    argv += ["--ro-bind", "/usr", "/usr"]
    for path in ("/lib", "/lib64", "/lib32", "/bin", "/sbin"):
        if os.path.islink(path):
            argv += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            argv += ["--ro-bind", path, path]
    argv += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    if not sys.base_prefix.startswith("/usr"):
        for parent in reversed(Path(sys.base_prefix).parents[:-1]):  # bubblewrap's own would be as closed as outside
            argv += ["--perms", "755", "--dir", str(parent)]
        argv += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    for path in packages():  # what is installed may be the harness itself, with answers in it
        argv += ["--size", "4096", "--tmpfs", path, "--remount-ro", path]
    # /dev is made by hand: bubblewrap's has /dev/zero, which is shared memory, and half the machine's in /dev/shm
    argv += ["--proc", "/proc", "--size", "65536", "--tmpfs", "/dev"]
    for device in ("/dev/null", "/dev/urandom"):
        argv += ["--dev-bind", device, device]
    argv += f"--perms 1777 --size {max(disk // 4, 4096)} --tmpfs /dev/shm --remount-ro /dev".split()
    argv += f"--perms 1777 --size {max(disk, 4096)} --tmpfs /tmp --remount-ro / --chdir /tmp".split()
    return [*argv, "--seccomp", str(seccomp)]


def _before(tier: str) -> Callable[[], None]:
    """What the child does between fork and exec."""
    parent, steps, reads = os.getpid(), filters.seccomp(bare=True), ["/usr", "/lib", "/lib64", "/bin", sys.base_prefix]
    user = spare_user() if tier == "T2" and not os.geteuid() else 0

    def run() -> None:
        if user:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        filters.die_with(parent)  # after the change of user, which would undo it
        if tier == "T2":
            filters.confine([*reads, "/etc/ld.so.cache", "/dev/urandom"], ["/dev/null"], steps)

    return run


def interpreter(tier: str) -> str:
    """The path of the Python that runs the guest. Raises BoxError."""
    return shared_python() if tier == "T2" and not os.geteuid() else base()


@cache
def base() -> str:
    """The interpreter that runs this process, out of its virtual environment."""
    path = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    return path if path.startswith(sys.base_prefix) else "/usr/bin/python3"


@cache
def shared_python() -> str:
    """An interpreter that another user may run. Raises BoxError when there is none of Python 3.11 or newer."""
    for path in (base(), "/usr/bin/python3", "/usr/local/bin/python3"):
        if os.path.exists(path) and _open_to_all(Path(path).resolve()):
            asked = [path, "-I", "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
            if subprocess.run(asked, check=False).returncode == 0:
                return path
    raise BoxError("no Python 3.11 or newer that another user may run: apt-get install python3")


def _open_to_all(path: Path) -> bool:
    return all(part.stat().st_mode & 1 for part in (path, *path.parents))


@cache
def packages() -> tuple[str, ...]:
    """Folders of installed packages that the mounts of a box would show."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [
        Path(root) / "lib" / sub for root in ("/usr", "/usr/local", sys.base_prefix) for sub in ("python3", version)
    ]
    found = [place / name for place in places for name in ("site-packages", "dist-packages")]
    return tuple(dict.fromkeys(str(path) for path in found if path.is_dir() and not path.is_symlink()))


@cache
def guest_code(path: str) -> tuple[bytes, bytes]:
    """The code of `wire` and `guest`: compiled for this process's interpreter, as source for another."""
    texts = [(HERE / name).read_bytes() for name in ("wire.py", "guest.py")]
    if path == base():
        texts = [marshal.dumps(compile(text, name, "exec")) for text, name in zip(texts, "wg", strict=True)]
    return texts[0], texts[1]


@cache
def spare_user() -> int:
    """A user id that no other process has, where this user namespace maps that many; else nobody's."""
    user = 0x70000000 + os.getpid()
    with open("/proc/self/uid_map") as lines:
        spans = [[int(part) for part in line.split()] for line in lines]
    return user if any(start <= user < start + count for start, _, count in spans) else NOBODY


def family(pid: int) -> list[int]:
    """A process and all its descendants, parents first."""
    found = [pid]
    for member in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{member}/task"):
                found += [int(child) for child in Path(f"/proc/{member}/task/{thread}/children").read_text().split()]
    return found


def used(pid: int) -> tuple[int, int]:
    """Bytes of memory of a process and its descendants that no file backs, and the number of files they have made.

    Pages that a fork shares are counted once for each process.
    """
    members = family(pid)
    files, ours = 0, os.stat("/")
    for member in reversed(members):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/{member}/root"), ours):
                continue
            rooms = [os.statvfs(f"/proc/{member}/root{place}") for place in ("/tmp", "/dev/shm")]
            files = sum(room.f_files - room.f_ffree for room in rooms)
            break
    return sum(map(_pages, members)) * os.sysconf("SC_PAGE_SIZE"), files


def _pages(pid: int) -> int:
    """Pages of a process that no file backs; of one whose first thread has ended, as another thread tells."""
    found = _statm(f"/proc/{pid}")
    if not found:
        with contextlib.suppress(OSError):
            found = max(_statm(f"/proc/{pid}/task/{thread}") for thread in os.listdir(f"/proc/{pid}/task"))
    return found


def _statm(place: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        _, resident, shared, *_ = map(int, Path(f"{place}/statm").read_text().split())
        return resident - shared
    return 0
