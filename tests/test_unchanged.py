"""Kernels at the size of the demo: an unchanged one gives equal bits each time, a planted fault shows in the answers.

Here a few runs of one question in each of the demo's cells. The demo's own size, an unchanged kernel 100 times and
each fault on all 1,080 questions, takes some hours on two cores:
EVALSUITE_WHOLE=1 pytest tests/test_unchanged.py tests/gate/test_agreement.py
"""

import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from demo import WHOLE, questions
from evalsuite import compare, kernels, models, runner
from evalsuite.models.own import OwnModel
from evalsuite.plan import Plan
from evalsuite.store import Run
from planted import FAULTS, plant

TIMES = 100 if WHOLE else 3


def run(out: Path, made: Plan) -> tuple[Run, bytes]:
    model = models.load("hybrid-kda", device="cpu")
    done = runner.run(model, made, out)
    return done, (done.folder / "samples.parquet").read_bytes()


def passes(result: compare.Comparison) -> bool:
    """By the comparison's own numbers: no sample is judged otherwise, and no family is said to lose."""
    lines = (*result.cells, *result.scores, *result.families)
    still = all(d is not None and (d.value, d.wins, d.losses) == (0, 0, 0) for at in lines for d in at.differences[1:])
    return still and result.flips == () and not any(f.verdict == "loses" for v in result.verdicts for f in v.families)


def test_an_unchanged_kernel_passes_every_time_with_equal_bits(tmp_path: Path) -> None:
    """A model loaded anew for each run: nothing that one leaves behind may be what makes the next equal."""
    made = questions() if WHOLE else questions(1, "256")
    first, content = run(tmp_path / "first", made)
    assert len({row["task"] for row in first.rows}) == 18
    passed = 0
    for i in range(TIMES):
        again, same = run(tmp_path / str(i), replace(made, missing=dict(made.missing)))
        passed += same == content and passes(compare.compare([first, again], flips=True))
    assert passed == TIMES


def test_passing_is_not_given_away(tmp_path: Path) -> None:
    """One answer of a run judged otherwise, and it does not pass."""
    first, _ = run(tmp_path, questions(1, "256"))
    other = replace(first, rows=[dict(row) for row in first.rows])
    assert passes(compare.compare([first, other], flips=True))
    other.rows[7]["score"] = 1.0 - other.rows[7]["score"]
    assert not passes(compare.compare([first, other], flips=True))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_moves_the_gold_answers(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What rounding does to the loss of a right answer, a fault does a hundred times over; scores may hide it."""
    one = models.load("hybrid-kda-dsa", device="cpu", kernels="chunked")
    assert isinstance(one, OwnModel)
    made = questions() if WHOLE else questions(1, "256")

    def moved() -> float:
        found = kernels.compare(one, "reference", replace(made, missing={}), prompts=1)
        gaps = [abs(s.loss_gap) for s in found.samples if not math.isnan(s.loss_gap)]
        assert len(gaps) == len(found.samples)
        return fmean(gaps)

    plant(monkeypatch, "none")
    rounding = moved()
    plant(monkeypatch, fault)
    assert moved() > 100 * rounding
