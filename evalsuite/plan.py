"""Tasks x lengths x limit x seed -> an ordered plan of samples. Pure: no model in sight."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from evalsuite import task as tasks
from evalsuite.errors import UserError, unknown
from evalsuite.records import Facet, Sample
from evalsuite.task import Cell, Count, Request, Task

Knobs = Mapping[str, tuple[Facet, ...]]
WORDINGS = ("natural", "terse")
UNITS = {"": 1, "k": 1024, "m": 1024**2}


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user asked for, checked against the installed tasks; the same for every model."""

    tasks: Mapping[str, Task]  # family name -> the family
    subtasks: Mapping[str, tuple[str, ...]]  # family name -> chosen parts; (): it has none or all are chosen
    lengths: tuple[int, ...] = ()  # tokens; (): each family's own
    limit: int = 100  # samples in each cell
    seed: int = 0
    knobs: Mapping[str, Knobs] = field(default_factory=dict)  # "multihop" or "multihop.graph" -> knob -> values
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """One planned sample, not built yet."""

    family: str
    task: Task
    cell: Cell
    index: int
    request: Request


@dataclass(frozen=True, order=True, slots=True)
class Gap:
    """An item that is no sample: its place in the plan, and why; with no reason, its cell has no more questions."""

    place: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Every sample that one model will be asked, in order, and what cannot be asked with the reason."""

    items: tuple[Item, ...]
    missing: dict[str, str]
    selection: Selection
    wording: str
    gaps: list[Gap] = field(init=False, default_factory=list)  # met by `samples` so far

    def samples(self, count: Count) -> Iterator[tuple[Item, Sample]]:
        """Build the samples one by one, fitted with the model's token `count`.

        A question that cannot be made (UserError) is counted in `missing` under its cell; an IndexError says that a
        cell has no more questions, which `missing` says too. Raises UserError where two samples of a task share an id.
        """
        ended: set[int] = set()
        skipped: Counter[int] = Counter()
        seen: dict[tuple[str, str], Item] = {}
        for place, item in enumerate(self.items):
            if id(item.cell) in ended:
                continue
            try:
                sample = item.task.sample(item.cell, item.index, item.request, count)
            except IndexError:
                ended.add(id(item.cell))
                self._note(Gap(place), skipped)
                continue
            except UserError as error:  # this question alone: the next may be shorter
                self._note(Gap(place, str(error) or "no reason given"), skipped)
                continue
            key = (sample.task, sample.id)
            if key in seen:
                raise UserError(f"task {sample.task} made two samples with the id {sample.id!r}: a fault of that task")
            seen[key] = item
            yield item, sample

    def part(self, places: Sequence[int]) -> "Plan":
        """The items at some places, in the plan's order, as a plan of their own; its gaps name places of its own."""
        return Plan(tuple(self.items[place] for place in places), dict(self.missing), self.selection, self.wording)

    def merge(self, gaps: Iterable[Gap]) -> None:
        """Say in `missing` what several parts found, as one process that met all these gaps would have said it."""
        found = sorted(set(gaps))
        ends: dict[int, int] = {}
        for gap in found:
            if not gap.reason:
                ends.setdefault(id(self.items[gap.place].cell), gap.place)
        self.gaps.clear()
        skipped: Counter[int] = Counter()
        for gap in found:
            if gap.place <= ends.get(id(self.items[gap.place].cell), gap.place):
                self._note(gap, skipped)

    def _note(self, gap: Gap, skipped: Counter[int]) -> None:
        self.gaps.append(gap)
        item, limit = self.items[gap.place], self.selection.limit
        if gap.reason:
            skipped[id(item.cell)] += 1
            self.missing[describe(item.cell)] = f"{skipped[id(item.cell)]} of {limit} questions: {gap.reason}"
        else:
            self.missing[describe(item.cell)] = f"it has {item.index} of {limit} questions, no more"


def describe(cell: Cell) -> str:
    """`multihop.graph (facts=32, hops=4)`; draws of one question are told in one line."""
    facets = ", ".join(f"{k}={v}" for k, v in sorted(cell.facets.items()) if k != "draw")
    return f"{cell.task} ({facets})" if facets else cell.task


def select(
    names: Iterable[str],
    *,
    lengths: Sequence[int] = (),
    limit: int = 100,
    seed: int = 0,
    settings: Iterable[str] = (),
    data: Iterable[str] = (),
) -> Selection:
    """Check a request. `settings` are `multihop.hops=1,2` or `multihop.graph.facts=64`, `data` are `NAME=PATH`
    or `NAME=hub[:OWNER/DATASET[@REVISION]]`.

    Raises UserError, with the nearest name, for a task, part or knob that does not exist.
    """
    if limit < 1:
        raise UserError(f"--limit must be at least 1, not {limit}")
    families, parts = _families(names)
    knobs: dict[str, dict[str, tuple[Facet, ...]]] = {}
    for setting in settings:
        owner, knob, values = _setting(setting, families)
        knobs.setdefault(owner, {})[knob] = values
    given = _data(data)
    for name in given:
        if not any(tasks.uses(task, name) for task in families.values()):
            takes = "; ".join(f"{family} takes {task.needs}" for family, task in families.items() if task.needs)
            raise UserError(f"--data {name}: no chosen task uses it; {takes or 'they need no data'}")
    return Selection(families, parts, tuple(lengths), limit, seed, knobs, given)


def make(selection: Selection, wording: str) -> Plan:
    """Lay out the plan of one wording. Samples of one text (same part, length and index) stand side by side.

    Raises UserError where there is no such wording, and where nothing at all can be asked, with the reasons.
    """
    if wording not in WORDINGS:
        raise unknown("wording", wording, WORDINGS)
    items: list[Item] = []
    missing: dict[str, str] = {}
    for family, task in selection.tasks.items():
        for request in _requests(selection, family, wording):
            missing.update(task.missing(request))
            groups: dict[tuple[str, Facet], list[Cell]] = {}
            for cell in task.cells(request):
                groups.setdefault((cell.task, cell.facets.get("length", 0)), []).append(cell)
            for cells in groups.values():
                items += (Item(family, task, c, i, request) for i in range(selection.limit) for c in cells)
            made = {name for name, _ in groups} | missing.keys()
            asked = {f"{family}.{part}" for part in request.subtasks or task.subtasks()} or {family}
            for name in sorted(asked):
                its = {name, family, name.partition(".")[2]}
                if not any(known in its or known.startswith(f"{name}.") for known in made):
                    missing[name] = "it has no questions for these settings"
    if not items:
        raise UserError("nothing to ask: " + "; ".join(f"{name}: {reason}" for name, reason in missing.items()))
    return Plan(tuple(items), missing, selection, wording)


def parse_lengths(text: str) -> tuple[int, ...]:
    """`1k,2k,4096` -> (1024, 2048, 4096) tokens, ascending and each once."""
    lengths = set()
    for part in filter(None, (p.strip().lower() for p in text.split(","))):
        match = re.fullmatch(r"(\d+)([km]?)", part)
        if match is None or int(match[1]) == 0:
            raise UserError(f"length {part!r} is no number of tokens; write 4096, 4k or 1m")
        lengths.add(int(match[1]) * UNITS[match[2]])
    return tuple(sorted(lengths))


def _families(names: Iterable[str]) -> tuple[dict[str, Task], dict[str, tuple[str, ...]]]:
    families: dict[str, Task] = {}
    chosen: dict[str, set[str]] = {}
    for name in dict.fromkeys(filter(None, (n.strip() for n in names))):
        family, _, part = name.partition(".")
        if ":" in name:  # another harness's, as a whole; its name may hold dots, of which ours has none
            task = tasks.load(name)
            family, part = task.name, ""
            if family in families:
                raise UserError(
                    f"--tasks {name}: another task is called {family!r} too; ask for them with different --out"
                )
            families[family] = task
        elif family not in families:
            families[family] = tasks.load(family)
        every = families[family].subtasks()
        if part and part not in every:
            raise unknown("task", name, [f"{family}.{p}" for p in every] or [family])
        chosen.setdefault(family, set()).update([part] if part else every)
    if not families:
        raise UserError(f"no task named; --tasks takes some of {', '.join(tasks.names())}")
    parts = {f: tuple(p for p in t.subtasks() if p in chosen[f]) for f, t in families.items()}
    return families, {f: () if parts[f] == tuple(t.subtasks()) else parts[f] for f, t in families.items()}


def _setting(text: str, families: Mapping[str, Task]) -> tuple[str, str, tuple[Facet, ...]]:
    """`multihop.graph.facts=64` -> ("multihop.graph", "facts", (64,))."""
    name, equals, values = text.partition("=")
    owner, dot, knob = name.strip().rpartition(".")
    if not (equals and dot and values.strip()):
        raise UserError(f"--set {text!r} has no value; write TASK.KNOB=VALUE[,VALUE], as in multihop.hops=1,2,4")
    family, _, part = owner.partition(".")
    if family not in families:
        raise UserError(f"--set {text!r} is about {family!r}, which is not among --tasks {','.join(families)}")
    task = families[family]
    if part and part not in task.subtasks():
        raise unknown("task", owner, [f"{family}.{p}" for p in task.subtasks()])
    known = task.knobs()
    if knob not in known:
        raise unknown(f"knob of {family}", knob, known)
    return owner, knob, tuple(dict.fromkeys(_value(text, v.strip(), known[knob]) for v in values.split(",")))


def _value(setting: str, text: str, defaults: tuple[Facet, ...]) -> Facet:
    """A value as int, float or str; a knob of numbers takes no words, a knob of words keeps `1` a word."""
    kinds = {type(d) for d in defaults}
    if kinds == {str}:
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if kinds and str not in kinds:
        raise UserError(f"--set {setting!r}: {text!r} is no number; as an example, the default is {defaults[0]}")
    return text


def _data(pairs: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (equals and name and path):
            raise UserError(f"--data {pair!r} names no path; write NAME=PATH, or NAME=hub")
        if path == "hub" or path.startswith("hub:"):
            found[name] = path
            continue
        if not os.path.exists(os.path.expanduser(path)):
            raise UserError(f"--data {name}: there is no {path}")
        found[name] = os.path.abspath(os.path.expanduser(path))
    return found


def _requests(selection: Selection, family: str, wording: str) -> list[Request]:
    """One request for all parts of a family whose knobs agree."""
    task = selection.tasks[family]
    chosen = selection.subtasks[family]
    groups: dict[tuple[tuple[str, tuple[Facet, ...]], ...], list[str]] = {}
    for part in chosen or task.subtasks() or ("",):
        knobs = {**selection.knobs.get(family, {}), **selection.knobs.get(f"{family}.{part}", {})}
        groups.setdefault(tuple(sorted(knobs.items())), []).append(part)
    alone = len(groups) == 1
    return [
        Request(
            subtasks=chosen if alone else tuple(parts),
            lengths=selection.lengths,
            knobs=dict(knobs),
            data=selection.data,
            seed=selection.seed,
            wording=wording,
        )
        for knobs, parts in groups.items()
    ]
