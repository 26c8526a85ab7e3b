"""Runs side by side: scores with intervals, paired differences to the first run, and each model's weakest spot."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from evalsuite import stats, store
from evalsuite import task as plugins
from evalsuite.errors import UserError, unknown
from evalsuite.groups import Line, apart, families, family_of, knobs, lines, pick, unlike
from evalsuite.pairs import Paired, Unequal, unequal
from evalsuite.stats import Estimate
from evalsuite.store import Key, Row, Run
from evalsuite.task import Averaged, Judged, Summarised
from evalsuite.verdict import MARGIN, Verdict, facets, verdicts


@dataclass(frozen=True, slots=True)
class Column:
    """What one model's column stands for."""

    name: str
    n: int
    errors: Mapping[str, int]  # reason -> samples
    truncated: Mapping[str, int]  # task -> answers that ended at max_new_tokens
    spoiled: int  # those of them that are not fully right
    missing: Mapping[str, str]
    finished: bool
    unreadable: int
    cost: Mapping[int, Mapping[str, int]]  # length -> {"kv": bytes, "state": bytes} of one sequence
    prefill_rate: float  # tokens/s; NaN where not measured
    decode_rate: float
    weakest: str
    summaries: Mapping[str, Mapping[str, str]]  # family -> its own figures, name -> text


@dataclass(frozen=True, slots=True)
class Flip:
    """A sample that some run scored otherwise than the first, asked in the same words."""

    task: str
    id: str
    scores: tuple[float | None, ...]  # one a run; None where it was not asked this
    answers: tuple[str, ...]  # as the scorers read them
    prompt: str = ""  # with the beginning of the answer; "" where the runs were loaded without
    target: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()  # whole completions


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that the tables show."""

    columns: tuple[Column, ...]
    scores: tuple[Line, ...]  # by task
    families: tuple[Line, ...]  # by family: mean of its tasks; key "tasks" says of how many
    hops: tuple[Line, ...]  # by task, shown facets and hops
    lengths: tuple[Line, ...]  # by family and length: mean of its tasks
    cells: tuple[Line, ...]  # by everything
    wordings: tuple[str, ...]
    seeds: tuple[int, ...]
    unlike: Mapping[str, str]  # task -> why its means are not over all that was asked
    verdicts: tuple[Verdict, ...]  # of each model after the first
    unequal: tuple[Unequal, ...]  # what was asked in other words, and is in no difference
    margin: float = MARGIN  # within which a difference is called equal
    by: tuple[str, ...] = ()  # the facets of a break-down that was asked for
    broken: tuple[Line, ...] = ()  # by task, or family, and these facets
    flips: tuple[Flip, ...] | None = None  # None where nobody asked for them


def load(paths: Iterable[str | Path], *, prompts: bool = False) -> list[Run]:
    """Runs from their folders; a folder of runs stands for all of them, oldest first. Prompts are much to read."""
    runs: list[Run] = []
    for path in map(Path, paths):
        inside = [] if (path / "run.json").exists() else sorted(p.parent for p in path.glob("*/run.json"))
        found = [store.read(folder, prompts=prompts) for folder in inside or [path]]
        runs += sorted(found, key=lambda run: str(run.meta["created"]))
    return runs


def compare(runs: Sequence[Run], *, flips: bool = False, by: Sequence[str] = (), margin: float = MARGIN) -> Comparison:
    """Compare runs with the first, on request sample by sample and broken down by facets.

    `margin` is the share of 1 within which a difference matters to nobody. Raises UserError where there is nothing to
    compare, or no sample has a facet.
    """
    if not 0 < margin < 1:
        raise UserError(f"--margin must lie between 0 and 100 points, not {100 * margin:g}")
    empty = [str(run.folder) for run in runs if not run.rows]
    if empty or not runs:
        raise UserError(f"no sample is stored in {', '.join(empty) or 'no run'}; run it first")
    index = [{(row["task"], row["id"]): row for row in _by_task(run)} for run in runs]
    settings = knobs(runs)
    varied = {task: [k for k, values in seen.items() if len(values) > 1] for task, seen in settings.items()}
    shown = {task: sorted({*varied[task], *({"facts"} & seen.keys())}) for task, seen in settings.items()}
    spots = lines(index, lambda row: (("task", row["task"]), *pick(row, ["hops"])))
    names = _names(runs)
    columns = tuple(_column(run, names, i, spots) for i, run in enumerate(runs))
    means = families(runs, index, lambda row: (("family", family_of(row)),))
    return Comparison(
        columns=columns,
        scores=lines(index, lambda row: (("task", row["task"]), *pick(row, varied[row["task"]]))),
        families=means,
        hops=lines(
            index,
            lambda row: (("task", row["task"]), *pick(row, shown[row["task"]]), ("hops", row["facets"]["hops"])),
            lambda row: "hops" in row["cell"],
        ),
        lengths=families(
            runs,
            index,
            lambda row: (("family", family_of(row)), ("length", row["facets"]["length"])),
            lambda row: "length" in row["cell"],
        ),
        cells=lines(
            index, lambda row: (("task", row["task"]), *pick(row, (name for name in row["cell"] if name != "draw")))
        ),
        wordings=_settings(runs, "wording"),
        seeds=_settings(runs, "seed"),
        unlike=unlike(index) | apart(runs),
        verdicts=verdicts(names, means, facets(runs, index), margin) if len(runs) > 1 else (),
        unequal=unequal(index),
        margin=margin,
        by=tuple(by),
        broken=_broken(runs, index, by) if by else (),
        flips=_flips(index) if flips else None,
    )


def _broken(runs: Sequence[Run], index: Sequence[Mapping[Key, Row]], by: Sequence[str]) -> tuple[Line, ...]:
    """Lines by task, or by family where "family" is asked for, and the facets `by`, of samples that have them all."""
    known = {name for rows in index for row in rows.values() for name in row["facets"]} | {"family", "task"}
    for name in by:
        if name not in known:
            raise unknown("facet", name, sorted(known))
    chosen = [name for name in by if name not in ("family", "task")]

    def has(row: Row) -> bool:
        return all(name in row["facets"] for name in chosen)

    if "family" in by and "task" not in by:
        return families(runs, index, lambda row: (("family", family_of(row)), *pick(row, chosen)), has)
    return lines(index, lambda row: (("task", row["task"]), *pick(row, chosen)), has)


def summary(run: Run) -> dict[str, Any]:
    """The summary.json of one run: counts, speed and every cell's score."""
    result = compare([run])
    column = result.columns[0]
    return {
        "format": store.FORMAT,
        "model": run.name,
        "samples": column.n,
        "errors": dict(column.errors),
        "truncated": dict(column.truncated),
        "missing": dict(column.missing),
        "cost": {str(length): dict(cost) for length, cost in column.cost.items()},
        "prefill_tokens_per_second": _number(column.prefill_rate),
        "decode_tokens_per_second": _number(column.decode_rate),
        "tasks": [_record(line) for line in result.scores],
        "families": [_record(line) for line in result.families],
        "cells": [_record(line) for line in result.cells],
    }


def records(result: Comparison, lines: Sequence[Line] | None = None) -> list[dict[str, Any]]:
    """Every line, or cell, of every model as one flat record, for JSON and CSV."""
    flat = []
    for line in result.cells if lines is None else lines:
        for column, estimate, difference in zip(result.columns, line.estimates, line.differences, strict=True):
            if estimate is not None:
                flat.append({"model": column.name, **_score(line, estimate), **paired_record(difference)})
    return flat


def _record(line: Line) -> dict[str, Any]:
    estimate = line.estimates[0]
    assert estimate is not None, "a run's own group has samples"
    return _score(line, estimate)


def _score(line: Line, estimate: Estimate) -> dict[str, Any]:
    return {
        **dict(line.keys),
        "n": estimate.n,
        "clusters": estimate.clusters,
        "score": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "chance": line.chance,
        "above_chance": stats.above_chance(estimate.value, line.chance),
    }


def paired_record(difference: Paired | None) -> dict[str, Any]:
    """A paired difference, flat; empty where there is none."""
    if difference is None:
        return {}
    return {
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "pairs": difference.n,
        "wins": difference.wins,
        "losses": difference.losses,
        "ties": difference.ties,
        "detectable": difference.detectable,
        "p": difference.p,
    }


def _measured(run: Run, row: Row) -> bool:
    """Whether the answer's length is known beforehand: a terse answer ends at max_new_tokens because it is whole."""
    return run.meta["tasks"].get(row["task"].partition(".")[0], {}).get("wording") == "terse"


def _column(run: Run, names: Sequence[str], position: int, spots: Sequence[Line]) -> Column:
    errors = _reasons([row["error"] or "unknown error" for row in run.rows if row["finish"] == "error" or row["error"]])
    cut = [row for row in run.rows if row["finish"] == "length" and not _measured(run, row)]
    truncated = Counter(row["task"] for row in cut)
    timings = run.timings
    return Column(
        name=names[position],
        n=len(run.rows),
        errors=errors,
        truncated=dict(truncated.most_common()),
        spoiled=sum(row["score"] < 1 for row in cut),
        missing=run.meta["missing"],
        finished=run.finished,
        unreadable=run.unreadable,
        cost={int(length): cost for length, cost in sorted(run.meta["cost"].items(), key=lambda c: int(c[0]))},
        prefill_rate=_rate(timings, "prefill"),
        decode_rate=_rate(timings, "decode"),
        weakest=_weakest(spots, names, position),
        summaries=_summaries(run),
    )


def _reasons(errors: Sequence[str]) -> dict[str, int]:
    """Reason -> how often, the most frequent first. Those that differ in numbers alone are one, in the words of the
    first: a prompt over the context has another length each time."""
    kinds: dict[str, list[str]] = {}
    for error in errors:
        kinds.setdefault(re.sub(r"\d+", "#", error), []).append(error)
    alike = sorted(kinds.values(), key=len, reverse=True)
    return {each[0] + (" (and alike)" if len(set(each)) > 1 else ""): len(each) for each in alike}


def _summaries(run: Run) -> dict[str, Mapping[str, str]]:
    """What the run's families make of their scores; a run is read without the plugins too, and then says less."""
    scores: dict[str, dict[int, dict[str, list[float]]]] = {}
    settings = knobs([run])
    for row in run.rows:
        if "length" in row["cell"] and all(len(values) == 1 for values in settings[row["task"]].values()):
            by_task = scores.setdefault(family_of(row), {}).setdefault(int(row["facets"]["length"]), {})
            by_task.setdefault(row["task"], []).append(row["score"])
    figures = {}
    for family in sorted({family_of(row) for row in run.rows} & set(plugins.names())):
        plugin = plugins.load(family)
        if isinstance(plugin, Summarised) and family in scores:
            means = {n: {name: fmean(s) for name, s in tasks.items()} for n, tasks in scores[family].items()}
            figures[family] = plugin.summary(means)
        if isinstance(plugin, Averaged):
            rows = (row for row in run.rows if family_of(row) == family)
            figures[family] = plugin.averages(
                [Judged(row["task"], row["facets"], row["answer"], row["score"]) for row in rows]
            )
    return {family: figure for family, figure in figures.items() if figure}


def _weakest(spots: Sequence[Line], names: Sequence[str], position: int) -> str:
    """Where the model is surest to lie below the first one; where it does nowhere, or is the first, its lowest score
    over chance."""
    mine = [(line, line.estimates[position], line.differences[position]) for line in spots]
    scored = [(line, e, d) for line, e, d in mine if e is not None]
    behind = [(line, e, d) for line, e, d in scored if d is not None and d.high < 0]
    if behind:
        line, estimate, difference = min(behind, key=lambda spot: spot[2].high if spot[2] else 0.0)
        assert difference is not None
        gap = f", {-difference.value:.2f} below {names[0]}"
    else:
        line, estimate, _ = min(scored, key=lambda spot: stats.above_chance(spot[1].value, spot[0].chance))
        compared = position > 0 and any(d is not None for _, _, d in scored)
        gap = f"; nowhere surely below {names[0]}" if compared else ""
    hops = line.get("hops")
    place = f"{line.get('task')}, {hops} hop{'s' if hops != 1 else ''}" if hops != "" else str(line.get("task"))
    interval = f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{names[position]}: weakest at {place}: {interval}, chance {line.chance:.2f}{gap}"


def _flips(index: Sequence[Mapping[Key, Row]]) -> tuple[Flip, ...]:
    found = []
    for key, first in index[0].items():
        others = [rows.get(key) for rows in index[1:]]
        rows = [first, *(r if r is not None and r["prompt_hash"] == first["prompt_hash"] else None for r in others)]
        if any(row is not None and row["score"] != first["score"] for row in rows):
            scores = tuple(None if row is None else row["score"] for row in rows)
            answers = tuple("" if row is None else str(row.get("answer") or row.get("text") or "") for row in rows)
            texts = tuple("" if row is None else str(row.get("text") or "") for row in rows)
            prompt = str(first.get("prompt") or "") + str(first.get("answer_prefix") or "")
            found.append(Flip(*key, scores, answers, prompt, tuple(first.get("target") or ()), texts))
    return tuple(found)


def _by_task(run: Run) -> list[Row]:
    """The rows with their tasks in the order in which the run and each family name them."""
    places: dict[str, int] = {}
    for family, about in run.meta["tasks"].items():
        for name in (family, *(f"{family}.{part}" for part in about["subtasks"])):
            places[name] = len(places)
    return sorted(run.rows, key=lambda row: places.get(row["task"], len(places)))


def _names(runs: Sequence[Run]) -> list[str]:
    """Column titles: the models' names, or the folders where one model comes twice."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def _settings(runs: Sequence[Run], key: str) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(about[key] for run in runs for about in run.meta["tasks"].values()))


def _rate(timings: Sequence[Mapping[str, Any]], phase: str) -> float:
    """Tokens per second of the whole: ranks of a sitting work beside each other, which lasts as long as the slowest."""
    tokens = math.fsum(t[f"{phase}_tokens"] for t in timings)
    times: dict[str, dict[int, float]] = {}
    for timing in timings:
        ranks = times.setdefault(timing.get("sitting", ""), {})
        rank = timing.get("rank", 0)
        ranks[rank] = ranks.get(rank, 0.0) + timing[f"{phase}_seconds"]
    seconds = math.fsum(max(ranks.values()) for ranks in times.values())
    return tokens / seconds if tokens and seconds else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
