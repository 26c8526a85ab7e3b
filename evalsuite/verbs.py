"""What the verbs `run`, `compare` and `list` do."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from evalsuite import markdown, plan, table
from evalsuite import task as tasks
from evalsuite.compare import Comparison
from evalsuite.errors import UserError, unknown
from evalsuite.task import Executing, Request

if TYPE_CHECKING:
    from evalsuite.executors import Order

EMPTY: tuple[object, ...] = ("", [], {})
KERNEL_FORMATS = ("rich", "md", "json")


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of `evalsuite run` as typed."""

    models: Sequence[str]
    tasks: Sequence[str]
    lengths: str = ""
    limit: int = 100
    seed: int = 0
    settings: Sequence[str] = ()
    data: Sequence[str] = ()
    wording: str = ""
    out: str = "runs"
    resume: bool = False
    device: str = "auto"
    as_json: bool = False
    unsandboxed: bool = False
    kernels: str = "auto"
    executor: str = ""
    dtype: str = "auto"


def run(asked: Asked) -> None:
    """Run every model, then show them side by side on standard output; of several ranks, the first does."""
    from evalsuite import compare as comparing
    from evalsuite import executors, progress, ranks

    with ranks.World.found(asked.out) as world:
        order = _order(asked, world.size)
        reporter = progress.reporter(Console(stderr=True))
        if asked.executor:
            done = executors.load(asked.executor)(order, reporter)
        else:
            done = executors.local(order, reporter, world)
    if not world.leads:
        return
    show(comparing.compare(list(done.runs.values())), "json" if asked.as_json else "")
    if done.over:
        raise UserError("; ".join(done.over))


def _order(asked: Asked, ranks: int) -> "Order":
    """What was typed, checked as far as it can be before a model is loaded."""
    from evalsuite import executors, models, sandbox

    wanted = _wanted(asked)
    sandbox.allow_unsandboxed(asked.unsandboxed)
    selection = plan.select(**wanted)
    if asked.executor:
        executors.load(asked.executor)
        if ranks > 1:
            raise UserError(f"--executor {asked.executor} spreads the work itself; leave torchrun out")
    else:
        for task in selection.tasks.values():  # no sandbox is said before a model is loaded
            if isinstance(task, Executing):
                task.tier()
    specs = split_models(asked.models)
    for spec in specs:  # the last name is wrong at once, not after the first has run for hours
        models.check(spec)
    for spec in specs:
        if specs.count(spec) > 1:
            raise UserError(f"--model names {spec!r} twice")
    return executors.Order(
        specs,
        wanted,
        asked.wording,
        asked.out,
        must_exist=asked.resume,
        device=asked.device,
        dtype=asked.dtype,
        kernels=asked.kernels,
        unsandboxed=asked.unsandboxed,
    )


def _wanted(asked: Asked) -> dict[str, Any]:
    """The arguments of plan.select."""
    if asked.wording and asked.wording not in plan.WORDINGS:
        raise unknown("wording", asked.wording, plan.WORDINGS)
    return {
        "names": [name for names in asked.tasks for name in names.split(",")],
        "lengths": plan.parse_lengths(asked.lengths),
        "limit": asked.limit,
        "seed": asked.seed,
        "settings": list(asked.settings),
        "data": list(asked.data),
    }


def kernels(asked: Asked, against: str, form: str, *, prompts: int, tolerance: float | None) -> None:
    """Compare `asked.kernels` with `against`, of the first of `asked.models`, and say where they begin to differ."""
    from evalsuite import kernels as comparing
    from evalsuite import models
    from evalsuite.models.own import OwnModel

    if form and form not in KERNEL_FORMATS:
        raise unknown("format", form, KERNEL_FORMATS)
    spec, *more = split_models(asked.models)
    if more:
        raise UserError(f"kernels are compared for one model; leave out {', '.join(more)}")
    selection = plan.select(**_wanted(asked))
    model = models.load(spec, device=asked.device, kernels=against)
    if not isinstance(model, OwnModel):
        raise UserError(f"--kernels is for this package's own models, and {spec!r} is a plugin")
    made = plan.make(selection, asked.wording or model.wording)
    found = comparing.compare(model, asked.kernels, made, prompts=prompts, within=tolerance)
    console = Console(highlight=False)
    form = form or ("rich" if console.is_terminal else "md")
    if form == "json":
        sys.stdout.write(comparing.as_json(found) + "\n")
        return
    tables = comparing.sections(found)
    if form == "rich":
        for section in tables:
            table.print_section(section, console)
        console.print(f"\n{comparing.says(found)}", markup=False)
        return
    blocks = [block for section in tables for block in table.section_markdown(section)]
    sys.stdout.write("\n\n".join([*blocks, markdown.plain(comparing.says(found))]) + "\n")


def train(models: Sequence[str], out: str, **options: Any) -> None:
    """Train designs one after another, and say where each checkpoint is; the options are those of `lab.run.Plan`."""
    from evalsuite.lab import run as lab

    asked = lab.Plan(split_models(models), Path(out), **options)
    for folder in lab.train(asked, lambda line: print(line, file=sys.stderr, flush=True)):
        print(folder)


def with_mixer(models: Sequence[str], mixer: str) -> list[str]:
    """Designs with layers X as `XXXF@module:Class`; modules of the current folder can be imported."""
    if not mixer:
        return list(models)
    sys.path.insert(0, os.getcwd())
    names = split_models(models)
    if not any("X" in name for name in names):
        raise UserError("--mixer is for layers X: --model 'XXXF XXXF'")
    return [f"{name}@{mixer}" if "X" in name else name for name in names]


def equal(
    budget: str,
    models: Sequence[str],
    out: str,
    *,
    seeds: int,
    device: tuple[str, int],
    shuffled: bool,
    decided: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Train designs at an equal budget and print their table; `decided` are options that a budget leaves no choice,
    `device` its name and how many trainings run on each GPU at a time."""
    from evalsuite.lab import budget as budgets
    from evalsuite.lab import equal as lab
    from evalsuite.lab import report
    from evalsuite.lab.run import Plan

    free = Plan((), Path())
    for name, value in decided.items():
        if value != getattr(free, name):
            raise UserError(f"--budget {budget} decides {name.replace('_per_step', '')}; leave one of the two out")
    chosen = budgets.named(budget)
    chosen = chosen.blind() if shuffled else chosen
    names = split_models(models) if models else list(chosen.designs)
    designs = {name: seeds or chosen.designs.get(name, 3) for name in names}
    machine = lab.Machine.found(*device)
    lab.run(chosen, designs, Path(out), machine, lambda line: print(line, file=sys.stderr, flush=True))
    sys.stdout.write(report.report(Path(out), as_json=as_json) + "\n")


def lab(place: Path, folder: str, *, as_json: bool) -> None:
    """Print the lab's table; keep results, tables and figures in `folder`, if it is given."""
    from evalsuite.lab import figures, report

    if folder:
        for file in figures.write(place, Path(folder)):
            print(file, file=sys.stderr)
    sys.stdout.write(report.report(place, as_json=as_json) + "\n")


def compare(paths: Sequence[str], form: str, *, flips: bool = False, by: str = "", margin: float | None = None) -> None:
    """Show stored runs side by side on standard output; `by` names facets, `margin` is in points of 100."""
    from evalsuite import compare as comparing
    from evalsuite.verdict import MARGIN

    if form and form not in table.FORMATS:
        raise unknown("format", form, table.FORMATS)
    facets = [name.strip() for name in by.split(",") if name.strip()]
    runs = comparing.load(paths, prompts=flips)
    within = MARGIN if margin is None else margin / 100
    show(comparing.compare(runs, flips=flips, by=facets, margin=within), form)


def gate(paths: Mapping[str, str], policy: str, *, strict: bool, out: str, as_json: bool) -> int:
    """Hold a run against its baseline, write the verdict down, and give the exit code; `paths` are the runs given."""
    from evalsuite.gate import judge, outputs, sides, summary
    from evalsuite.gate import policy as policies

    rules = policies.load(policy)
    new = sides.read(paths["run"], "run")
    model = new.run.name
    old = sides.read(paths["baseline"], "baseline", model)
    release = sides.read(paths["release"], "release", model) if paths["release"] else None
    pair = [path for path in paths["escalate"].split(",") if path]
    if len(pair) not in (0, 2):
        raise UserError(f"--escalate {paths['escalate']!r} is no pair: write --escalate SECOND_RUN,SECOND_BASELINE")
    if paths["agreement"] and rules.kernels is None:
        raise UserError(f"--agreement is for a policy with [kernels], and {policy} has none")
    second = (sides.read(pair[0], "second run", model), sides.read(pair[1], "second baseline", model)) if pair else None
    report = judge(new, old, rules, release, second, paths["agreement"])
    outputs.write(report, Path(out) if out else new.run.folder, strict=strict)
    if as_json:
        sys.stdout.write(json.dumps(outputs.as_record(report, strict=strict), indent=1) + "\n")
    else:
        sys.stdout.write(summary.plain(report) + "\n")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print(*summary.annotations(report, strict=strict), sep="\n", file=sys.stderr if as_json else sys.stdout)
    if step := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(step).open("a", encoding="utf-8") as file:
            file.write(summary.markdown(report))
    return report.exit_code(strict=strict)


def promote(run: str, to: str, reason: str) -> None:
    """Make a run the baseline of its model, and print what its lock says anew."""
    from evalsuite.gate import baseline

    folder, changes = baseline.promote(Path(run), Path(to), reason)
    sys.stdout.write("\n".join([str(folder), *(f"  {line}" for line in changes)]) + "\n")


def report(paths: Sequence[str], out: str, figures: str) -> None:
    """Write the report of stored runs, and say which files were written."""
    from evalsuite import report as reports

    for file in reports.write(paths, Path(out), Path(figures) if figures else None):
        print(file)


def view(folder: str, port: int) -> None:
    """Serve the report of a folder until interrupted."""
    from evalsuite.report import serve

    serve.view(Path(folder), port, lambda line: print(line, flush=True))


def path(what: str) -> None:
    """Print the folder of lm_eval's tasks, made anew where the plugins have changed, or of a preset's checkpoint."""
    from evalsuite import models

    if what == "lm-eval":
        from evalsuite.integrations.lm_eval import folder

        print(folder.write())
        return
    known = [listed.name for listed in models.names() if listed.shipped]
    if what not in known:
        raise unknown("path", what, ["lm-eval", *known])
    print(models.ZOO / what)


def export_lm_eval(run: str, folder: str) -> None:
    """Write a run in lm_eval's layout, and say which files were written."""
    from evalsuite import store
    from evalsuite.integrations.lm_eval import export

    found = store.read(run)
    for file in export.write(found, Path(folder)):
        print(file)
    if not found.finished:
        print(f"{run} is not finished: these are the results of {len(found.rows)} samples so far", file=sys.stderr)


def export_hf(paths: Sequence[str], folder: str, *, prompts: bool) -> None:
    """Write runs as a dataset, and say which files were written."""
    from evalsuite.integrations import dataset

    for file in dataset.write(paths, Path(folder), prompts=prompts):
        print(file)


def show(result: Comparison, form: str) -> None:
    """Print a comparison: rich at a terminal and Markdown elsewhere where no format is given."""
    console = Console(highlight=False)
    text = table.render(result, form or ("rich" if console.is_terminal else "md"), console)
    if text:
        sys.stdout.write(text + "\n")


def listing(what: str, *, as_json: bool) -> None:
    """Print the installed models or tasks."""
    if what not in ("models", "tasks"):
        raise unknown("list", what, ("models", "tasks"))
    found = _tasks() if what == "tasks" else _models()
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    for entry in found:
        details = [f"  {key}: {_plain(value)}" for key, value in entry.items() if key != "name" and value not in EMPTY]
        sys.stdout.write("\n".join([str(entry["name"]), *details]) + "\n")


def split_models(specs: Sequence[str]) -> list[str]:
    """`full,hf:pretrained=x,dtype=y` -> ["full", "hf:pretrained=x,dtype=y"]: `key=value` goes with what is before."""
    from evalsuite.models import pieces

    found: list[str] = []
    for part in (piece for spec in specs for piece in pieces(spec)):
        name, equals, _ = part.partition("=")
        if found and equals and ":" not in name and ":" in found[-1]:
            found[-1] += f",{part}"
        else:
            found.append(part)
    if not found:
        raise UserError("no model named; see `evalsuite list models`")
    return found


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{k} = {_plain(v)}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _tasks() -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for name in tasks.names():
        task = tasks.load(name)
        chances = sorted({round(cell.chance, 4) for cell in task.cells(Request())})
        found.append(
            {
                "name": name,
                "parts": list(task.subtasks()),
                "chance": f"{chances[0]} to {chances[-1]}" if len(chances) > 1 else "".join(map(str, chances)),
                "knobs": {knob: list(values) for knob, values in task.knobs().items()},
                "version": task.version,
                "licence": task.licence,
                "source": task.source,
                "needs": task.needs,
            }
        )
    return found


def _models() -> list[dict[str, object]]:
    from evalsuite.models import backends, describe

    plugins: list[dict[str, object]] = [
        {"name": f"{entry.name}[:ARGS]", "about": f"plugin {entry.value}"}
        for entry in entry_points(group="evalsuite.models")
    ]
    others: list[dict[str, object]] = [
        {"name": "NAME:ARGS", "about": f"a model of {owner}", "names": names} for owner, names in backends().items()
    ]
    return [*describe(), *plugins, *others]
