"""The equal-budget lab: every design on the same bytes, its learning rate chosen by the same rule, then asked the same.

A job is one training. Jobs are spread over the machine's GPUs, one process a slot; a finished job is a `result.json`
in its folder, a half-finished one goes on from its last state, and so the same command goes on after any end.
"""

import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from evalsuite.errors import UserError
from evalsuite.lab import asked
from evalsuite.lab import budget as budgets
from evalsuite.lab.budget import Budget
from evalsuite.lab.cost import flops, kept
from evalsuite.lab.data import Stream, build
from evalsuite.lab.match import parameters
from evalsuite.lab.mps import side_by_side
from evalsuite.lab.report import cells
from evalsuite.lab.run import locked, provenance
from evalsuite.lab.train import Trainer, publish
from evalsuite.models.own import state_hash
from evalsuite.store import write_json

EDGES = 3  # times that learning rates are added where the chosen one is at an edge


@dataclass(frozen=True, slots=True)
class Job:
    """One training of a design."""

    design: str
    seed: int
    lr: float
    sweep: bool = False

    @property
    def label(self) -> str:
        """`hybrid-kda seed 3`, `hybrid-kda lr 0.002`."""
        return f"{self.design} {f'lr {self.lr:g}' if self.sweep else f'seed {self.seed}'}"

    def folder(self, out: Path) -> Path:
        """Its place among the results."""
        name = self.design.replace(" ", "")
        return out / "rates" / name / f"{self.lr:g}" if self.sweep else out / name / f"seed{self.seed}"


@dataclass(frozen=True, slots=True)
class Machine:
    """Where jobs run: a device for every process."""

    slots: tuple[str, ...]

    @classmethod
    def found(cls, device: str = "auto", each: int = 1) -> "Machine":
        """Every GPU, `each` processes on it; without one, the CPU's cores, a process each."""
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device {device!r} does not train; use cpu, cuda or auto, and CUDA_VISIBLE_DEVICES")
        if each < 1:
            raise UserError(f"--each must be at least 1, not {each}")
        gpus = torch.cuda.device_count() if device != "cpu" else 0
        if device == "cuda" and gpus == 0:
            raise UserError("--device cuda: no GPU is found; `evalsuite doctor` says what is missing")
        return cls(tuple(f"cuda:{i}" for i in range(gpus) for _ in range(each)) or ("cpu",) * (os.cpu_count() or 1))


def run(budget: Budget, designs: Mapping[str, int], out: Path, machine: Machine, say: Callable[[str], None]) -> None:
    """Train every seed of every design and ask it the budget's questions; results are `result.json` of each folder.

    Raises UserError, once all other jobs are done, where a job failed: the same command tries it again. An interrupt
    ends all jobs at once, to go on from their last states.
    """
    budgets.check(budget, designs)
    with locked(out):
        _remember(out, budget)
        _Lab(budget, out, machine, say).run(designs)


class _Lab:
    """The scheduler: what waits for a stream, what runs, and what a finished job makes possible."""

    def __init__(self, budget: Budget, out: Path, machine: Machine, say: Callable[[str], None]) -> None:
        self.budget, self.out, self.machine, self.say = budget, out, machine, say
        self.rates: dict[str, dict[float, float]] = {}  # design -> learning rate -> loss
        self.failed: list[str] = []
        self.streams: dict[Stream, Future[Path]] = {}
        self.pending: dict[Future[Any], Job] = {}

    def run(self, designs: Mapping[str, int]) -> None:
        spawn = multiprocessing.get_context("spawn")
        slots = spawn.SimpleQueue()
        for slot in self.machine.slots:
            slots.put(slot)
        others = multiprocessing.active_children()
        shared = len(set(self.machine.slots)) < len(self.machine.slots) and "cpu" not in self.machine.slots
        with (
            side_by_side(shared) as together,
            ThreadPoolExecutor(1) as self.building,
            ProcessPoolExecutor(len(self.machine.slots), spawn, _enter, (slots, len(self.machine.slots))) as self.pool,
        ):
            if together:
                self.say("processes that share a GPU run side by side (MPS)")
            try:
                self._begin(designs)
                self._until_done(designs)
            except BaseException as error:  # nobody waits for what still runs
                for child in set(multiprocessing.active_children()).difference(others):
                    child.kill()
                if isinstance(error, BrokenProcessPool):
                    raise UserError(
                        "a process of the lab died, of memory perhaps; what is finished is kept, and the same command "
                        "goes on"
                    ) from error
                raise
        if self.failed:
            raise UserError("; ".join(self.failed))

    def _begin(self, designs: Mapping[str, int]) -> None:
        """Start what waits for nothing: learning rates to choose from, or where there is one, all seeds."""
        rates = self.budget.rates
        for lr in rates if len(rates) > 1 else ():  # a design's next rate finds compiled what its first one needed
            for name in designs:
                self._start(Job(name, 0, lr, sweep=True))
        self.questions = self.building.submit(asked.prepare, self.budget, self.out / "questions")
        if len(rates) > 1:
            return
        for seed in range(max(designs.values())):
            for name in (name for name, seeds in designs.items() if seed < seeds):
                self._start(Job(name, seed, rates[0]))

    def _until_done(self, designs: Mapping[str, int]) -> None:
        shown = time.monotonic()
        while self.pending:
            with _held() as interrupted:
                done, _ = wait(self.pending, timeout=1, return_when=FIRST_COMPLETED)
            if interrupted:
                raise KeyboardInterrupt
            for future in done:
                job = self.pending.pop(future)
                try:
                    self._finished(job, future.result(), designs)
                except BrokenProcessPool:
                    raise
                except Exception as error:  # of one job: the others go on
                    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                    self.failed.append(f"{job.label}: {kind}{error}")
                    self.say(f"{job.label} failed: {kind}{error}")
            if time.monotonic() - shown > 30 and not done:
                shown = time.monotonic()
                for line in progress(self.out):
                    self.say(line)

    def _start(self, job: Job) -> None:
        """Run a job as soon as its stream is there."""
        stream = self.budget.stream(job.seed, sweep=job.sweep)
        if stream not in self.streams:
            place = self.out / "streams" / f"seed{job.seed}-{stream.steps}"
            self.streams[stream] = self.building.submit(build, stream, place, os.cpu_count() or 1)
        made: Future[Any] = Future()
        self.pending[made] = job
        self.streams[stream].add_done_callback(partial(self._submit, job, made))

    def _submit(self, job: Job, made: Future[Any], stream: Future[Path]) -> None:
        try:
            questions = self.out / "questions" if job.sweep else self.questions.result()
            self.pool.submit(perform, self.budget, job, self.out, stream.result(), questions).add_done_callback(
                partial(_pass_on, made)
            )
        except Exception as error:  # whoever waits for the job is told
            made.set_exception(error)

    def _finished(self, job: Job, result: Mapping[str, Any], designs: Mapping[str, int]) -> None:
        self.say(f"{job.label}: loss {result['loss']:.3f}, {result['seconds']:.0f} s on {result['device']}")
        if not job.sweep:
            return
        tried = self.rates.setdefault(job.design, {})
        tried[job.lr] = result["loss"]
        if any(other.design == job.design for other in self.pending.values()):
            return
        lr = budgets.chosen(tried, self.budget.rates)
        if lr in (min(tried), max(tried)) and len(tried) < len(self.budget.rates) + EDGES:
            self._start(Job(job.design, 0, lr / 2 if lr == min(tried) else lr * 2, sweep=True))
            return
        for seed in range(designs[job.design]):
            self._start(Job(job.design, seed, lr))


@contextmanager
def _held() -> Iterator[list[int]]:
    """Within it interrupts are noted, not raised: a lock of `wait` may then be held by nobody, and its error shown."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _pass_on(made: Future[Any], ran: Future[Any]) -> None:
    error = ran.exception()
    if error is not None:
        made.set_exception(error)
    else:
        made.set_result(ran.result())


def perform(budget: Budget, job: Job, out: Path, data: Path, questions: Path) -> dict[str, Any]:
    """Do one job, or read what it came to; returns its result.

    A result holds the job, its loss (mean of the last tenth of the steps), history, cost and provenance.
    """
    folder = job.folder(out)
    with locked(folder):
        if (folder / "result.json").exists():
            found: dict[str, Any] = json.loads((folder / "result.json").read_text())
            if found["lr"] != job.lr:
                raise UserError(f"{folder} was trained at lr {found['lr']:g}, not {job.lr:g}; take another --out")
            return found
        stream = budget.stream(job.seed, sweep=job.sweep)
        config = budget.config(job.design)
        compiled = _DEVICE[0] != "cpu" and not config.num_experts
        trainer = Trainer(config, budget.recipe(job.lr, job.seed), _DEVICE[0], compiled=compiled)
        probe = asked.probe(budget.probes).measure if not job.sweep else None
        trainer.run(stream, data, folder, partial(_note, folder, job.label, stream.steps), probe)
        result = _result(budget, job, trainer, stream)
        if not job.sweep:
            publish(trainer, folder, provenance(stream, trainer.recipe, trainer))
            asked.ask(questions, folder, f"{job.design}-seed{job.seed}", _DEVICE[0])
            result["cells"] = cells(folder / "answers")
        write_json(folder / "result.json", result)
        (folder / "trainer.pt").unlink()
        if job.sweep:
            (folder / "progress.json").unlink(missing_ok=True)
        return result


def _result(budget: Budget, job: Job, trainer: Trainer, stream: Stream) -> dict[str, Any]:
    lines = [line["loss"] for line in trainer.history if line["step"] > 0.9 * stream.steps]
    config = trainer.config
    lengths = sorted(n for n in {512, 2048, budget.context} if n <= budget.context)
    return {
        "budget": budget.name,
        "design": job.design,
        "pattern": config.pattern,
        "seed": job.seed,
        "lr": job.lr,
        "sweep": job.sweep,
        "shuffled": budget.shuffled,
        "weights": state_hash(trainer.model),  # before they are rounded to bf16
        "loss": fmean(lines or [trainer.history[-1]["loss"]]),
        "tokens": stream.steps * stream.tokens_per_step,
        "parameters": parameters(config),
        "size": budget.size(len(config.pattern)),  # of full attention
        "feed_forward": config.intermediate_size,
        "state_bytes": {str(n): kept(config, n) for n in lengths},
        "flops": {str(n): flops(config, n) for n in lengths},  # of a forward pass, each token
        "seconds": round(trainer.seconds, 1),
        "device": trainer.device if trainer.device == "cpu" else torch.cuda.get_device_name(),
        "history": trainer.history,
        "provenance": {k: v for k, v in provenance(stream, trainer.recipe, trainer).items() if k != "history"},
    }


_DEVICE = ["cpu"]  # of this process


def _enter(slots: Any, count: int) -> None:
    """What a process of the lab begins with: a device of its own, and no life after its parent's."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    disable_progress_bar()  # of transformers, one for every small checkpoint
    _DEVICE[0] = slots.get()
    share = max(1, (os.cpu_count() or 1) // count)
    if _DEVICE[0] == "cpu":
        torch.set_num_threads(share)
    else:
        torch.cuda.set_device(_DEVICE[0])
        torch._inductor.config.compile_threads = share  # all begin by compiling, at once


def _note(folder: Path, label: str, steps: int, line: Mapping[str, Any]) -> None:
    """Leave behind how far a job is."""
    write_json(folder / "progress.json", {"job": label, "steps": steps, **line})


def progress(out: Path) -> Iterator[str]:
    """A line for every job that is under way."""
    for file in sorted(out.rglob("progress.json")):
        if not (file.parent / "result.json").exists():
            line = json.loads(file.read_text())
            done, rate = line["step"] / line["steps"], line["tokens"] / max(line["seconds"], 1e-9)
            yield f"{line['job']}: {done:.0%}, loss {line['loss']:.3f}, {rate:,.0f} tokens/s"


def _remember(out: Path, budget: Budget) -> None:
    """Write down the budget; raises UserError where the folder holds results of another."""
    told = json.loads(json.dumps(budgets.told(budget)))
    file = out / "budget.json"
    if file.exists() and json.loads(file.read_text()) != told:
        raise UserError(f"{out} holds results of another budget; take another --out")
    write_json(file, told)
    for stale in (out / "streams").glob("*"):
        if not (stale / "stream.json").exists():
            shutil.rmtree(stale)
