"""Panels of the figures as Altair charts, and their SVG: one picture for light and dark, for it takes the page's ink.

Colours are Okabe and Ito's (jfly.uni-koeln.de/color), which the colour-blind tell apart; shapes say the same again.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from evalsuite.errors import UserError

if TYPE_CHECKING:
    import altair as alt

Points = list[dict[str, Any]]
INK = "#010101"  # stands for the colour of the page's text
COLOURS = (INK, "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
WIDTH, HEIGHT = 190, 160
ROOM = 0.085  # of the y axis, for one label
EXTRA = "the report needs altair, vl-convert-python and jinja2: pip install 'evalsuite[report]'"
SVG = "http://www.w3.org/2000/svg"


def check() -> None:
    """Raises UserError where the libraries of the extra `report` are missing."""
    try:
        import altair  # noqa: F401
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise UserError(EXTRA) from error


def curves(points: Points, names: Sequence[str], x: str) -> Any:
    """Score by an ordered facet, a line a run with its intervals, each named where it ends; a dash stands at chance."""
    import altair as alt

    places = list(dict.fromkeys(point["x"] for point in points))
    base = _base(points, len(names)).encode(
        x=alt.X("x:O", sort=places, title=x, axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("run:O", scale=alt.Scale(domain=list(range(len(names))))),
        y=_share(),
    )
    first = {point["x"]: point for point in reversed(points)}
    chance = alt.Chart(alt.Data(values=list(first.values()))).mark_tick(color=INK, opacity=0.55, thickness=1.5)
    chance = chance.encode(x=alt.X("x:O", sort=places), y=alt.Y("chance:Q"))
    lines = base.mark_line(strokeWidth=1.8)
    bars = base.mark_rule(strokeWidth=1.4, opacity=0.7).encode(y="low:Q", y2="high:Q")
    last = list({point["run"]: point for point in points}.values())
    return _sized(alt.layer(chance, lines, bars, _marks(base), *_labels(last, names)))


def forest(points: Points, tasks: Sequence[str], limit: float) -> Any:
    """Paired differences to the first run; a filled mark where the interval excludes 0."""
    import altair as alt

    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("value:Q", scale=alt.Scale(domain=[-limit, limit]), title="difference of the scores"),
        y=alt.Y("task:N", sort=list(tasks), title=None, axis=alt.Axis(labelLimit=150)),
        color=alt.value(COLOURS[2]),
    )
    zero = alt.Chart(alt.Data(values=[{"value": 0}])).mark_rule(color=INK, opacity=0.6).encode(x="value:Q")
    bars = base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q")
    sure, unsure = (base.transform_filter(f"{sign}datum.sure") for sign in ("", "!"))
    marks = [sure.mark_point(size=30, filled=True, opacity=1), unsure.mark_point(size=30, filled=False)]
    chart: Any = alt.layer(zero, bars, *marks).properties(width=150, height=alt.Step(17))
    return chart


def heat(points: Points, across: Sequence[str], down: Sequence[str]) -> Any:
    """Scores as colours of the scale cividis from 0 (dark blue) to 1 (yellow), the number in each cell."""
    import altair as alt

    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("x:O", sort=list(across), title="tokens", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("y:O", sort=list(down), title=None, axis=alt.Axis(labelLimit=170)),
    )
    scale = alt.Scale(scheme="cividis", domain=[0, 1])
    cells = base.mark_rect(stroke=INK, strokeWidth=0.5, strokeOpacity=0.4).encode(
        color=alt.Color("value:Q", scale=scale, legend=None)
    )
    ink = alt.condition("datum.value > 0.47", alt.value("#000000"), alt.value("#ffffff"))
    numbers = base.mark_text(fontSize=11).encode(text=alt.Text("value:Q", format=".2f"), color=ink)
    chart: Any = alt.layer(cells, numbers).properties(width=alt.Step(40), height=alt.Step(20))
    return chart


def scatter(points: Points, names: Sequence[str]) -> Any:
    """Score against the bytes of one sequence, the runs named beside."""
    import altair as alt

    base = _base(points, len(names)).encode(
        x=alt.X(
            "mib:Q",
            scale=alt.Scale(type="log", nice=True, padding=12),
            title="MiB of KV cache and state",
            axis=alt.Axis(tickCount=4, format="~g", grid=False),
        ),
        y=_share(),
    )
    bars = base.mark_rule(strokeWidth=1.4, opacity=0.7).encode(y="low:Q", y2="high:Q")
    return _sized(alt.layer(bars, _marks(base), *_labels(points, names)))


def svg(chart: Any) -> str:
    """A chart as the SVG element of a page: no style, no script, nothing that a screen reader would read twice."""
    import vl_convert

    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(_themed(chart, "transparent").to_dict()))
    for element in root.iter():
        for name in [n for n in element.attrib if n in ("role", "class", "style") or n.startswith(("aria-", "{"))]:
            del element.attrib[name]
        for name in ("fill", "stroke"):
            if element.get(name) == INK:
                element.set(name, "currentColor")
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    return ElementTree.tostring(root, encoding="unicode")


def save(panels: Iterable[tuple[str, Any]], stem: str) -> list[str]:
    """Write all panels of a figure as STEM.png and STEM.svg, and say which files those are."""
    import altair as alt

    named = [panel.properties(title=alt.TitleParams(title, fontSize=12)) for title, panel in panels]
    whole = _themed(alt.concat(*named, columns=3).resolve_scale(color="independent"), "white")
    files = [f"{stem}.{kind}" for kind in ("png", "svg")]
    for file in files:
        whole.save(file, **({"scale_factor": 2} if file.endswith("png") else {}))
    return files


def _themed(chart: Any, background: str) -> Any:
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"}
    lines = {"domainColor": INK, "tickColor": INK, "gridColor": INK, "gridOpacity": 0.14, "domainOpacity": 0.6}
    return (
        chart.configure(background=background, font="sans-serif", padding=4)
        .configure_axis(**text, **lines)
        .configure_view(stroke=None)
        .configure_title(color=INK, anchor="start")
    )


def _base(points: Points, count: int) -> "alt.Chart":
    import altair as alt

    runs = list(range(count))
    colours = [COLOURS[i % len(COLOURS)] for i in runs]
    return alt.Chart(alt.Data(values=points)).encode(
        color=alt.Color("run:O", scale=alt.Scale(domain=runs, range=colours), legend=None)
    )


def _marks(base: "alt.Chart") -> "alt.Chart":
    import altair as alt

    shapes = alt.Shape("shape:N", scale=alt.Scale(domain=SHAPES, range=SHAPES), legend=None)
    marks: alt.Chart = base.mark_point(size=42, filled=True, opacity=1).encode(shape=shapes)
    return marks


def _labels(ends: Points, names: Sequence[str]) -> list["alt.Chart"]:
    """Each run's mark and name at the right edge, moved apart where they would cover one another."""
    import altair as alt

    order = sorted(ends, key=lambda point: (-point["value"], point["run"]))
    places = spread([point["value"] for point in order])
    texts = [{**p, "place": at, "name": names[p["run"]]} for p, at in zip(order, places, strict=True)]
    base = _base(texts, len(names)).encode(y="place:Q")
    name = base.mark_text(align="left", fontSize=11, color=INK).encode(
        text="name:N", x=alt.value(WIDTH + 18), color=alt.value(INK)
    )
    return [_marks(base.encode(x=alt.value(WIDTH + 9))), name]


def spread(values: Sequence[float], room: float = ROOM) -> list[float]:
    """Falling values moved apart to a distance of `room`, within [0, 1] while they fit there."""
    places: list[float] = []
    for value in values:
        places.append(min(value, places[-1] - room) if places else value)
    floor = 0.0
    for i in reversed(range(len(places))):
        if places[i] >= floor:
            break
        places[i] = floor
        floor += room
    return places


def _share() -> Any:
    import altair as alt

    axis = alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], format=".2~f")
    return alt.Y("value:Q", scale=alt.Scale(domain=[0, 1]), title="score", axis=axis)


def _sized(chart: Any) -> Any:
    return chart.properties(width=WIDTH, height=HEIGHT)
