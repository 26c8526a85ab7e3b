"""What a user's repository copies: the workflow, its steps run by bash as GitHub would, and the pytest fixture."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
POLICY = """
[[family]]
name = "graph"
tasks = ["multihop.graph"]
margin = 0.5
"""
TESTS = """
def test_it_is_as_good_as_before(evalsuite_gate):
    report = evalsuite_gate("baselines/demo/hybrid-kda", "gate.toml", device="cpu")
    assert report.verdict in ("PASS", "INCONCLUSIVE") and len(report.sides[0].run.rows) == 30

def test_its_kernels_agree(evalsuite_gate):
    report = evalsuite_gate("baselines/demo/hybrid-kda", "kernels.toml", device="cpu")
    assert [case.verdict for case in report.cases if case.kind == "kernels"] == ["PASS"] * 3

def test_it_walks_every_hop(evalsuite_gate):
    evalsuite_gate("baselines/demo/hybrid-kda", "floor.toml", device="cpu")

def test_another_design_is_none_of_it(evalsuite_gate):
    evalsuite_gate("baselines/demo/hybrid-kda", "gate.toml", model="full", device="cpu")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's repository: the template, a policy and a promoted baseline."""
    place = tmp_path_factory.mktemp("repository")
    (place / "gate.toml").write_text(POLICY)
    (place / "kernels.toml").write_text(POLICY + '[kernels]\nagainst = "recurrent"\n')
    (place / "floor.toml").write_text(POLICY + "floor = 0.9\n")
    asked = ["--model", "hybrid-kda", "--tasks", "multihop.graph", "--lengths", "256", "--limit", "10"]
    for command in (
        ["run", *asked, "--device", "cpu", "--out", "first"],
        ["baseline", "promote", "first/hybrid-kda", "--to", "baselines/demo", "--reason", "first"],
    ):
        subprocess.run([sys.executable, "-m", "evalsuite", *command], cwd=place, check=True, capture_output=True)
    return place


def steps(**changed: str) -> dict[str, str]:
    """The workflow's commands by name, some words replaced: fewer questions than a user would ask."""
    workflow = yaml.safe_load((ROOT / "examples/gate.yml").read_text())
    found = {step["name"]: step["run"] for step in workflow["jobs"]["gate"]["steps"] if "run" in step}
    for old, new in changed.items():
        assert any(old in text for text in found.values()), f"the template no longer says {old}"
        found = {name: text.replace(old, new) for name, text in found.items()}
    return found


def bash(place: Path, command: str, step: Path) -> subprocess.CompletedProcess[str]:
    """A step as GitHub's runner starts it."""
    workflow = yaml.safe_load((ROOT / "examples/gate.yml").read_text())
    environment = {**os.environ, **workflow["env"], "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(step)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", command],
        cwd=place, env=environment, check=False, capture_output=True, text=True,
    )  # fmt: skip


def test_the_workflow_passes_what_is_unchanged_and_fails_what_cannot_be_compared(place: Path) -> None:
    summary = place / "summary.md"
    fewer = {"multihop,knowledge": "multihop.graph", "--limit 20": "--limit 10"}
    for name in ("ask", "gate"):
        done = bash(place, steps(**fewer)[name], summary)
        assert done.returncode == 0, done.stderr
    assert "evalsuite gate: " in summary.read_text()
    assert {path.name for path in (place / "gate").iterdir()} == {"gate.json", "gate.xml", "gate.md"}
    other = {**fewer, "--out runs": "--seed 7 --out other", "runs/": "other/"}
    assert bash(place, steps(**other)["ask"], summary).returncode == 0
    done = bash(place, steps(**other)["gate"], summary)
    assert done.returncode == 3
    assert "::error" in done.stdout
    assert "seed" in done.stdout
    assert "INVALID" in summary.read_text()


def test_the_fixture_asks_again_and_says_what_the_gate_says(place: Path) -> None:
    (place / "conftest.py").write_text('pytest_plugins = ["evalsuite.gate.fixture"]\n')
    (place / "test_kernel.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "test_kernel.py"]
    done = subprocess.run(command, cwd=place, check=False, capture_output=True, text=True)
    assert "2 failed, 2 passed" in done.stdout, done.stdout
    assert "REGRESSED: " in done.stdout
    assert "floor" in done.stdout
    assert "INVALID: " in done.stdout
    assert "weights" in done.stdout
