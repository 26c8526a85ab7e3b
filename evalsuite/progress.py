"""What the user sees while a run goes on: a live bar at a terminal, a line every few seconds elsewhere."""

import time
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from evalsuite.store import Row

WARM = 3.0  # seconds before a rate tells anything of the time left


class Reporter(Protocol):
    """Told of every stored sample."""

    def begin(self, model: str, total: int) -> None:
        """A model starts on `total` samples."""
        ...

    def skip(self) -> None:
        """One sample is stored from before."""
        ...

    def add(self, row: Row) -> None:
        """One more sample is stored."""
        ...

    def end(self) -> None:
        """The model is done, or was interrupted."""
        ...


class Silent:
    """Reports nothing."""

    def begin(self, model: str, total: int) -> None:
        return

    def skip(self) -> None:
        return

    def add(self, row: Row) -> None:
        return

    def end(self) -> None:
        return


@dataclass(slots=True)
class _Tally:
    """Running counts of one model."""

    model: str
    total: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    answered: int = 0
    points: float = 0.0
    errors: int = 0
    tokens: int = 0

    def add(self, row: Row) -> None:
        self.done += 1
        self.answered += 1
        self.points += row["score"]
        self.errors += row["finish"] == "error"
        self.tokens += row["prompt_tokens"] + row["completion_tokens"]

    @property
    def text(self) -> str:
        accuracy = f"accuracy {self.points / self.answered:.2f}" if self.answered else ""
        rate = f"{self.tokens / max(time.monotonic() - self.started, 1e-9):,.0f} tokens/s" if self.tokens else ""
        errors = f"{self.errors} errors" if self.errors else ""
        return ", ".join(filter(None, (accuracy, rate, errors)))

    @property
    def left(self) -> str:
        if not self.answered or time.monotonic() - self.started < WARM:
            return "?"
        seconds = (time.monotonic() - self.started) / self.answered * max(self.total - self.done, 0)
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


class Live:
    """A rich progress bar on standard error."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._tally = _Tally("", 0)

    def begin(self, model: str, total: int) -> None:
        self._tally = _Tally(model, total)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self._console,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(model, total=total, text="")
        self._bar.start()

    def skip(self) -> None:
        self._tally.done += 1

    def add(self, row: Row) -> None:
        self._tally.add(row)
        assert self._bar is not None, "begin comes first"
        self._bar.update(self._task, completed=self._tally.done, total=self._tally.total, text=self._tally.text)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Lines:
    """A plain line at the start, every `seconds`, and at the end."""

    def __init__(self, console: Console, seconds: float = 5.0) -> None:
        self._console = console
        self._seconds = seconds
        self._last = 0.0
        self._tally = _Tally("", 0)

    def begin(self, model: str, total: int) -> None:
        self._tally = _Tally(model, total)
        self._last = time.monotonic()
        self._say(f"{model}: {total} samples")

    def skip(self) -> None:
        self._tally.done += 1

    def add(self, row: Row) -> None:
        self._tally.add(row)
        if time.monotonic() - self._last >= self._seconds:
            self._last = time.monotonic()
            tally = self._tally
            self._say(f"{tally.model}: {tally.done}/{tally.total}, {tally.text}, {tally.left} left")

    def end(self) -> None:
        tally = self._tally
        stored = tally.done - tally.answered
        kept = f"{stored} stored from before" if stored else ""
        self._say(", ".join(filter(None, (f"{tally.model}: {tally.done}/{tally.total}", kept, tally.text))))

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def reporter(console: Console) -> Reporter:
    """The live bar at a terminal, plain lines otherwise."""
    return Live(console) if console.is_terminal else Lines(console)
