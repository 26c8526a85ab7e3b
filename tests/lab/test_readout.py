"""The lab's tables and figures: every number is in them once, and what was not asked is not made up."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalsuite.cli import app
from evalsuite.errors import UserError
from evalsuite.lab import figures, readout, report
from evalsuite.lab.budget import REFERENCE
from evalsuite.lab.cost import flops, kept
from evalsuite.lab.report import Trained

REACH = {"full": 6, "hybrid-kda": 2}


def cell(task: str, share: float, n: int = 100, chance: float = 0.0, **facets: Any) -> list[Any]:
    return [task, facets, share, n, chance]


def made(design: str, seed: int, *, miss: float = 0.0) -> dict[str, Any]:
    config = REFERENCE.config(design)
    direct = {"length": 512, "facts": 64, "answer": "direct", "order": "shuffled"}
    cells = [
        cell("multihop.graph", (1.0 - miss) * (hop <= REACH[design]), chance=1 / 64, hops=hop, **direct)
        for hop in range(1, 7)
    ]
    cells += [cell("multihop.graph", 1.0, hops=hop, **{**direct, "answer": "cot"}) for hop in (2, 4, 6)]
    cells += [cell("multihop.graph", 0.5, hops=1, **{**direct, "length": 4096})]
    cells += [cell("multihop.path", 0.25, hops=1, length=512, facts=32, answer="direct", relations=2)]
    cells += [cell("knowledge.cloze", 1.0, load=1024), cell("knowledge.cloze", 0.5 + seed / 50, load=16384)]
    cells += [
        cell("ruler.vt", 0.75, length=512),
        cell("ruler.cwe", 0.25, length=512),
        cell("trace.swap", 1.0, length=512),
    ]
    history = [
        {
            "step": step,
            "tokens": step * 1_000_000,
            "loss": 1.0,
            "probe": {
                _probed(1): float(step >= 2),
                _probed(2): 0.0,
                "knowledge.cloze (load=1024)": 1.0,
                "knowledge.cloze (load=16384)": step / 4,
            },
        }
        for step in (1, 2, 3)
    ]
    return {
        "budget": "reference", "design": design, "pattern": config.pattern, "seed": seed, "lr": 2e-3, "sweep": False,
        "shuffled": False, "loss": 1.0, "tokens": 4_000_000, "parameters": 100, "size": 100, "seconds": 7.0,
        "cells": cells,
        "state_bytes": {"512": kept(config, 512), "16384": kept(config, 16384)}, "flops": {"512": flops(config, 512)},
        "history": history,
    }  # fmt: skip


def _probed(hops: int) -> str:
    return f"multihop.graph (answer=direct, facts=64, hops={hops}, length=512, order=shuffled)"


FOUND = {
    "budget": {},
    "trained": [made(design, seed) for design in REACH for seed in (0, 1, 2)],
    "rates": [{"design": design, "lr": lr, "loss": abs(lr - 2e-3)} for design in REACH for lr in (1e-3, 2e-3, 4e-3)],
}


def kept_in(folder: Path, **changes: Any) -> Path:
    file = folder / "lab.json"
    file.write_text(json.dumps({**FOUND, **changes}))
    return file


def rows_of(title: str, found: dict[str, Any] = FOUND) -> dict[str, str]:
    trained = report.trainings(found)
    (view,) = (view for view in readout.views(trained) if view.title == title)
    lines = readout.markdown(view, trained).splitlines()
    return {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}


def test_a_table_gives_each_design_its_seeds_and_interval() -> None:
    assert rows_of("Knowledge")["full"].startswith(
        "| full | 3 | 1.00 [1.00, 1.00] | 0.50 [0.50, 0.50] | 1.00 [1.00, 1.00] | 0.52 [0.47, 0.57] |"
    )  # after half of the tokens, then at the end
    assert rows_of("Walks on a cycle of 64 facts")["hybrid-kda"].count("1.00 [1.00, 1.00]") == 2
    alone = {**FOUND, "trained": [made("full", 0)]}
    # one seed has no interval
    assert rows_of("Knowledge", alone)["full"].startswith("| full | 1 | 1.00 | 0.50 | 1.00 | 0.50 |")


def test_a_thought_and_a_longer_text_are_tables_of_their_own() -> None:
    assert rows_of("With a chain of thought")["hybrid-kda"].count("1.00 [1.00, 1.00]") == 3
    columns = rows_of("Distance: 1 hop in longer texts")
    assert columns["design"] == "| design | seeds | 512 tokens | 4,096 tokens |"  # lengths not asked are left out
    assert columns["full"].endswith("| 1.00 [1.00, 1.00] | 0.50 [0.50, 0.50] |")
    assert "| 0.75 [0.75, 0.75] |" in rows_of("RULER at 512 tokens")["full"]
    assert rows_of("RULER at 512 tokens")["full"].endswith("| 0.50 [0.50, 0.50] |")  # the mean of the tasks


def test_tokens_to_solve_counts_those_that_never_did() -> None:
    slow = {
        **FOUND,
        "trained": [made("full", 0), {**made("hybrid-kda", 0), "history": FOUND["trained"][0]["history"][:1]}],
    }
    assert rows_of("Tokens to solve", slow)["hybrid-kda"].count("0/1") == 7  # it is there, though it solved nothing
    assert rows_of("Tokens to solve")["full"] == "| full | 3 | 2M | 0/3 | 0/3 | 0/3 | 0/3 | 0/3 | 1M | 0/3 |"


def test_a_difference_to_full_is_of_the_same_seeds() -> None:
    trained = report.trainings(
        {**FOUND, "trained": [made("full", 0), made("full", 1, miss=0.1), made("hybrid-kda", 1)]}
    )
    (row,) = (row for row in report.rows(trained, 64) if row["design"] == "hybrid-kda")
    assert row["hops"][1]["difference"][0] == pytest.approx(0.1)


def test_figures_are_written_and_name_what_fails(tmp_path: Path) -> None:
    files = [file.name for file in figures.write(kept_in(tmp_path), tmp_path / "out")]
    assert files == ["lab.json", "tables.md", "hops.png", "distance.png", "learning.png", "pareto.png"]
    assert all((tmp_path / "out" / name).stat().st_size > 1000 for name in files)
    trained, _, _, checks = report.judged(FOUND)
    failed = [gate.name for gate in checks if not gate.passed]
    assert "knowledge of 16,384 facts within 2 points" in failed
    assert "GATE FAILS: knowledge of 16,384 facts" in json.dumps(figures.hops(trained, figures.named(checks)).to_dict())
    for figure in figures.FIGURES.values():
        titled = json.dumps(figure(trained, ["GATE FAILS: something"]).to_dict())
        assert "GATE FAILS: something" in titled
        assert "something" not in json.dumps(figure(trained, []).to_dict())


def test_the_kept_file_says_what_the_folder_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = kept_in(tmp_path)
    app(["lab", str(file)], standalone_mode=False)
    first = capsys.readouterr().out
    app(["lab", str(file), "--figures", str(tmp_path / "out")], standalone_mode=False)
    assert capsys.readouterr().out == first
    app(["lab", str(tmp_path / "out" / "lab.json")], standalone_mode=False)
    assert capsys.readouterr().out == first
    assert "8 |" in first


@pytest.mark.parametrize("text", ["{", "[]", '{"trained": []}', '{"trained": [], "rates": []}'])
def test_another_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"holds no (results|finished training)"):
        report.read(tmp_path / "x.json")


def test_a_blind_model_above_chance_is_named() -> None:
    def trained(right: float) -> list[Trained]:
        letter, graph, needle = ("knowledge.letter", ()), ("multihop.graph", (("hops", 1),)), ("ruler.vt", ())
        cells = {letter: right, graph: 0.02, needle: 1 / 400}  # one lucky answer
        n, chance = dict.fromkeys(cells, 400), {letter: 0.25, graph: 1 / 64, needle: 0.0}
        return [Trained({"design": "full", "seed": 0}, cells, n, chance)]

    assert "ABOVE" not in report.blind(trained(0.27))
    text = report.blind(trained(0.4))
    assert text.count("ABOVE") == 1
    assert "| knowledge.letter | 400 | 0.250 | 0.400 [" in text
    plain = json.loads(report.blind(trained(0.4), as_json=True))
    assert [row["task"] for row in plain["tasks"] if row["above"]] == ["knowledge.letter"]


def test_costs_are_what_is_known_by_hand() -> None:
    full, hybrid, sparse = (REFERENCE.config(name) for name in ("full", "hybrid-kda", "sparse-dsa"))
    tails = 8 * 192 * 3 * 2
    assert kept(full, 1000) == 8 * 1000 * 2 * 192 * 2 + tails  # keys and values of 192 numbers in bf16
    assert kept(hybrid, 1000) == 2 * 1000 * 2 * 192 * 2 + 6 * 3 * 64 * 64 * 4 + tails
    assert flops(full, 2000) - flops(full, 1000) == 8 * 4 * 192 * 500  # a query more reads half a key more
    assert flops(sparse, 4000) - flops(sparse, 3000) < (flops(full, 4000) - flops(full, 3000)) / 4
    assert flops(replace_pattern(full, "CCCCCCCC"), 1000) == flops(replace_pattern(full, "CCCCCCCC"), 9000)


def replace_pattern(config: Any, pattern: str) -> Any:
    return type(config)(**{**config.to_dict(), "pattern": pattern})


def test_shuffled_labels_stay_labels_and_teach_nothing() -> None:
    import numpy as np

    from evalsuite.lab.data import IGNORE, step_tokens

    stream = replace(REFERENCE.stream(0), steps=10, tokens_per_step=2048)
    (ids, labels), (same, shuffled) = (step_tokens(each, 3) for each in (stream, replace(stream, shuffled=True)))
    assert np.array_equal(ids, same)
    assert np.array_equal(labels == IGNORE, shuffled == IGNORE)
    assert np.array_equal(np.sort(labels), np.sort(shuffled))
    asked = labels != IGNORE
    assert (labels[asked] == shuffled[asked]).mean() < 0.1
    assert REFERENCE.blind().rates == (2e-3,)
    assert REFERENCE.blind().stream(0).shuffled
