"""The gate for people: a step summary in GitHub's Markdown, and annotations.

GitHub refuses a step summary over 1 MiB and shows ten annotations of each kind a step, so both are kept smaller here,
and say what they left out.
"""

import math
from collections.abc import Iterable, Sequence

from evalsuite.gate.decide import IMPROVED, INCONCLUSIVE, INVALID, PASS, QUARANTINED, REGRESSED
from evalsuite.gate.judge import Case, Report
from evalsuite.gate.junit import clean

LIMIT = 1_000_000  # bytes; GitHub's is 1 MiB
ANNOTATIONS = 10
MOST = 200  # problems
MARKS = {  # the gravest first
    INVALID: "🚫",
    REGRESSED: "❌",
    INCONCLUSIVE: "❔",
    QUARANTINED: "🚧",
    IMPROVED: "⬆️",
    PASS: "✅",
}
HEADER = ("", "tier", "n", "baseline", "run", "difference [95 %]", "p", "p adj.", "lost / won", "detectable", "why")


def markdown(report: Report, limit: int = LIMIT) -> str:
    """The summary in at most `limit` bytes: where it would be longer, cells are dropped, the quietest first."""
    new, old = report.sides[0].run, report.sides[1].run
    blocks = [
        f"## {MARKS[report.verdict]} evalsuite gate: {report.verdict}",
        f"{_text(new.name)} (`{_code(new.folder)}`) against {_text(old.name)} (`{_code(old.folder)}`), policy "
        f"{_text(report.policy.name)}, {report.policy.mode} mode, alpha {report.policy.alpha:g}",
        _cut(_text(report.reason), 2000),
    ]
    if report.problems:
        shown = [f"- **{_text(p.kind)}** {_cut(_text(p.message), 1000)}" for p in report.problems[:MOST]]
        left = len(report.problems) - len(shown)
        blocks.append("\n".join([*shown, *([f"- and {left} more, in gate.json"] if left else [])]))
    blocks += _table([case for case in report.cases if case.outcome and case.kind != "cell"], "")
    blocks += _costs([case for case in report.cases if case.cost])
    if report.notes:
        blocks.append("\n".join(f"- {_cut(_text(note), 1000)}" for note in report.notes[:MOST]))
    cells = sorted((case for case in report.cases if case.kind == "cell"), key=_loud)
    return _fitted(blocks, cells, limit)


def annotations(report: Report, *, strict: bool = False) -> list[str]:
    """GitHub workflow commands, the gravest first; at most ten, the last saying how many there would be."""
    lines = [_command("error", f"gate: {p.kind}", p.message) for p in report.problems]
    kinds = {REGRESSED: "error", INCONCLUSIVE: "warning", QUARANTINED: "notice"}  # of what gates
    lines += (
        _command(
            "error" if report.fails(case, strict=strict) else kinds[case.verdict] if case.gates else "notice",
            f"gate: {case.kind} {case.name} {case.verdict}",
            case.reason,
        )
        for case in sorted(report.cases, key=lambda case: (not case.gates, [*MARKS].index(case.verdict)))
        if case.verdict in kinds
    )
    if len(lines) <= ANNOTATIONS:
        return lines
    left = len(lines) - ANNOTATIONS + 1
    return [*lines[: ANNOTATIONS - 1], _command("notice", "gate", f"{left} more, in gate.json")]


def plain(report: Report) -> str:
    """A few lines for a terminal."""
    lines = [f"{report.verdict}: {report.reason}"]
    lines += (f"  {problem.kind}: {problem.message}" for problem in report.problems)
    lines += (
        f"  {case.verdict:12} {case.tier:10} {case.kind} {case.name}: {case.reason}"
        for case in report.cases
        if case.kind != "cell" or case.verdict == REGRESSED
    )
    return clean("\n".join([*lines, *(f"  note: {note}" for note in report.notes)]))


def _fitted(blocks: Sequence[str], cells: Sequence[Case], limit: int) -> str:
    """The blocks and as many cells as there is room for."""
    text = "\n\n".join(blocks)
    room = limit - len(text.encode()) - 1000
    rows: list[Case] = []
    for case in cells:
        room -= len(_row(case).encode()) + 1
        if room < 0:
            break
        rows.append(case)
    left = len(cells) - len(rows)
    told = [f"{left} of {len(cells)} cells are left out to keep this short; gate.json has all of them."] if left else []
    table = _table(rows, "Cells: advice only, false ones among them kept to alpha (Benjamini-Hochberg)")
    return _cut("\n\n".join([text, *table, *told]), limit) + "\n"


def _loud(case: Case) -> tuple[bool, float]:
    return case.verdict != REGRESSED, math.inf if case.p_adjusted is None else case.p_adjusted


def _table(cases: Iterable[Case], title: str) -> list[str]:
    rows = [_row(case) for case in cases]
    if not rows:
        return []
    rule = "|" + "|".join("---" if i in (0, 1, len(HEADER) - 1) else "---:" for i in range(len(HEADER))) + "|"
    table = "\n".join([f"| {' | '.join(HEADER)} |", rule, *rows])
    return [f"<details><summary>{title}</summary>\n\n{table}\n\n</details>"] if title else [table]


def _row(case: Case) -> str:
    assert case.outcome is not None
    outcome, d = case.outcome, case.outcome.difference
    cells = (
        f"{MARKS[case.verdict]} {case.verdict} {case.kind} {_cut(_text(case.name), 300)}",
        case.tier,
        f"{d.n}" if outcome.new.clusters == d.n else f"{d.n} in {outcome.new.clusters}",
        f"{outcome.old.value:.4f}",
        f"{outcome.new.value:.4f}",
        f"{d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}]",
        f"{outcome.p_drop:.4f}",
        "" if case.p_adjusted is None else f"{case.p_adjusted:.4f}",
        f"{d.losses} / {d.wins}",
        "" if case.detectable is None else f"{case.detectable:.4f}",
        "" if case.kind == "cell" else _cut(_text(case.reason), 600),
    )
    return f"| {' | '.join(cells)} |"


def _costs(cases: Sequence[Case]) -> list[str]:
    rows = [
        f"| {MARKS[case.verdict]} {case.verdict} {case.name} | {case.tier} | {_cut(_text(case.reason), 600)} |"
        for case in cases
    ]
    return ["\n".join(["| cost | tier | measured |", "|---|---|---|", *rows])] if rows else []


def _command(kind: str, title: str, message: str) -> str:
    """`::error title=...::message`, with what would end a property or a line escaped as the runner reads it."""
    text, head = (
        clean(part).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A") for part in (message, title)
    )
    return f"::{kind} title={head.replace(':', '%3A').replace(',', '%2C')}::{text}"


def _text(text: object) -> str:
    """Text that Markdown and HTML leave as it is, on one line, inside a table too."""
    line = " ".join(clean(str(text)).split())
    for mark, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\\", "\\\\")):
        line = line.replace(mark, safe)
    return "".join(f"\\{each}" if each in "|`*_[]~#@" else each for each in line)


def _code(text: object) -> str:
    return " ".join(str(text).replace("`", "'").replace("|", "\\|").split())


def _cut(text: str, most: int) -> str:
    """At most so many bytes, with a mark where something is gone."""
    raw = text.encode()
    return text if len(raw) <= most else raw[: most - 3].decode(errors="ignore") + "…"
