"""What the demo shows, read from the tables of a run of its own command: what knowledge hides, walks bring to light."""

import json
import subprocess
import sys

import pytest

from demo import ROOT, command
from evalsuite import compare
from evalsuite.compare import Comparison
from evalsuite.groups import Line
from evalsuite.stats import Estimate

MODELS = ("full", "hybrid-kda", "hybrid-lightning")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """The demo's tables of the tasks that this file is about."""
    asked, out = command(), tmp_path_factory.mktemp("demo")
    asked[asked.index("--tasks") + 1] = "multihop.graph,knowledge"
    asked[asked.index("--out") + 1] = str(out)
    subprocess.run([sys.executable, "-m", "evalsuite", *asked], capture_output=True, check=True)
    return compare.compare(compare.load([out]))


def walk(table: Comparison, hops: int) -> tuple[Line, dict[str, Estimate]]:
    """The cell of graph with 32 facts, and each model's estimate."""
    (line,) = (
        at for at in table.hops if (at.get("task"), at.get("facts"), at.get("hops")) == ("multihop.graph", 32, hops)
    )
    return line, by_model(table, line)


def by_model(table: Comparison, line: Line) -> dict[str, Estimate]:
    return {column.name: e for column, e in zip(table.columns, line.estimates, strict=True) if e is not None}


def test_the_demo_asks_three_designs_all_three_tasks() -> None:
    asked = command()
    assert set(asked[asked.index("--model") + 1].split(",")) == set(MODELS)
    assert set(asked[asked.index("--tasks") + 1].split(",")) == {"multihop", "ruler", "knowledge"}


def knows(table: Comparison, form: str) -> tuple[Line, dict[str, Estimate]]:
    (line,) = (at for at in table.scores if at.get("task") == f"knowledge.{form}")
    return line, by_model(table, line)


def test_knowledge_tells_no_design_from_another(table: Comparison) -> None:
    scores = {name: e.value for name, e in knows(table, "cloze")[1].items()}
    assert set(scores) == set(MODELS)
    assert min(scores.values()) > 0.95, "a control at its floor controls nothing"
    assert max(scores.values()) - min(scores.values()) <= 0.02


def test_the_same_facts_as_letters_are_a_lookup(table: Comparison) -> None:
    line, score = knows(table, "letter")
    assert score["full"].low > line.chance
    assert max(score["hybrid-kda"].high, score["hybrid-lightning"].high) < score["full"].low


@pytest.mark.parametrize("hops", [1, 2, 4])
def test_full_attention_walks(table: Comparison, hops: int) -> None:
    line, score = walk(table, hops)
    assert line.n == "40"
    assert score["full"].value >= 0.9


def test_lightning_takes_one_step_and_no_four(table: Comparison) -> None:
    assert walk(table, 1)[1]["hybrid-lightning"].value >= 0.8
    line, score = walk(table, 4)
    assert score["hybrid-lightning"].includes(line.chance)


def test_kda_lies_between(table: Comparison) -> None:
    """Where both hybrids are at chance, neither is above the other."""
    for hops in (1, 2, 4):
        line, score = walk(table, hops)
        full, kda, lightning = (score[name] for name in MODELS)
        assert kda.value <= full.value
        both_lost = kda.includes(line.chance) and lightning.includes(line.chance)
        assert kda.value >= lightning.value or both_lost
    assert walk(table, 2)[1]["hybrid-kda"].low > walk(table, 2)[1]["hybrid-lightning"].high


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_are_small_and_say_how_they_were_made(name: str) -> None:
    folder = ROOT / "evalsuite" / "zoo" / name
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8 * 2**20
    made = {other: json.loads((folder.parent / other / "training.json").read_text()) for other in MODELS}
    mine = made[name]
    assert mine["command"].startswith("evalsuite train ")
    assert len(mine["revision"]) == 40
    assert mine["stream"] == made["full"]["stream"]
    assert mine["recipe"] | {"lr": 0} == made["full"]["recipe"] | {"lr": 0}, "the rate alone is each design's own"
    assert mine["tokens"] == made["full"]["tokens"]
