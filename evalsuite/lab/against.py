"""Designs against full attention of the same seeds: what speaks for them, and how gaps change as training goes on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evalsuite.lab.readout import DEPTHS, Value, View, hops_of
from evalsuite.lab.report import CLOZE, GRAPH, Trained, designs, over_seeds, probed, score

QUARTERS = (0.25, 0.5, 0.75, 1.0)


def views(trained: Sequence[Trained]) -> Iterator[View]:
    """The tables of differences, each seed's to the same seed of full attention; none without full attention."""
    full = {each.seed: each for each in trained if set(each.result["pattern"]) == {"F"}}
    others = [each for each in trained if set(each.result["pattern"]) != {"F"}]
    if not full or not others:
        return
    columns = {name: _beyond(full, value) for name, value in _asked(trained).items()}
    won = {name: value for name, value in columns.items() if _above(others, value)}
    yield View(
        "Where a design is better than full attention",
        "accuracy above full attention's at the same seeds, in whatever some design's 95 % interval lies above 0 "
        "(not corrected for the number of tasks); mean over lengths",
        won,
        "difference",
    )
    for hop in DEPTHS[:3]:
        cell = f"facts=64, hops={hop},"
        moments = {f"{share:.0%} of the tokens": _beyond(full, _while(cell, share)) for share in QUARTERS}
        yield View(
            f"The gap while training: {hops_of(hop)}",
            f"probe of `{GRAPH}`, 64 facts, against full attention's at the same seeds and after the same tokens",
            moments,
            "difference",
        )


def _asked(trained: Sequence[Trained]) -> dict[str, Value]:
    """Every task as a whole, walks by their number of hops, and facts known, soon and in the end."""
    tasks = sorted({task for each in trained for task, _ in each.scores} - {GRAPH, CLOZE, "multihop.path"})
    values: dict[str, Value] = {task: _task(task) for task in tasks}
    for task in (GRAPH, "multihop.path"):
        values |= {f"{task}, {hops_of(hop)}": _task(task, hops=hop) for hop in DEPTHS}
    cells = sorted({cell for line in trained[0].result["history"] for cell in line.get("probe", {}) if CLOZE in cell})
    return values | {f"{cell}, half trained": _while(cell, 0.5) for cell in cells}


def _task(task: str, **facets: Any) -> Value:
    return lambda trained: score(trained, task, **facets)


def _while(cell: str, share: float) -> Value:
    def value(trained: Trained) -> float | None:
        return probed(trained, cell, share)

    return value


def _beyond(full: Mapping[int, Trained], value: Value) -> Value:
    def difference(trained: Trained) -> float | None:
        base = full.get(trained.seed)
        if base is None or base is trained:
            return None
        own, theirs = value(trained), value(base)
        return None if own is None or theirs is None else own - theirs

    return difference


def _above(others: Sequence[Trained], value: Value) -> bool:
    for seeds in designs(others).values():
        found = [each for each in map(value, seeds) if each is not None]
        low = over_seeds(found)[1] if found else None
        if low is not None and low > 0:
            return True
    return False
