"""What the demo shows, read from a run of its own command: full attention walks on where the hybrids stop."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evalsuite.stats import Estimate

ROOT = Path(__file__).parents[1]
MODELS = ("full", "hybrid-kda", "hybrid-lightning")


def command() -> list[str]:
    """The demo's command as the Makefile has it."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    chosen = next(line.partition(":= ")[2] for line in lines if line.startswith("DEMO :="))
    asked = next(line for line in lines if "$(DEMO)" in line)
    return shlex.split(asked.strip().replace("$(BIN)/evalsuite", "").replace("$(DEMO)", chosen))


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The demo's cells of the tasks that this file is about, each with model, score and interval."""
    asked = command()
    asked[asked.index("--tasks") + 1] = "multihop.graph,knowledge"
    asked[asked.index("--out") + 1] = str(tmp_path_factory.mktemp("demo"))
    done = subprocess.run(
        [sys.executable, "-m", "evalsuite", *asked, "--json"], capture_output=True, text=True, check=True
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)["cells"]
    return found


def pooled(cells: list[dict[str, Any]], model: str, task: str, **facets: int) -> tuple[float, float, float]:
    """Mean over the cells, and an interval no wider than the widest of theirs."""
    mine = [c for c in cells if c["model"] == model and c["task"] == task and facets.items() <= c.items()]
    assert mine
    return tuple(sum(c[key] for c in mine) / len(mine) for key in ("score", "low", "high"))  # type: ignore[return-value]


def test_the_demo_asks_all_three_tasks_of_all_three_models() -> None:
    asked = command()
    assert set(asked[asked.index("--model") + 1].split(",")) == set(MODELS)
    assert set(asked[asked.index("--tasks") + 1].split(",")) == {"multihop", "ruler", "knowledge"}


@pytest.mark.parametrize("task", ["knowledge.cloze", "knowledge.letter"])
def test_knowledge_is_equal_within_two_points(cells: list[dict[str, Any]], task: str) -> None:
    scores = [pooled(cells, model, task)[0] for model in MODELS]
    assert min(scores) > 0.9, "a control at its floor controls nothing"
    assert max(scores) - min(scores) <= 0.02


@pytest.mark.parametrize("hops", [1, 2, 4])
def test_full_attention_walks(cells: list[dict[str, Any]], hops: int) -> None:
    assert pooled(cells, "full", "multihop.graph", facts=32, hops=hops)[0] >= 0.9
