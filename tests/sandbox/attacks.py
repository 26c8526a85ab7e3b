"""Programs that try to get out. As a script: run them all in one tier, print the outcome of each as JSON.

    python attacks.py TIER CANARY

CANARY is a file of this user's that nothing may read or change. An attack is code that defines attack(); its outcome is
the string that attack() returns, or the reason why there is none. `expected` is what a contained one looks like.
"""

import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PRELUDE = """
import ctypes, errno, os, resource, signal, socket, sys, time
{facts}
libc = ctypes.CDLL(None, use_errno=True)
def tried(act):
    try:
        return f"did: {{act()!r}}"
    except BaseException as error:
        return f"refused: {{type(error).__name__}}"
def call(name, *args):
    if getattr(libc, name)(*args) != -1:
        return "did: " + name
    return "refused: " + errno.errorcode[ctypes.get_errno()]
def number(number, *args):
    if libc.syscall(number, *args) != -1:
        return f"did: {{number}}"
    return "refused: " + errno.errorcode[ctypes.get_errno()]
def until(act, most):
    done = 0
    try:
        while done < most:
            act()
            done += 1
    except (OSError, MemoryError, RuntimeError):
        return f"refused after {{done}}"
    return f"did: {{done}}"
def fill(path):
    with open(path, "wb", buffering=0) as file:
        return until(lambda: file.write(bytes(1 << 20)), 100)
"""
REFUSED = "refused: (PermissionError|FileNotFoundError|OSError|EPERM|ENOSYS|ProcessLookupError)"
UNKNOWN = "refused: ModuleNotFoundError"
FEW = r"refused after ([0-9]|[1-5][0-9])\b|refused: (PermissionError|FileNotFoundError)"

# name: (body of attack(), what a contained one says)
ATTACKS = {
    "fork bomb": ("def go():\n        if os.fork() == 0: time.sleep(60)\n    return until(go, 1000)", FEW),
    "thread bomb": (
        "from threading import Thread\n"
        "    return until(lambda: Thread(target=time.sleep, args=(60,), daemon=True).start(), 5000)",
        r"refused after ([0-9]|[0-9][0-9]|1[0-9][0-9])\b",
    ),
    "8 GB list": ("return tried(lambda: len([0] * (1 << 30)))", "refused: MemoryError"),
    "20 processes of 200 MB": (
        "for _ in range(20):\n"
        "        if os.fork() == 0:\n            data = b'x' * (200 << 20)\n            time.sleep(60)\n"
        "    time.sleep(60)",
        "used more than 512 MiB|PermissionError",
    ),
    "shared memory file": ("return tried(lambda: fill('/dev/shm/x'))", f"did: '({FEW})'|{FEW}"),
    "temp folder": ("return tried(lambda: fill('/tmp/escaped-fill'))", f"did: '({FEW})'|{FEW}"),
    "empty files": (
        "return tried(lambda: [open(f'/tmp/escaped-{i}', 'w').close() for i in range(10**7)])",
        "made more than 10000 files|refused: PermissionError",
    ),
    "root folder": ("return tried(lambda: fill('/escaped-fill'))", REFUSED),
    "device folder": ("return tried(lambda: fill('/dev/escaped-fill'))", REFUSED),
    "memfd": ("return tried(lambda: os.memfd_create('x'))", REFUSED),
    "SysV shared memory": ("return call('shmget', 0, 1 << 30, 0o1600)", REFUSED),
    "shared anonymous memory": ("import mmap\n    return tried(lambda: mmap.mmap(-1, 1 << 20))", REFUSED),
    "descriptors": ("return until(lambda: os.dup(0), 10000)", FEW),
    "endless loop": ("while True: pass", "timed out"),
    "endless output": ("while True: print('x' * 10000)", "timed out"),
    "stopped": (
        "os.kill(os.getpid(), signal.SIGSTOP)\n    return 'refused: went on'",
        "timed out|refused|PermissionError",
    ),
    "daemon": (
        "if os.fork() == 0:\n"
        "        os.setsid()\n        signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "        if os.fork() == 0: time.sleep(600)\n        os._exit(0)\n    return 'refused: left behind'",
        "refused: left behind|PermissionError",
    ),
    "read host file": ("return tried(lambda: open(CANARY).read())", REFUSED),
    "write host file": ("return tried(lambda: open(CANARY, 'a').write('x'))", REFUSED),
    "truncate host file": ("return tried(lambda: os.truncate(CANARY, 0))", REFUSED),
    "remove host file": ("return tried(lambda: os.unlink(CANARY))", REFUSED),
    "mode of host file": ("return tried(lambda: os.chmod(CANARY, 0))", REFUSED),
    "times of host file": ("return tried(lambda: os.utime(CANARY, (0, 0)))", REFUSED),
    "host file through proc": ("return tried(lambda: open('/proc/1/root' + CANARY).read())", REFUSED),
    "write usr": ("return tried(lambda: open('/usr/escaped', 'w'))", REFUSED),
    "read repository": ("return tried(lambda: open(REPOSITORY).read())", REFUSED),
    "list home": ("return tried(lambda: [n for n in os.listdir(HOME) if n != '.pyenv'] or os.stat('/none'))", REFUSED),
    "environment": ("return 'did: see' if 'hush' in str(os.environ) else 'refused: not there'", "refused"),
    "environment of others": (
        "pids = 1, os.getppid(), 'self'\n"
        "    seen = [tried(lambda: b'hush' in open(f'/proc/{pid}/environ', 'rb').read()) for pid in pids]\n"
        "    return 'did: see' if 'did: True' in seen else 'refused: not there'",
        "refused",
    ),
    "kill parent": (
        "os.kill(os.getppid(), signal.SIGKILL)\n    time.sleep(0.2)\n    return 'refused: still here'",
        "refused|PermissionError",
    ),
    "kill harness": ("return tried(lambda: os.kill(HARNESS, 0))", REFUSED),
    "kill all": ("tried(lambda: os.kill(-1, signal.SIGKILL))\n    return 'refused: still here'", "refused"),
    "signal by fcntl": (
        "import fcntl\n    return tried(lambda: fcntl.fcntl(0, 8, os.getppid()))",
        REFUSED,
    ),
    "TCP": ("return tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))", "refused: PermissionError"),
    "TCP over IPv6": ("return tried(lambda: socket.socket(socket.AF_INET6))", "refused: PermissionError"),
    "UDP": ("return tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))", "refused: PermissionError"),
    "vsock": ("return tried(lambda: socket.socket(40, socket.SOCK_STREAM))", "refused: PermissionError"),
    "netlink": ("return tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))", "refused: PermissionError"),
    "unix socket": ("return tried(lambda: socket.socket(socket.AF_UNIX))", "refused: PermissionError"),
    "ptrace": ("return call('ptrace', 16, os.getppid(), 0, 0)", "refused: EPERM"),
    "other memory": ("return call('process_vm_readv', os.getppid(), 0, 0, 0, 0, 0)", "refused: EPERM"),
    "namespace": ("return call('unshare', 0x10000000)", "refused: EPERM"),
    "namespace by clone": ("return number(CLONE, 0x10000000 | 17, 0, 0, 0, 0)", "refused: EPERM"),
    "namespace by clone3": ("return number(435, (ctypes.c_uint64 * 11)(0x10000000), 88)", "refused: ENOSYS"),
    "mount": ("return call('mount', b'none', b'/tmp', b'tmpfs', 0, 0)", "refused: EPERM"),
    "io_uring": ("return number(425, 8, ctypes.create_string_buffer(200))", "refused: EPERM"),
    "pidfd_getfd": ("return number(438, 0, 0, 0)", "refused: EPERM"),
    "call from the future": ("return number(470, 0, 0, 0)", "refused: ENOSYS"),
    "inherited descriptors": (
        "found = [n for n in range(3, 4096) if not tried(lambda: os.fstat(n)).startswith('refused')]\n"
        "    return f'refused: only the wire' if len(found) <= 2 else f'did: {found}'",
        "refused",
    ),
    "root user": ("return tried(lambda: os.setuid(0))", "refused: (PermissionError|OSError)"),
    "root group": ("return tried(lambda: os.setgroups([0]))", "refused: (PermissionError|OSError)"),
    "raise a limit": (
        "most = resource.RLIM_INFINITY\n    return tried(lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)))",
        "refused: (ValueError|PermissionError)",
    ),
    "limit of another": ("return tried(lambda: resource.prlimit(HARNESS, resource.RLIMIT_CPU))", REFUSED),
    "typing into a terminal": ("import fcntl\n    return tried(lambda: fcntl.ioctl(0, 0x5412, b'x'))", REFUSED),
    "site-packages": (
        "sys.path += PATH\n    return tried(lambda: __import__('pytest'))",
        "refused: ModuleNotFoundError",
    ),
    "the harness": (
        "sys.path += PATH\n    return tried(lambda: __import__('evalsuite.errors'))",
        "refused: ModuleNotFoundError",
    ),
    "stack": (
        "sys.setrecursionlimit(10**9)\n    def down(): return [down()]\n    return down()",
        "ended by itself|MemoryError|timed out",
    ),
}


def program(name: str, canary: str) -> str:
    """One attack's code."""
    here = Path(__file__)
    facts = {
        "CANARY": canary,
        "REPOSITORY": str(here.parents[2] / "pyproject.toml"),
        "HOME": str(Path(canary).parent),
        "HARNESS": os.getpid(),
        "CLONE": 56 if os.uname().machine == "x86_64" else 220,
        "PATH": [*sys.path, str(here.parents[2])],
    }
    lines = "\n".join(f"{fact} = {value!r}" for fact, value in facts.items())
    return PRELUDE.format(facts=lines) + f"def attack():\n    {ATTACKS[name][0]}\n"


def attack_all(tier: str, canary: str) -> dict[str, str]:
    """Outcomes by name, and what is left of the sandbox afterwards under 'left'."""
    from evalsuite import sandbox
    from evalsuite.sandbox import tiers

    if wrong := tiers.probe(tier):
        sandbox.close()
        return {"unavailable": wrong}
    before, memory = set(os.listdir("/tmp")), _resident()
    sandbox.tier = lambda: sandbox.Tier(tier, "")  # type: ignore[assignment]
    sandbox.chosen = lambda: tier  # type: ignore[assignment]

    def one(name: str) -> str:
        limits = sandbox.Limits(seconds=2.0 if "timed out" in ATTACKS[name][1] else 20.0, memory=512 << 20)
        ok, value, reason = sandbox.evaluate(program(name, canary), "attack()", limits=limits)
        return str(value) if ok else reason

    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(ATTACKS, pool.map(one, ATTACKS), strict=True))
    ok, output, reason = sandbox.run_program("while True: print('x' * 10000)", "")
    found["flood"] = f"{ok} {len(output)} {reason}"
    sandbox.close()
    assert threading.active_count() == 1
    deadline = time.monotonic() + 5
    while remains() and time.monotonic() < deadline:
        time.sleep(0.02)
    found["left"] = " ".join([*map(str, remains()), *(n for n in set(os.listdir("/tmp")) - before if "escaped" in n)])
    found["grown"] = str((_resident() - memory) >> 20)
    return found


def remains() -> list[int]:
    """Processes of a sandbox that hang on this process, or on nobody. Others' harnesses may be at work beside us."""
    marks = b"os.setresgid(user, user, user)", b"import keeper"
    parents: dict[int, int] = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            state, ppid = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue
        if state != "Z" and any(mark in line for mark in marks):
            parents[pid] = int(ppid)
    found = []
    for pid, parent in parents.items():
        top = parent
        while top in parents:
            top = parents[top]
        if top in (1, os.getpid()):
            found.append(pid)
    return found


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    print(json.dumps(attack_all(*sys.argv[1:])))
