"""`--executor ray`: a run spread over the machines of a Ray cluster, one actor for each GPU, or CPU where none is.

A queue deals here and no rule, for workers come, go, and differ in speed. The driver alone writes the runs' folders:
workers stream every answer to it as soon as it is scored, so that a dead worker loses only what it had not sent, the
shard's rest is given to another, and no answer can be stored twice.
"""

import contextlib
import importlib
import logging
import math
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from evalsuite import plan, runner
from evalsuite.errors import UserError
from evalsuite.executors import Order, Outcome
from evalsuite.integrations.ray_worker import Worker
from evalsuite.meta import changes, differences, typed
from evalsuite.models import GROUP
from evalsuite.models.presets import PRESETS
from evalsuite.plan import Gap, Plan
from evalsuite.progress import Reporter
from evalsuite.ranks import NEXT, digest, texts
from evalsuite.store import Key, Store, folder_name

PLACES = ("pretrained", "tokenizer", "peft", "delta")  # arguments of a backend that may be folders
RETRIES = 3  # deaths that a shard is given to another worker after
START = 600.0  # seconds within which some worker has to start, or the cluster to have room for one
WIDTH = 4  # shards for each worker, at least: so much of its work may be left when the others are done
POLL = 1.0


@dataclass(slots=True)
class _Shard:
    """Places of one model's plan that one worker is given. None at all: it loads the model and says what it is."""

    spec: str
    name: str
    places: Sequence[int] = ()
    done: dict[Key, str] = field(default_factory=dict)  # what was received of it
    kept: int = 0  # so many of them from workers that died
    deaths: int = 0


@dataclass(slots=True)
class _Hand:
    """A worker as the driver sees it: coming, idle (no stream), or busy with a shard."""

    actor: Any
    number: int
    stream: Any
    where: str = ""
    spec: str = ""
    shard: _Shard | None = None


@dataclass(slots=True)
class _Job:
    """One model's run."""

    store: Store
    made: Plan
    context: int
    done: Any  # what was stored when it began, in Ray's object store
    versions: Mapping[str, str]  # of what computes, on the first worker
    left: int = 0  # shards
    gaps: list[Gap] = field(default_factory=list)

    def remember(self) -> None:
        self.made.merge(self.gaps)
        self.store.remember(self.made.missing, {})


def run(order: Order, reporter: Reporter) -> Outcome:
    """Run an order on the cluster that `RAY_ADDRESS` names, or that this machine belongs to.

    Raises UserError where Ray or a cluster is missing, where a worker is not like the others, what the runner raises,
    and where a shard was lost with its worker more than RETRIES times.
    """
    if order.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {order.device}: Ray gives each worker its GPU; leave --device out")
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # where Ray prints who has died
        ray, own = _connect()
        if own:
            stack.callback(ray.shutdown)
        driver = _Driver(ray, _absolute(order), reporter, stack)
        stack.callback(driver.dismiss)
        return driver.run()


def _absolute(order: Order) -> Order:
    """The order with whole paths of checkpoints, tokenizers, tasks and data: workers stand in other folders."""
    asked = dict(order.asked)
    for name, whole in (("names", _task), ("data", _data), ("settings", _setting)):
        if name in asked:
            asked[name] = [whole(given) for given in asked[name]]
    return replace(order, specs=[_model(spec) for spec in order.specs], asked=asked)


def _model(spec: str) -> str:
    """As `models.load` reads it: a plugin goes before a folder of the same name."""
    name, colon, arguments = spec.partition(":")
    if not colon:
        own = spec in PRESETS or spec in {entry.name for entry in entry_points(group=GROUP)}
        return str(Path(spec).expanduser().resolve()) if not own and Path(spec).expanduser().is_dir() else spec
    pairs = [pair.partition("=") for pair in arguments.split(",")]
    return f"{name}:" + ",".join(f"{key}{equals}{_path(at) if key in PLACES else at}" for key, equals, at in pairs)


def _task(name: str) -> str:
    source, colon, file = name.partition(":")
    return f"{source}:{_path(file)}" if colon and file.endswith((".yaml", ".yml")) else name


def _data(given: str) -> str:
    name, equals, path = given.partition("=")
    hub = path == "hub" or path.startswith("hub:")
    return given if hub else f"{name}{equals}{os.path.abspath(os.path.expanduser(path))}"


def _setting(given: str) -> str:
    knob, equals, value = given.partition("=")
    return f"{knob}{equals}{_path(value)}" if knob.endswith(".tokenizer") else given


def _path(text: str) -> str:
    """The whole path of what is here; what is not here may be a name of the hub's."""
    path = os.path.abspath(os.path.expanduser(text))
    return path if text and os.path.exists(path) else text


def _connect() -> tuple[Any, bool]:
    """Ray, connected to a cluster, and whether it was connected here."""
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UserError("--executor ray needs Ray: pip install 'evalsuite[ray]'") from None
    if ray.is_initialized():
        return ray, False
    try:
        host, _, port = os.environ.get("RAY_ADDRESS", "").rpartition(":")
        if port.isdecimal() and "/" not in host:  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:  # a ConnectionError is an OSError
        raise UserError(
            "--executor ray finds no running Ray cluster; start one with `ray start --head`, or set RAY_ADDRESS "
            f"({_line(error)})"
        ) from error
    return ray, True


class _Driver:
    """Gives shards to workers, stores what they send, and finishes each run."""

    def __init__(self, ray: Any, order: Order, reporter: Reporter, stack: contextlib.ExitStack) -> None:
        self.ray, self.order, self.reporter, self.stack = ray, order, reporter, stack
        self.jobs: dict[str, _Job] = {}
        self.hands: list[_Hand] = []
        self.outcome = Outcome()
        self.hired = self.failures = 0
        self.heard = time.monotonic()

    def run(self) -> Outcome:
        """All models are described first: the longest shards of all are then asked first."""
        order = self.order
        self._work(deque(_Shard(spec, f"loading {spec}") for spec in order.specs))
        shards = sorted((shard for spec in order.specs for shard in self._shards(spec)), key=lambda each: each[0])
        self.reporter.begin(
            ", ".join(job.store.meta["model"] for job in self.jobs.values()),
            sum(len(job.made.items) for job in self.jobs.values()),
        )
        try:
            self._work(deque(shard for _, shard in shards))
        finally:
            self.reporter.end()
        names = [self.jobs[spec].store.meta["model"] for spec in order.specs]
        return Outcome({name: self.outcome.runs[name] for name in names}, self.outcome.over)

    def dismiss(self) -> None:
        """Let all workers go."""
        for hand in self.hands:
            with contextlib.suppress(Exception):
                self.ray.kill(hand.actor)
        self.hands.clear()

    def _shards(self, spec: str) -> Iterator[tuple[int, _Shard]]:
        """The plan in shards of whole texts, each of one task and length, with minus that length."""
        job = self.jobs[spec]
        size = min(runner.SLICE, math.ceil(len(job.made.items) / max(WIDTH * self._capacity()[0], 1)))
        found: list[tuple[tuple[int, str], list[int]]] = []
        for (_, task, length, _), places in texts(job.made.items):
            if not found or len(found[-1][1]) >= size or found[-1][0] != (-length, task):
                found.append(((-length, task), []))
            found[-1][1].extend(places)
        job.left = len(found)
        for number, ((length, _), places) in enumerate(found, 1):
            first = job.made.items[places[0]]
            about = f"{len(places)} samples from {plan.describe(first.cell)}, question {first.index} on"
            yield length, _Shard(spec, f"shard {number} of {len(found)} of {job.store.meta['model']} ({about})", places)

    def _work(self, shards: deque[_Shard]) -> None:
        while shards or any(hand.shard for hand in self.hands):
            self._hire(len(shards))
            for hand in self.hands:
                if hand.stream is None and shards:
                    self._give(hand, shards)
            waiting = {hand.stream: hand for hand in self.hands if hand.stream is not None}
            ready = self.ray.wait(list(waiting), num_returns=1, timeout=POLL)[0] if waiting else []
            if not waiting:
                time.sleep(POLL)
            for stream in ready:
                self._receive(waiting[stream], shards)
                self.heard = time.monotonic()
            if not any(hand.shard for hand in self.hands) and time.monotonic() - self.heard > START:
                room = ", ".join(f"{value:g} {name}" for name, value in self._room().items()) or "nothing"
                raise UserError(f"no worker started within {START:g} s; the cluster has {room}, or is busy; {NEXT}")

    def _hire(self, shards: int) -> None:
        """New workers for shards that nobody has, as far as the cluster has room now."""
        needed = sum(hand.shard is not None for hand in self.hands) + shards
        if len(self.hands) >= needed:
            return
        count, options = self._capacity()
        actor = self.ray.remote(Worker)
        while len(self.hands) < min(needed, count):
            # a worker is replaced here, not by Ray: what it had answered is known here alone
            made = actor.options(**options, max_restarts=0, max_task_retries=0).remote(self.order)
            self.hands.append(_Hand(made, self.hired, made.where.remote()))
            self.hired += 1

    def _give(self, hand: _Hand, shards: deque[_Shard]) -> None:
        """A shard of the model that the worker has loaded, else the next one."""
        shard = next((each for each in shards if each.spec == hand.spec), shards[0])
        shards.remove(shard)
        job = self.jobs.get(shard.spec)
        done = job.done if job else {}
        if shard.done:  # of this shard's, another worker sent these before it died
            done = {**self.ray.get(done), **shard.done}
        shard.kept, hand.shard, hand.spec = len(shard.done), shard, shard.spec
        hand.stream = hand.actor.answer.options(num_returns="streaming").remote(shard.spec, shard.places, done)

    def _receive(self, hand: _Hand, shards: deque[_Shard]) -> None:
        errors = self.ray.exceptions
        try:
            if hand.shard is None:
                hand.where, hand.stream = self.ray.get(hand.stream), None
                self.failures = 0
                return
            kind, value = self.ray.get(next(hand.stream))
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from error
            name = hand.shard.name if hand.shard else "a worker"
            where = f" on {hand.where}" if hand.where else ""
            raise UserError(f"{name} failed{where}: {type(cause).__name__}: {_line(cause)}; {NEXT}") from error
        except (errors.RayError, StopIteration) as error:  # a stream that ends without "end" is lost too
            self._lost(hand, shards, error)
        else:
            self._keep(hand, hand.shard, kind, value)

    def _lost(self, hand: _Hand, shards: deque[_Shard], error: Exception) -> None:
        """A worker is dead, or is to be: its shard is another's."""
        self.hands.remove(hand)
        with contextlib.suppress(Exception):
            self.ray.kill(hand.actor)
        if hand.shard is None:
            self.failures += 1
            if self.failures > RETRIES:
                raise UserError(f"{self.failures} workers died as they started, at last: {_line(error)}; {NEXT}")
            return
        hand.shard.deaths += 1
        if hand.shard.deaths > RETRIES:
            raise UserError(
                f"{hand.shard.name} was lost with its worker {hand.shard.deaths} times, at last: {_line(error)}; {NEXT}"
            )
        shards.appendleft(hand.shard)

    def _keep(self, hand: _Hand, shard: _Shard, kind: str, value: Any) -> None:
        if kind == "model":
            self._meet(hand, shard, value)
            return
        job = self.jobs[shard.spec]
        if kind == "row":
            key = (value["task"], value["id"])
            if key in job.store.done:
                raise UserError(f"task {key[0]} made two samples with the id {key[1]!r}: a fault of that task")
            job.store.append(value)
            shard.done[key] = value["prompt_hash"]
            self.reporter.add(value)
        elif kind == "timing":
            job.store.append_timing({**value, "rank": hand.number})
        else:
            self._end(hand, shard, value)

    def _end(self, hand: _Hand, shard: _Shard, value: Mapping[str, Any]) -> None:
        """A shard is done, whatever becomes of its worker now."""
        hand.shard = hand.stream = None
        if shard.places:
            job = self.jobs[shard.spec]
            job.gaps += [Gap(**gap) for gap in value["gaps"]]
            job.store.remember({}, value["ran"])
            for _ in range(value["skipped"] - shard.kept):
                self.reporter.skip()
            job.left -= 1
            if not job.left:
                self._finish(job)

    def _meet(self, hand: _Hand, shard: _Shard, about: dict[str, Any]) -> None:
        """What a worker says of itself; the first to load a model opens its run."""
        job, order = self.jobs.get(shard.spec), self.order
        if job is not None:
            found = changes(job.store.meta, about["meta"])
            found += differences(job.versions, _versions(about))
            found += [] if about["plan"] == digest(job.made.items) else ["its plan: install one version everywhere"]
            if found:
                raise UserError(f"the worker on {hand.where} is not like the others: it differs in {'; '.join(found)}")
            return
        if about["name"] in {each.store.meta["model"] for each in self.jobs.values()}:
            raise UserError(f"two of the models are called {about['name']!r}; run them with different --out")
        about["meta"]["requests"][0]["command"] = typed(sys.argv)  # the worker's is Ray's own
        folder = Path(order.out) / folder_name(about["name"])
        store = self.stack.enter_context(Store.open(folder, about["meta"], must_exist=order.must_exist))
        made = plan.make(plan.select(**order.asked), about["wording"])
        job = _Job(store, made, about["context"], self.ray.put(dict(store.done)), _versions(about))
        if about["plan"] != digest(made.items):
            raise UserError(f"the worker on {hand.where} has another plan; install one version everywhere")
        self.jobs[shard.spec] = job
        self.stack.callback(lambda: job.remember() if job.left else None)

    def _finish(self, job: _Job) -> None:
        job.remember()
        name = job.store.meta["model"]
        self.outcome.keep(name, lambda: runner.conclude(job.store, job.made, job.context))
        job.store.close()

    def _capacity(self) -> tuple[int, dict[str, float]]:
        """How many workers the cluster has room for, and what each takes."""
        room = self._room()
        if room.get("GPU") and self.order.device != "cpu":
            return int(room["GPU"]), {"num_gpus": 1, "num_cpus": 1}
        return int(room.get("CPU", 0)), {"num_cpus": 1}

    def _room(self) -> dict[str, float]:
        return {name: value for name, value in self.ray.cluster_resources().items() if name in ("CPU", "GPU")}


def _versions(about: Mapping[str, Any]) -> dict[str, str]:
    """Versions of what computes a worker's answers; Python's own computes none."""
    told = about["meta"]["requests"][0]["versions"]
    return {f"version of {name}": value for name, value in told.items() if name != "python"}


def _line(error: BaseException | None) -> str:
    """The first line of what an error says."""
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())[:200]
