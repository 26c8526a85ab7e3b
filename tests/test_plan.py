"""Plans: what is asked, in which order, and which mistakes are refused."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from evalsuite import plan, task
from evalsuite.errors import UserError
from evalsuite.records import Completion, Facet, Sample, Score
from evalsuite.task import Cell, Count, Request, generator, sample_id


class Walk:
    """Two parts, three hops on one text; `broken` cannot be made, `short` ends after two questions."""

    name, version, licence, source, needs = "walk", 1, "CC0-1.0", "here", "squad and essays"

    def subtasks(self) -> tuple[str, ...]:
        return ("graph", "path", "essays")

    def knobs(self) -> Mapping[str, tuple[Facet, ...]]:
        return {"hops": (1, 2), "facts": (8,), "order": ("shuffled",), "noise": (0.5,)}

    def cells(self, request: Request) -> Sequence[Cell]:
        parts = [p for p in request.subtasks or self.subtasks() if p != "essays"]
        knobs = {**self.knobs(), **request.knobs}
        return [
            Cell(f"walk.{p}", {"length": n, "hops": h, "facts": f})
            for p in parts
            for n in request.lengths or (512,)
            for f in knobs["facts"]
            for h in knobs["hops"]
        ]

    def missing(self, request: Request) -> Mapping[str, str]:
        return {"walk.essays": "no essays here"} if "essays" in (request.subtasks or self.subtasks()) else {}

    def sample(self, cell: Cell, index: int, request: Request, count: Count) -> Sample:
        if cell.facets["hops"] == 99:
            raise UserError("99 hops do not fit")
        if cell.facets["hops"] == 3 and index >= 2:
            raise IndexError(index)
        if cell.facets["hops"] == 5 and index % 2 == 0:
            raise UserError("this one is too long")
        text = str(generator(cell.task, cell.facets["facts"], request.seed, index).random())
        return Sample(sample_id(cell.task, cell.facets, index), cell.task, text, ("x",))

    def score(self, sample: Sample, completion: Completion) -> Score:
        return Score(sample.id, 1.0)


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("walk", "walk:Walk", task.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Walk)
    monkeypatch.setattr(task, "entry_points", lambda group: [entry] if group == task.GROUP else [])


def build(made: plan.Plan) -> Iterator[Sample]:
    return (sample for _, sample in made.samples(len))


def test_samples_of_one_text_stand_side_by_side() -> None:
    made = plan.make(plan.select(["walk.graph"], limit=3, settings=["walk.hops=1,2,4"]), "natural")
    samples = list(build(made))
    assert len(samples) == 9
    texts = [s.prompt for s in samples]
    assert [texts[i] == texts[i + 1] for i in range(8)] == [True, True, False] * 2 + [True, True]


def test_a_larger_limit_or_more_tasks_change_no_sample() -> None:
    small = {s.id: s for s in build(plan.make(plan.select(["walk.path"], limit=2), "natural"))}
    large = {s.id: s for s in build(plan.make(plan.select(["walk"], limit=5, lengths=(512, 1024)), "natural"))}
    assert small.keys() < large.keys()
    assert all(large[key] == sample for key, sample in small.items())


def test_settings_are_typed_and_reach_their_part_alone() -> None:
    asked = plan.select(
        ["walk"], settings=["walk.hops=1,2", "walk.graph.facts=64", "walk.noise=1,0.25", "walk.order=1"]
    )
    assert asked.knobs["walk"] == {"hops": (1, 2), "noise": (1, 0.25), "order": ("1",)}
    cells = {i.cell.task: i.cell.facets["facts"] for i in plan.make(asked, "natural").items}
    assert cells == {"walk.graph": 64, "walk.path": 8}
    assert {i.request.wording for i in plan.make(asked, "terse").items} == {"terse"}


def test_what_cannot_be_made_is_said() -> None:
    made = plan.make(plan.select(["walk"], limit=4, settings=["walk.hops=1,3,99"]), "natural")
    samples = list(build(made))
    assert made.missing == {
        "walk.essays": "no essays here",
        "walk.graph (facts=8, hops=3, length=512)": "it has 2 of 4 questions, no more",
        "walk.path (facts=8, hops=3, length=512)": "it has 2 of 4 questions, no more",
        "walk.graph (facts=8, hops=99, length=512)": "4 of 4 questions: 99 hops do not fit",
        "walk.path (facts=8, hops=99, length=512)": "4 of 4 questions: 99 hops do not fit",
    }
    assert len(samples) == 2 * (4 + 2)
    with pytest.raises(UserError, match=r"nothing to ask: walk\.essays: no essays here"):
        plan.make(plan.select(["walk.essays"]), "natural")


def test_an_id_made_twice_is_a_fault_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Walk, "sample", lambda self, cell, index, request, count: Sample("one", cell.task, "", ()))
    with pytest.raises(UserError, match=r"two samples with the id 'one'"):
        list(build(plan.make(plan.select(["walk.graph"]), "natural")))


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["wlak"], {}, "unknown task 'wlak'; did you mean 'walk'"),
        (["walk.grph"], {}, "unknown task 'walk.grph'; did you mean 'walk.graph'"),
        (["walk"], {"settings": ["walk.hop=1"]}, "unknown knob of walk 'hop'; did you mean 'hops'"),
        (["walk"], {"settings": ["walk.grap.hops=1"]}, "did you mean 'walk.graph'"),
        (["walk"], {"settings": ["ruler.hops=1"]}, "not among --tasks walk"),
        (["walk"], {"settings": ["walk.hops=many"]}, "'many' is no number"),
        (["walk"], {"settings": ["walk.hops"]}, "has no value"),
        (["walk"], {"settings": ["hops=1"]}, "write TASK.KNOB=VALUE"),
        (["walk"], {"data": ["squad"]}, "write NAME=PATH"),
        (["walk"], {"data": ["squad=/nowhere/at/all"]}, "there is no /nowhere/at/all"),
        (["walk"], {"data": ["squid=hub"]}, "--data squid: no chosen task uses it; walk takes squad and essays"),
        (["walk"], {"limit": 0}, "--limit must be at least 1"),
        ([""], {}, "--tasks takes some of walk"),
    ],
)
def test_mistakes_are_one_line_with_the_fix(names: list[str], options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan.select(names, **options)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_is_a_path_that_exists_or_the_hub(tmp_path: Path) -> None:
    asked = plan.select(["walk"], data=[f"squad={tmp_path}", "essays=hub"])
    assert asked.data == {"squad": str(tmp_path), "essays": "hub"}


def test_lengths() -> None:
    assert plan.parse_lengths("4k, 1k,512,1M,1024") == (512, 1024, 4096, 1024**2)
    assert plan.parse_lengths("") == ()
    for wrong in ("0", "-1", "1.5k", "4kb", "k"):
        with pytest.raises(UserError, match="no number of tokens"):
            plan.parse_lengths(wrong)


def test_one_question_that_does_not_fit_takes_no_other_with_it() -> None:
    made = plan.make(plan.select(["walk.graph"], limit=5, settings=["walk.hops=5"]), "natural")
    assert [sample.id.rpartition("/")[2] for sample in build(made)] == ["1", "3"]
    assert made.missing == {"walk.graph (facts=8, hops=5, length=512)": "3 of 5 questions: this one is too long"}


def test_a_value_given_twice_is_asked_once() -> None:
    made = plan.make(plan.select(["walk.graph"], limit=2, settings=["walk.hops=1,1"]), "natural")
    assert len(list(build(made))) == 2
