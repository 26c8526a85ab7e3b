"""Runs to one HTML file: everything inside it, and a content policy under which it can ask for nothing."""

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from evalsuite import compare as comparing
from evalsuite import notes, table
from evalsuite.compare import Comparison
from evalsuite.errors import UserError
from evalsuite.groups import Line, family_of
from evalsuite.report import charts, figures, gold, samples, words
from evalsuite.report.figures import Figure
from evalsuite.store import Run
from evalsuite.table import Section

Cell = tuple[str, str]  # what is said, and in small letters below it


def write(paths: Sequence[str], out: Path, folder: Path | None = None) -> Iterator[str]:
    """Write the report of runs to `out`, and its figures as PNG and SVG to `folder`; say each file that is written.

    Raises UserError where there is nothing to show, where the extra `report` is missing and where `out` cannot be
    written.
    """
    charts.check()
    runs = comparing.load(paths, prompts=True)
    result = comparing.compare(runs)
    made = figures.figures(result, runs)
    try:
        if folder is not None:
            yield from figures.save(made, folder)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(runs, result, made), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or out}: {error.strerror or error}; name another place"
        ) from error
    yield str(out)


def page(runs: Sequence[Run], result: Comparison, made: Sequence[Figure], *, live: bool = False) -> str:
    """The report as HTML; `live` adds a script that asks the same server whether there is more."""
    names = [words.visible(column.name) for column in result.columns]
    shown = [(each, [(title, charts.svg(chart)) for title, chart in each.panels]) for each in made]
    said = {
        "heading": words.visible(notes.heading(result)),
        "names": names,
        "closing": [words.visible(name + line) for name, line in notes.closing(result)],
        "margin": notes.margin(result),
        "warnings": [_warning(line) for line in _warnings(runs, result)],
        "notes": [words.visible(line) for block in notes.footnotes(result) for line in block.splitlines()],
        "headline": _visible(headline(result)),
        "summaries": [_visible(section) for section in summaries(result)],
        "figures": [{"figure": each, "panels": panels, "table": _visible(each.table)} for each, panels in shown],
        "sections": [_visible(section) for section in table.sections(result)],
        "gold": gold.NOTE,
        "provenance": provenance(runs, names),
        "files": [words.visible(json.dumps(run.meta, indent=1, ensure_ascii=False)) for run in runs],
    }
    bare = len(render("report.html", live=live, packed=samples.NONE, **said).encode())
    packed = samples.pack(runs, result, samples.SIZE - bare)
    return render("report.html", live=live, packed=packed, **said)


def render(name: str, *, live: bool, **values: Any) -> str:
    """A template filled in, everything escaped, under a policy that names its style and scripts by their hashes."""
    import jinja2
    import markupsafe

    folder = resources.files("evalsuite.report") / "page"
    text = {file: (folder / file).read_text(encoding="utf-8") for file in ("page.css", "browser.js", "live.js")}
    scripts = [text["browser.js"], *([text["live.js"]] if live else [])]
    policy = [
        "default-src 'none'",
        f"style-src {_hash(text['page.css'])}",
        f"script-src {' '.join(map(_hash, scripts))}",
        *(["connect-src 'self'"] if live else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    loader = jinja2.FunctionLoader(lambda file: (folder / file).read_text(encoding="utf-8"))
    house = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return house.get_template(name).render(
        live=live,
        policy="; ".join(policy),
        style=markupsafe.Markup(text["page.css"]),
        scripts=[markupsafe.Markup(script) for script in scripts],
        svg=markupsafe.Markup,
        **values,
    )


def headline(result: Comparison) -> Section:
    """Score, interval and n of every task and family beside each other run's paired difference to the first."""
    first, *others = (c.name for c in result.columns)
    header = ["task", "n", "chance", first]
    for name in others:
        header += [name, f"minus {first}"]
    rows = []
    for mean in result.families:
        members = [line for line in result.scores if words.task(line).partition(".")[0] == mean.get("family")]
        if len(members) > 1:
            alone = mean.get("tasks") == "1 of 1"
            label = f"{mean.get('family')}: {'all settings' if alone else words.mean_of(str(mean.get('tasks')))}"
            rows.append((label, *_row(mean)))
        indent = "  " if len(members) > 1 else ""
        rows += ((f"{indent}{words.named(line)}", *_row(line)) for line in members)
    note = "Mean [95 % interval] over n questions. Differences are paired over questions asked in the same words; "
    note += "* their interval excludes 0, not corrected for looking at many tasks."
    return Section("Scores", tuple(header), tuple(rows), note=note)


def summaries(result: Comparison) -> Iterator[Section]:
    """For each family that its authors sum up, as RULER's by an effective length: the mean at each length, and that."""
    names = [c.name for c in result.columns]
    for family in dict.fromkeys(family for c in result.columns for family in c.summaries):
        means = [line for line in result.lengths if line.get("family") == family]
        rows = [
            (
                f"{line.get('length'):,} tokens, {words.mean_of(str(line.get('tasks')))}",
                *map(words.estimate, line.estimates),
            )
            for line in means
        ]
        figures_of = [c.summaries.get(family, {}) for c in result.columns]
        every = dict.fromkeys(name for each in figures_of for name in each)
        rows += [(name, *(each.get(name, "-") for each in figures_of)) for name in every]
        note = (
            "As the family's authors sum it up. A figure that needs tasks or settings which were not asked is not here."
        )
        yield Section(f"{family}: by length and in sum", ("", *names), tuple(rows), note)


def _row(line: Line) -> Iterator[str]:
    yield from (line.n, f"{line.chance:.2f}")
    for i, (found, apart) in enumerate(zip(line.estimates, line.differences, strict=True)):
        yield words.estimate(found)
        if i:
            yield words.difference(apart)


def provenance(runs: Sequence[Run], names: Sequence[str]) -> Section:
    """What each run was, side by side; a line in which they differ is marked by `≠`."""
    told = [dict(_flat(_origin(run))) for run in runs]
    rows = []
    for key in dict.fromkeys(key for each in told for key in each):
        values = [each.get(key, "-") for each in told]
        rows.append((f"{'≠ ' if len(set(values)) > 1 else ''}{key}", *values))
    return _visible(Section("Provenance", ("", *names), tuple(rows), note="≠ the runs differ."))


def _origin(run: Run) -> dict[str, Any]:
    first = run.meta["requests"][0] if run.meta["requests"] else {}
    commands = [request.get("command", "") for request in run.meta["requests"]]
    return {
        "model": run.name,
        "folder": str(run.folder),
        "samples": len(run.rows),
        "command": "\n".join(dict.fromkeys(commands)),
        "started": first.get("time", ""),
        "identity": run.meta["identity"],
        "context": run.meta.get("context", ""),
        "versions": first.get("versions", {}),
        "revision": first.get("revision", ""),
        "limit": first.get("limit", ""),
        "knobs": first.get("knobs", {}),
        "ran": first.get("ran", {}),
        "tasks": {
            name: {k: v for k, v in about.items() if k != "subtasks"} for name, about in run.meta["tasks"].items()
        },
    }


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, f"{path}.{key}" if path else str(key))
    elif value not in ("", None):
        yield path, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _warnings(runs: Sequence[Run], result: Comparison) -> Iterator[str]:
    """The terminal's warnings, and scores that are none."""
    for block in notes.warnings(result):
        yield from block.splitlines()
    for run, column in zip(runs, result.columns, strict=True):
        strange = sum(not (isinstance(row["score"], int | float) and math.isfinite(row["score"])) for row in run.rows)
        if strange:
            families = sorted({family_of(row) for row in run.rows if not math.isfinite(row["score"])})
            yield (
                f"INVALID {column.name}: {strange} scores are no number, and so are the means over them "
                f"({', '.join(families)}); run these again with another --out"
            )


def _warning(line: str) -> Cell:
    """`ERRORS full: ...` -> its kind and the rest."""
    kind, _, rest = line.partition(" ")
    if line.startswith("LEFT OUT "):
        kind, rest = "LEFT OUT", line.removeprefix("LEFT OUT ")
    return words.visible(kind), words.visible(rest)


def _visible(section: Section) -> Section:
    rows = tuple(tuple(map(words.visible, row)) for row in section.rows)
    return Section(
        words.visible(section.title), tuple(map(words.visible, section.header)), rows, words.visible(section.note)
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
