"""The token stream: documents of the task plugins, made once, read by every design in the same order."""

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from evalsuite.errors import UserError
from evalsuite.models.tokenizer import vocabulary
from evalsuite.records import Facet
from evalsuite.task import Trainable, generator, load

IGNORE = 65535  # no loss at this position; ids are uint16


@dataclass(frozen=True, slots=True)
class Stream:
    """What a stream is made of. Two equal streams are equal byte for byte.

    `mixture` gives each task its share of the rows, with knobs of its documents behind its name; `lengths` gives row
    lengths and their shares of the steps, and `curriculum` the share of the steps at the start that use the shortest
    length only.
    """

    mixture: tuple[tuple[str, float], ...]  # ("multihop.graph", 0.4), ("knowledge.cloze load=16384", 0.1)
    lengths: tuple[tuple[int, float], ...] = ((128, 0.3), (256, 0.4), (512, 0.3))
    curriculum: float = 0.35  # without it no hybrid learned a hop from 41M tokens; with it they did from 33M
    steps: int = 1000
    tokens_per_step: int = 16384
    seed: int = 0
    shuffled: bool = False  # labels change places within a step: whatever is learned from them is no answer

    def length(self, step: int) -> int:
        """Row length of a step; tokens per step stay the same."""
        choices = [length for length, _ in self.lengths]
        if step < self.curriculum * self.steps:
            return min(choices)
        return generator("stream-length", self.seed, step).choices(choices, [w for _, w in self.lengths])[0]


@cache
def _task(family: str) -> Trainable:
    task = load(family)
    if not isinstance(task, Trainable):
        raise UserError(f"task {family!r} has no training documents")
    return task


@cache
def _parsed(entry: str) -> tuple[str, str, dict[str, Facet]]:
    """`knowledge.cloze load=16384` -> family, subtask and knobs."""
    name, *settings = entry.split()
    family, _, subtask = name.partition(".")
    pairs = (each.partition("=") for each in settings)
    return family, subtask, {knob: int(value) if value.isdigit() else value for knob, _, value in pairs}


@cache
def _ids() -> dict[str, int]:
    """Word -> id of its one token; a lexicon word carries the space before it."""
    return {
        token.removeprefix("▁"): i for i, token in enumerate(vocabulary()) if token.startswith("▁") and token != "▁"
    }


def row(stream: Stream, step: int, index: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """One row of `length` tokens: `<s>`, a document, padding; and the label of each position. Both uint16."""
    draw = generator("stream-task", stream.seed, step, index)
    names = [name for name, _ in stream.mixture]
    family, subtask, knobs = _parsed(draw.choices(names, [share for _, share in stream.mixture])[0])
    number = step * stream.tokens_per_step + index
    document = _task(family).document(subtask, stream.seed, number, length - 1, **knobs)
    assert len(document.words) < length, f"{family}.{subtask} made {len(document.words)} words for {length - 1}"
    table = _ids()
    ids = np.zeros(length, dtype=np.uint16)
    labels = np.full(length, IGNORE, dtype=np.uint16)
    ids[0] = 1
    count = len(document.words)
    ids[1 : count + 1] = [table[word] for word in document.words]
    labels[1 : count + 1] = [IGNORE if word is None else table[word] for word in document.labels]
    return ids, labels


def step_tokens(stream: Stream, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels `[tokens_per_step]` of one step."""
    length = stream.length(step)
    rows = [row(stream, step, i, length) for i in range(stream.tokens_per_step // length)]
    ids, labels = (np.concatenate(part) for part in zip(*rows, strict=True))
    if stream.shuffled:
        asked = np.flatnonzero(labels != IGNORE)
        order = list(range(len(asked)))
        generator("stream-shuffled", stream.seed, step).shuffle(order)
        labels[asked] = labels[asked[order]]
    return ids, labels


def _fill(stream: Stream, folder: Path, steps: Sequence[int]) -> None:
    ids, labels = (np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("ids", "labels"))
    for step in steps:
        ids[step], labels[step] = step_tokens(stream, step)


def build(stream: Stream, folder: Path, workers: int = 1) -> Path:
    """Write the stream to `folder` (ids and labels, uint16, `[steps, tokens_per_step]`) unless it is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "stream.json"
    families = sorted({name.partition(".")[0] for name, _ in stream.mixture})
    versions = {family: load(family).version for family in families}
    wanted = json.dumps({**asdict(stream), "versions": versions}, indent=1)
    if recipe.exists():
        if recipe.read_text() != wanted:
            raise UserError(f"{folder} holds another stream, or one of other task versions; take another --out")
        return folder
    for name in ("ids", "labels"):
        shape = (stream.steps, stream.tokens_per_step)
        np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.uint16, shape=shape).flush()
    blocks = [range(i, min(i + 8, stream.steps)) for i in range(0, stream.steps, 8)]
    method = multiprocessing.get_context("forkserver")  # a fork of a process with threads may hang
    method.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, method) as pool:
        list(pool.map(_fill, [stream] * len(blocks), [folder] * len(blocks), blocks))  # raises what a worker raised
    recipe.write_text(wanted)  # last: a folder with a recipe is whole
    return folder


def batches(stream: Stream, folder: Path, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and labels `[rows, length]` of each step from `start` on."""
    ids = np.load(folder / "ids.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy", mmap_mode="r")
    for step in range(start, stream.steps):
        shape = (-1, stream.length(step))
        yield np.asarray(ids[step]).reshape(shape), np.asarray(labels[step]).reshape(shape)
