"""What the kernel refuses to a candidate: a seccomp filter in classic BPF, and a Landlock domain.

Numbers are those of Linux's unistd.h, name:x86_64:aarch64; a dash is a call that the machine does not have. Written
here and not taken from libseccomp because the filter has to exist wherever the package does, and is a page long.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Iterable
from functools import cache

# Refused in every tier: other processes' memory, mounts, namespaces, kernel interfaces with a history of holes, memory
# that no process's size shows (memfd, SysV, pages given to a pipe, large buffers), and sockets of any family (AF_VSOCK
# is in no network namespace).
ALWAYS = """
acct:163:89 add_key:248:217 bpf:321:280 chroot:161:51 clock_adjtime:305:266 clock_settime:227:112 delete_module:176:106
fanotify_init:300:262 finit_module:313:273 fsconfig:431:431 fsmount:432:432 fsopen:430:430 fspick:433:433
init_module:175:105 io_uring_enter:426:426 io_uring_register:427:427 io_uring_setup:425:425 ioperm:173:- iopl:172:-
kcmp:312:272 kexec_file_load:320:294 kexec_load:246:104 keyctl:250:219 lookup_dcookie:212:18 mbind:237:235
memfd_create:319:279 memfd_secret:447:447 migrate_pages:256:238 mknod:133:- mknodat:259:33 modify_ldt:154:-
mount:165:40 mount_setattr:442:442 move_mount:429:429 move_pages:279:239 mq_open:240:180 mq_unlink:241:181
msgctl:71:187 msgget:68:186 msgrcv:70:188 msgsnd:69:189 name_to_handle_at:303:264 open_by_handle_at:304:265
open_tree:428:428 perf_event_open:298:241 personality:135:92 pidfd_getfd:438:438 pivot_root:155:41
process_madvise:440:440 process_mrelease:448:448 process_vm_readv:310:270 process_vm_writev:311:271 ptrace:101:117
quotactl:179:60 quotactl_fd:443:443 reboot:169:142 request_key:249:218 semctl:66:191 semget:64:190 semop:65:193
semtimedop:220:192 set_mempolicy:238:237 set_mempolicy_home_node:450:450 setdomainname:171:162 sethostname:170:161
setns:308:268 settimeofday:164:170 shmat:30:196 shmctl:31:195 shmdt:67:197 shmget:29:194 socket:41:198 swapoff:168:225
swapon:167:224 sysfs:139:- syslog:103:116 umount2:166:39 unshare:272:97 uselib:134:- userfaultfd:323:282 ustat:136:-
vhangup:153:58 vmsplice:278:75 setsockopt:54:208
"""
# Refused besides where no namespace stands between the candidate and the machine: signals, new processes, and what
# Landlock does not watch (owner, mode, times and attributes of files; other processes' priorities).
BARE = """
kill:62:129 tkill:200:130 tgkill:234:131 rt_sigqueueinfo:129:138 rt_tgsigqueueinfo:297:240 pidfd_open:434:434
pidfd_send_signal:424:424 chmod:90:- fchmod:91:52 fchmodat:268:53 fchmodat2:452:452 chown:92:- fchown:93:55 lchown:94:-
fchownat:260:54 utime:132:- utimes:235:- utimensat:280:88 futimesat:261:- setxattr:188:5 lsetxattr:189:6 fsetxattr:190:7
removexattr:197:14 lremovexattr:198:15 fremovexattr:199:16 setpriority:141:140 sched_setaffinity:203:122
sched_setattr:314:274 sched_setparam:142:118 sched_setscheduler:144:119 ioprio_set:251:30 inotify_init:253:-
inotify_init1:294:26 inotify_add_watch:254:27 fork:57:- vfork:58:- connect:42:203 bind:49:200 listen:50:201
truncate:76:45
"""
WEIGHED = (
    "clone:56:220 clone3:435:435 socketpair:53:199 ioctl:16:29 fcntl:72:25 prlimit64:302:261 mmap:9:222 prctl:157:167"
)
NEWEST = 462  # mseal; what is newer nobody here has weighed: "no such call", as an older kernel would say

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
THREAD = 0x00010000  # CLONE_THREAD
LOAD, EQUAL, ABOVE, ANY, AND, RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06  # BPF opcodes
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000  # SECCOMP_RET_*; the errno goes into the low half of the last
EPERM, ENOSYS = 1, 38

Step = tuple[int, int, int, int]


def supported() -> bool:
    """Whether the numbers above are this machine's."""
    return platform.system() == "Linux" and platform.machine() in MACHINES


@cache
def seccomp(*, bare: bool) -> bytes:
    """The filter as an array of `struct sock_filter`. `bare`: no namespaces, no new processes."""
    return b"".join(struct.pack("<HBBI", *step) for step in assemble(bare=bare))


def assemble(*, bare: bool) -> list[Step]:
    """The filter's steps for this machine: (opcode, steps to skip when true, when false, constant)."""
    column, arch = MACHINES[platform.machine()]
    # struct seccomp_data: call number at 0, architecture at 4, arguments of eight bytes from 16
    steps: list[Step] = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, arch), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    steps += [(ABOVE, 0, 1, NEWEST), (RETURN, 0, 0, REFUSE | ENOSYS)]  # also the calls of x32, from 2^30 on
    for number in _numbers(ALWAYS + (BARE if bare else ""), column).values():
        steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE | EPERM)]
    for number, rule in _weighed(_numbers(WEIGHED, column), bare):
        steps += [(EQUAL, 0, len(rule), number), *rule]
    return [*steps, (RETURN, 0, 0, ALLOW)]


def _numbers(table: str, column: int) -> dict[str, int]:
    rows = [entry.split(":") for entry in table.split()]
    return {row[0]: int(row[1 + column]) for row in rows if row[1 + column] != "-"}


def _weighed(numbers: dict[str, int], bare: bool) -> Iterable[tuple[int, list[Step]]]:
    """Calls judged by an argument: (number, steps that end in a verdict)."""
    refuse, allow = (RETURN, 0, 0, REFUSE | EPERM), (RETURN, 0, 0, ALLOW)

    def low(argument: int) -> Step:
        return (LOAD, 0, 0, 16 + 8 * argument)

    def unless(values: tuple[int, ...]) -> list[Step]:
        return [(EQUAL, len(values) - 1 - i, int(i == len(values) - 1), v) for i, v in enumerate(values)]

    thread = [(ANY, 1, 0, THREAD), refuse] if bare else []
    yield numbers["clone"], [low(0), (ANY, 0, 1, NAMESPACES), refuse, *thread, allow]
    yield (
        numbers["clone3"],
        [(RETURN, 0, 0, REFUSE | ENOSYS)],
    )  # its flags are behind a pointer; libc falls back to clone
    # AF_UNIX, and not SOCK_DGRAM, which sends to any path that it names
    yield (
        numbers["socketpair"],
        [low(0), (EQUAL, 1, 0, 1), refuse, low(1), (AND, 0, 0, 15), (EQUAL, 0, 1, 2), refuse, allow],
    )
    yield numbers["prctl"], [low(0), (EQUAL, 0, 1, PARENT_DEATH[0]), refuse, allow]  # it is set
    yield numbers["prlimit64"], [low(0), (EQUAL, 1, 0, 0), refuse, allow]  # its own limits only
    # TIOCSTI and TIOCLINUX type into a terminal; FIOSETOWN, SIOCSPGRP and the three of fcntl have signals sent
    yield numbers["ioctl"], [low(1), *unless((0x5412, 0x541C, 0x8901, 0x8902)), refuse, allow]
    yield numbers["fcntl"], [low(1), *unless((8, 10, 15)), refuse, allow]
    # memory both shared and anonymous outlives, unseen, the processes that filled it
    yield numbers["mmap"], [low(3), (AND, 0, 0, 0x21), (EQUAL, 0, 1, 0x21), refuse, allow]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
NO_NEW_PRIVILEGES, PARENT_DEATH, SECCOMP_FILTER = (38, 1), (1, 9), (22, 2)  # of prctl


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, argument: int, pointer: object = 0) -> None:
    """prctl(2). Raises OSError."""
    _checked(_libc().prctl(option, ctypes.c_ulong(argument), pointer, 0, 0), f"prctl {option}")


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. Exits at once where that has happened already."""
    prctl(*PARENT_DEATH)
    if os.getppid() != parent:
        os._exit(1)


def landlock_abi() -> int:
    """Landlock's version on this kernel; 0 where there is none."""
    if not supported():
        return 0
    found: int = _libc().syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    return max(found, 0)


def confine(readable: Iterable[str], writable: Iterable[str], steps: bytes) -> None:
    """Put this process for ever under Landlock and the seccomp filter `steps`: it may read and run what is beneath
    `readable`, write the files `writable`, and reach no other path, port, abstract socket or process outside.

    Raises OSError. Meant for a child between fork and exec.
    """
    abi = landlock_abi()
    prctl(*NO_NEW_PRIVILEGES)
    files = (1 << (13 + (abi >= 2) + (abi >= 3))) - 1 | ((abi >= 5) << 15)
    rules = _Ruleset(files, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    libc = _libc()
    ruleset = _checked(libc.syscall(CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), 0), "landlock")
    for allowed, paths in ((EXECUTE | READ_FILE | READ_DIR, readable), (READ_FILE | WRITE_FILE, writable)):
        for path in filter(os.path.exists, paths):
            at = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = _Beneath(allowed if os.path.isdir(path) else allowed & ~READ_DIR, at)
            _checked(libc.syscall(ADD_RULE, ruleset, 1, ctypes.byref(rule), 0), f"landlock {path}")
            os.close(at)
    _checked(libc.syscall(RESTRICT_SELF, ruleset, 0), "landlock")
    os.close(ruleset)
    prctl(*SECCOMP_FILTER, ctypes.byref(_Program(len(steps) // 8, steps)))
