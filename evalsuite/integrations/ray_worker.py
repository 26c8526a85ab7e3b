"""What runs on the machines of a Ray cluster: a model that answers shards, and sends each answer as it comes."""

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evalsuite import models, plan, runner, sandbox
from evalsuite.executors import Order
from evalsuite.models.base import Model
from evalsuite.plan import Plan
from evalsuite.progress import Silent
from evalsuite.ranks import digest
from evalsuite.store import Key, Row, folder_name

Message = tuple[str, Any]


class Worker:
    """An actor: answers shards with one model loaded at a time."""

    def __init__(self, order: Order) -> None:
        sandbox.allow_unsandboxed(order.unsandboxed)
        self.order, self.spec = order, ""
        self.model: Model | None = None

    def where(self) -> str:
        """The machine."""
        return socket.gethostname()

    def answer(self, spec: str, places: Sequence[int], done: Mapping[Key, str]) -> Iterator[Message]:
        """Ask what stands at some places of the plan and is not `done`; yields, in this order, what answers ("model"),
        each answer ("row") and slice ("timing") as they come, and what was missing and what computed ("end")."""
        said: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        failed: list[BaseException] = []

        def work() -> None:  # beside, for the runner hands its rows on, and Ray wants to fetch them
            try:
                self._answer(spec, places, done, lambda kind, value: said.put((kind, value)))
            except BaseException as error:
                failed.append(error)
            finally:
                said.put(None)

        threading.Thread(target=work, daemon=True).start()
        while (message := said.get()) is not None:
            yield message
        if failed:
            raise failed[0]

    def _answer(
        self, spec: str, places: Sequence[int], done: Mapping[Key, str], say: Callable[[str, Any], None]
    ) -> None:
        model, made = self._open(spec)
        say("model", self.about)
        part, skipped = made.part(places), _Skips()
        runner.ask(model, part, _Wire(Path(self.order.out) / folder_name(model.name), dict(done), say), skipped)
        gaps = [asdict(replace(gap, place=places[gap.place])) for gap in part.gaps]
        say("end", {"gaps": gaps, "ran": dict(runner.ran(model)), "skipped": skipped.count})

    def _open(self, spec: str) -> tuple[Model, Plan]:
        if spec != self.spec or self.model is None:
            self.model = None  # its memory is free before the next comes
            model = models.load(spec, device=self.order.device, dtype=self.order.dtype, kernels=self.order.kernels)
            made = plan.make(plan.select(**self.order.asked), self.order.wording or model.wording)
            about = {"name": model.name, "context": model.context, "wording": made.wording, "plan": digest(made.items)}
            self.about = {**about, "meta": runner.describe(model, made)}
            self.model, self.made, self.spec = model, made, spec
        return self.model, self.made


@dataclass(slots=True)
class _Wire:
    """The store as a worker sees it."""

    folder: Path
    done: dict[Key, str]
    say: Callable[[str, Any], None]

    def append(self, row: Row) -> None:
        self.done[row["task"], row["id"]] = row["prompt_hash"]
        self.say("row", row)

    def append_timing(self, timing: Mapping[str, Any]) -> None:
        self.say("timing", {"at": time.time(), **timing})


class _Skips(Silent):
    """Counts what was stored from before."""

    count = 0

    def skip(self) -> None:
        self.count += 1
