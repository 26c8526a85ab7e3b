"""The lab's figures, as PNG; needs the extra `report` (altair, vl-convert-python).

Every seed is a mark; a line goes through the means. A gate that fails is named in the title of every figure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from evalsuite.errors import UserError
from evalsuite.lab import against, readout, report
from evalsuite.lab.readout import DEPTHS, hops_of
from evalsuite.lab.report import GRAPH, Gate, Trained, designs, score
from evalsuite.store import write_json

if TYPE_CHECKING:
    import altair as alt

Points = list[dict[str, Any]]
SCALE = 2  # pixels of a point
EXTRA = "figures need altair and vl-convert-python: pip install 'evalsuite[report]'"
TEN = 10  # colours that are easily told apart
HOURGLASS, BOWTIE = "M-1,-1L1,-1L-1,1L1,1Z", "M-1,-1L-1,1L1,-1L1,1Z"  # SVG paths
SHAPES = (
    "circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left", "triangle-right",
    HOURGLASS, BOWTIE,
)  # fmt: skip


def write(place: Path, folder: Path) -> Iterator[Path]:
    """Keep what a folder of the lab found in `folder`: `lab.json`, all of it; `tables.md`; and the figures."""
    found = report.read(place)
    trained, _, _, checks = report.judged(found)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "lab.json", found)
    yield folder / "lab.json"
    parts = [report.report(folder / "lab.json"), "", "Below: mean over training seeds and its 95 % interval (t).", ""]
    parts += filter(
        None, (readout.markdown(view, trained) for view in [*readout.views(trained), *against.views(trained)])
    )
    (folder / "tables.md").write_text("\n".join(parts))
    yield folder / "tables.md"
    yield from draw(trained, checks, folder)


def draw(trained: Sequence[Trained], checks: Sequence[Gate], folder: Path) -> Iterator[Path]:
    """Write each figure to `folder`; raises UserError where the libraries are missing."""
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise UserError(EXTRA) from error
    failed = named(checks)
    for name, figure in FIGURES.items():
        chart = figure(trained, failed)
        if chart is not None:
            file = folder / f"{name}.png"
            chart.save(file, scale_factor=SCALE)
            yield file


def named(checks: Sequence[Gate]) -> list[str]:
    """A line of the title for each gate that fails."""
    return [f"GATE FAILS: {gate.name} ({gate.found})" for gate in checks if not gate.passed]


def _title(text: str, below: str, failed: Sequence[str]) -> Any:
    import altair as alt

    return alt.TitleParams(
        [text, *failed], subtitle=below, anchor="start", color="#b00020" if failed else "black", fontSize=13
    )


def _colours(trained: Sequence[Trained]) -> Any:
    import altair as alt

    names = list(designs(trained))
    # no two designs of one colour
    scale = alt.Scale(domain=names, scheme="category10" if len(names) <= TEN else "category20")
    return alt.Color("design:N", sort=names, scale=scale, title="design")


def _shapes(trained: Sequence[Trained]) -> Any:
    """What the colours say, for whoever does not tell them apart."""
    import altair as alt

    names = list(designs(trained))
    scale = alt.Scale(domain=names, range=[SHAPES[i % len(SHAPES)] for i in range(len(names))])
    return alt.Shape("design:N", sort=names, scale=scale, title="design")


def _curves(
    points: Points, trained: Sequence[Trained], x: Any, y: Any, column: str, title: Any
) -> "alt.FacetChart | None":
    """Seeds as dots and their means as lines, a panel for each value of `column`."""
    import altair as alt

    if not points:
        return None
    base = alt.Chart(alt.Data(values=points)).encode(x=x, color=_colours(trained))
    if x.shorthand.endswith(":O"):  # side by side: designs that do the same would hide one another
        base = base.encode(xOffset=alt.XOffset("design:N", sort=list(designs(trained))))
    dots = base.mark_point(size=30, opacity=0.7, filled=True).encode(y=y, shape=_shapes(trained))
    means = base.mark_line(strokeWidth=1.5, opacity=0.8).encode(y=f"mean({y.shorthand.partition(':')[0]}):Q")
    panels = list(dict.fromkeys(point[column] for point in points))
    facet = alt.Facet(f"{column}:N", sort=panels, title=None)
    chart: alt.FacetChart = (means + dots).properties(width=300, height=240).facet(facet=facet, columns=3, title=title)
    return chart


def _share(title: str) -> Any:
    import altair as alt

    return alt.Y("accuracy:Q", scale=alt.Scale(domain=[0, 1]), title=title)


def hops(trained: Sequence[Trained], failed: Sequence[str]) -> Any:
    """Accuracy by hop depth: the cycle at each load, and typed edges."""
    import altair as alt

    kinds = {(GRAPH, f["facts"]) for f in _asked(trained, GRAPH) if f["hops"] > 4}
    kinds |= {("multihop.path", f["facts"]) for f in _asked(trained, "multihop.path")}
    points = [
        {"design": each.design, "hops": hop, "accuracy": value, "panel": f"{task.split('.')[1]}, {facts} facts"}
        for task, facts in sorted(kinds)
        for each in trained
        for hop, value in report.hops(each, task, facts).items()
    ]
    below = f"equal tokens and parameters; a mark is a training seed; {_tokens(trained)}"
    x = alt.X("hops:O", title="hops", axis=alt.Axis(labelAngle=0))
    return _curves(points, trained, x, _share("accuracy"), "panel", _title("How far each design walks", below, failed))


def distance(trained: Sequence[Trained], failed: Sequence[str]) -> Any:
    """Accuracy in texts longer than any trained on."""
    import altair as alt

    points = [
        {"design": each.design, "length": facets["length"], "accuracy": value, "panel": hops_of(facets["hops"])}
        for facets in _asked(trained, GRAPH)
        if facets["facts"] == 64 and facets["hops"] in (1, 2, 4)
        for each in trained
        if (value := score(each, GRAPH, **facets)) is not None
    ]
    points.sort(key=lambda point: point["panel"])
    x = alt.X(
        "length:Q",
        scale=alt.Scale(type="log", base=2),
        title="tokens of the text",
        axis=alt.Axis(format=",", values=[512, 2048, 4096, 8192, 16384], labelAngle=-45),
    )
    title = _title("The same 64 facts in longer texts", "trained on 2,048 tokens at most", failed)
    return _curves(points, trained, x, _share("accuracy"), "panel", title)


def learning(trained: Sequence[Trained], failed: Sequence[str]) -> Any:
    """Accuracy of probes while the models train."""
    import altair as alt

    points = [
        {"design": each.design, "tokens": line["tokens"], "accuracy": value, "panel": hops_of(hop)}
        for hop in DEPTHS
        for each in trained
        for line in each.result["history"]
        for cell, value in line.get("probe", {}).items()
        if cell.startswith(GRAPH) and "facts=64," in cell and f"hops={hop}," in cell
    ]
    x = alt.X("tokens:Q", title="training tokens", axis=alt.Axis(format="~s"))
    title = _title("When each design learns each hop", "probes of graph with 64 facts", failed)
    return _curves(points, trained, x, _share("accuracy"), "panel", title)


def pareto(trained: Sequence[Trained], failed: Sequence[str]) -> Any:
    """Quality against the bytes that a text keeps."""
    import altair as alt

    length = max(trained[0].result["state_bytes"], key=int)
    facts = report.most(trained)
    points: Points = []
    for name, seeds in designs(trained).items():
        for kind, value in (("hops", _reach), ("knowledge", _knows)):
            panel = f"mean of {len(DEPTHS)} hop depths, {facts} facts" if kind == "hops" else "knowledge, larger load"
            known = [found for each in seeds if (found := value(each, facts)) is not None]
            mib = seeds[0].result["state_bytes"][length] / 2**20
            points += [{"design": name, "MiB": mib, "accuracy": each, "panel": panel} for each in known]
            points += [{"design": name, "MiB": mib, "mean": fmean(known), "panel": panel}] if known else []
    data = alt.Data(values=points)
    x = alt.X("MiB:Q", scale=alt.Scale(type="log"), title=f"MiB kept for a text of {int(length):,} tokens")
    base = alt.Chart(data).encode(x=x, color=_colours(trained), shape=_shapes(trained))
    dots = base.mark_point(size=36, opacity=0.6, filled=True).encode(y=_share("accuracy"))
    marks = base.mark_point(size=220, strokeWidth=2).encode(y="mean:Q")
    below = "a mark is a training seed, a large outline their mean"
    title = _title("What a design keeps, and what it can do with it", below, failed)
    facet = alt.Facet("panel:N", title=None)
    return (dots + marks).properties(width=360, height=280).facet(facet=facet, columns=2, title=title)


def _asked(trained: Sequence[Trained], task: str) -> list[dict[str, Any]]:
    """Facets of the cells of a task that were answered directly."""
    every = [dict(facets) for name, facets in trained[0].scores if name == task]
    return [facets for facets in every if facets.get("answer", "direct") == "direct"]


def _reach(trained: Trained, facts: int) -> float | None:
    depth = report.hops(trained, GRAPH, facts)
    return fmean(depth.values()) if depth else None


def _knows(trained: Trained, _: int) -> float | None:
    known = report.knowledge(trained)
    return known[max(known)] if known else None


def _tokens(trained: Sequence[Trained]) -> str:
    return f"{trained[0].result['tokens'] / 1e6:.0f}M tokens, {trained[0].result['size'] / 1e6:.1f}M parameters"


FIGURES: Mapping[str, Callable[[Sequence[Trained], Sequence[str]], Any]] = {
    "hops": hops,
    "distance": distance,
    "learning": learning,
    "pareto": pareto,
}
