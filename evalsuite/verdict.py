"""One line a model: on what it equals the first, what it loses and gains, and where it surely loses most."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from evalsuite.groups import Keys, Line, families, family_of, lines
from evalsuite.pairs import Paired
from evalsuite.records import Facet
from evalsuite.store import Key, Row, Run

MARGIN = 0.02  # differences within it matter to nobody
UNITS = {"hops": ("hop", "hops"), "length": ("token", "tokens"), "facts": ("fact", "facts")}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one paired difference says: "equal", "not told apart", "both at chance", "loses", "gains", or "not the same
    prompts"."""

    verdict: str
    family: str
    where: str  # "on multihop", "at 4 hops"
    difference: Paired | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One model beside the first."""

    families: tuple[Finding, ...]
    worst: Finding | None  # the surest loss of all cells of one facet, and of all tasks
    line: str


def judge(difference: Paired | None, margin: float = MARGIN) -> str:
    """ "equal" only where the whole interval lies within the margin; "not told apart" where it is wider and holds 0."""
    if difference is None:
        return "not the same prompts"
    if -margin <= difference.low and difference.high <= margin:
        return "equal"
    if difference.low <= 0 <= difference.high:
        return "not told apart"
    return "loses" if difference.value < 0 else "gains"


def verdicts(
    names: Sequence[str], means: Sequence[Line], spots: Sequence[Line], margin: float = MARGIN
) -> tuple[Verdict, ...]:
    """For every model after the first: `means` are the families' lines, `spots` those of `facets`."""
    made = []
    for i, name in enumerate(names[1:], 1):
        found = [_finding(line, i, margin) for line in means if line.estimates[i] and line.estimates[0]]
        worst = _worst(spots, i, margin)
        made.append(Verdict(tuple(found), worst, f"{name}: {_line(found, worst, names[0])}"))
    return tuple(made)


def _finding(line: Line, i: int, margin: float) -> Finding:
    """What a family's line says of model i; two that only guess, or answer nothing, are not called equal."""
    family, d = str(line.get("family")), line.differences[i]
    verdict = judge(d, margin)
    guessing = all(e is not None and e.low <= line.chance for e in (line.estimates[0], line.estimates[i]))
    if verdict in ("equal", "not told apart") and guessing:
        verdict = "both at chance"
    return Finding(verdict, family, f"on {family}", d)


def facets(runs: Sequence[Run], index: Sequence[Mapping[Key, Row]]) -> tuple[Line, ...]:
    """Every family by each facet of its cells that varies in it, and by task: keys (family, facet)."""
    values: dict[tuple[str, str], set[Facet]] = {}
    tasks: dict[str, set[str]] = {}
    for rows in index:
        for row in rows.values():
            tasks.setdefault(family_of(row), set()).add(row["task"])
            for name in row["cell"]:
                values.setdefault((family_of(row), name), set()).add(row["facets"][name])
    found: list[Line] = []
    for name in dict.fromkeys(name for _, name in values):
        varied = {family for family, other in values if other == name and len(values[family, name]) > 1}
        if name != "draw" and varied:
            found += families(runs, index, partial(_spot, name), partial(_varies, name, varied))
    several = {family for family, members in tasks.items() if len(members) > 1}
    found += lines(
        index,
        lambda row: (("family", family_of(row)), ("task", row["task"])),
        lambda row: family_of(row) in several,
    )
    return tuple(found)


def _spot(name: str, row: Row) -> Keys:
    return (("family", family_of(row)), (name, row["facets"][name]))


def _varies(name: str, families: set[str], row: Row) -> bool:
    return name in row["cell"] and family_of(row) in families


def _worst(spots: Sequence[Line], i: int, margin: float) -> Finding | None:
    """The spot whose difference lies surest below 0; a task only where no facet has one. Many were looked at: a loss
    counts only where its p, times their number, is 5 % at most (Bonferroni)."""
    seen = [(line, d) for line in spots if (d := line.differences[i]) is not None]
    sure = [(line, d) for line, d in seen if d.p * len(seen) <= 0.05 and judge(d, margin) == "loses"]
    if not sure:
        return None
    line, difference = min(sure, key=lambda spot: (spot[0].get("task") != "", spot[1].high))
    family = str(line.get("family"))
    ((name, value), *_) = ((k, v) for k, v in line.keys if k not in ("family", "tasks"))
    shared = len({spot.get("family") for spot in spots if spot.get(name) != ""}) > 1
    of = f" of {family}" if shared and name != "task" else ""
    return Finding("loses", family, f"{'on' if name == 'task' else 'at'} {place(name, value)}{of}", difference)


def place(name: str, value: Facet) -> str:
    """`4 hops`, `512 tokens`, `shuffled`, `load 64`, `multihop.chain`."""
    if name in UNITS:
        return f"{value} {UNITS[name][value != 1]}"
    return value if isinstance(value, str) else f"{name} {value}"


def _line(found: Sequence[Finding], worst: Finding | None, first: str) -> str:
    order = ("equal", "not told apart", "both at chance", "gains", "loses", "not the same prompts")
    parts = []
    for finding in sorted(found, key=lambda f: order.index(f.verdict)):
        d = finding.difference
        if d is None:
            parts.append(f"not asked the same {finding.where}")
        elif finding.verdict not in ("gains", "loses"):
            blind = f"; {_points([d.detectable])[0]} could be seen" if finding.verdict == "not told apart" else ""
            value, low, high = _points([d.value, d.low, d.high])
            parts.append(f"{finding.verdict} {finding.where} (difference {value} points [{low}, {high}]{blind})")
        else:
            more = worst if worst and worst.family == finding.family and finding.verdict == "loses" else None
            parts.append(_moved(finding) + (f", {_moved(more, short=True)}" if more else ""))
            worst = None if more else worst
    if worst:
        parts.append(_moved(worst))
    return "; ".join(parts) or f"was asked nothing that {first} was"


def _moved(finding: Finding, *, short: bool = False) -> str:
    """`loses 41 points at 4 hops [36, 46]`; short: `41 at 4 hops [36, 46]`."""
    d = finding.difference
    assert d is not None
    ends = (-d.value, -d.high, -d.low) if finding.verdict == "loses" else (d.value, d.low, d.high)
    value, low, high = _points(ends)
    said = f"{value} {finding.where} [{low}, {high}]" if short else f"{value} points {finding.where} [{low}, {high}]"
    return said if short else f"{finding.verdict} {said}"


def _points(shares: Iterable[float]) -> list[str]:
    """Shares of 1 in points, all with a digit behind the dot where the first is below ten."""
    values = [100 * share for share in shares]
    digits = 1 if abs(values[0]) < 9.95 else 0
    return [f"{round(value, digits) + 0.0:.{digits}f}" for value in values]  # never "-0.0"
