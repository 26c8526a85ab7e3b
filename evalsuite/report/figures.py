"""The report's figures: from a comparison to panels, and the numbers behind them as a table."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalsuite.compare import Comparison
from evalsuite.groups import Line, family_of, lines
from evalsuite.report import charts, words
from evalsuite.report.charts import Points
from evalsuite.stats import Estimate
from evalsuite.store import Key, Row, Run, folder_name
from evalsuite.table import Section

DEPTHS = 5  # shares of the text


@dataclass(frozen=True, slots=True)
class Figure:
    """Panels under one title. `table` holds every number that they show."""

    name: str  # of its files
    title: str
    note: str
    panels: tuple[tuple[str, Any], ...]  # title and Altair chart
    table: Section


def figures(result: Comparison, runs: Sequence[Run]) -> list[Figure]:
    """Every figure that has something to show."""
    index = [{(row["task"], row["id"]): row for row in run.rows} for run in runs]
    made = [hops(result), *depths(result, index), *lengths(result, index), forest(result), cost(result)]
    return [figure for figure in made if figure is not None]


def save(made: Sequence[Figure], folder: Path) -> Iterator[str]:
    """Write each figure to `folder` as PNG and SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in made:
        yield from charts.save(figure.panels, str(folder / folder_name(figure.name)))


def hops(result: Comparison) -> Figure | None:
    """Curves of the score by hop depth, a panel for each task and load."""
    groups: dict[str, list[Line]] = {}
    for line in result.hops:
        groups.setdefault(f"{words.task(line).partition('.')[0]}: {words.label(line, 'hops')}", []).append(line)
    panels, rows = [], []
    for title, members in groups.items():
        points = [
            {**point, "x": str(line.get("hops")), "chance": line.chance}
            for line in members
            for point in _points(line.estimates)
        ]
        if points:
            panels.append((words.visible(title), charts.curves(points, _names(result), "hops")))
        rows += [(title, f"{line.get('hops')}", *_cells(line)) for line in members]
    note = "Mean and 95 % interval over the questions; the short bars stand at chance."
    return _figure("hops", "Score by hop depth", note, panels, ("task", "hops"), rows, result)


def lengths(result: Comparison, index: Sequence[Mapping[Key, Row]]) -> Iterator[Figure | None]:
    """Heat maps of task by length, for each family that was asked at several."""
    found = lines(index, lambda row: _key(row, length=row["facets"]["length"]), lambda row: "length" in row["cell"])
    for family in dict.fromkeys(str(line.get("family")) for line in found):
        mine = [line for line in found if line.get("family") == family]
        if len({line.get("length") for line in mine}) > 1:
            title = f"{family}: score by task and length"
            yield _heat(f"lengths-{family}", title, "", mine, lambda line: str(line.get("task")), result)


def depths(result: Comparison, index: Sequence[Mapping[Key, Row]]) -> Iterator[Figure | None]:
    """Heat maps of where in the text the fact stood by the text's length, for each family that keeps `depth`."""

    def keep(row: Row) -> bool:
        depth = row["facets"].get("depth")
        return "length" in row["facets"] and isinstance(depth, int | float) and 0 <= depth <= 1

    def keys(row: Row) -> Any:
        part = min(int(row["facets"]["depth"] * DEPTHS), DEPTHS - 1)
        return (("family", family_of(row)), ("depth", part), ("length", row["facets"]["length"]))

    found = lines(index, keys, keep)
    for family in dict.fromkeys(str(line.get("family")) for line in found):
        mine = [line for line in found if line.get("family") == family]
        note = "All samples whose task says where its fact stands, the start of the text above. "
        name = f"depth-{family}"
        yield _heat(name, f"{family}: score by depth of the fact and length", note, mine, _depth, result)


def forest(result: Comparison) -> Figure | None:
    """Paired differences to the first run, a panel for each other one."""
    names = [c.name for c in result.columns]
    tasks = {words.named(line): line for line in result.scores}
    everything = [d for line in tasks.values() for d in line.differences if d is not None and math.isfinite(d.value)]
    limit = min(1.0, max((abs(end) for d in everything for end in (d.low, d.high)), default=0.0) * 1.05)
    panels, rows = [], []
    for i, name in enumerate(names[1:], 1):
        points = []
        for label, line in tasks.items():
            d = line.differences[i]
            counts = ("-", "-", "-") if d is None else (str(d.n), f"{d.wins} / {d.losses}", f"{d.p:.3g}")
            rows.append((label, name, words.difference(d), *counts))
            if d is not None and math.isfinite(d.value):
                sure = not d.low <= 0 <= d.high
                points.append(
                    {"task": words.visible(label), "value": d.value, "low": d.low, "high": d.high, "sure": sure}
                )
        if points:
            order = [words.visible(label) for label in tasks]
            panels.append((words.visible(name), charts.forest(points, order, limit)))
    if not panels:
        return None
    table = Section("", ("task", "run", "difference", "pairs", "wins / losses", "p"), tuple(rows))
    first = words.visible(names[0])
    note = (
        f"Each run less {first} on the questions that both were asked, with its 95 % interval; left of 0 is worse. "
        "A filled mark: the interval excludes 0. Not corrected for looking at many tasks."
    )
    return Figure("differences", f"Paired differences to {first}", note, tuple(panels), table)


def cost(result: Comparison) -> Figure | None:
    """Score against the bytes that one sequence keeps, a panel for each family, at the longest length all know."""
    known = [set(c.cost) for c in result.columns if c.cost]
    length = max(set.intersection(*known), default=None) if known else None
    if length is None:
        return None
    kept = [sum(c.cost.get(length, {}).values()) for c in result.columns]
    at = {str(line.get("family")): line for line in result.lengths if line.get("length") == length}
    panels, rows = [], []
    for line in result.families:
        family = str(line.get("family"))
        scored = at.get(family, line)
        points = [{**p, "mib": kept[p["run"]] / 2**20} for p in _points(scored.estimates) if kept[p["run"]]]
        if points:
            where = f", {words.tokens(length)} tokens" if family in at else ""
            panels.append((f"{words.visible(family)}{where}", charts.scatter(points, _names(result))))
        rows += [
            (family, c.name, words.size_of(b) if b else "-", words.estimate(e))
            for c, b, e in zip(result.columns, kept, scored.estimates, strict=True)
        ]
    if not panels:
        return None
    note = (
        f"KV cache, index keys and recurrent state of one sequence of {length:,} tokens; mean over the family's tasks."
    )
    table = Section("", ("family", "run", "bytes", "score"), tuple(rows))
    return Figure("cost", "Quality against bytes", note, tuple(panels), table)


def _heat(
    name: str, title: str, note: str, mine: Sequence[Line], row: Callable[[Line], str], result: Comparison
) -> Figure | None:
    panels = []
    ordered = sorted(mine, key=lambda line: float(line.get("length") or 0))
    down = list(dict.fromkeys(map(row, mine)))
    for i, column in enumerate(result.columns):
        points = [
            {"x": words.tokens(int(line.get("length"))), "y": words.visible(y), "value": e.value}
            for y in down
            for line in ordered
            if row(line) == y and (e := line.estimates[i]) is not None and math.isfinite(e.value)
        ]
        if points:
            across = [words.tokens(int(n)) for n in dict.fromkeys(line.get("length") for line in ordered)]
            panels.append((words.visible(column.name), charts.heat(points, across, [words.visible(y) for y in down])))
    rows = [(row(line), f"{int(line.get('length')):,}", *_cells(line)) for line in mine]
    note += "From 0, dark, to 1, bright; intervals are in the table."
    return _figure(name, title, note, panels, ("", "tokens"), rows, result)


def _figure(
    name: str,
    title: str,
    note: str,
    panels: Sequence[tuple[str, Any]],
    first: tuple[str, str],
    rows: Sequence[tuple[str, ...]],
    result: Comparison,
) -> Figure | None:
    if not panels:
        return None
    header = (*first, "n", "chance", *(c.name for c in result.columns))
    return Figure(name, words.visible(title), note, tuple(panels), Section("", header, tuple(rows)))


def _key(row: Row, **more: Any) -> Any:
    return (("family", family_of(row)), ("task", row["task"]), *more.items())


def _depth(line: Line) -> str:
    part = int(line.get("depth"))
    return f"{100 * part // DEPTHS} to {100 * (part + 1) // DEPTHS} %"


def _cells(line: Line) -> tuple[str, ...]:
    return (line.n, f"{line.chance:.2f}", *map(words.estimate, line.estimates))


def _points(estimates: Sequence[Estimate | None]) -> Points:
    return [
        {"run": i, "value": e.value, "low": e.low, "high": e.high, "shape": charts.SHAPES[i % len(charts.SHAPES)]}
        for i, e in enumerate(estimates)
        if e is not None and math.isfinite(e.value)
    ]


def _names(result: Comparison) -> list[str]:
    return [words.short(c.name) for c in result.columns]
