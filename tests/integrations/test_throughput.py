"""The measure of two ranks beside one: it counts what really differs, and times what it says."""

from pathlib import Path

import pytest

from evalsuite.errors import UserError
from evalsuite.integrations import throughput

WORDS = ["--model", "hybrid-kda", "--tasks", "knowledge", "--limit", "5"]


def test_it_compares_and_times_real_ranks(tmp_path: Path) -> None:
    found = throughput.measure(WORDS, "cpu", tmp_path)
    one, two = found["one"], found["two"]
    assert one["samples"] == two["samples"] > 8
    assert found["unequal"] == []
    assert 0 < one["seconds"] < one["seconds_with_start"]
    assert len(two["seconds_of_ranks"]) == 2
    assert found["times"] == pytest.approx(one["seconds"] / two["seconds"])
    assert two["seconds"] >= max(two["seconds_of_ranks"]) - 1e-3


def test_a_run_that_fails_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the run by 2 ranks failed: unknown model 'nope'"):
        throughput.measure(["--model", "nope", "--tasks", "knowledge"], "cpu", tmp_path)


def test_every_difference_is_counted() -> None:
    row = {"id": "a", "prompt_hash": "h", "text": "x", "answer": "x", "score": 1.0, "finish": "stop", "error": ""}
    rows = [{**row, "choice_logprobs": [-1.0]}, {**row, "id": "b", "choice_logprobs": [-2.0]}]
    assert throughput._unequal(rows, rows) == []
    assert throughput._unequal(rows, rows[:1]) == ["b"]
    assert throughput._unequal(rows, [rows[0], {**rows[1], "text": "y"}]) == ["b"]
    assert throughput._apart(rows, [rows[0], {**rows[1], "choice_logprobs": [-2.5]}]) == 0.5
