"""A comparison as tables: rich at a terminal, Markdown that reads as plain text elsewhere, CSV and JSON."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from evalsuite.compare import Column, Comparison, Flip, records
from evalsuite.groups import Line
from evalsuite.records import Facet
from evalsuite.stats import Estimate

FORMATS = ("rich", "md", "json", "csv")
WIDE = 4  # more columns of scores than this and the interval shrinks to a half-width


@dataclass(frozen=True, slots=True)
class Section:
    """One table of text cells; the first column is a label, and indented below the one it belongs to."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
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
                "summaries": {family: dict(figures) for family, figures in c.summaries.items()},
            }
            for c in result.columns
        ],
        "unlike": dict(result.unlike),
        "cells": records(result),
        **({} if result.flips is None else {"flips": [asdict(flip) for flip in result.flips]}),
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
    blocks += [*footnotes(result), "\n".join(f"- {c.weakest}" for c in result.columns)]
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
    """What is missing from the tables: tasks left out, unfinished runs, errors."""
    lines = []
    left_out: dict[tuple[str, str], list[str]] = {}
    for c in result.columns:
        for name, reason in c.missing.items():
            left_out.setdefault((name, reason), []).append(c.name)
    for (name, reason), models in left_out.items():
        who = "" if len(models) == len(result.columns) else f" ({', '.join(models)})"
        lines.append(f"LEFT OUT {name}{who}: {reason}")
    lines += (f"UNLIKE {name}: {reason}" for name, reason in result.unlike.items())
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
    return ["\n".join(lines)] if lines else []


def footnotes(result: Comparison) -> list[str]:
    """Answers that ended at max_new_tokens: many are whole, one word was asked; some are cut."""
    lines = []
    for c in result.columns:
        if c.truncated:
            worst = ", ".join(f"{task} {count}" for task, count in list(c.truncated.items())[:2])
            total = sum(c.truncated.values())
            more = ", ..." if len(c.truncated) > 2 else ""
            lines.append(
                f"{c.name}: {total} answers ended at max_new_tokens, {c.spoiled} of them wrong ({worst}{more})"
            )
    return ["\n".join(lines)] if lines else []


def sections(result: Comparison) -> list[Section]:
    """Every table that has something to show."""
    lengths = sorted({int(line.get("length")) for line in result.lengths})
    made = [_scores(result)]
    for family in dict.fromkeys(str(line.get("task")).partition(".")[0] for line in result.hops):
        deep = [line for line in result.hops if str(line.get("task")).partition(".")[0] == family]
        made.append(_pivot(result, deep, "hops", title=f"{family} by hop depth", name=_hops))
    if len(lengths) > 1:
        made.append(_pivot(result, result.lengths, "length", title="By length", name=lambda v: _length(int(v))))
    made += (_summary(result, family) for family in dict.fromkeys(f for c in result.columns for f in c.summaries))
    if len(result.columns) > 1:
        made.append(_differences(result))
    if result.flips is not None:
        made.append(_flips(result, result.flips))
    made.append(_cost(result))
    return made


def _scores(result: Comparison) -> Section:
    families = {str(line.get("family")): line for line in result.families}
    rows: list[tuple[str, ...]] = []
    for family, mean in families.items():
        members = [line for line in result.scores if str(line.get("task")).partition(".")[0] == family]
        if len(members) > 1:
            alone = mean.get("tasks") == "1 of 1"  # one task, under several settings
            label = f"{family}: {'all settings' if alone else _mean_of(str(mean.get('tasks')))}"
            rows.append((label, mean.n, f"{mean.chance:.2f}", *(_score(e, mean.chance) for e in mean.estimates)))
        indent = "  " if len(members) > 1 else ""
        rows += (
            (f"{indent}{_named(m)}", m.n, f"{m.chance:.2f}", *(_score(e, m.chance) for e in m.estimates))
            for m in members
        )
    header = ("task", "n", "chance", *(c.name for c in result.columns))
    return Section("Scores", header, tuple(rows), note="Mean [95 % interval]; ~ the interval includes chance.")


def _pivot(
    result: Comparison, lines: Sequence[Line], column: str, *, title: str, name: Callable[[Facet], str]
) -> Section:
    """One facet from left to right, models below each other; chance stands above each group."""
    values = sorted({line.get(column) for line in lines}, key=lambda v: (isinstance(v, str), v))
    compact = len(values) > WIDE
    groups: dict[str, dict[Facet, Line]] = {}
    for line in lines:
        groups.setdefault(_label(line, column), {})[line.get(column)] = line
    rows: list[tuple[str, ...]] = []
    for label, members in groups.items():
        n = _range([e.n for line in members.values() for e in line.estimates if e is not None])
        word = "" if compact else "chance "
        rows.append((label, n, *(f"{word}{members[v].chance:.2f} " if v in members else "" for v in values)))
        for i, c in enumerate(result.columns):
            cells = (
                _score(members[v].estimates[i], members[v].chance, compact) if v in members else "" for v in values
            )
            rows.append((f"  {c.name}", "", *cells))
    note = "Above the models: chance. Half-widths of 95 % intervals; ~ the interval includes chance." if compact else ""
    return Section(title, ("", "n", *map(name, values)), tuple(rows), note=note)


def _label(line: Line, column: str) -> str:
    """`graph, 32 facts, shuffled`; a family mean names how many tasks it is of."""
    parts = []
    for key, value in line.keys:
        if key == "tasks":
            parts += [] if str(value).endswith(" of 1") else [_mean_of(str(value))]
        elif key == "task":
            parts.append(str(value).partition(".")[2] or str(value))
        elif key == "family":
            parts.append(str(value))
        elif key != column:
            parts.append(_facet(key, value))
    return ", ".join(parts)


def _named(line: Line) -> str:
    """`knowledge.cloze, load 64`: the task, and the facets that vary within it."""
    return ", ".join([str(line.get("task")), *(_facet(key, value) for key, value in line.keys[1:])])


def _facet(key: str, value: Facet) -> str:
    """`32 facts`, `shuffled`, `load 64`."""
    if key == "facts":
        return f"{value} facts"
    return value if isinstance(value, str) else f"{key} {value}"


def _mean_of(tasks: str) -> str:
    """`11 of 13` -> `mean of 11 of 13 tasks`, `13 of 13` -> `mean of 13 tasks`."""
    done, _, total = tasks.partition(" of ")
    return f"mean of {done if done == total else tasks} tasks"


def _range(counts: Sequence[int]) -> str:
    if not counts:
        return ""
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}-{max(counts)}"


def _hops(hops: Facet) -> str:
    return f"{hops} hop{'' if hops == 1 else 's'}"


def _summary(result: Comparison, family: str) -> Section:
    figures = [c.summaries.get(family, {}) for c in result.columns]
    names = dict.fromkeys(name for each in figures for name in each)
    rows = tuple((name, *(each.get(name, "-") for each in figures)) for name in names)
    return Section(f"{family} as its authors sum it up", ("", *(c.name for c in result.columns)), rows)


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
        n = _range([d.n for d in line.differences if d is not None])
        rows.append((_named(line), n, *cells))
    first, *others = (c.name for c in result.columns)
    header = ("task", "pairs", *others)
    note = "Paired over the same questions, 95 % interval; * it excludes 0. Not corrected for looking at many tasks."
    return Section(f"Difference to {first}", header, tuple(rows), note=note)


def _flips(result: Comparison, flips: Sequence[Flip]) -> Section:
    rows = tuple((flip.id, *map(_scored, flip.scores, flip.answers)) for flip in flips)
    first, *others = (c.name for c in result.columns)
    counts = []
    for i, name in enumerate(others, 1):
        pairs = [(now, then) for now, then in ((flip.scores[i], flip.scores[0]) for flip in flips) if now is not None]
        up, down = (sum(sign * (now - (then or 0.0)) > 0 for now, then in pairs) for sign in (1, -1))
        counts.append(f"{name}: {up} higher, {down} lower.")
    note = f"Score and answer; where the prompts differ, nothing is compared. {' '.join(counts)}"
    return Section(f"Samples scored otherwise than in {first}", ("sample", first, *others), rows, note=note)


def _scored(score: float | None, answer: str) -> str:
    """`0.50 Mary, Jo`, the answer cut to a cell's room."""
    words = " ".join(answer.split())
    return "-" if score is None else f"{score:.2f} {words[:23] + '…' if len(words) > 24 else words}".rstrip()


def _cost(result: Comparison) -> Section:
    rows: list[tuple[str, ...]] = []
    for length in sorted({length for c in result.columns for length in c.cost}):
        for kind, name in (("kv", "KV cache"), ("index", "index keys"), ("state", "recurrent state")):
            cells = [c.cost.get(length, {}).get(kind) for c in result.columns]
            if kind == "index" and not any(cells):
                continue
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
    padded = ([c.rjust(widths[i]) if i else c.ljust(widths[i]) for i, c in enumerate(row)] for row in rows)
    lines = [f"| {' | '.join(row)} |" for row in padded]
    rule = "|" + "|".join("-" * (w + 1) + ":" if i else "-" * (w + 2) for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _print(result: Comparison, console: Console) -> None:
    console.print(f"\n[bold]{escape(heading(result))}[/bold]")
    for block in warnings(result):
        for line in block.splitlines():
            kind, _, rest = line.partition(" ")
            console.print(f"[yellow bold]{kind}[/yellow bold] {escape(rest)}", highlight=False)
    for section in sections(result):
        table = Table(
            title=escape(section.title), title_justify="left", title_style="bold", caption=escape(section.note)
        )
        table.caption_justify = "left"
        for i, name in enumerate(section.header):
            table.add_column(escape(name), justify="left" if i == 0 else "right", no_wrap=i > 0)
        for row, following in zip(section.rows, [*section.rows[1:], None], strict=True):
            end = following is None or not following[0].startswith("  ")
            styled = (f"[dim]{escape(c)}[/dim]" if c.endswith("~") else escape(c) for c in row)
            table.add_row(*styled, end_section=end and row[0].startswith("  "))
        console.print()
        room = console.width  # a terminal too narrow wraps lines; a table fitted to it would cut names and figures
        console.width = max(room, Measurement.get(console, console.options.update(max_width=1000), table).maximum)
        console.print(table)
        console.width = room
    for block in footnotes(result):
        console.print(f"\n[dim]{escape(block)}[/dim]", highlight=False)
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
