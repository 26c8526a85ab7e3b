"""Drives a plan through one model: every completion is scored and stored as it comes."""

import hashlib
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import evalsuite
from evalsuite import compare
from evalsuite.errors import UserError
from evalsuite.meta import typed
from evalsuite.models.base import Model
from evalsuite.plan import Item, Plan
from evalsuite.progress import Reporter, Silent
from evalsuite.records import Completion, Sample, Score
from evalsuite.revision import revision
from evalsuite.store import FORMAT, Key, Row, Run, Store, folder_name, make_row, read
from evalsuite.task import Executing, Measured, Sourced, Task, uses

SLICE = 256  # samples handed to the model at once
SLICE_CHARACTERS = 8_000_000  # and no more text than this
POOL = 64  # answers of a task that runs code, judged together

Planned = tuple[Item, Sample]


class Sink(Protocol):
    """Where answers go: a store, or a worker's way to one."""

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        ...

    @property
    def done(self) -> Mapping[Key, str]:
        """What is stored -> its prompt's hash."""
        ...

    def append(self, row: Row) -> None:
        """Keep one answered sample."""
        ...

    def append_timing(self, timing: Mapping[str, Any]) -> None:
        """Keep one slice's tokens and seconds."""
        ...


class OverContextError(UserError):
    """No sample of some length fits the model. Everything is stored and finished: `run`."""

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


def run(
    model: Model, plan: Plan, out: str | os.PathLike[str], *, must_exist: bool = False, reporter: Reporter | None = None
) -> Run:
    """Ask the model every sample of the plan that `out`/<model> does not hold yet, and finish the folder.

    Raises UserError where the folder belongs to another run or cannot be written, where a stored sample was asked in
    other words, where the model breaks the protocol, and, once everything is stored, OverContextError where all samples
    of a length are over the model's context. Whatever was answered before an error or an interrupt stays.
    """
    with Store.open(Path(out) / folder_name(model.name), describe(model, plan), must_exist=must_exist) as store:
        try:
            ask(model, plan, store, reporter or Silent())
        finally:
            store.remember(plan.missing, ran(model))
        return conclude(store, plan, model.context)


def ask(
    model: Model, plan: Plan, store: Sink, reporter: Reporter, *, alive: Callable[[], None] | None = None,
    called: str = "",
) -> None:  # fmt: skip
    """Ask, score and store every sample of the plan that is not stored; `alive` raises where it is not worth going on.

    Raises UserError as `run` does.
    """
    began = time.perf_counter()
    reporter.begin(called or model.name, len(plan.items))
    try:
        for part in _slices(_open(plan, model, store, reporter)):
            if alive is not None:
                alive()
            _ask(model, part, store, reporter)
        store.append_timing({"wall": time.perf_counter() - began})
    finally:
        reporter.end()


def conclude(store: Store, plan: Plan, context: int) -> Run:
    """Finish a folder whose plan has been asked. Raises UserError and OverContextError as `run` does."""
    name = store.meta["model"]
    if plan.missing and not store.done:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in plan.missing.items())
        raise UserError(f"no question could be made for {name}: {reasons}")
    result = read(store.folder)
    store.finish(result.rows, compare.summary(result))
    over = _over_context(result.rows, plan, context)
    if over:
        lengths = ", ".join(map(str, sorted(over)))
        raise OverContextError(
            f"length {lengths} is over the context of {name} ({context} tokens): all {sum(over.values())} "
            f"samples count as errors; ask for --lengths up to {context}",
            result,
        )
    return result


def ran(model: Model) -> Mapping[str, list[str]]:
    """Operator -> implementations that answered so far, of a model that tells."""
    told: Mapping[str, list[str]] = getattr(model, "ran", dict)()
    return told


def describe(model: Model, plan: Plan) -> dict[str, Any]:
    """What run.json holds: everything that is needed to repeat the run."""
    selection = plan.selection
    tasks = {
        name: {
            "version": task.version,
            "seed": selection.seed,
            "wording": plan.wording,
            "licence": task.licence,
            "source": task.source,
            "subtasks": list(task.subtasks()),
            "data": _data({key: path for key, path in selection.data.items() if uses(task, key)}, task),
            **({"tier": task.tier()} if isinstance(task, Executing) else {}),
            **({"higher_is_better": task.higher_is_better()} if isinstance(task, Measured) else {}),
        }
        for name, task in selection.tasks.items()
    }
    lengths = sorted({int(i.cell.facets["length"]) for i in plan.items if "length" in i.cell.facets})
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    request = {
        "tasks": {name: list(selection.subtasks[name]) for name in selection.tasks},
        "lengths": list(selection.lengths),
        "limit": selection.limit,
        "seed": selection.seed,
        "wording": plan.wording,
        "knobs": {owner: {k: list(v) for k, v in knobs.items()} for owner, knobs in selection.knobs.items()},
        "data": dict(selection.data),
        "time": now,
        "command": typed(sys.argv),
        "versions": {**_versions(), **getattr(model, "versions", dict)()},
        "revision": revision(),
    }
    return {
        "format": FORMAT,
        "model": model.name,
        "created": f"{time.time():.3f}",
        "identity": dict(model.identity()),
        "context": model.context,
        "tasks": tasks,
        "missing": dict(plan.missing),
        "cost": {str(length): dict(model.cost(length)) for length in lengths if model.cost(length)},
        "requests": [request],
    }


def _data(given: Mapping[str, str], task: Task) -> dict[str, str]:
    """What each source holds: the hub's revision, or a hash of the files."""
    told = task.revisions(given) if isinstance(task, Sourced) else {}
    return {name: told.get(name) or _fingerprint(path) for name, path in given.items()}


def _fingerprint(path: str) -> str:
    """What a file, or every file of a folder, holds: 16 hex digits."""
    root = Path(path)
    if path == "hub" or not root.exists():
        return path
    state = hashlib.blake2b(digest_size=8)
    for file in sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]:
        state.update(f"{file.relative_to(root)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            while part := content.read(2**20):
                state.update(part)
    return state.hexdigest()


def _open(plan: Plan, model: Model, store: Sink, reporter: Reporter) -> Iterator[Planned]:
    """The planned samples that are not stored. Raises UserError where a stored one was asked in other words."""
    for item, sample in plan.samples(model.count):
        stored = store.done.get((sample.task, sample.id))
        if stored is None:
            yield item, sample
        elif stored != sample.prompt_hash:
            raise UserError(
                f"{store.folder} holds {sample.id} with another prompt: its data or the model's tokenizer has changed; "
                "take another --out"
            )
        else:
            reporter.skip()


def _slices(planned: Iterable[Planned]) -> Iterator[list[Planned]]:
    """Cut the plan for the model, never between samples of one text."""
    part: list[Planned] = []
    size = 0
    for item, sample in planned:
        apart = bool(part) and (item.index, item.family) != (part[-1][0].index, part[-1][0].family)
        if apart and (len(part) >= SLICE or size >= SLICE_CHARACTERS):
            yield part
            part, size = [], 0
        part.append((item, sample))
        size += len(sample.text)
    if part:
        yield part


def _ask(model: Model, part: list[Planned], store: Sink, reporter: Reporter) -> None:
    """One slice: ask, score, store. Raises UserError where the model's answers do not match the questions."""
    open_items: dict[str, Planned] = {}
    for item, sample in part:
        completion = _no_text(sample) or _too_long(model, item, sample)
        if completion is None:
            if sample.id in open_items:
                raise UserError(f"tasks {open_items[sample.id][1].task} and {sample.task} share the id {sample.id!r}")
            open_items[sample.id] = (item, sample)
        else:
            _keep(item, sample, completion, store, reporter)
    asked = set(open_items)
    if not asked:
        return
    waiting: list[tuple[Planned, Completion]] = []
    before, started = asdict(model.speed), time.perf_counter()
    try:
        for completion in model.answer([sample for _, sample in open_items.values()]):
            if completion.sample_id not in open_items:
                twice = "twice" if completion.sample_id in asked else "without being asked"
                raise UserError(
                    f"{model.name} answered {completion.sample_id!r} {twice}: a fault of that model's backend"
                )
            waiting.append((open_items.pop(completion.sample_id), _numbers(completion)))
            if not isinstance(waiting[-1][0][0].task, Executing) or len(waiting) >= POOL:
                _judge(waiting, store, reporter)
    finally:  # what was answered before an error stays
        _judge(waiting, store, reporter)
    after = asdict(model.speed)
    store.append_timing(
        {
            "samples": len(asked),
            "seconds": time.perf_counter() - started,
            **{name: after[name] - before[name] for name in after},
        }
    )
    if open_items:
        raise UserError(
            f"{model.name} left {len(open_items)} of {len(asked)} samples unanswered, "
            f"{next(iter(open_items))!r} for one: a fault of that model's backend"
        )


def _judge(waiting: list[tuple[Planned, Completion]], store: Sink, reporter: Reporter) -> None:
    """Score and store what waits: together where a task runs code, else one by one."""
    pool = list(waiting)
    waiting.clear()  # what cannot be judged is not tried again while the error is on its way
    scores: dict[str, Score] = {}
    for task in {id(item.task): item.task for (item, _), _ in pool}.values():
        if isinstance(task, Executing):
            own = [(s, c) for (item, s), c in pool if item.task is task and not _failed(c)]
            scores |= {sample.id: score for (sample, _), score in zip(own, task.scores(own), strict=True)}
    for (item, sample), completion in pool:
        _keep(item, sample, completion, store, reporter, scores.get(sample.id))


def _numbers(completion: Completion) -> Completion:
    """Log probabilities that are none rank nothing: the first choice would count as chosen."""
    if not any(map(math.isnan, completion.choice_logprobs)):
        return completion
    error = "log probabilities are not numbers (NaN): another --dtype may hold the model's values"
    return replace(completion, text="", choice_logprobs=(), finish="error", error=error)


def _failed(completion: Completion) -> bool:
    return completion.finish == "error" or bool(completion.error)


def _keep(
    item: Item, sample: Sample, completion: Completion, store: Sink, reporter: Reporter, score: Score | None = None
) -> None:
    if score is None:
        score = Score(sample.id, 0.0) if _failed(completion) else item.task.score(sample, completion)
    if sample.choices and not completion.choice_logprobs and not _failed(completion):
        score = replace(
            score, detail={**score.detail, "choices": "generated"}
        )  # another measure than log probabilities
    if not 0 <= score.value <= 1:
        raise UserError(f"task {sample.task} scored {sample.id!r} {score.value}, outside [0, 1]: a fault of that task")
    row = make_row(sample, completion, score, cell=item.cell.facets, chance=item.cell.chance)
    store.append(row)
    reporter.add(row)


def _no_text(sample: Sample) -> Completion | None:
    """The error of a question that is no text: no tokenizer and no server reads it, and the next may be sound."""
    try:
        "".join((sample.text, *sample.choices)).encode()
    except UnicodeEncodeError as error:
        return Completion(sample.id, "", 0, finish="error", error=f"the prompt is no valid Unicode: {error.reason}")
    return None


def _too_long(model: Model, item: Item, sample: Sample) -> Completion | None:
    """The error of a sample that cannot fit; a length within the context needs no count, its task kept to it."""
    length = item.cell.facets.get("length", 0)
    if isinstance(length, int) and 0 < length <= model.context:
        return None
    if not length and len(sample.text.encode(errors="replace")) + sample.max_new_tokens < model.context:
        return None  # no tokenizer makes more tokens than bytes
    tokens = model.count(sample.text)
    answer = max((model.count(c) for c in sample.choices), default=sample.max_new_tokens)
    if tokens + answer <= model.context:
        return None
    more = "" if tokens > model.context else f" + answer {answer}"
    return Completion(
        sample.id, "", tokens, finish="error", error=f"prompt {tokens} tokens{more} > context {model.context}"
    )


def _over_context(rows: Iterable[Row], plan: Plan, context: int) -> Counter[int]:
    """Lengths of this plan of which no sample fits the model, with how many samples there are."""
    lengths = {int(item.cell.facets.get("length", 0)) for item in plan.items}
    if all(0 < length <= context for length in lengths):
        return Counter()
    every: Counter[int] = Counter()
    failed: Counter[int] = Counter()
    for row in rows:
        length = int(row["facets"].get("length", 0))
        every[length] += 1
        failed[length] += "> context" in row["error"]
    return Counter({length: every[length] for length in lengths if length and every[length] == failed[length] > 0})


def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version(), "evalsuite": evalsuite.__version__}
    for name in ("torch", "transformers", "triton", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
