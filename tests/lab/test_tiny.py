"""The lab's claim at its smallest budget, for anyone to run: as many hops are solved as there are full layers.

Some minutes on two cores; the same as `evalsuite train --budget tiny --device cpu`.
"""

import json
from pathlib import Path

import pytest

from evalsuite.cli import app
from evalsuite.lab.report import SOLVED


def test_hops_solved_are_full_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--budget", "tiny", "--device", "cpu", "--out", str(tmp_path), "--json"]
    app(arguments, standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    print(json.dumps(found["gates"]), [(row["design"], row["hops"]) for row in found["designs"]])
    solved = {}
    for row in found["designs"]:
        accuracy = {int(hop): cell["mean"][0] for hop, cell in row["hops"].items()}
        solved[row["design"]] = sum(value >= SOLVED for value in accuracy.values())
        assert accuracy[solved[row["design"]] + 1] < 0.5  # nor nearly there: no threshold decides
    assert solved == {"FFFF": 4, "SFSF": 2, "SSSF": 1}
    passed = {gate["name"]: gate["passed"] for gate in found["gates"]}
    assert passed["equal tokens"]
    assert passed["parameters within 1 %"]
