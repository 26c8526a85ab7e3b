"""What a folder of the lab says: one row a design, every seed of it, and the gates that a claim must pass.

The unit is the training seed: a mean is over seeds, and what a design solves is how many of its seeds reach SOLVED.
Interval of a mean or of a difference: t over seeds; of a solved rate, and of `blind`'s pooled accuracy: Wilson.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy import special

from evalsuite import compare, stats
from evalsuite.errors import UserError
from evalsuite.lab.budget import Budget, named
from evalsuite.lab.match import CLOSE
from evalsuite.lab.probe import solved

GRAPH, CLOZE = "multihop.graph", "knowledge.cloze"
SOLVED = 0.9
CEILING = 0.95  # of full attention, at every hop count that a figure shows
SPREAD = 0.02  # of knowledge between designs, of blind models around chance
Cell = tuple[str, tuple[tuple[str, Any], ...]]  # task and the facets of its cell


@dataclass(frozen=True, slots=True)
class Trained:
    """One seed of a design: its result.json and its accuracy in every cell."""

    result: Mapping[str, Any]
    scores: Mapping[Cell, float]
    asked: Mapping[Cell, int] = field(default_factory=dict)  # questions of each
    chance: Mapping[Cell, float] = field(default_factory=dict)

    @property
    def design(self) -> str:
        return str(self.result["design"])

    @property
    def seed(self) -> int:
        return int(self.result["seed"])


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition of a claim, and what was found."""

    name: str
    passed: bool
    found: str


def cells(answers: Path) -> list[list[Any]]:
    """Of every cell that a model was asked: task, facets, accuracy, number of questions, chance."""
    found: dict[tuple[str, str, float], list[float]] = {}
    for row in (row for run in compare.load([answers]) for row in run.rows):
        facets = json.dumps({name: row["facets"][name] for name in row["cell"]})
        found.setdefault((row["task"], facets, row["chance"]), []).append(row["score"])
    return [[task, json.loads(facets), fmean(each), len(each), luck] for (task, facets, luck), each in found.items()]


def gather(out: Path) -> dict[str, Any]:
    """All that a folder of the lab found, as JSON holds it: every finished seed with its cells, every rate tried."""
    trained = []
    for file in sorted(out.glob("*/seed*/result.json")):
        result = json.loads(file.read_text())
        result["history"] = [line for line in result["history"] if "probe" in line]
        trained.append(result if "cells" in result else {**result, "cells": cells(file.parent / "answers")})
    tried = [json.loads(file.read_text()) for file in sorted(out.glob("rates/*/*/result.json"))]
    return {
        "budget": json.loads((out / "budget.json").read_text()) if (out / "budget.json").exists() else {},
        "trained": trained,
        "rates": [{name: each[name] for name in ("design", "lr", "loss")} for each in tried],
    }


def read(place: Path) -> dict[str, Any]:
    """A folder of the lab, or the file in which `evalsuite lab --figures` has kept one. Raises UserError."""
    try:
        found: dict[str, Any] = json.loads(place.read_text()) if place.is_file() else gather(place)
        assert found.keys() >= {"trained", "rates"}
    except UserError:  # answers that cannot be read say why
        raise
    except (ValueError, AssertionError, AttributeError) as error:
        raise UserError(f"{place} holds no results; `evalsuite lab DIR --figures FOLDER` keeps them") from error
    if not found["trained"]:
        raise UserError(f"{place} holds no finished training; `evalsuite train --budget NAME --out {place}` makes them")
    return found


def trainings(found: Mapping[str, Any]) -> list[Trained]:
    """Every finished seed, by design and seed."""
    every = [
        Trained(
            each,
            {(task, tuple(facets.items())): score for task, facets, score, _, _ in each["cells"]},
            {(task, tuple(facets.items())): n for task, facets, _, n, _ in each["cells"]},
            {(task, tuple(facets.items())): chance for task, facets, _, _, chance in each["cells"]},
        )
        for each in found["trained"]
    ]
    return sorted(every, key=lambda each: (each.design, each.seed))


def over_seeds(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and its 95 % interval, t over seeds; without bounds where there is one seed."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, None, None
    half = float(special.stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def hops(trained: Trained, task: str, facts: int) -> dict[int, float]:
    """Accuracy by number of hops, at the shortest length that was asked."""
    cells = {
        (int(dict(facets)["length"]), int(dict(facets)["hops"])): score
        for (name, facets), score in trained.scores.items()
        if name == task and dict(facets).get("facts") == facts and dict(facets).get("answer", "direct") == "direct"
    }
    shortest = min((length for length, _ in cells), default=0)
    return {hop: score for (length, hop), score in sorted(cells.items()) if length == shortest}


def score(trained: Trained, task: str, **facets: Any) -> float | None:
    """Mean accuracy over a task's cells of these facets, walks answered directly unless said; None without any."""
    facets.setdefault("answer", "direct")
    cells = [
        value
        for (name, found), value in trained.scores.items()
        if name == task and facets.items() <= {"answer": "direct", **dict(found)}.items()
    ]
    return fmean(cells) if cells else None


def knowledge(trained: Trained) -> dict[int, float]:
    """Accuracy of facts known by heart, by the number of facts that there are to know; those asked as a cloze."""
    cells = {dict(facets).get("load", 0): value for (task, facets), value in trained.scores.items() if task == CLOZE}
    return {int(load): value for load, value in sorted(cells.items())}


def gates(found: Sequence[Trained], budget: Budget, facts: int) -> list[Gate]:
    """What must hold before a difference between designs means anything."""
    base = [each for each in found if set(each.result["pattern"]) == {"F"}]
    if not base:
        return [Gate("full attention is at its ceiling", False, "no design of full attention alone was trained")]
    depth = [(hop, score) for each in base for hop, score in hops(each, GRAPH, facts).items()]
    low = [f"{hop} hops {score:.2f}" for hop, score in depth if hop in budget.gate_hops and score < CEILING]
    sizes = [each.result["parameters"] / each.result["size"] - 1 for each in found]
    tokens = {each.result["tokens"] for each in found}
    checks = [
        Gate(
            f"full attention reaches {CEILING} at {', '.join(map(str, budget.gate_hops))} hops over {facts} facts",
            not low,
            "; ".join(low) or "in every seed",
        ),
        Gate("parameters within 1 %", max(map(abs, sizes)) <= CLOSE, f"{min(sizes):+.2%} to {max(sizes):+.2%}"),
        Gate("equal tokens", len(tokens) == 1, " and ".join(f"{n / 1e6:.1f}M" for n in sorted(tokens))),
    ]
    for load in knowledge(found[0]):
        known = [knowledge(each)[load] for each in found]
        spread, of = max(known) - min(known), f" of {load:,} facts" if load else ""
        checks.append(Gate(f"knowledge{of} within 2 points", spread <= SPREAD, f"{min(known):.3f} to {max(known):.3f}"))
    return checks


def rates(tried: Sequence[Mapping[str, Any]], used: Mapping[str, float]) -> list[Gate]:
    """Whether the learning rate that each design was trained with is inside the grid that was tried for it."""
    grids: dict[str, list[float]] = {}
    for each in tried:
        grids.setdefault(each["design"], []).append(each["lr"])
    if not grids:
        return [Gate("learning rate chosen for each design", False, "one rate for all, not swept")]
    outside = [
        f"{name} at {lr:g}, {'an edge' if name in grids else 'not swept'}"
        for name, lr in used.items()
        if name not in grids or not min(grids[name]) < lr < max(grids[name])
    ]
    return [Gate("learning rate inside its grid", not outside, ", ".join(outside) or "every design")]


def tokens_to_solve(trained: Trained, task: str, **facets: int) -> int | None:
    """Tokens after which a probe of a task with these facets reached SOLVED and stayed there."""
    wanted = {f"{name}={value}" for name, value in facets.items()}
    for line in trained.result["history"]:
        for cell in line.get("probe", {}):
            if cell.startswith(f"{task} (") and wanted <= set(cell[len(task) + 2 : -1].split(", ")):
                return solved(trained.result["history"], cell, SOLVED)
    return None


def probed(trained: Trained, cell: str, share: float) -> float | None:
    """The first probe's accuracy after that share of the tokens, of the cell that holds these words."""
    for line in trained.result["history"]:
        if line["tokens"] >= share * trained.result["tokens"]:
            for name, value in line.get("probe", {}).items():
                if cell in name:
                    return float(value)
    return None


def designs(trained: Sequence[Trained]) -> dict[str, list[Trained]]:
    """The seeds of each design; those with most full layers first."""
    groups: dict[str, list[Trained]] = {}
    for each in trained:
        groups.setdefault(each.design, []).append(each)

    def order(name: str) -> tuple[bool, int, int, str]:
        pattern = groups[name][0].result["pattern"]
        return set(pattern) != {"F"}, -_count(pattern, "FRPD"), -_count(pattern, "FRP"), name

    return {name: groups[name] for name in sorted(groups, key=order)}


def rows(found: Sequence[Trained], facts: int) -> list[dict[str, Any]]:
    """One record a design: cost, knowledge, and for each hop count all seeds, solved rate and difference to full."""
    base = {each.seed: each for each in found if set(each.result["pattern"]) == {"F"}}
    table = []
    for name, seeds in designs(found).items():
        first = seeds[0].result
        known = {load: [knowledge(each)[load] for each in seeds] for load in knowledge(seeds[0])}
        depth: dict[int, dict[str, Any]] = {}
        for hop in hops(seeds[0], GRAPH, facts):
            values = [hops(each, GRAPH, facts)[hop] for each in seeds]
            won = sum(value >= SOLVED for value in values)
            differences = [
                value - hops(base[each.seed], GRAPH, facts)[hop]
                for value, each in zip(values, seeds, strict=True)
                if each.seed in base
            ]
            depth[hop] = {
                "seeds": values,
                "mean": over_seeds(values),
                "solved": won,
                "solved_interval": stats.wilson(won, len(values)),
                "difference": over_seeds(differences) if differences else None,
                "tokens_to_solve": [tokens_to_solve(each, GRAPH, hops=hop, facts=facts) for each in seeds],
            }
        table.append(
            {
                "design": name,
                "pattern": first["pattern"],
                "parameters": first["parameters"],
                "lr": first["lr"],
                "seeds": [each.seed for each in seeds],
                "state_bytes": first["state_bytes"],
                "seconds": fmean(each.result["seconds"] for each in seeds),
                "knowledge": known,
                "hops": depth,
            }
        )
    return table


def _count(pattern: str, letters: str) -> int:
    return sum(map(pattern.count, letters))


def _cell(found: Mapping[str, Any]) -> str:
    values = found["seeds"]
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{fmean(values):.2f} ({min(values):.2f}-{max(values):.2f}) {found['solved']}/{len(values)}"


def _loaded(load: int) -> str:
    return f"knowledge, {load // 1024}k facts" if load % 1024 == 0 and load else "knowledge"


def markdown(table: Sequence[Mapping[str, Any]], checks: Sequence[Gate], head: str) -> str:
    """The headline table under its line, and above it the gates that fail."""
    depths = sorted({hop for row in table for hop in row["hops"]})
    failed = [f"**{gate.name}: FAILS** ({gate.found})" for gate in checks if not gate.passed]
    loads = sorted({load for row in table for load in row["knowledge"]})
    columns = ["design", "layers", "full", "parameters", "lr", *(_loaded(load) for load in loads)]
    columns += [f"{hop} hop{'s' * (hop > 1)}" for hop in depths]
    lines = [
        head,
        "",
        *failed,
        *([""] if failed else []),
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
    ]
    for row in table:
        sparse = f" + {_count(row['pattern'], 'D')} sparse" if "D" in row["pattern"] else ""
        full = f"{_count(row['pattern'], 'FRP')}{sparse}"
        cells = [row["design"], row["pattern"], full, f"{row['parameters']:,}", f"{row['lr']:g}"]
        cells += [f"{fmean(row['knowledge'][load]):.3f}" if load in row["knowledge"] else "" for load in loads]
        cells += [_cell(row["hops"][hop]) if hop in row["hops"] else "" for hop in depths]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {gate.name}: {'yes' if gate.passed else 'NO'}, {gate.found}" for gate in checks)]
    return "\n".join(lines)


def blind(trained: Sequence[Trained], *, as_json: bool = False) -> str:
    """What models know that learned from shuffled labels, by task: it must be no more than chance.

    A task is above it where the lower bound of its 95 % interval, corrected for the number of tasks (Bonferroni), is
    more than two points above: a task whose chance counts as 0 has one right answer now and then.
    """
    tasks = sorted({task for each in trained for task, _ in each.scores})
    found: list[dict[str, Any]] = []
    for task in tasks:
        cells = [(each, cell) for each in trained for cell in each.scores if cell[0] == task]
        n = sum(each.asked[cell] for each, cell in cells)
        right = sum(each.asked[cell] * each.scores[cell] for each, cell in cells)
        chance = sum(each.asked[cell] * each.chance[cell] for each, cell in cells) / n
        low, high = stats.wilson(right, n, 1 - 0.05 / len(tasks))
        row: dict[str, Any] = {"task": task, "n": n, "chance": chance, "accuracy": right / n, "low": low, "high": high}
        found.append({**row, "above": low > chance + SPREAD})
    if as_json:
        return json.dumps({"shuffled": True, "tasks": found}, indent=1)
    lines = ["Trained on shuffled labels: no task may be above chance.", "", "| task | n | chance | accuracy | above |"]
    lines += ["|---|--:|--:|--:|---|"]
    lines += [
        "| {task} | {n} | {chance:.3f} | {accuracy:.3f} [{low:.3f}, {high:.3f}] | {mark} |".format(
            **row, mark="ABOVE" * row["above"]
        )
        for row in found
    ]
    return "\n".join(lines)


def most(trained: Sequence[Trained]) -> int:
    """The number of facts over which `graph` was asked with most numbers of hops; of equals, the largest."""
    asked: dict[int, set[int]] = {}
    for task, facets in trained[0].scores:
        cell = dict(facets)
        if task == GRAPH and cell.get("answer", "direct") == "direct" and isinstance(cell.get("facts"), int):
            asked.setdefault(cell["facts"], set()).add(cell["hops"])
    return max(asked, key=lambda facts: (len(asked[facts]), facts), default=0)


def judged(found: Mapping[str, Any]) -> tuple[list[Trained], Budget, int, list[Gate]]:
    """Trainings, their budget, the load of the headline table, and all gates."""
    trained = trainings(found)
    budget, facts = named(str(trained[0].result["budget"])), most(trained)
    used = {each.design: float(each.result["lr"]) for each in trained}
    return trained, budget, facts, [*gates(trained, budget, facts), *rates(found["rates"], used)]


def report(place: Path, *, as_json: bool = False) -> str:
    """The table of a folder, or of the file that was made of one, in Markdown or JSON."""
    trained, budget, facts, checks = judged(read(place))
    if any(each.result["shuffled"] for each in trained):
        return blind(trained, as_json=as_json)
    table = rows(trained, facts)
    if as_json:
        plain = [{"name": gate.name, "passed": gate.passed, "found": gate.found} for gate in checks]
        return json.dumps({"budget": budget.name, "facts": facts, "gates": plain, "designs": table}, indent=1)
    n = {n for each in trained for (task, f), n in each.asked.items() if (task, dict(f).get("facts")) == (GRAPH, facts)}
    head = (
        f"multihop.graph, {facts} facts, budget {budget.name}, n = {max(n)} a cell and seed: "
        f"mean (lowest-highest) of the seeds, how many reach {SOLVED}"
    )
    return markdown(table, checks, head)
