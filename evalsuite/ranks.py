"""Data parallel: the processes that torchrun or `accelerate launch` starts, and which of them asks what.

Ranks meet in a folder beside the runs, by files alone: no rank can hang in a collective that another never enters.
Each holds the lock of its own file as long as it lives, so that the kernel itself says who has died; a rank of another
machine is heard by its file's time, which it renews every second. Waits end when a rank that is waited for is gone.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from shutil import rmtree
from types import FrameType, TracebackType
from typing import Any, Self

from evalsuite import files
from evalsuite.errors import UserError
from evalsuite.plan import Item
from evalsuite.task import sample_id

Text = tuple[str, str, int, int]  # family, task, length in tokens (0 where it has none), index
START = 600.0  # seconds within which every rank has to come
SILENCE = 60.0  # seconds after which a rank of another machine that was not heard is taken for dead
FORSAKEN = 86400.0  # seconds after which a folder that all ranks were killed in is removed
POLL = 0.1
UNKNOWN = 512  # tokens that a text is taken to have where its cell names no length
SPOKEN = "spoken.json"
NEXT = "what was answered is stored, and the same command goes on"


class EndedError(BaseException):
    """The launcher ends this rank: no `except Exception` may take it for a fault of a task."""


@dataclass(slots=True)
class World:
    """The ranks of one launch, as seen from one of them. Use as a context manager around all that they do together."""

    rank: int = 0
    size: int = 1
    local: int = 0  # rank among those of this machine
    folder: Path = Path()
    began: float = field(default_factory=time.time)
    _own: int = -1
    _before: Any = None  # what SIGTERM did
    _stop: threading.Event = field(default_factory=threading.Event)
    _heard: dict[int, tuple[float, float]] = field(default_factory=dict)  # rank -> time of its file, when it was seen

    @classmethod
    def found(cls, out: str | os.PathLike[str], environment: Mapping[str, str] | None = None) -> "World":
        """The world that RANK, WORLD_SIZE and LOCAL_RANK tell; one rank alone where they are not set.

        Raises UserError where they do not make sense together.
        """
        told = os.environ if environment is None else environment
        size = _number(told, "WORLD_SIZE", 1)
        if size <= 1 and _number(told, "RANK", 0) == 0:
            return cls()
        rank = _number(told, "RANK", -1)
        local = _number(told, "LOCAL_RANK", rank)
        if not 0 <= rank < size or not 0 <= local <= rank:
            raise UserError(
                f"RANK={told.get('RANK')} LOCAL_RANK={told.get('LOCAL_RANK')} WORLD_SIZE={told.get('WORLD_SIZE')} are "
                "no ranks of one run; start them by torchrun, or unset all three"
            )
        launch = [told.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")]
        launch.append(told.get("TORCHELASTIC_RESTART_COUNT", ""))
        if told.get("LOCAL_WORLD_SIZE") == told["WORLD_SIZE"]:  # children of one launcher, and of no other launch's
            launch += [socket.gethostname(), str(os.getppid())]
        name = blake2b("\0".join([*launch, str(size)]).encode(), digest_size=6).hexdigest()
        return cls(rank, size, local, Path(out) / f".ranks-{name}")

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which merges and shows what all have done."""
        return self.rank == 0

    def __enter__(self) -> Self:
        if self.size == 1:
            return self
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.leads:  # what stands here is of an earlier launch: nobody tells anything before rank 0 lives
                for said in self.folder.glob("*.json"):
                    if said.name != SPOKEN or said.stat().st_mtime < self.began - 5:
                        said.unlink()
            self._own = os.open(self._file(self.rank), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise files.unwritable(self.folder.parent, error) from error
        if not _patiently(lambda: files.lock(self._own)):
            raise UserError(f"another rank {self.rank} of the same launch writes in {self.folder.parent}; end it first")
        os.ftruncate(self._own, 0)
        os.pwrite(self._own, json.dumps({"process": os.getpid(), "machine": socket.gethostname()}).encode(), 0)
        threading.Thread(target=self._beat, daemon=True).start()
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ended)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.size == 1:
            return
        if error is None:
            self.tell(f"left-{self.rank}", {})
        speaks = error is None or self._speaks()
        self._stop.set()
        if self._own >= 0:
            os.close(self._own)
        self._tidy(done=error is None and self.leads)
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if not speaks:
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
        if isinstance(error, EndedError):
            raise UserError(str(error)) from None

    def device(self, name: str) -> str:
        """This rank's device where `name` leaves it open: one GPU for each rank of a machine.

        Raises UserError where there are more ranks than GPUs. The GPU is torch's current one from then on.
        """
        if self.size == 1 or name not in ("auto", "cuda"):
            return name
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            return "cpu" if name == "auto" else name
        dealt = count == 1 and "CUDA_VISIBLE_DEVICES" in os.environ  # the launcher shows each rank its own
        if self.local >= count and not dealt:
            raise UserError(
                f"rank {self.rank} has no GPU of its own: this machine has {count}; start as many ranks, or give "
                "--device cpu"
            )
        index = 0 if dealt else self.local
        torch.cuda.set_device(index)
        return f"cuda:{index}"

    def tell(self, name: str, value: Mapping[str, Any]) -> None:
        """Leave a message for the others."""
        with suppress(FileNotFoundError):  # rank 0 has tidied up: everything is done
            files.write_json(self.folder / f"{name}.json", value)

    def hear(self, name: str, of: int) -> dict[str, Any]:
        """Wait for a message of another rank. Raises UserError where that rank, or rank 0's any, is gone before."""
        while True:
            here = self._state(of) == "here"  # before: a rank may leave once it has spoken
            said = self._said(name)
            if said is not None and (here or self.leads):  # before rank 0 lives, what stands there is of another launch
                return said
            self.check()
            time.sleep(POLL)

    def check(self) -> None:
        """Raise UserError where a rank is gone: for rank 0 any other that has not left in order, for others rank 0."""
        for rank in range(1, self.size) if self.leads else [0]:
            if rank != self.rank and self._state(rank) == "gone" and self._said(f"left-{rank}") is None:
                raise UserError(self._gone(rank))

    def _speaks(self) -> bool:
        """Whether this rank is the one that says what went wrong: whoever asks first."""
        if self._own < 0:
            return self.leads
        try:
            os.close(os.open(self.folder / SPOKEN, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        except OSError:
            return True
        return True

    def _tidy(self, *, done: bool) -> None:
        """Remove the folder of this launch where all is done or all have gone, and those that were left long ago."""
        every = [self._file(rank) for rank in range(self.size)]
        if done or all(file.exists() and not files.locked(file) for file in every):
            rmtree(self.folder, ignore_errors=True)
        if done:
            for folder in self.folder.parent.glob(".ranks-*"):
                with suppress(FileNotFoundError):
                    if all(_forsaken(file) for file in folder.glob("rank-*")):
                        rmtree(folder, ignore_errors=True)

    def _ended(self, *_: int | FrameType | None) -> None:
        dead = [rank for rank in range(self.size) if rank != self.rank and not self._lives(rank)]
        raise EndedError(self._gone(dead[0]) if dead else f"ended by the launcher; {NEXT}")

    def _gone(self, rank: int) -> str:
        about = self._about(rank)
        if about is None:
            return f"rank {rank} did not come; is {self.folder.parent} one folder for all machines? {NEXT}"
        return f"rank {rank} (process {about['process']} on {about['machine']}) has died; {NEXT}"

    def _lives(self, rank: int) -> bool:
        return self._state(rank) == "here" or self._said(f"left-{rank}") is not None

    def _state(self, rank: int) -> str:
        """`here`, `gone`, or `coming` while it may. What is older than this process is not taken for this launch's."""
        about = self._about(rank)
        if about is not None:
            if about["machine"] == socket.gethostname():
                if files.locked(self._file(rank)):
                    return "here"
                if self._time(rank) >= self.began:
                    return "gone"
            elif self._time(rank) >= self.began:
                at = self._time(rank)
                if self._heard.get(rank, (0.0, 0.0))[0] != at:
                    self._heard[rank] = (at, time.monotonic())
                return "here" if time.monotonic() - self._heard[rank][1] < SILENCE else "gone"
        return "coming" if time.time() - self.began < START else "gone"

    def _about(self, rank: int) -> dict[str, Any] | None:
        try:
            about: dict[str, Any] = json.loads(self._file(rank).read_text())
        except (OSError, ValueError):  # not there, or being written
            return None
        return about

    def _time(self, rank: int) -> float:
        try:
            return self._file(rank).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _said(self, name: str) -> dict[str, Any] | None:
        try:
            said: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        except FileNotFoundError:
            return None
        return said

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}"

    def _beat(self) -> None:
        while not self._stop.wait(1.0):
            with suppress(OSError):
                os.utime(self._file(self.rank))


def deal(items: Sequence[Item], size: int, stored: Callable[[str, str], bool]) -> list[list[int]]:
    """Places in the plan, ascending, of what each of `size` ranks asks; together they are the whole plan.

    By a rule and not from a queue: the GPUs of a launch are alike and lengths are known beforehand, so nobody waits for
    anybody, and each rank builds no samples but its own. Items of one text (same task, length and index) stay together.
    Texts of one task and length are dealt in turn, the longest first, to the ranks with least so far; those whose
    samples are `stored` (task, id) are dealt apart, because they cost next to nothing: what a broken run left is spread
    evenly over however many ranks go on. `stored` only weighs; each rank looks for itself what it need not ask.
    """
    decks: dict[tuple[int, str, str, bool], list[list[int]]] = {}
    for (family, task, length, _), places in texts(items):
        known = all(stored(task, sample_id(task, items[p].cell.facets, items[p].index)) for p in places)
        decks.setdefault((-length, family, task, known), []).append(places)
    loads = [0] * size
    dealt: list[list[int]] = [[] for _ in range(size)]
    for (length, _, _, known), deck in sorted(decks.items()):
        order = sorted(range(size), key=lambda rank: (loads[rank], rank))
        for i, places in enumerate(deck):
            dealt[order[i % size]] += places
            loads[order[i % size]] += 1 if known else -length or UNKNOWN
    return [sorted(places) for places in dealt]


def texts(items: Sequence[Item]) -> Iterator[tuple[Text, list[int]]]:
    """The texts of a plan with the places of their items, which stand side by side."""

    def of(place: int) -> Text:
        item = items[place]
        length = item.cell.facets.get("length", 0)
        return item.family, item.cell.task, length if isinstance(length, int) else 0, item.index

    for text, places in groupby(range(len(items)), of):
        yield text, list(places)


def digest(items: Sequence[Item]) -> str:
    """Identity of a plan's layout: ranks with unlike plans would leave samples out."""
    state = blake2b(digest_size=8)
    for item in items:
        state.update(f"{item.cell.task} {sorted(item.cell.facets.items())} {item.index}\n".encode())
    return state.hexdigest()


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise UserError(f"{name}={text!r} is no number; start ranks by torchrun, or unset it")
    return int(text)


def _forsaken(file: Path) -> bool:
    return time.time() - file.stat().st_mtime > FORSAKEN and not files.locked(file)


def _patiently(attempt: Callable[[], bool], seconds: float = 1.0) -> bool:
    """Try until it works: whoever looks whether a rank lives holds its lock for an instant."""
    end = time.monotonic() + seconds
    while not attempt():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
