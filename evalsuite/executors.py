"""Where a run is computed: in this process, in the ranks that torchrun starts, or wherever a plugin takes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from evalsuite import models, plan, runner
from evalsuite.errors import UserError, unknown
from evalsuite.models.base import Model
from evalsuite.plan import Gap, Plan
from evalsuite.progress import Reporter, Silent
from evalsuite.ranks import World, deal, digest
from evalsuite.records import Completion, Sample, Score
from evalsuite.runner import Sink
from evalsuite.store import Key, Row, Run, Store, agree, folder_name
from evalsuite.task import Task

GROUP = "evalsuite.executors"


@dataclass(frozen=True, slots=True)
class Order:
    """What a run is asked to do: every model of `specs` on the plan that `asked` makes in its wording."""

    specs: Sequence[str]
    asked: Mapping[str, Any]  # arguments of plan.select
    wording: str  # "" for each model's own
    out: str
    must_exist: bool = False
    device: str = "auto"
    dtype: str = "auto"
    kernels: str = "auto"
    unsandboxed: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The runs by the model's name, and lines about what no model could be asked."""

    runs: dict[str, Run] = field(default_factory=dict)
    over: list[str] = field(default_factory=list)

    def keep(self, name: str, finish: Callable[[], Run | None]) -> None:
        """The run that `finish` gives, complete even where a length is over the model's context."""
        try:
            run = finish()
        except runner.OverContextError as error:
            self.over.append(str(error))
            run = error.run
        if run is not None:
            self.runs[name] = run


Executor = Callable[[Order, Reporter], Outcome]  # raises UserError; all that was answered is stored


def load(name: str) -> Executor:
    """The executor of that name, from the entry-point group `evalsuite.executors`."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        raise unknown("executor", name, found)
    executor: Executor = found[name].load()
    return executor


def local(order: Order, reporter: Reporter, world: World) -> Outcome:
    """Run every model in turn in this process; of several ranks, rank 0 alone has runs to show."""
    selection = plan.select(**order.asked)
    outcome, names = Outcome(), set[str]()
    for spec in order.specs:
        model = models.load(spec, device=world.device(order.device), dtype=order.dtype, kernels=order.kernels)
        if model.name in names:
            raise UserError(f"two of the models are called {model.name!r}; run them with different --out")
        names.add(model.name)
        made = plan.make(selection, order.wording or model.wording)
        outcome.keep(model.name, lambda model=model, made=made: _run(model, made, order, reporter, world))  # type: ignore[misc]
        del model  # its memory is free before the next comes
    return outcome


def _run(model: Model, made: Plan, order: Order, reporter: Reporter, world: World) -> Run | None:
    if world.size == 1:
        return runner.run(model, made, order.out, must_exist=order.must_exist, reporter=reporter)
    if world.leads:
        return _lead(model, made, order, reporter, world)
    _follow(model, made, order, world)
    return None


@dataclass(frozen=True, slots=True)
class Shadow:
    """Where a rank that holds a part of a model leaves its answers: nowhere, because rank 0 has the same ones. What is
    stored already it does not ask either, so that all parts are always asked the same."""

    folder: Path
    done: Mapping[Key, str]

    def append(self, row: Row) -> None:
        """Nothing."""

    def append_timing(self, timing: Mapping[str, Any]) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Unjudged:
    """A task whose answers rank 0 judges: of what a model wrote, nothing is run once for every part of it."""

    task: Task

    def sample(self, *asked: Any) -> Sample:
        """The task's own."""
        return self.task.sample(*asked)

    def score(self, sample: Sample, _: Completion) -> Score:
        """None that is kept."""
        return Score(sample.id, 0.0)


def _lead(model: Model, made: Plan, order: Order, reporter: Reporter, world: World) -> Run:
    """Deal the plan to all ranks, ask the first share, and finish the folder when the others are done. Ranks that hold
    one model together are each asked everything."""
    folder = Path(order.out) / folder_name(model.name)
    with Store.open(folder, runner.describe(model, made), must_exist=order.must_exist) as store:
        told: dict[str, Any] = {"sitting": store.sitting, "plan": digest(made.items)}
        if _together(model, world):
            dealt = [list(range(len(made.items)))] * world.size
            told["done"] = [[*key, prompt] for key, prompt in store.done.items()]
        else:
            dealt = deal(made.items, world.size, lambda task, name: (task, name) in store.done)
        told["dealt"] = dealt
        world.tell(f"start-{folder.name}", told)
        try:
            gaps = _ask(model, made, dealt[0], store, reporter, world)
            for rank in range(1, world.size):
                said = world.hear(f"end-{folder.name}-{rank}", rank)
                gaps += [Gap(**gap) for gap in said["gaps"]]
                store.remember({}, said["ran"])
            store.gather()
            made.merge(gaps)
        finally:
            store.remember(made.missing, runner.ran(model))
        return runner.conclude(store, made, model.context)


def _follow(model: Model, made: Plan, order: Order, world: World) -> None:
    """Ask this rank's share, and tell rank 0 what was missing."""
    folder = Path(order.out) / folder_name(model.name)
    told = world.hear(f"start-{folder.name}", 0)
    if told["plan"] != digest(made.items):
        raise UserError(f"rank {world.rank} would ask other questions than rank 0; install one version everywhere")
    places, described = told["dealt"][world.rank], runner.describe(model, made)
    if _together(model, world):
        agree(folder, described, world.rank)
        done = {(task, name): prompt for task, name, prompt in told["done"]}
        items = tuple(replace(item, task=Unjudged(item.task)) for item in made.items)  # type: ignore[arg-type]
        same = Plan(items, made.missing, made.selection, made.wording)
        gaps = _ask(model, same, places, Shadow(folder, done), Silent(), world)
    else:
        with Store.join(folder, described, world.rank, told["sitting"]) as store:
            gaps = _ask(model, made, places, store, Silent(), world)
    said = {"gaps": [asdict(gap) for gap in gaps], "ran": dict(runner.ran(model))}
    world.tell(f"end-{folder.name}-{world.rank}", said)


def _together(model: Model, world: World) -> bool:
    """Whether all ranks hold one model. Raises UserError where only some of them would."""
    ranks: int = getattr(model, "together", 1)
    if ranks not in (1, world.size):
        raise UserError(f"{model.name} is spread over {ranks} ranks of {world.size}; start as many as hold one model")
    return ranks > 1


def _ask(model: Model, made: Plan, places: Sequence[int], store: Sink, reporter: Reporter, world: World) -> list[Gap]:
    """Ask the items at some places; what was missing there."""
    part = made.part(places)
    called = f"{model.name}, rank {world.rank} of {world.size}"
    runner.ask(model, part, store, reporter, alive=world.check, called=called)
    return [replace(gap, place=places[gap.place]) for gap in part.gaps]
