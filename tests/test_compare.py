"""The tables: right numbers, nothing hidden, readable in 120 columns."""

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from evalsuite import compare, table
from evalsuite.errors import UserError
from runs import MODELS, PARTS, hop_rows, make, row, three


def lines(text: str, *words: str) -> list[str]:
    """Lines that hold all words; the indentation of a cell is written with spaces that no renderer drops."""
    return [line for line in text.replace("\u00a0", " ").splitlines() if all(word in line for word in words)]


def test_the_tables_in_120_columns() -> None:
    text = table.as_markdown(compare.compare(three()))
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 120
    assert lines(text, "3 models", "570 questions each", "1k tokens", "terse wording", "seed 0")
    assert lines(text, "| task", "n |", "chance", "full", "hybrid-kda", "hybrid-lightning")
    assert lines(text, "multihop.graph", "300", "0.03", "0.97 [", "0.82 [", "0.49 [")
    assert lines(text, "ruler: mean of 11 of 13 tasks", "220", "0.80 [")
    assert lines(text, "LEFT OUT ruler.qa_1: SQuAD is not here; give --data squad=PATH")
    assert lines(text, "knowledge", "0.25", "0.90 [")
    assert lines(text, "### multihop by hop depth")
    assert lines(text, "1 hop", "2 hops", "4 hops")
    assert lines(text, "| graph, 32 facts", "100", "chance 0.03")
    assert lines(text, "|   full", "0.98 [", "0.97 [", "0.96 [")
    assert lines(text, "hybrid-lightning", "0.95 [", "0.50 [", "0.03 [", "]~ |")
    assert lines(text, "Difference to full")
    assert lines(text, "KV cache, 2k tokens", "6.0 MiB")
    assert lines(text, "recurrent state, 1k tokens", "512.0 KiB")
    assert lines(text, "prefill", "200 tokens/s")
    assert lines(text, "decode", "30 tokens/s")
    closing = [line for line in text.splitlines() if ": weakest at " in line]
    assert len(closing) == 3
    assert closing[0].startswith("- full: weakest at ruler.part_0: 0.80 [")
    assert closing[1].startswith(
        "- hybrid-kda: weakest at multihop.graph, 4 hops: 0.60 [0.50, 0.69], chance 0.03, 0.36"
    )
    assert closing[2] == (
        "- hybrid-lightning: weakest at multihop.graph, 4 hops: 0.03 [0.01, 0.08], chance 0.03, 0.93 below full"
    )


def test_the_rich_tables_say_the_same_in_120_columns() -> None:
    buffer = io.StringIO()
    console = Console(file=buffer, width=120, force_terminal=True, color_system=None)
    assert table.render(compare.compare(three()), "rich", console) == ""
    text = buffer.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert lines(text, "hybrid-lightning", "0.95 [", "0.50 [", "0.03 [")
    assert lines(text, "LEFT OUT ruler.qa_1")
    assert lines(text, "hybrid-lightning: weakest at multihop.graph, 4 hops")


def test_many_hops_and_lengths_still_fit() -> None:
    runs = [
        make(
            name,
            [
                row("multihop.graph", i, i % 2 > 0, length=length, hops=hops, facts=facts, order=order)
                for length in (512, 1024, 2048, 4096, 8192)
                for hops in (0, 1, 2, 3, 4, 6, 8)
                for facts in (16, 32)
                for order in ("forward", "shuffled")
                for i in range(2)
            ],
        )
        for name in MODELS
    ]
    text = table.as_markdown(compare.compare(runs))
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 120
    assert lines(text, "| graph, 16 facts, forward", " 10 |")
    assert lines(text, "hybrid-kda", "0.50±.", "~")
    assert lines(text, "512", "1k", "2k", "4k", "8k")


def test_only_the_same_prompts_are_paired() -> None:
    rows = [row("knowledge", i, True) for i in range(10)]
    others = [row("knowledge", i, i > 4, prompt="" if i < 8 else "other words") for i in range(12)]
    line = compare.compare([make("a", rows), make("b", others)]).scores[0]
    difference = line.differences[1]
    assert difference is not None
    assert (difference.n, difference.value, difference.losses) == (8, -0.625, 5)
    assert line.n == "10-12"
    apart = [row("knowledge", i, False, prompt=f"other {i}") for i in range(10)]
    result = compare.compare([make("a", rows), make("b", apart)])
    assert result.scores[0].differences == (None, None)
    assert "not the same prompts" in table.as_markdown(result)
    assert result.columns[1].weakest.endswith("chance 0.25")


def test_a_model_that_keeps_up_is_not_called_worse() -> None:
    rows = [row("knowledge", i, i % 4 > 0) for i in range(40)]
    assert compare.compare([make("a", rows), make("b", rows)]).columns[1].weakest == (
        "b: weakest at knowledge: 0.75 [0.60, 0.86], chance 0.25; nowhere surely below a"
    )


def test_a_lucky_handful_is_no_weak_spot() -> None:
    """One wrong answer of one is a larger gap than 60 of 100, and far less sure."""
    full = [*hop_rows((1.0, 1.0, 1.0)), row("knowledge", 0, True)]
    hybrid = [*hop_rows((1.0, 1.0, 0.4)), row("knowledge", 0, False)]
    assert "4 hops" in compare.compare([make("full", full), make("h", hybrid)]).columns[1].weakest


def test_family_means_take_the_tasks_that_all_have() -> None:
    a = [row(f"ruler.{p}", i, p != "part_2") for p in PARTS[:3] for i in range(10)]
    b = [row(f"ruler.{p}", i, True) for p in PARTS[:2] for i in range(10)]
    mean = compare.compare([make("a", a), make("b", b)]).families[0]
    assert mean.get("tasks") == "2 of 13"
    assert [e.value for e in mean.estimates if e] == [1.0, 1.0]


def test_errors_and_cut_answers_are_shown() -> None:
    rows = [row("knowledge", i, False, finish="error") for i in range(3)]
    rows += [row("knowledge", i, i > 4, finish="length") for i in range(3, 10)]
    natural = {"knowledge": {"subtasks": [], "seed": 0, "wording": "natural"}}
    run = make("full", rows, tasks=natural)
    run.unreadable = 2
    text = table.as_markdown(compare.compare([run]))
    assert lines(text, "ERRORS full: 3 of 10 samples count as wrong: server said no")
    assert lines(text, "full: 7 answers ended at max_new_tokens, 2 of them wrong (knowledge 7)")
    assert lines(text, "UNREADABLE full: 2 damaged lines")
    assert lines(text, "UNFINISHED full: 10 samples so far")
    terse = table.as_markdown(compare.compare([make("full", rows)]))
    assert "max_new_tokens" not in terse  # a terse answer is as long as was asked, and whole


def test_for_machines() -> None:
    result = compare.compare(three())
    value = json.loads(table.as_json(result), parse_constant=pytest.fail)
    assert [m["name"] for m in value["models"]] == list(MODELS)
    (cell,) = (
        c for c in value["cells"] if c["model"] == "hybrid-lightning" and c.get("hops") == 4 and c["length"] == 1024
    )
    assert (cell["score"], cell["n"], cell["facts"]) == (0.03, 100, 32)
    assert cell["difference"] == pytest.approx(-0.93)
    rows = list(csv.DictReader(io.StringIO(table.as_csv(result))))
    cells = [r for r in rows if r["table"] == "cell"]
    assert len(cells) == len(value["cells"]) == 3 * (3 + 11 + 1)
    assert {r["model"] for r in cells} == set(MODELS)


def test_one_model_twice_is_told_apart_by_folder() -> None:
    rows = [row("knowledge", i, True) for i in range(4)]
    first, second = make("full", rows), make("full", rows)
    second.folder = Path("/other/full")
    assert [c.name for c in compare.compare([first, second]).columns] == ["/none/full", "/other/full"]


def test_nothing_to_compare() -> None:
    with pytest.raises(UserError, match="no sample is stored in /none/a"):
        compare.compare([make("a", [])])
    with pytest.raises(UserError, match="no run"):
        compare.load(["/none"])


def test_brackets_in_names_are_no_markup() -> None:
    rows = [row("knowledge", i, False, finish="error") for i in range(4)]
    for r in rows:
        r["error"] = "[/red] [bold] odd"
    buffer = io.StringIO()
    table.render(compare.compare([make("m[bold]", rows)]), "rich", Console(file=buffer, width=120))
    assert "[/red] [bold] odd" in buffer.getvalue()
    assert "m[bold]" in buffer.getvalue()


def test_a_family_sums_itself_up() -> None:
    rows = [
        row(f"ruler.{name}", i, i % 10 > 0, length=n) for name in ("vt", "cwe") for n in (512, 1024) for i in range(20)
    ]
    good, none = make("good", rows), make("none", hop_rows((1.0, 0.5, 0.1)))
    text = table.as_markdown(compare.compare([good, none]))
    (line,) = lines(text, "weighted to long")
    assert "mean of 2 of 13, 512, 1024 tokens" in line
    assert line.split("|")[2:4] == [" 90.0 ", "    - "]
    assert not lines(text, "effective length")


def test_settings_that_vary_are_told_apart_and_never_pooled() -> None:
    rows = [row("knowledge", i, load == 64, load=load) for load in (64, 1024) for i in range(20)]
    kinds = [kind for kind in ("nvidia", "default") for _ in range(5)]
    rows += [row("ruler.vt", i, kind == "nvidia", variant=kind, length=512) for i, kind in enumerate(kinds)]
    result = compare.compare([make("a", rows)])
    text = table.as_markdown(result)
    assert lines(text, "knowledge, load 64", " 1.00 [")
    assert lines(text, "knowledge, load 1024", " 0.00 [")
    assert lines(text, "ruler.vt, nvidia", " 1.00 [")
    assert not lines(text, "0.50 [", "| knowledge ")
    assert not result.columns[0].summaries


def test_means_are_over_what_all_runs_were_asked() -> None:
    """Harder questions in one run alone must not look like a worse model."""
    easy, hard = hop_rows((1.0, 0.5, 0.0)), hop_rows((1.0, 0.5, 0.0))
    easy = [r for r in easy if r["facets"]["hops"] < 4]
    result = compare.compare([make("easy", easy), make("hard", hard)])
    (line,) = result.scores
    assert [e.value for e in line.estimates if e] == [0.75, 0.75]
    assert line.n == "200"
    assert len(result.cells) == 3, "nothing is lost of what was asked"
    assert lines(table.as_markdown(result), "UNLIKE multihop.graph: means are over the 2 of 3 cells")
    assert "UNLIKE" not in table.as_markdown(compare.compare([make("a", easy), make("b", easy)]))
    assert [[e is None for e in at.estimates] for at in result.hops] == [[False, False], [False, False], [True, False]]
    apart = compare.compare(
        [make("a", hop_rows((1.0, 0.5, 0.0))), make("b", hop_rows((1.0, 0.5, 0.0), lengths=(2048,)))]
    )
    assert lines(table.as_markdown(apart), "UNLIKE multihop.graph: the runs have no cell in common")


def test_a_narrow_terminal_cuts_nothing() -> None:
    console = Console(width=50, file=io.StringIO(), force_terminal=False)
    table.render(compare.compare(three()), "rich", console)
    assert isinstance(console.file, io.StringIO)
    assert "…" not in console.file.getvalue()
    assert lines(console.file.getvalue(), "multihop.graph", "0.97 [0.")
    assert console.width == 50


def test_reasons_that_differ_in_numbers_are_one() -> None:
    rows = [row("knowledge", i, True) for i in range(9)]
    for i in range(6):
        rows[i]["error"] = f"prompt of {500 + i} tokens + 1 new > context 256" if i < 5 else "no answer"
    assert compare.compare([make("a", rows)]).columns[0].errors == {
        "prompt of 500 tokens + 1 new > context 256 (and alike)": 5,
        "no answer": 1,
    }


def test_flips_name_the_samples_that_two_runs_score_otherwise() -> None:
    one = [row("knowledge", i, i != 3) for i in range(6)]
    two = [row("knowledge", i, i != 4, prompt="other words" if i == 5 else "") for i in range(6)]
    two[5]["score"] = 0.0  # asked in other words: no flip
    runs = [make("cpu", one), make("cuda", two[:1] + two[2:])]
    result = compare.compare(runs, flips=True)
    assert result.flips is not None
    assert [(flip.id, flip.scores) for flip in result.flips] == [
        ("knowledge//3", (0.0, 1.0)),
        ("knowledge//4", (1.0, 0.0)),
    ]
    text = table.as_markdown(result)
    assert lines(text, "| knowledge//3", "0.00 ", "1.00 ")
    assert lines(text, "cuda: 1 higher, 1 lower.")
    assert [flip["id"] for flip in json.loads(table.as_json(result))["flips"]] == ["knowledge//3", "knowledge//4"]
    plain = compare.compare(runs)
    assert "scored otherwise" not in table.as_markdown(plain)
    assert "flips" not in json.loads(table.as_json(plain))
