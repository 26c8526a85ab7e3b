"""The lab's tables: designs below one another, one number a column, its interval over the training seeds beside it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from evalsuite.lab import report
from evalsuite.lab.report import GRAPH, SOLVED, Trained, designs, over_seeds, score

Value = Callable[[Trained], float | None]
DEPTHS = (1, 2, 3, 4, 5, 6)


@dataclass(frozen=True, slots=True)
class View:
    """A table: its title, what it says, and a number of a trained model for every column."""

    title: str
    about: str
    columns: Mapping[str, Value]
    form: str = "share"  # of right answers; or "difference", "tokens", "bytes", "flops", "seconds"


def hops_of(number: int) -> str:
    """ "1 hop", "2 hops"."""
    return f"{number} hop{'s' * (number > 1)}"


def cells(task: str, name: str, values: Sequence[Any], label: Callable[[Any], str], **facets: Any) -> dict[str, Value]:
    """A column for each value of a facet."""

    def reader(value: Any) -> Value:
        return lambda trained: score(trained, task, **{**facets, name: value})

    return {label(value): reader(value) for value in values}


def views(trained: Sequence[Trained]) -> Iterator[View]:
    """The tables of what was asked, in reading order."""
    asked = {task for each in trained for task, _ in each.scores}
    chance = "chance 1 in the number of facts"
    for facts in sorted({dict(f)["facts"] for t, f in trained[0].scores if t == GRAPH and len(_hops(trained, f)) > 3}):
        columns = cells(GRAPH, "hops", DEPTHS, hops_of, facts=facts, length=_length(trained, facts))
        yield View(f"Walks on a cycle of {facts} facts", f"`multihop.graph`, {chance}", columns)
    for facts in sorted({dict(f)["facts"] for t, f in trained[0].scores if t == "multihop.path"}):
        about = "`multihop.path`: edges have types, known only at the question, so no walk can be composed ahead"
        yield View(
            f"Typed walks over {facts} facts", about, cells("multihop.path", "hops", DEPTHS, hops_of, facts=facts)
        )
    yield View(
        "With a chain of thought",
        "`multihop.graph answer=cot`, 64 facts: every node is written before the next is asked",
        cells(GRAPH, "hops", (2, 4, 6), hops_of, facts=64, answer="cot"),
    )
    learned = {f"{load:,} facts known": _solver(report.CLOZE, load=load) for load in report.knowledge(trained[0])}
    if any("facts=64," in cell for line in trained[0].result["history"] for cell in line.get("probe", {})):
        yield View(
            "Tokens to solve",
            f"training tokens after which a probe of `multihop.graph` with 64 facts, or of `knowledge.cloze`, reached "
            f"{SOLVED} and stayed; where all seeds did, their mean, else how many did",
            {hops_of(hop): _solver(GRAPH, hops=hop, facts=64) for hop in DEPTHS} | learned,
            "tokens",
        )
    for hop in (1, 2):
        about = f"`multihop.graph`, 64 facts, {hops_of(hop)}; trained on texts of 2,048 tokens at most"
        columns = cells(GRAPH, "length", (512, 2048, 4096, 8192, 16384), "{:,} tokens".format, facts=64, hops=hop)
        yield View(f"Distance: {hops_of(hop)} in longer texts", about, columns)
    about = "`multihop.graph`: more facts, in texts as long as they need"
    for hop in (1, 2):
        columns = {f"{facts} facts": _loaded(facts, hop) for facts in (16, 64, 128, 256)}
        yield View(f"Load: {hops_of(hop)} over more facts", about, columns)
    for length in (512, 2048):
        names = sorted(task for task in asked if task.startswith("ruler."))
        columns = {name.removeprefix("ruler."): _at(name, length) for name in names}
        yield View(f"RULER at {length} tokens", "`ruler` in the closed lexicon", {**columns, "mean": _mean(columns)})
    names = sorted(task for task in asked if task.startswith("trace."))
    columns = {name.removeprefix("trace."): _at(name) for name in names}
    yield View("Programs followed line by line", "`trace`, 512 tokens", {**columns, "mean": _mean(columns)})
    known = {f"cloze, {load:,} facts": _known(load) for load in report.knowledge(trained[0])}
    half = {f"{load:,} facts, half trained": _halfway(load) for load in report.knowledge(trained[0])}
    about = (
        "`knowledge`: closed book, facts of the training stream; by a probe after half of the tokens, and at the end"
    )
    yield View("Knowledge", about, {**half, **known, "letter, 1,024 facts": _at("knowledge.letter")})
    yield View(
        "Cost: bytes kept for a sequence", "KV, index keys and states in bf16 and fp32", _bytes(trained), "bytes"
    )
    yield View("Cost: operations", "of a forward pass, for each token of a text", _flops(trained), "flops")
    yield View("Cost: training", "wall time of a seed beside other trainings", {"seconds": _seconds}, "seconds")


def table(view: View, trained: Sequence[Trained]) -> dict[str, dict[str, list[float]]]:
    """design -> column -> the seeds' numbers; without what was not asked."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, seeds in designs(trained).items():
        row = {column: [value(each) for each in seeds] for column, value in view.columns.items()}
        known = {column: [v for v in values if v is not None] for column, values in row.items()}
        if any(known.values()) or view.form == "tokens":
            found[name] = known
    return found


def markdown(view: View, trained: Sequence[Trained]) -> str:
    """A table under its title; "" where nothing of it was asked."""
    rows, seeds = table(view, trained), {name: len(each) for name, each in designs(trained).items()}
    told = view.form == "tokens"  # what nobody solved is told, not left out
    shown = [column for column in view.columns if told or any(row[column] for row in rows.values())]
    if not shown:
        return ""
    lines = [f"### {view.title}", "", view.about[0].upper() + view.about[1:] + ".", ""]
    lines += [f"| design | seeds | {' | '.join(shown)} |", "|---|--:|" + "--:|" * len(shown)]
    for name, row in rows.items():
        texts = [_cell(row[column], view.form, seeds[name]) for column in shown]
        lines.append(f"| {name} | {seeds[name]} | {' | '.join(texts)} |")
    return "\n".join([*lines, ""])


def _cell(values: Sequence[float], form: str, seeds: int) -> str:
    if not values:
        return f"0/{seeds}" if form == "tokens" else ""
    mean, low, high = over_seeds(values)
    if form == "tokens":
        return f"{mean / 1e6:.0f}M" if len(values) == seeds else f"{len(values)}/{seeds}"
    if form == "bytes":
        return f"{mean / 2**20:.2f} MiB"
    if form in ("flops", "seconds"):
        return f"{mean / 1e6:.1f}M" if form == "flops" else f"{mean:.0f}"
    least, sign = (-1.0, "+") if form == "difference" else (0.0, "")
    if low is None or high is None:
        return f"{mean:{sign}.2f}"
    return f"{mean:{sign}.2f} [{max(least, low):{sign}.2f}, {min(1.0, high):{sign}.2f}]"


def _hops(trained: Sequence[Trained], facets: Sequence[tuple[str, Any]]) -> set[int]:
    """Numbers of hops asked with the same facts, length and form of answer."""
    keys = "facts", "length", "answer"
    same = {key: dict(facets)[key] for key in keys}
    cells = (dict(f) for task, f in trained[0].scores if task == GRAPH)
    return {cell["hops"] for cell in cells if same == {key: cell[key] for key in keys}}


def _length(trained: Sequence[Trained], facts: int) -> int:
    return min(dict(f)["length"] for task, f in trained[0].scores if task == GRAPH and dict(f)["facts"] == facts)


def _solver(task: str, **facets: int) -> Value:
    return lambda trained: report.tokens_to_solve(trained, task, **facets)


def _loaded(facts: int, hop: int) -> Value:
    def value(trained: Trained) -> float | None:
        lengths = [dict(f)["length"] for t, f in trained.scores if t == GRAPH and dict(f)["facts"] == facts]
        return score(trained, GRAPH, facts=facts, hops=hop, length=min(lengths)) if lengths else None

    return value


def _at(task: str, length: int | None = None) -> Value:
    return lambda trained: score(trained, task, **({} if length is None else {"length": length}))


def _mean(columns: Mapping[str, Value]) -> Value:
    def value(trained: Trained) -> float | None:
        known = [found for each in columns.values() if (found := each(trained)) is not None]
        return fmean(known) if known else None

    return value


def _known(load: int) -> Value:
    return lambda trained: report.knowledge(trained).get(load)


def _halfway(load: int) -> Value:
    return lambda trained: report.probed(trained, f"{report.CLOZE} (load={load})", 0.5)


def _bytes(trained: Sequence[Trained]) -> dict[str, Value]:
    return {f"{int(n):,} tokens": _costs("state_bytes", n) for n in trained[0].result["state_bytes"]}


def _flops(trained: Sequence[Trained]) -> dict[str, Value]:
    return {f"{int(n):,} tokens": _costs("flops", n) for n in trained[0].result["flops"]}


def _costs(kind: str, length: str) -> Value:
    return lambda trained: float(trained.result[kind][length])


def _seconds(trained: Trained) -> float:
    return float(trained.result["seconds"])
