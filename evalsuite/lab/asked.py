"""A budget's questions: made once, by every core, and asked of every model in the same words."""

import multiprocessing
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import evalsuite
from evalsuite import runner
from evalsuite.lab.budget import Budget
from evalsuite.lab.probe import Probe, Questions
from evalsuite.models.engine import Limits
from evalsuite.models.own import open_checkpoint
from evalsuite.models.tokenizer import build_tokenizer
from evalsuite.plan import Item, Plan
from evalsuite.records import Sample
from evalsuite.task import Count, load


@dataclass(frozen=True, slots=True)
class Made(Plan):
    """A plan whose samples are there already, fitted with the tokenizer that all of the lab's models share."""

    made: tuple[tuple[Item, Sample], ...]

    def samples(self, count: Count) -> Iterator[tuple[Item, Sample]]:
        """The samples in the plan's order; nothing is counted again."""
        yield from self.made


def prepare(budget: Budget, file: Path) -> Path:
    """Write the questions to `file`, unless it holds the same ones already."""
    wanted = repr((evalsuite.__version__, [(each, _versions(each)) for each in budget.questions]))
    head = pickle.dumps(wanted)  # apart: what another version has written is not unpacked
    if file.exists() and file.read_bytes().startswith(head):
        return file
    method = multiprocessing.get_context("forkserver")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(min(len(budget.questions), os.cpu_count() or 1), method) as pool:
        plans = list(pool.map(_make, budget.questions))
    part = file.with_suffix(".part")
    part.write_bytes(head + pickle.dumps(plans))
    os.replace(part, file)
    return file


def ask(questions: Path, folder: Path, name: str, device: str) -> None:
    """Ask the trained model in `folder` the questions of a file; the run is `answers/<name>` beside it."""
    # prompts whole in one pass: a piece of one, behind what is cached, is attention's slow case
    limits = Limits(tokens=65536, memory=2**33) if device != "cpu" else None
    model = open_checkpoint(folder, name, device=device, limits=limits)
    for plan in _read(questions):
        runner.run(model, plan, folder / "answers")


@cache
def probe(probes: tuple[Questions, ...]) -> Probe:
    """The questions asked in training, made once a process."""
    return Probe(probes)


@cache
def _read(file: Path) -> list[Made]:
    with file.open("rb") as source:
        pickle.load(source)  # what they are
        plans: list[Made] = pickle.load(source)
    return plans


def _make(questions: Questions) -> Made:
    plan, tokenizer = questions.plan(), build_tokenizer(2**20)
    made = tuple(plan.samples(lambda text: len(tokenizer(text).input_ids)))
    return Made(plan.items, plan.missing, plan.selection, plan.wording, made)


def _versions(questions: Questions) -> list[int]:
    return [load(name.partition(".")[0]).version for name in questions.tasks.split(",")]
