"""A comparison as tables: rich at a terminal, Markdown that reads as plain text elsewhere, CSV and JSON."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from evalsuite import markdown
from evalsuite.compare import Comparison, Flip
from evalsuite.export import as_csv, as_json
from evalsuite.groups import Line
from evalsuite.notes import closing, footnotes, heading, margin, tokens, warnings
from evalsuite.pairs import Paired
from evalsuite.records import Facet
from evalsuite.stats import Estimate

FORMATS = ("rich", "md", "json", "csv")
WIDE = 4  # more columns of scores than this and the interval shrinks to a half-width
SHOWN = 20  # flips whose prompts and completions are printed; JSON and CSV have all
CLIP = 600  # characters of each that are printed


@dataclass(frozen=True, slots=True)
class Section:
    """One table of text cells; the first column is a label, and indented below the one it belongs to."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    texts: tuple[tuple[str, str], ...] = ()  # whole texts below the table: what each is, and the text


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


def as_markdown(result: Comparison) -> str:
    """Padded tables in GitHub's dialect, at most 120 columns wide for three models."""
    blocks = [markdown.plain(heading(result)), _list(warnings(result))]
    for section in sections(result):
        blocks += section_markdown(section)
    blocks += [_list(footnotes(result)), _list([name + said for name, said in closing(result)])]
    return "\n\n".join(filter(None, [*blocks, margin(result)]))


def section_markdown(section: Section) -> list[str]:
    """The blocks of one table."""
    note = [markdown.plain(section.note)] if section.note else []
    texts = [part for what, text in section.texts for part in (f"#### {markdown.plain(what)}", markdown.block(text))]
    return [f"### {markdown.plain(section.title)}", markdown.table(section.header, section.rows), *note, *texts]


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown.plain(line)}" for line in lines)


def sections(result: Comparison) -> list[Section]:
    """Every table that has something to show."""
    lengths = sorted({int(line.get("length")) for line in result.lengths})
    made = [_scores(result)]
    for family in dict.fromkeys(str(line.get("task")).partition(".")[0] for line in result.hops):
        deep = [line for line in result.hops if str(line.get("task")).partition(".")[0] == family]
        made.append(_pivot(result, deep, "hops", title=f"{family} by hop depth", name=_hops))
    if len(lengths) > 1:
        made.append(_pivot(result, result.lengths, "length", title="By length", name=lambda v: tokens(int(v))))
    made += (_summary(result, family) for family in dict.fromkeys(f for c in result.columns for f in c.summaries))
    if len(result.columns) > 1:
        several = [line for line in result.families if not str(line.get("tasks")).endswith(" of 1")]
        first = result.columns[0].name
        made.append(_differences(result, [*several, *result.scores], f"Difference to {first}", named))
    if result.by:
        made += _broken(result)
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
            name = f"{family}: {'all settings' if alone else mean_of(str(mean.get('tasks')))}"
            rows.append((name, mean.n, f"{mean.chance:.2f}", *(_score(e, mean.chance) for e in mean.estimates)))
        indent = "  " if len(members) > 1 else ""
        rows += (
            (f"{indent}{named(m)}", m.n, f"{m.chance:.2f}", *(_score(e, m.chance) for e in m.estimates))
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
        groups.setdefault(label(line, column), {})[line.get(column)] = line
    rows: list[tuple[str, ...]] = []
    for group, members in groups.items():
        n = _range([e.n for line in members.values() for e in line.estimates if e is not None])
        word = "" if compact else "chance "
        rows.append((group, n, *(f"{word}{members[v].chance:.2f} " if v in members else "" for v in values)))
        for i, c in enumerate(result.columns):
            cells = (
                _score(members[v].estimates[i], members[v].chance, compact) if v in members else "" for v in values
            )
            rows.append((f"  {c.name}", "", *cells))
    note = "Above the models: chance. Half-widths of 95 % intervals; ~ the interval includes chance." if compact else ""
    return Section(title, ("", "n", *map(name, values)), tuple(rows), note=note)


def label(line: Line, column: str) -> str:
    """`graph, 32 facts, shuffled`; a family mean names how many tasks it is of."""
    parts = []
    for key, value in line.keys:
        if key == "tasks":
            parts += [] if str(value).endswith(" of 1") else [mean_of(str(value))]
        elif key == "task":
            parts.append(str(value).partition(".")[2] or str(value))
        elif key == "family":
            parts.append(str(value))
        elif key != column:
            parts.append(_facet(key, value))
    return ", ".join(parts)


def named(line: Line) -> str:
    """`knowledge.cloze, load 64`: the task, and the facets that vary within it; a family's mean says of how many."""
    if line.get("family") != "":
        return f"{line.get('family')}: {mean_of(str(line.get('tasks')))}"
    return ", ".join([str(line.get("task")), *(_facet(key, value) for key, value in line.keys[1:])])


def _facet(key: str, value: Facet) -> str:
    """`32 facts`, `shuffled`, `load 64`."""
    if key == "facts":
        return f"{value} facts"
    return value if isinstance(value, str) else f"{key} {value}"


def mean_of(tasks: str) -> str:
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


def _differences(result: Comparison, lines: Sequence[Line], title: str, name: Callable[[Line], str]) -> Section:
    """A row for each line and model after the first."""
    rows = []
    alone = len(result.columns) == 2
    for line in lines:
        for i, c in enumerate(result.columns[1:], 1):
            if line.estimates[i] is not None and line.estimates[0] is not None:
                rows.append((name(line), *([] if alone else [c.name]), *_difference(line.differences[i])))
    header = ("", *([] if alone else ["model"]), "pairs", "difference", "won/lost/same", "detectable")
    note = (
        "Paired over the same questions, 95 % interval; * it excludes 0. Not corrected for looking at many. "
        "Detectable: the smallest difference that as many pairs, disagreeing as often, show in 8 of 10 runs."
    )
    return Section(title, header, tuple(rows), note=note)


def _difference(d: Paired | None) -> tuple[str, str, str, str]:
    if d is None:
        return "0", "not the same prompts", "-", "-"
    star = " " if d.low <= 0 <= d.high else "*"
    found = "none" if d.detectable > 1 else f"{d.detectable:.3f}"
    return str(d.n), f"{d.value:+.2f} [{d.low:+.2f}, {d.high:+.2f}]{star}", f"{d.wins}/{d.losses}/{d.ties}", found


def _broken(result: Comparison) -> list[Section]:
    """The break-down that was asked for: scores, then differences."""
    facets = [key for key in dict.fromkeys(k for line in result.broken for k, _ in line.keys) if key != "tasks"]
    rows = [
        (*(str(line.get(key)) for key in facets), line.n, f"{line.chance:.2f}",
         *(_score(e, line.chance) for e in line.estimates))
        for line in result.broken
    ]  # fmt: skip
    title = f"By {', '.join(result.by)}"
    header = (*facets, "n", "chance", *(c.name for c in result.columns))
    left = sorted({str(line.get("task")) for line in result.scores} - {str(line.get("task")) for line in result.broken})
    note = f"Without such a facet: {', '.join(left)}." if left and "task" in facets else ""
    made = [Section(title, header, tuple(rows), note=note)]
    if len(result.columns) > 1:

        def name(line: Line) -> str:
            return ", ".join([str(line.keys[0][1]), *(_facet(k, v) for k, v in line.keys[1:] if k != "tasks")])

        made.append(_differences(result, result.broken, f"{title}: difference to {result.columns[0].name}", name))
    return made


def _flips(result: Comparison, flips: Sequence[Flip]) -> Section:
    rows = tuple((flip.id, *map(_scored, flip.scores, flip.answers)) for flip in flips)
    first, *others = (c.name for c in result.columns)
    counts = []
    for i, name in enumerate(others, 1):
        pairs = [(now, then) for now, then in ((flip.scores[i], flip.scores[0]) for flip in flips) if now is not None]
        up, down = (sum(sign * (now - (then or 0.0)) > 0 for now, then in pairs) for sign in (1, -1))
        counts.append(f"{name}: {up} higher, {down} lower.")
    rest = f" Below: the first {SHOWN} of {len(flips)}; json and csv have all." if len(flips) > SHOWN else ""
    note = f"Score and answer; where the prompts differ, nothing is compared. {' '.join(counts)}{rest}"
    texts = tuple(part for flip in flips[:SHOWN] if flip.prompt for part in _texts(flip, [first, *others]))
    return Section(f"Samples scored otherwise than in {first}", ("sample", first, *others), rows, note, texts)


def _texts(flip: Flip, names: Sequence[str]) -> list[tuple[str, str]]:
    """The end of the prompt, and what each model went on to write."""
    asked = [(f"{flip.id}: prompt (right: {' or '.join(flip.target)})", _clipped(flip.prompt))]
    return asked + [
        (f"{name}, {score:.2f}", _clipped(text))
        for name, score, text in zip(names, flip.scores, flip.texts, strict=True)
        if score is not None
    ]


def _clipped(text: str) -> str:
    """The last CLIP characters; what would move a terminal's cursor is shown as a mark."""
    kept = text if len(text) <= CLIP else f"[{len(text) - CLIP} characters before] {text[-CLIP:]}"
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in kept)


def _scored(score: float | None, answer: str) -> str:
    """`0.50 Mary, Jo`, the answer cut to a cell's room."""
    words = " ".join(_clipped(answer[:CLIP]).split())
    return "-" if score is None else f"{score:.2f} {words[:23] + '…' if len(words) > 24 else words}".rstrip()


def _cost(result: Comparison) -> Section:
    rows: list[tuple[str, ...]] = []
    for length in sorted({length for c in result.columns for length in c.cost}):
        for kind, name in (("kv", "KV cache"), ("index", "index keys"), ("state", "recurrent state")):
            cells = [c.cost.get(length, {}).get(kind) for c in result.columns]
            if kind == "index" and not any(cells):
                continue
            rows.append((f"{name}, {tokens(length)} tokens", *("-" if b is None else size_of(b) for b in cells)))
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


def _print(result: Comparison, console: Console) -> None:
    console.print(f"\n[bold]{escape(heading(result))}[/bold]")
    for line in warnings(result):
        kind, _, rest = line.partition(" ")
        console.print(f"[yellow bold]{kind}[/yellow bold] {escape(rest)}", highlight=False)
    for section in sections(result):
        print_section(section, console)
    for line in footnotes(result):
        console.print(f"\n[dim]{escape(line)}[/dim]", highlight=False)
    console.print()
    for name, said in closing(result):
        console.print(f"[bold]{escape(name)}[/bold]{escape(said)}", highlight=False)
    if margin(result):
        console.print(f"[dim]{escape(margin(result))}[/dim]", highlight=False)


def print_section(section: Section, console: Console) -> None:
    """One table, never narrower than its figures."""
    table = Table(title=escape(section.title), title_justify="left", title_style="bold", caption=escape(section.note))
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
    for what, text in section.texts:
        console.print(f"\n[bold]{escape(what)}[/bold]", highlight=False)
        console.print(escape(text), highlight=False)


def size_of(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def _rate(rate: float) -> str:
    return "-" if math.isnan(rate) else f"{rate:,.0f} tokens/s"
