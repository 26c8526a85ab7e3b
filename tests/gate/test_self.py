"""The project gates itself: the shipped checkpoints against the baselines under results/baselines."""

from pathlib import Path

import pytest

from evalsuite.gate.fixture import Gated, evalsuite_gate

__all__ = ["evalsuite_gate"]
BASELINES = Path(__file__).parents[2] / "results/baselines"


@pytest.mark.parametrize("model", ["full", "hybrid-kda", "hybrid-lightning"])
def test_the_checkpoints_answer_as_well_as_their_baselines(evalsuite_gate: Gated, model: str) -> None:
    report = evalsuite_gate(BASELINES / "demo" / model, BASELINES / "demo.toml", device="cpu")
    assert len(report.sides[0].run.rows) == 560
    assert {case.name for case in report.cases if case.kind == "family"} == {"multihop", "ruler", "knowledge"}
    assert {case.name for case in report.cases if case.kind == "metric"} == {"kv", "state"}
