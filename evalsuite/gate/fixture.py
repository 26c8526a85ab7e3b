"""The gate as a pytest fixture, for a repository whose kernels or models must not lose what a baseline can.

In conftest.py: `pytest_plugins = ["evalsuite.gate.fixture"]`; in a test: `evalsuite_gate("baselines/demo/hybrid-kda",
"gate.toml")`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from evalsuite.errors import UserError
from evalsuite.gate import Report, again, judge, policy, sides, summary

Gated = Callable[..., Report]


@pytest.fixture
def evalsuite_gate(tmp_path: Path) -> Gated:
    """A function (baseline, policy, *, model, device, strict): asks `model`, by default the baseline's, all that the
    baseline was asked, and itself under the trusted kernels where the policy has [kernels]; it fails the test in the
    gate's words unless it passes, and returns the gate's report."""

    def gate(
        baseline: str | Path, rules: str | Path, *, model: str = "", device: str = "auto", strict: bool = False
    ) -> Report:
        try:
            loaded = policy.load(rules)
            run = again.ask(Path(baseline), tmp_path / "evalsuite_gate", model, device)
            file = tmp_path / "evalsuite_kernels.json"
            if loaded.kernels:
                again.agree(Path(baseline), loaded.kernels, file, model, device)
            both = sides.read(run.folder, "run"), sides.read(baseline, "baseline", run.name)
            report = judge(*both, loaded, kernels=str(file))
        except UserError as error:
            pytest.fail(f"evalsuite: {error}", pytrace=False)
        if report.exit_code(strict=strict):
            pytest.fail(summary.plain(report), pytrace=False)
        return report

    return gate
