"""Tasks of lm_eval as ours: `--tasks lm_eval:arc_easy`, `lm_eval:mmlu`, `lm_eval:path/to/task.yaml`.

Prompts, few-shot examples, filters and scores are lm_eval's own, as its command line makes them for the task alone with
its default seeds; `--seed N` is its own. Where a task sizes its own texts (ruler, babilong), each of `--lengths` is
asked for by itself and is a cell, so that no sample depends on what else was asked. The score is the first filter's
first metric that is a share, of which more is better; others are details. What depends on more than our answers hold,
such as whether greedy decoding writes a choice, is left out.
"""

import ast
import contextlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError, unknown
from evalsuite.integrations.lm_eval.parts import Part, first, generation, unaskable
from evalsuite.integrations.lm_eval.sizes import LENGTHS, Sizes
from evalsuite.records import Completion, Facet, Sample, Score
from evalsuite.task import Cell, Count, Request

SEEDS = (0, 1234, 1234, 1234)  # random, numpy, torch, few-shot: the defaults of lm_eval's command line
NONE = -1  # of num_fewshot: the task's own
Leaf = tuple[str, int]  # a cell's task, and the length in tokens that it sizes its texts to; 0: none
FILES = (".yaml", ".yml")


class Foreign:
    """A task, group or tag of lm_eval, or the YAML file of one. Raises UserError for a name that lm_eval has not."""

    def __init__(self, name: str) -> None:
        self.asked, self.name = name, "lm_eval:" + re.sub(r"\W+", "_", Path(name).stem if _is_file(name) else name)
        self.licence = "the task's own; see lm_eval"
        self.version, self.needs = 0, ""
        self.source = f"lm_eval {_version()}, task {Path(name).name if _is_file(name) else name}"
        self._parts: dict[tuple[Any, ...], dict[Leaf, Part]] = {}
        self._lack: dict[tuple[Any, ...], dict[str, str]] = {}
        self._leaves: dict[Leaf, Part] = {}  # of the request that is asked

    def subtasks(self) -> tuple[str, ...]:
        """None by name: a group is asked as a whole."""
        return ()

    def knobs(self) -> Mapping[str, tuple[Facet, ...]]:
        """Examples in the prompt, and the tokenizer that tasks such as ruler size their texts with."""
        return {"num_fewshot": (NONE,), "tokenizer": ("",)}

    def cells(self, request: Request) -> Sequence[Cell]:
        """One cell a leaf task, length and number of examples."""
        found = []
        for (task, length), part in self._load(request).items():
            facets = {"length": length, "shots": part.shots}
            found.append(Cell(task, {name: value for name, value in facets.items() if value}, self._chance(part)))
        return found

    def missing(self, request: Request) -> Mapping[str, str]:
        """Leaf tasks that cannot be asked here, each with the reason; and settings that its texts do not heed."""
        self._load(request)
        terse = {f"{self.name} with wording {request.wording}": "its texts are lm_eval's, and are asked as they are"}
        return self._lack[_key(request)] | (terse if request.wording != "natural" else {})

    def sample(self, cell: Cell, index: int, request: Request, count: Count) -> Sample:
        """Document `index` of the task, as lm_eval asks it. Raises IndexError where it has no more."""
        length = int(cell.facets.get("length", 0))
        part = self._leaves[cell.task, length]
        first, *more = part.asked(index)
        identity = "/".join([cell.task, *(f"{k}={v}" for k, v in cell.facets.items()), str(index)])
        meta = {"index": index, "kind": part.task.OUTPUT_TYPE, "length": length}
        target = part.task.doc_to_target(part.docs[index])
        accepted = tuple(map(str, target)) if isinstance(target, list) else (str(target),)
        context = first.args[0]
        if meta["kind"] == "multiple_choice":
            choices = tuple(request.args[1] for request in (first, *more))
            if any(request.args[0] != context for request in more):
                raise UserError("it asks one question with several contexts, which is not supported")
            return Sample(identity, cell.task, context, accepted, choices=choices, cluster=identity, meta=meta)
        if meta["kind"] == "loglikelihood":
            wanted = first.args[1]
            new = max(1, count(context + wanted) - count(context))
            return Sample(identity, cell.task, context, (wanted,), cluster=identity, max_new_tokens=new, meta=meta)
        given = generation(first)
        sampled = bool(given["do_sample"]) and float(given.get("temperature", 0)) > 0
        return Sample(
            identity,
            cell.task,
            context,
            accepted,
            cluster=identity,
            stop=tuple(given["until"] or ()),
            max_new_tokens=int(given["max_gen_toks"]),
            temperature=float(given["temperature"]) if sampled else 0.0,
            top_p=float(given.get("top_p") or 1.0) if sampled else 1.0,
            meta=meta,
        )

    def score(self, sample: Sample, completion: Completion) -> Score:
        """lm_eval's own score. What a `loglikelihood` task asks is whether the model writes the target, and that is
        what it was let do."""
        part, index = self._leaves[sample.task, sample.meta["length"]], sample.meta["index"]
        if sample.meta["kind"] == "multiple_choice":
            values = completion.choice_logprobs
            if not values:  # what was written is read as a choice, where a server ranks none
                if completion.text not in sample.choices:
                    return Score(sample.id, 0.0, completion.text.strip())
                values = tuple(-float(choice != completion.text) for choice in sample.choices)
            responses: list[Any] = [(value, False) for value in values]
        elif sample.meta["kind"] == "loglikelihood":
            (target,) = sample.target
            responses = [(0.0, completion.text.strip() == target.strip())]
        else:
            responses = [completion.text]
        found = part.metrics(index, responses)
        value = first(part, found)
        if value is None:
            raise UserError(f"{sample.task} gives no share of right answers for {sample.id!r}, but {found}")
        detail: dict[str, Facet] = {
            f"{metric},{chain}": float(number)
            for chain, metrics in found.items()
            for metric, number in metrics.items()
            if isinstance(number, Real) and (chain, metric) not in part.unknown
        }
        return Score(sample.id, value, completion.text.strip(), detail)

    def higher_is_better(self) -> dict[str, dict[str, bool]]:
        """Leaf task -> metric -> what lm_eval says of it; metrics that it names nowhere are left out."""
        told = {name: dict(part.task.higher_is_better()) for (name, _), part in self._leaves.items()}
        return {name: {str(k): v for k, v in each.items() if isinstance(v, bool)} for name, each in told.items()}

    def _load(self, request: Request) -> dict[Leaf, Part]:
        """Cell's task and length -> leaf task; loaded once for the same settings."""
        key = _key(request)
        if key not in self._parts:
            for knob, values in request.knobs.items():
                if len(values) > 1:
                    told = ",".join(map(str, values))
                    raise UserError(f"--set {self.name}.{knob}={told}: it takes one value; give each its own --out")
            self._parts[key] = {}
            sizes = self._sizes(request)
            names = {leaf: self._leaf(leaf) for leaf, _ in [*sizes.found, *sizes.failed]}
            if len(names) == 1:
                names = dict.fromkeys(names, self.name)
            lack = {_at(names[leaf], length): reason for (leaf, length), reason in sizes.failed.items()}
            lack |= {f"{self.name} {what}": reason for what, reason in sizes.unheeded().items()}
            for (leaf, length), task in sizes.found.items():
                name = names[leaf]
                part, told = _part(task, request)
                if reason := unaskable(part):
                    lack[_at(name, length)] = reason
                else:
                    lack |= {f"{name} with examples": told} if told else {}
                    self._parts[key][name, length] = self._leaves[name, length] = part
            self._lack[key] = lack
        return self._parts[key]

    def _leaf(self, leaf: str) -> str:
        return f"{self.name}.{re.sub(r'[^0-9A-Za-z_]+', '_', leaf)}"

    def _sizes(self, request: Request) -> Sizes:
        """Leaf tasks, and why others could not be made: of a group, the rest are asked all the same."""
        from lm_eval.tasks import TaskManager

        spec = next(iter(request.knobs.get("tokenizer", ())), "")
        metadata: dict[str, Any] = {"tokenizer": spec, "pretrained": spec} if spec else {}
        metadata |= {LENGTHS: []} if request.lengths else {}
        if self.asked.endswith(FILES) and not _is_file(self.asked):
            raise UserError(f"--tasks lm_eval:{self.asked}: there is no such file")
        manager = TaskManager(include_defaults=not _is_file(self.asked), metadata=metadata)
        if not _is_file(self.asked) and self.asked not in manager.all_tasks:
            raise unknown("lm_eval task", self.asked, manager.all_tasks)
        seeds = _seeds(request.seed)
        sizes = Sizes(manager, metadata, request.lengths)
        for member in _members(manager, self.asked):
            sizes.load(member, lambda: _seeded(seeds))
        # those that failed count too: once their data are there, the same command goes on
        self.version = sum(map(_number, sizes.versions.values())) + len(sizes.sized)
        return sizes

    def _chance(self, part: Part) -> float:
        if part.task.OUTPUT_TYPE != "multiple_choice":
            return 0.0
        return 1 / max(1, len(part.asked(0)))


def _part(task: Any, request: Request) -> tuple[Part, str]:
    """A leaf task with its number of examples; and why that is not the one asked for, "" where it is."""
    (asked,), own = request.knobs.get("num_fewshot", (NONE,)), task.config.num_fewshot
    if not isinstance(asked, int) or asked < NONE:
        raise UserError(f"--set num_fewshot={asked} is no number of examples")
    kept = asked not in (NONE, 0) and own == 0
    shots = (own or 0) if asked == NONE or kept else asked
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=_seeds(request.seed)[3])
    return Part(task, shots, task.eval_docs), f"it takes none, and is asked without, not with {asked}" if kept else ""


def _members(manager: Any, name: str) -> list[str]:
    """The names of a group or tag, one by one where nothing but its list of names makes it a group."""
    entry = manager.task_index.get(name)
    if entry is None or not (entry.tags or isinstance((entry.cfg or {}).get("task"), list)):
        return [name]
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    plain = {"group", "group_alias", "task", "tag", "aggregate_metric_list", "metadata"}
    names = entry.cfg["task"]
    if entry.kind.name != "GROUP" or entry.cfg.keys() - plain or not all(isinstance(one, str) for one in names):
        return [name]
    return [leaf for one in names for leaf in _members(manager, one)]


def _key(request: Request) -> tuple[Any, ...]:
    return (request.seed, request.lengths, tuple(sorted((k, tuple(v)) for k, v in request.knobs.items())))


def _is_file(name: str) -> bool:
    return name.endswith(FILES) and Path(name).expanduser().is_file()


def _version() -> str:
    try:
        return version("lm_eval")
    except ModuleNotFoundError as error:
        raise UserError("lm_eval is not installed; pip install 'evalsuite[lm-eval]'") from error


def _at(name: str, length: int) -> str:
    return f"{name} (length={length})" if length else name


def _seeds(seed: int) -> tuple[int, int, int, int]:
    return (seed, seed, seed, seed) if seed else SEEDS


def _number(said: object) -> int:
    """`2.1` -> 210: a task's version as a whole number."""
    try:
        return round(100 * float(ast.literal_eval(str(said))))
    except (ValueError, SyntaxError, TypeError):
        return 0


@contextlib.contextmanager
def _seeded(seeds: tuple[int, int, int, int] = SEEDS) -> Iterator[None]:
    """lm_eval's seeds meanwhile, and its tasks' own modules anew: some draw their data from the global generators, some
    from a generator of their module, which then depends on what was made before."""
    import random

    import numpy as np
    import torch

    for name in [name for name, module in sys.modules.items() if hasattr(module, "__mtime__")]:
        del sys.modules[name]  # lm_eval marks so what it loads for a YAML file
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 - lm_eval's tasks draw from these
    theirs = logging.getLogger("lm_eval")
    level = theirs.level
    try:
        theirs.setLevel(logging.ERROR)
        with torch.random.fork_rng(devices=[]):
            random.seed(seeds[0])
            np.random.seed(seeds[1])  # noqa: NPY002
            torch.manual_seed(seeds[2])
            yield
    finally:
        theirs.setLevel(level)
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
