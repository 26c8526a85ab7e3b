"""A comparison as tables: rich at a terminal, Markdown that reads as plain text elsewhere, CSV and JSON."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalsuite.compare import Column, Comparison, Line, records
from evalsuite.stats import Estimate

FORMATS = ("rich", "md", "json", "csv")
WIDE = 4  # more columns of scores than this and the interval shrinks to a half-width


@dataclass(frozen=True, slots=True)
class Section:
    """One table: text cells, the first `labels` columns aligned left."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1
    note: str = ""


def render(result: Comparison, form: str, console: Console) -> str:
    """The comparison as text; `rich` prints to the console and returns nothing."""
    if form == "json":
        return as_json(result)
    if form == "csv":
        return as_csv(result)
    if form == "md":
        return as_markdown(result)
    _print(result, console)
    return ""


def as_json(result: Comparison) -> str:
    """Models, closing lines and every cell; NaN becomes null."""
    value = {
        "models": [
            {
                "name": c.name,
                "samples": c.n,
                "finished": c.finished,
                "errors": dict(c.errors),
                "truncated": dict(c.truncated),
                "missing": dict(c.missing),
                "cost": {str(k): dict(v) for k, v in c.cost.items()},
                "prefill_tokens_per_second": None if math.isnan(c.prefill_rate) else c.prefill_rate,
                "decode_tokens_per_second": None if math.isnan(c.decode_rate) else c.decode_rate,
                "weakest": c.weakest,
            }
            for c in result.columns
        ],
        "cells": records(result),
    }
    return json.dumps(value, indent=1)


def as_csv(result: Comparison) -> str:
    """One line a cell and model."""
    rows = records(result)
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().rstrip("\n")


def as_markdown(result: Comparison) -> str:
    """Padded Markdown tables, at most 120 columns wide for three models."""
    blocks = [heading(result), *warnings(result)]
    for section in sections(result):
        blocks += [f"### {section.title}", _markdown(section), *([section.note] if section.note else [])]
    blocks.append("\n".join(f"- {c.weakest}" for c in result.columns))
    return "\n\n".join(blocks)


def heading(result: Comparison) -> str:
    """Who was asked how much."""
    counts = sorted({c.n for c in result.columns})
    asked = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    lengths = sorted({int(line.get("length")) for line in result.lengths})
    parts = [
        f"{len(result.columns)} model{'s' if len(result.columns) > 1 else ''}",
        f"{asked} questions each",
        f"{', '.join(map(_length, lengths))} tokens" if lengths else "",
        f"{' and '.join(result.wordings)} wording",
        f"seed {' and '.join(map(str, result.seeds))}",
    ]
    return "evalsuite: " + ", ".join(filter(None, parts))


def warnings(result: Comparison) -> list[str]:
    """What is missing from the tables: tasks left out, unfinished runs, errors, cut answers."""
    lines = []
    left_out: dict[tuple[str, str], list[str]] = {}
    for c in result.columns:
        for name, reason in c.missing.items():
            left_out.setdefault((name, reason), []).append(c.name)
    for (name, reason), models in left_out.items():
        who = "" if len(models) == len(result.columns) else f" ({', '.join(models)})"
        lines.append(f"LEFT OUT {name}{who}: {reason}")
    for c in result.columns:
        if not c.finished:
            lines.append(f"UNFINISHED {c.name}: {c.n} samples so far; the same command goes on")
        if c.unreadable:
            lines.append(
                f"UNREADABLE {c.name}: {c.unreadable} damaged lines in its log; the same command asks them again"
            )
        for reason, count in list(c.errors.items())[:3]:
            lines.append(f"ERRORS {c.name}: {count} of {c.n} samples count as wrong: {reason}")
        if len(c.errors) > 3:
            rest = sum(list(c.errors.values())[3:])
            lines.append(f"ERRORS {c.name}: {rest} more for {len(c.errors) - 3} other reasons")
        if c.truncated:
            worst = ", ".join(f"{task} {count}" for task, count in list(c.truncated.items())[:4])
            more = ", ..." if len(c.truncated) > 4 else ""
            lines.append(f"CUT {c.name}: {sum(c.truncated.values())} answers ended at max_new_tokens ({worst}{more})")
    return ["\n".join(lines)] if lines else []


def sections(result: Comparison) -> list[Section]:
    """Every table that has something to show."""
    lengths = sorted({int(line.get("length")) for line in result.lengths})
    made = [_scores(result)]
    if result.hops:
        made.append(
            _pivot(
                result,
                result.hops,
                "hops",
                title="By hop depth",
                name=lambda v: f"{v} hop{'s' if v != 1 else ''}",
            )
        )
    if len(lengths) > 1:
        made.append(_pivot(result, result.lengths, "length", title="By length", name=lambda v: _length(int(v))))
    if len(result.columns) > 1:
        made.append(_differences(result))
    made.append(_cost(result))
    return made


def _scores(result: Comparison) -> Section:
    families = {str(line.get("family")): line for line in result.families}
    rows: list[tuple[str, ...]] = []
    for family, mean in families.items():
        members = [line for line in result.scores if str(line.get("task")).partition(".")[0] == family]
        done, _, total = str(mean.get("tasks")).partition(" of ")
        if len(members) > 1 or int(total) > 1:
            label = (
                f"{family}: mean of {done} tasks" if done == total else f"{family}: mean of {mean.get('tasks')} tasks"
            )
            rows.append((label, mean.n, f"{mean.chance:.2f}", *(_score(e, mean.chance) for e in mean.estimates)))
        indent = "  " if rows and rows[-1][0].startswith(f"{family}:") else ""
        rows += (
            (f"{indent}{m.get('task')}", m.n, f"{m.chance:.2f}", *(_score(e, m.chance) for e in m.estimates))
            for m in members
        )
    header = ("task", "n", "chance", *(c.name for c in result.columns))
    return Section("Scores", header, tuple(rows), note="Mean [95 % interval]; ~ the interval includes chance.")


def _pivot(
    result: Comparison, lines: Sequence[Line], column: str, *, title: str, name: Callable[[int | float | str], str]
) -> Section:
    """Models below each other, one facet from left to right."""
    values = sorted({line.get(column) for line in lines}, key=lambda v: (isinstance(v, str), v))
    compact = len(values) > WIDE
    groups: dict[tuple[str, ...], dict[object, Line]] = {}
    for line in lines:
        groups.setdefault(_label(line, column), {})[line.get(column)] = line
    rows: list[tuple[str, ...]] = []
    for label, members in groups.items():
        counts = sorted({e.n for line in members.values() for e in line.estimates if e is not None})
        n = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
        chances = sorted({f"{line.chance:.2f}" for line in members.values()})
        chance = chances[0] if len(chances) == 1 else f"{chances[0]}-{chances[-1]}"
        for i, c in enumerate(result.columns):
            cells = [
                _score(members[v].estimates[i], members[v].chance, compact) if v in members else "" for v in values
            ]
            first = (" ".join(label), n, chance) if i == 0 else ("", "", "")
            rows.append((*first, c.name, *cells))
    header = ("task", "n", "chance", "model", *(name(v) for v in values))
    return Section(title, header, tuple(rows))


def _label(line: Line, column: str) -> tuple[str, ...]:
    """`multihop.graph facts=32`; a family mean names how many tasks it is of."""
    parts = []
    for key, value in line.keys:
        if key == "tasks":
            done, _, total = str(value).partition(" of ")
            parts.append("" if total == "1" else f"(mean of {done if done == total else value} tasks)")
        elif key in ("task", "family"):
            parts.append(str(value))
        elif key != column:
            parts.append(f"{value} facts" if key == "facts" else f"{key}={value}")
    return tuple(filter(None, parts))


def _differences(result: Comparison) -> Section:
    rows = []
    for line in result.scores:
        cells = []
        for d in line.differences[1:]:
            if d is None:
                cells.append("not the same prompts")
                continue
            star = " " if d.low <= 0 <= d.high else "*"
            cells.append(f"{d.value:+.2f} [{d.low:+.2f}, {d.high:+.2f}]{star}")
        pairs = sorted({d.n for d in line.differences if d is not None})
        n = "" if not pairs else str(pairs[0]) if len(pairs) == 1 else f"{pairs[0]}-{pairs[-1]}"
        rows.append((str(line.get("task")), n, *cells))
    first, *others = (c.name for c in result.columns)
    header = ("task", "pairs", *others)
    note = "Paired over the same questions, 95 % interval; * it excludes 0. Not corrected for looking at many tasks."
    return Section(f"Difference to {first}", header, tuple(rows), note=note)


def _cost(result: Comparison) -> Section:
    rows: list[tuple[str, ...]] = []
    for length in sorted({length for c in result.columns for length in c.cost}):
        for kind, name in (("kv", "KV cache"), ("state", "recurrent state")):
            cells = (c.cost.get(length, {}).get(kind) for c in result.columns)
            rows.append((f"{name}, {_length(length)} tokens", *("-" if b is None else _bytes(b) for b in cells)))
    rows.append(("prefill", *(_rate(c.prefill_rate) for c in result.columns)))
    rows.append(("decode", *(_rate(c.decode_rate) for c in result.columns)))
    return Section("Cost of one sequence, and speed", ("", *(c.name for c in result.columns)), tuple(rows))


def _score(estimate: Estimate | None, chance: float, compact: bool = False) -> str:
    if estimate is None:
        return "-"
    mark = "~" if estimate.includes(chance) else " "
    if compact:
        half = max(estimate.high - estimate.value, estimate.value - estimate.low)
        return f"{estimate.value:.2f}±{half:.2f}".replace("±0.", "±.") + mark
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]{mark}"


def _markdown(section: Section) -> str:
    rows = [tuple(cell.replace("|", "\\|") for cell in row) for row in (section.header, *section.rows)]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(section.header))]
    left = _left(section)
    padded = ([c.ljust(widths[i]) if i in left else c.rjust(widths[i]) for i, c in enumerate(row)] for row in rows)
    lines = [f"| {' | '.join(row)} |" for row in padded]
    rule = "|" + "|".join("-" * (w + 2) if i in left else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _left(section: Section) -> set[int]:
    return {i for i, name in enumerate(section.header) if i == 0 or name == "model"}


def _print(result: Comparison, console: Console) -> None:
    console.print(f"\n[bold]{escape(heading(result))}[/bold]")
    for block in warnings(result):
        for line in block.splitlines():
            kind, _, rest = line.partition(" ")
            console.print(f"[yellow bold]{kind}[/yellow bold] {escape(rest)}", highlight=False)
    for section in sections(result):
        left = _left(section)
        table = Table(
            title=escape(section.title), title_justify="left", title_style="bold", caption=escape(section.note)
        )
        table.caption_justify = "left"
        for i, name in enumerate(section.header):
            table.add_column(escape(name), justify="left" if i in left else "right", no_wrap=i > 0)
        for row, following in zip(section.rows, [*section.rows[1:], None], strict=True):
            end = following is None or (following[0] != "" and not following[0].startswith("  "))
            styled = (f"[dim]{escape(c)}[/dim]" if c.endswith("~") else escape(c) for c in row)
            table.add_row(*styled, end_section=end and "model" in section.header)
        console.print()
        console.print(table)
    console.print()
    for column in result.columns:
        console.print(_closing(column), highlight=False)


def _closing(column: Column) -> str:
    return f"[bold]{escape(column.name)}[/bold]{escape(column.weakest.removeprefix(column.name))}"


def _length(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def _rate(rate: float) -> str:
    return "-" if math.isnan(rate) else f"{rate:,.0f} tokens/s"
