"""Where a run is computed: what one process does with several models."""

import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from evalsuite import executors, plan, ranks, runner, store
from evalsuite.errors import UserError
from evalsuite.models.base import Speed
from evalsuite.progress import Silent
from evalsuite.ranks import World
from evalsuite.records import Completion, Sample
from evalsuite.task import Cell


class Named:
    wording = "terse"

    def __init__(self, name: str) -> None:
        self.name = name


def test_a_model_is_gone_before_the_next_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two large checkpoints need not fit side by side."""
    seen: list[weakref.ref[Any]] = []

    def load(spec: str, **_: str) -> Any:
        assert all(one() is None for one in seen)
        model = Named(spec)
        seen.append(weakref.ref(model))
        return model

    monkeypatch.setattr(executors.models, "load", load)
    monkeypatch.setattr(executors.runner, "run", lambda model, made, out, **_: model.name)
    asked = {"names": ["multihop.graph"], "lengths": (256,), "limit": 1, "seed": 0, "settings": [], "data": []}
    done = executors.local(executors.Order(["a", "b", "c"], asked, "", str(tmp_path)), Silent(), World())
    assert list(done.runs) == ["a", "b", "c"]


class Part:
    """A model of which each of two ranks holds a part."""

    name, context, wording, together = "part", 4096, "natural", 2
    identity, cost = dict, dict

    def __init__(self) -> None:
        self.speed, self.asked = Speed(), list[str]()

    def count(self, text: str) -> int:
        return len(text)

    def answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
        for sample in samples:
            self.asked.append(sample.id)
            yield Completion(sample.id, "x", 1)


class Judged:
    """A task that runs what it is told, as far as `score` is called."""

    name, version, licence, source, needs = "judged", 1, "CC0-1.0", "this file", ""

    def __init__(self) -> None:
        self.judged = list[str]()

    def subtasks(self) -> tuple[str, ...]:
        return ()

    knobs, missing = dict, lambda *_: {}

    def cells(self, _: Any) -> list[Cell]:
        return [Cell("judged", {})]

    def sample(self, cell: Cell, index: int, *_: Any) -> Sample:
        return Sample(f"judged/{index}", cell.task, f"what is {index}?", ("x",))

    def tier(self) -> str:
        return "none"

    def scores(self, answered: Sequence[tuple[Sample, Completion]]) -> list[Any]:
        self.judged += [sample.id for sample, _ in answered]
        return [executors.Score(sample.id, 1.0) for sample, _ in answered]


class Told(World):
    """The world of rank 1 as rank 0 has it: what was told is kept."""

    def tell(self, name: str, value: Any) -> None:
        told[name] = value

    def hear(self, name: str, of: int) -> Any:
        return told[name]

    def check(self) -> None:
        pass


told: dict[str, Any] = {}


def test_parts_of_one_model_are_asked_the_same_and_judged_once(tmp_path: Path) -> None:
    """Were one asked more than the other, it would wait for ever in a layer."""
    order = executors.Order(["part"], {}, "", str(tmp_path))

    def made(task: Judged, limit: int) -> plan.Plan:
        return plan.make(plan.Selection({"judged": task}, {"judged": ()}, limit=limit), "natural")  # type: ignore[dict-item]

    runner.run(Part(), made(Judged(), 2), tmp_path)  # type: ignore[arg-type]
    tasks, models = (Judged(), Judged()), (Part(), Part())
    told["end-part-1"] = {"gaps": [], "ran": {"parts": ["rank 1"]}}
    run = executors._lead(models[0], made(tasks[0], 5), order, Silent(), Told(0, 2))  # type: ignore[arg-type]
    executors._follow(models[1], made(tasks[1], 5), order, Told(1, 2))  # type: ignore[arg-type]
    assert models[0].asked == models[1].asked == ["judged/2", "judged/3", "judged/4"]
    assert (tasks[0].judged, tasks[1].judged) == (models[0].asked, [])
    assert [row["score"] for row in run.rows] == [1.0] * 5
    assert run.meta["requests"][-1]["ran"] == {"parts": ["rank 1"]}
    assert len(store.read(tmp_path / "part").rows) == 5
    with pytest.raises(UserError, match="part is spread over 2 ranks of 3; start as many as hold one model"):
        executors._together(models[0], Told(0, 3))  # type: ignore[arg-type]
    assert ranks.digest(made(tasks[0], 5).items) == told["start-part"]["plan"]
