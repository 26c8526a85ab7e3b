"""Questions made once: the words of the plan, made anew where the budget asks others."""

from dataclasses import replace
from pathlib import Path

import pytest

from evalsuite.lab import asked
from evalsuite.lab.probe import Questions
from evalsuite.models.tokenizer import build_tokenizer
from micro import MICRO

ASKED = (
    Questions("multihop.graph", 3, (96,), ("multihop.hops=1,2", "multihop.facts=8")),
    Questions("ruler", 1, (256,)),
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asked.prepare(replace(MICRO, questions=ASKED), tmp_path_factory.mktemp("lab") / "questions")


def test_what_is_made_once_is_what_a_plan_makes(file: Path) -> None:
    tokenizer = build_tokenizer(4096)

    def count(text: str) -> int:
        return len(tokenizer(text).input_ids)

    for questions, made in zip(ASKED, asked._read(file), strict=True):
        plan = questions.plan()
        assert [(item.cell, sample) for item, sample in made.samples(count)] == [
            (item.cell, sample) for item, sample in plan.samples(count)
        ]
        assert made.missing == plan.missing
        assert made.selection.tasks.keys() == plan.selection.tasks.keys()
    assert "ruler.qa_1" in asked._read(file)[1].missing  # what could not be asked is still told


def test_they_are_made_again_only_where_others_are_asked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget, before = replace(MICRO, questions=ASKED), file.read_bytes()
    asked.prepare(budget, file)
    assert file.read_bytes() == before
    monkeypatch.setattr(asked, "_versions", lambda _: [99])
    asked.prepare(budget, file)  # of a task's new version
    assert file.read_bytes() != before
    monkeypatch.undo()
    file.write_bytes(b"of another program")
    asked.prepare(budget, file)
    assert file.read_bytes() == before
    changed = file.read_bytes()
    asked.prepare(replace(budget, questions=(replace(ASKED[0], seed=1),)), file)
    assert file.read_bytes() != changed
