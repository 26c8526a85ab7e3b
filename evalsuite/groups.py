"""Rows of several runs in groups of equal facets: one estimate a model and group, over what all of them were asked."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalsuite import stats
from evalsuite.pairs import Paired, paired
from evalsuite.records import Facet
from evalsuite.stats import Estimate
from evalsuite.store import Key, Row, Run

LIKELIEST, GENERATED = "by log probability", "by generated text"  # what a choice is, by a row's record
Keys = tuple[tuple[str, Facet], ...]  # (("task", "multihop.graph"), ("hops", 4))


@dataclass(frozen=True, slots=True)
class Line:
    """One group of samples, one estimate a model; None where a model has no such sample."""

    keys: Keys
    chance: float
    estimates: tuple[Estimate | None, ...]
    differences: tuple[Paired | None, ...]  # to the first model, over pairs of one prompt; None where there are none

    def get(self, key: str) -> Facet:
        """The value of one key, "" where the group has none."""
        return dict(self.keys).get(key, "")

    @property
    def n(self) -> str:
        """Samples of each model: `100`, or `96-100` where they differ."""
        counts = [e.n for e in self.estimates if e is not None]
        return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}-{max(counts)}"


def lines(
    index: Sequence[Mapping[Key, Row]],
    keys: Callable[[Row], Keys],
    keep: Callable[[Row], bool] = lambda row: True,
) -> tuple[Line, ...]:
    """Group every run's rows by their keys: tasks in order of appearance, then facets ascending."""
    groups: dict[Keys, list[list[Row]]] = {}
    for i, rows in enumerate(index):
        for row in rows.values():
            if keep(row):
                groups.setdefault(keys(row), [[] for _ in index])[i].append(row)
    return tuple(_line(key, groups[key], index[0]) for key in _ordered(groups))


def _cell(row: Row) -> Keys:
    return (("task", row["task"]), *pick(row, row["cell"]))


def _shared(parts: Iterable[Iterable[Row]]) -> tuple[set[Keys], set[Keys]]:
    """The cells that all runs with any of these rows have, and all cells."""
    each = [cells for cells in ({_cell(row) for row in rows} for rows in parts) if cells]
    return (set.intersection(*each), set.union(*each)) if each else (set(), set())


def _alike(parts: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """The rows of shared cells. A mean over 1 and 2 hops beside one over 1, 2 and 4 would show a difference where none
    is. Where no cell is shared there is nothing to choose, and every row stays."""
    shared, _ = _shared(parts)
    return [[row for row in rows if not shared or _cell(row) in shared] for rows in parts]


def unlike(index: Sequence[Mapping[Key, Row]]) -> dict[str, str]:
    """Task -> what its mean leaves out, where the runs were not asked the same."""
    reasons = {}
    for name in dict.fromkeys(row["task"] for rows in index for row in rows.values()):
        shared, every = _shared([row for row in rows.values() if row["task"] == name] for rows in index)
        if not shared:
            reasons[name] = "the runs have no cell in common: their means are over different questions"
        elif shared != every:
            reasons[name] = f"means are over the {len(shared)} of {len(every)} cells that all runs have"
    return reasons


def _line(keys: Keys, parts: Sequence[Sequence[Row]], base: Mapping[Key, Row]) -> Line:
    parts = _alike(parts)
    estimates = tuple(
        stats.estimate([r["score"] for r in rows], [r["cluster"] for r in rows]) if rows else None for rows in parts
    )
    differences = (None, *(paired(rows, base) for rows in parts[1:]))
    chances = [row["chance"] for row in next(rows for rows in parts if rows)]
    return Line(keys, math.fsum(chances) / len(chances), estimates, differences)


def families(
    runs: Sequence[Run],
    index: Sequence[Mapping[Key, Row]],
    keys: Callable[[Row], Keys],
    keep: Callable[[Row], bool] = lambda row: True,
) -> tuple[Line, ...]:
    """Unweighted mean over the tasks of a family that every run has, and how many of how many those are."""
    lines: dict[Keys, list[list[Row]]] = {}
    for i, rows in enumerate(index):
        for row in rows.values():
            if keep(row):
                lines.setdefault(keys(row), [[] for _ in index])[i].append(row)
    result = []
    for key in _ordered(lines):
        parts = lines[key]
        common = set.intersection(*({row["task"] for row in rows} for rows in parts if rows))
        parts = _alike([[row for row in rows if row["task"] in common] for rows in parts])
        first = next((rows for rows in parts if rows), None)
        if first is None:
            continue
        family = str(dict(key)["family"])
        total = max(len(run.meta["tasks"].get(family, {}).get("subtasks", ())) for run in runs)
        total = 1 if common == {family} else total  # asked as a whole
        estimates = tuple(
            stats.stratified([r["score"] for r in rows], [r["task"] for r in rows], [r["cluster"] for r in rows])
            if rows
            else None
            for rows in parts
        )
        chance = stats.stratified([r["chance"] for r in first], [r["task"] for r in first]).value
        label = f"{len(common)} of {max(total, len(common))}"
        differences = (None, *(paired(rows, index[0], by_task=True) for rows in parts[1:]))
        result.append(Line((*key, ("tasks", label)), chance, estimates, differences))
    return tuple(result)


def knobs(runs: Sequence[Run]) -> dict[str, dict[str, set[Facet]]]:
    """Task -> facet -> its values, of the facets that are no axis of a table: hops, length, and which draw it is."""
    values: dict[str, dict[str, set[Facet]]] = {}
    for run in runs:
        for row in run.rows:
            seen = values.setdefault(row["task"], {})
            for key in sorted(row["cell"]):
                if key not in ("hops", "length", "draw"):
                    seen.setdefault(key, set()).add(row["facets"][key])
    return values


def apart(runs: Sequence[Run]) -> dict[str, str]:
    """Family -> why its scores do not compare, by the runs' records: other versions, other data, other sandboxes."""
    told: dict[str, dict[str, dict[str, None]]] = {}
    for run in runs:
        ways = _ways(run)
        for family, about in run.meta["tasks"].items():
            found = told.setdefault(family, {})
            for way in sorted(ways.get(family, ())):
                found.setdefault("how choices were answered", {})[way] = None
            found.setdefault("version", {})[f"version {about.get('version')}"] = None
            for name, what in (about.get("data") or {}).items():
                found.setdefault(f"data {name}", {})[str(what)] = None
            if "tier" in about:
                found.setdefault("tier", {})[str(about["tier"])] = None
    reasons = {}
    for family, found in told.items():
        unlike = [name for name, values in found.items() if len(values) > 1]
        tiers = [*found.get("tier", ())]
        if len(tiers) > 1:
            unlike[unlike.index("tier")] = f"the sandbox's tier ({' and '.join(tiers)})"
        ways_told = [*found.get("how choices were answered", ())]
        if len(ways_told) > 1:
            unlike[unlike.index("how choices were answered")] += f" ({' and '.join(ways_told)})"
        if unlike:
            reasons[family] = f"the runs differ in {', '.join(unlike)}: the scores do not compare"
        elif GENERATED in found.get("how choices were answered", ()):
            reasons[family] = f"its choices were answered {GENERATED}: the scores do not compare with likelihoods'"
        elif tiers == ["none"]:
            reasons[family] = "its answers ran without a sandbox (--allow-unsandboxed): they could forge their scores"
    return reasons


def _ways(run: Run) -> dict[str, set[str]]:
    """Family -> how its questions with choices were answered."""
    ways: dict[str, set[str]] = {}
    for row in run.rows:
        if row.get("choices") and not row["error"] and row["finish"] != "error":
            ways.setdefault(family_of(row), set()).add(LIKELIEST if row.get("choice_logprobs") else GENERATED)
    return ways


def pick(row: Row, names: Iterable[str]) -> Keys:
    return tuple((name, row["facets"][name]) for name in names if name in row["facets"])


def family_of(row: Row) -> str:
    return str(row["task"]).partition(".")[0]


def _ordered(groups: Iterable[Keys]) -> list[Keys]:
    """Tasks and families as they appear, other facets ascending."""
    found = list(groups)
    places = {name: i for i, name in enumerate(dict.fromkeys(keys[0][1] for keys in found))}

    def order(keys: Keys) -> tuple[Any, ...]:
        return (
            places[keys[0][1]],
            [(k, isinstance(v, str), 0 if isinstance(v, str) else v, str(v)) for k, v in keys[1:]],
        )

    return sorted(found, key=order)
