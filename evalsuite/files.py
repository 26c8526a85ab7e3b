"""Files that survive a kill: atomic renames, logs of whole lines, and locks that end with their process."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError


def put(path: Path, content: bytes) -> None:
    """Write beside, flush, rename: readers see the old file or the new one, whole."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Put a JSON file in place by an atomic rename."""
    put(path, (json.dumps(value, indent=1) + "\n").encode())


def open_log(path: Path) -> int:
    """Open for appending, cutting off a torn last line so that the next one starts clean."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
    return descriptor


def append(descriptor: int, row: Mapping[str, Any]) -> None:
    """Add one line, whole or not at all. Raises OSError where the disk is full."""
    line = json.dumps(row).encode() + b"\n"
    before = os.fstat(descriptor).st_size
    if os.write(descriptor, line) < len(line):
        os.ftruncate(descriptor, before)
        raise OSError(28, os.strerror(28))


def lines(path: Path, start: int = 0) -> Iterator[tuple[dict[str, Any] | None, bool]]:
    """Each line from byte `start` on, parsed (None where it cannot be), and whether it is whole and no torn tail."""
    with path.open("rb") as log:
        log.seek(start)
        for line in log:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            yield row if isinstance(row, dict) else None, line.endswith(b"\n")


def lock(descriptor: int) -> bool:
    """Take the lock of an open file, unless another process has it. It ends with the descriptor, or the process."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def locked(path: Path) -> bool:
    """Whether somebody has the lock of a file; False where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove_empty(path: Path) -> None:
    """Remove a file that holds nothing."""
    if path.exists() and path.stat().st_size == 0:
        path.unlink()


def unwritable(folder: Path, error: OSError) -> UserError:
    """The error of a folder that cannot be written from the start."""
    return UserError(f"cannot write to {folder}: {error.strerror or error}; take another --out")


@contextlib.contextmanager
def room(folder: Path, done: Sized) -> Iterator[None]:
    """Where the disk may be full, a clear error that counts what is stored."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}; the {len(done)} stored samples are kept: "
            "make room and give the same command again"
        ) from error
