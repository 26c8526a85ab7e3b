"""What a folder of the lab says: one row a design, every seed of it, and the gates that a claim must pass.

The unit is the training seed: a mean is over seeds, and what a design solves is how many of its seeds reach SOLVED.
Interval of a mean or of a difference: t over seeds; of a solved rate: Wilson.
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

GRAPH = "multihop.graph"
SOLVED = 0.9
CEILING = 0.95  # of full attention, at every hop count that a figure shows
SPREAD = 0.02  # of knowledge between designs
Cell = tuple[str, tuple[tuple[str, Any], ...]]  # task and the facets of its cell


@dataclass(frozen=True, slots=True)
class Trained:
    """One seed of a design: its result.json and its accuracy in every cell."""

    result: Mapping[str, Any]
    scores: Mapping[Cell, float]
    asked: Mapping[Cell, int] = field(default_factory=dict)  # questions of each

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


def load(out: Path) -> list[Trained]:
    """Every finished seed in a folder of the lab, by design and seed. Raises UserError where there is none."""
    found = []
    for file in sorted(out.glob("*/seed*/result.json")):
        cells: dict[Cell, list[float]] = {}
        for row in (row for run in compare.load([file.parent / "answers"]) for row in run.rows):
            facets = tuple((name, row["facets"][name]) for name in row["cell"])
            cells.setdefault((row["task"], facets), []).append(row["score"])
        scores = {cell: fmean(values) for cell, values in cells.items()}
        found.append(Trained(json.loads(file.read_text()), scores, {cell: len(v) for cell, v in cells.items()}))
    if not found:
        raise UserError(f"{out} holds no finished training; `evalsuite train --budget NAME --out {out}` makes them")
    return sorted(found, key=lambda each: (each.design, each.seed))


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


def knowledge(trained: Trained) -> float | None:
    """Mean accuracy of what is known by heart; None where nothing was asked."""
    values = [score for (task, _), score in trained.scores.items() if task.startswith("knowledge.")]
    return fmean(values) if values else None


def gates(found: Sequence[Trained], budget: Budget, facts: int) -> list[Gate]:
    """What must hold before a difference between designs means anything."""
    base = [each for each in found if set(each.result["pattern"]) == {"F"}]
    if not base:
        return [Gate("full attention is at its ceiling", False, "no design of full attention alone was trained")]
    depth = [(hop, score) for each in base for hop, score in hops(each, GRAPH, facts).items()]
    low = [f"{hop} hops {score:.2f}" for hop, score in depth if hop in budget.gate_hops and score < CEILING]
    sizes = [each.result["parameters"] / each.result["size"] - 1 for each in found]
    tokens = {each.result["tokens"] for each in found}
    known = [value for each in found if (value := knowledge(each)) is not None]
    checks = [
        Gate(
            f"full attention reaches {CEILING} at {', '.join(map(str, budget.gate_hops))} hops over {facts} facts",
            not low,
            "; ".join(low) or "in every seed",
        ),
        Gate("parameters within 1 %", max(map(abs, sizes)) <= CLOSE, f"{min(sizes):+.2%} to {max(sizes):+.2%}"),
        Gate("equal tokens", len(tokens) == 1, " and ".join(f"{n / 1e6:.1f}M" for n in sorted(tokens))),
    ]
    if known:
        spread = max(known) - min(known)
        checks.append(Gate("knowledge within 2 points", spread <= SPREAD, f"{min(known):.3f} to {max(known):.3f}"))
    return checks


def rates(out: Path) -> list[Gate]:
    """Whether each design's learning rate is inside the grid that was tried."""
    tried: dict[str, dict[float, float]] = {}
    for file in out.glob("rates/*/*/result.json"):
        result = json.loads(file.read_text())
        tried.setdefault(result["design"], {})[result["lr"]] = result["loss"]
    edge = {
        name: min(losses, key=losses.__getitem__)
        for name, losses in tried.items()
        if min(losses, key=losses.__getitem__) in (min(losses), max(losses))
    }
    if not tried:
        return [Gate("learning rate chosen for each design", False, "one rate for all, not swept")]
    return [
        Gate(
            "learning rate inside its grid",
            not edge,
            ", ".join(f"{name} at {lr:g}, an edge" for name, lr in edge.items()) or "every design",
        )
    ]


def tokens_to_solve(trained: Trained, hop: int, facts: int) -> int | None:
    """Tokens after which a probe of so many hops reached SOLVED and stayed there."""
    for line in trained.result["history"]:
        for cell in line.get("probe", {}):
            if cell.startswith(GRAPH) and f"facts={facts}," in cell and f"hops={hop}," in cell:
                return solved(trained.result["history"], cell, SOLVED)
    return None


def rows(found: Sequence[Trained], facts: int) -> list[dict[str, Any]]:
    """One record a design: cost, knowledge, and for each hop count all seeds, solved rate and difference to full."""
    designs: dict[str, list[Trained]] = {}
    for each in found:
        designs.setdefault(each.design, []).append(each)
    base = {each.seed: each for each in found if set(each.result["pattern"]) == {"F"}}
    table = []
    for name, seeds in sorted(designs.items(), key=lambda item: -item[1][0].result["pattern"].count("F")):
        first = seeds[0].result
        known = [value for each in seeds if (value := knowledge(each)) is not None]
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
                "tokens_to_solve": [tokens_to_solve(each, hop, facts) for each in seeds],
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


def _cell(found: Mapping[str, Any]) -> str:
    values = found["seeds"]
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{fmean(values):.2f} ({min(values):.2f}-{max(values):.2f}) {found['solved']}/{len(values)}"


def markdown(table: Sequence[Mapping[str, Any]], checks: Sequence[Gate], head: str) -> str:
    """The headline table under its line, and above it the gates that fail."""
    depths = sorted({hop for row in table for hop in row["hops"]})
    failed = [f"**{gate.name}: FAILS** ({gate.found})" for gate in checks if not gate.passed]
    known = any(row["knowledge"] for row in table)
    columns = ["design", "layers", "full", "parameters", "lr", *(["knowledge"] if known else [])]
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
        count = sum(row["pattern"].count(letter) for letter in "FRP")
        cells = [row["design"], row["pattern"], str(count), f"{row['parameters']:,}", f"{row['lr']:g}"]
        if known:
            cells.append(f"{fmean(row['knowledge']):.3f}" if row["knowledge"] else "")
        cells += [_cell(row["hops"][hop]) if hop in row["hops"] else "" for hop in depths]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {gate.name}: {'yes' if gate.passed else 'NO'}, {gate.found}" for gate in checks)]
    return "\n".join(lines)


def report(out: Path, *, as_json: bool = False) -> str:
    """The table of a folder, in Markdown or JSON."""
    found = load(out)
    budget = named(str(found[0].result["budget"]))
    loads = {dict(f).get("facts") for (task, f), _ in found[0].scores.items() if task == GRAPH}
    facts = max((n for n in loads if isinstance(n, int)), default=0)
    table, checks = rows(found, facts), [*gates(found, budget, facts), *rates(out)]
    if as_json:
        plain = [{"name": gate.name, "passed": gate.passed, "found": gate.found} for gate in checks]
        return json.dumps({"budget": budget.name, "facts": facts, "gates": plain, "designs": table}, indent=1)
    n = {n for each in found for (task, f), n in each.asked.items() if (task, dict(f).get("facts")) == (GRAPH, facts)}
    head = (
        f"multihop.graph, {facts} facts, budget {budget.name}, n = {'/'.join(map(str, sorted(n)))} a cell and seed: "
        f"mean (lowest-highest) of the seeds, how many reach {SOLVED}"
    )
    return markdown(table, checks, head)
