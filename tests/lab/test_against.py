"""Differences to full attention: of the same seeds and the same tokens, and only where a design is surely better."""

from typing import Any

from evalsuite.lab import against, readout, report
from test_readout import FOUND, cell, made


def found(*trained: dict[str, Any]) -> dict[str, list[str]]:
    """Title -> lines of the table."""
    every = report.trainings({**FOUND, "trained": list(trained)})
    return {view.title: readout.markdown(view, every).splitlines() for view in against.views(every)}


def with_cells(one: dict[str, Any], *cells: list[Any]) -> dict[str, Any]:
    return {**one, "cells": one["cells"] + list(cells)}


BETTER = "Where a design is better than full attention"


def test_what_speaks_for_a_design_is_told_and_what_may_be_chance_is_not() -> None:
    full = [with_cells(made("full", seed), cell("ruler.fwe", 0.5), cell("trace.stack", 0.5)) for seed in (0, 1, 2)]
    kda = [
        with_cells(made("hybrid-kda", seed), cell("ruler.fwe", 0.8 + seed / 100), cell("trace.stack", 0.3 + seed / 2))
        for seed in (0, 1, 2)
    ]
    lines = found(*full, *kda)[BETTER]
    assert lines[-2:] == ["|---|--:|--:|", "| hybrid-kda | 3 | +0.31 [+0.29, +0.33] |"]
    assert lines[-3] == "| design | seeds | ruler.fwe |"  # stack: 0.3, 0.8, 1.3 in three seeds says nothing


def test_the_same_seeds_are_compared() -> None:
    full = with_cells(made("full", 1), cell("ruler.fwe", 0.5))
    other = [with_cells(made("hybrid-kda", seed), cell("ruler.fwe", 0.9)) for seed in (0, 1, 2)]
    assert found(full, *other)[BETTER] == []  # one pair has no interval, and so no column
    gap = found(full, *other)["The gap while training: 1 hop"]
    assert gap[-1].startswith("| hybrid-kda | 3 | +0.00 |")


def test_a_gap_is_of_the_same_tokens() -> None:
    late = made("hybrid-kda", 0)
    first, *rest = late["history"]
    late["history"] = [first, *({**line, "probe": {**line["probe"], next(iter(line["probe"])): 0.0}} for line in rest)]
    gap = found(made("full", 0), late)["The gap while training: 1 hop"]
    assert "25% of the tokens" in gap[-3]
    assert gap[-1] == "| hybrid-kda | 1 | +0.00 | -1.00 | -1.00 |"  # 4M tokens were never reached: no column


def test_without_full_attention_there_is_nothing_to_compare_to() -> None:
    assert found(made("hybrid-kda", 0)) == {}
    assert found(made("full", 0)) == {}
