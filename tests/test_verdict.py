"""Verdicts: nothing is called equal for want of data, nothing lost by luck, and every form says the same."""

import csv
import io
import json
from typing import Any

import pytest
from rich.console import Console

from evalsuite import compare, pairs, stats, table
from evalsuite.compare import Comparison
from evalsuite.errors import UserError
from evalsuite.pairs import Paired
from evalsuite.store import Row, Run
from evalsuite.verdict import judge
from runs import hop_rows, make, row, three


def known(scores: list[bool], offset: int = 0, **cell: Any) -> list[Row]:
    return [row("knowledge", i + offset, right, **cell) for i, right in enumerate(scores)]


def line(first: list[Row], second: list[Row], **options: Any) -> str:
    (verdict,) = compare.compare([make("full", first), make("h", second)], **options).verdicts
    return verdict.line


def paired(low: float, value: float, high: float) -> Paired:
    return Paired(value, low, high, 100, 1, 2, 0.01, 0.05)


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [
        ((-0.019, 0.0, 0.019), "equal"),
        ((-0.015, -0.01, -0.005), "equal"),  # surely lower, and by nothing that matters
        ((-0.021, 0.0, 0.019), "not told apart"),
        ((-0.4, 0.0, 0.4), "not told apart"),
        ((-0.03, -0.02, -0.001), "loses"),
        ((0.001, 0.02, 0.03), "gains"),
    ],
)
def test_equal_is_said_only_where_the_whole_interval_is(ends: tuple[float, float, float], verdict: str) -> None:
    assert judge(paired(*ends)) == verdict


def test_the_line_of_the_issue() -> None:
    """Many equal answers make knowledge equal; hops break."""
    base, lost = hop_rows((1.0, 1.0, 1.0)), hop_rows((1.0, 1.0, 0.59))
    right = [i % 20 > 0 for i in range(1200)]
    said = line([*base, *known(right)], [*lost, *known([*right[:-3], not right[-3], *right[-2:]])])
    assert said == (
        "h: equal on knowledge (difference -0.1 points [-0.4, 0.2]); "
        "loses 14 points on multihop [9, 18], 41 at 4 hops [30, 50]"
    )


def test_few_equal_answers_are_not_called_equal_and_say_what_they_could_have_seen() -> None:
    """Twelve answers right in both runs: a loss of twenty points would often look the same."""
    said = line(known([True] * 12), known([True] * 12))
    assert said.startswith("h: not told apart on knowledge (difference 0.0 points [")
    seen = float(said.partition("]; ")[2].partition(" could")[0])
    assert seen > 20


def test_two_that_guess_or_answer_nothing_are_not_called_equal() -> None:
    wrong = known([i % 4 == 0 for i in range(2000)])
    assert line(wrong, wrong) == "h: both at chance on knowledge (difference 0.0 points [-0.1, 0.1])"
    none = [{**r, "score": 0.0, "finish": "error", "error": "server said no"} for r in wrong]
    assert line(none, none).startswith("h: both at chance on knowledge")
    right = known([i % 4 > 0 for i in range(2000)])
    assert line(right, right).startswith("h: equal on knowledge")


def test_a_wider_margin_is_stated() -> None:
    rows = known([True] * 60)
    assert "not told apart" in line(rows, rows)
    assert line(rows, rows, margin=0.06).startswith("h: equal on knowledge")
    text = table.as_markdown(compare.compare([make("a", rows), make("b", rows)], margin=0.06))
    assert "Equal: the whole interval lies within 6 points" in text
    with pytest.raises(UserError, match="--margin must lie between 0 and 100 points, not 0"):
        compare.compare([make("a", rows)], margin=0)


def test_a_gain_is_no_loss_and_a_facet_of_two_families_names_its_own() -> None:
    first = [row("ruler.vt", i, i % 2 > 0, length=n) for n in (512, 1024) for i in range(200)]
    second = [row("ruler.vt", i, True, length=n) for n in (512, 1024) for i in range(200)]
    assert line(first, second).startswith("h: gains 50 points on ruler [")
    hops = hop_rows((1.0, 1.0, 1.0), lengths=(512, 1024))
    worse = [{**r, "score": float(r["facets"]["length"] == 512)} for r in hops]
    assert "100 at 1024 tokens of multihop [" in line([*first, *hops], [*second, *worse])


def test_no_loss_is_found_by_looking_often() -> None:
    """Forty loads, one of which lies low by luck: of forty looks some will have p < 0.05."""
    first = [r for load in range(40) for r in known([i < 8 for i in range(10)], load=load)]
    lucky = [r for load in range(40) for r in known([i < (0 if load == 7 else 8) for i in range(10)], load=load)]
    (verdict,) = compare.compare([make("full", first), make("h", lucky)]).verdicts
    spots = stats.paired([0.0] * 10, [1.0] * 8 + [0.0] * 2)
    assert spots.high < 0
    assert spots.p * 40 > 0.05
    assert verdict.worst is None


def test_family_means_and_their_differences_agree() -> None:
    """A task of many samples weighs as one of few, in the mean and so in the difference."""
    first = [row("ruler.vt", i, True) for i in range(300)] + [row("ruler.cwe", i, True) for i in range(30)]
    second = [row("ruler.vt", i, True) for i in range(300)] + [row("ruler.cwe", i, i < 15) for i in range(30)]
    (mean,) = compare.compare([make("full", first), make("h", second)]).families
    a, b = mean.estimates
    difference = mean.differences[1]
    assert a is not None
    assert b is not None
    assert difference is not None
    assert difference.value == pytest.approx(b.value - a.value) == pytest.approx(-0.25)
    assert (difference.wins, difference.losses, difference.ties) == (0, 15, 315)
    assert difference.low < -0.25 < difference.high < 0


def test_detectable_grows_with_discordance_and_clusters_and_is_never_zero() -> None:
    def seen(first: list[Row], second: list[Row]) -> float:
        difference = compare.compare([make("a", first), make("b", second)]).scores[0].differences[1]
        assert difference is not None
        return difference.detectable

    same, some = known([True] * 100), known([i % 10 > 0 for i in range(100)])
    assert seen(same, same) == pytest.approx(stats.detectable(2 / 102, 102))
    assert seen(same, some) > seen(same, same) > 0
    fall = [float(i >= 10) for i in range(100)]
    alone = [{**r, "score": score} for r, score in zip(same, fall, strict=True)]
    one, other = ([{**r, "cluster": f"c{i // 10}"} for i, r in enumerate(rows)] for rows in (same, alone))
    assert seen(one, other) > 2 * seen(same, alone), "ten flips of one source are one flip"


def test_unequal_prompts_are_named_and_counted_and_in_no_difference() -> None:
    first = known([True] * 12)
    second = known([i < 6 for i in range(8)]) + [row("knowledge", i, False, prompt="other words") for i in range(8, 12)]
    result = compare.compare([make("full", first), make("h", second)])
    assert [(u.task, len(u.ids), u.of, u.ids[0]) for u in result.unequal] == [("knowledge", 4, 12, "knowledge//8")]
    for mean in (result.scores[0], result.families[0]):
        difference = mean.differences[1]
        assert difference is not None
        assert (difference.n, difference.losses) == (8, 2)
    said = "UNEQUAL h: 4 of 12 samples of knowledge have other prompts than in full and are in no difference: "
    assert f"- {said}knowledge//8, knowledge//9, knowledge//10, ..." in table.as_markdown(result)
    assert json.loads(table.as_json(result))["unequal"][0]["ids"][-1] == "knowledge//11"
    none = compare.compare([make("full", first), make("h", [{**r, "prompt_hash": "?"} for r in first])])
    assert none.verdicts[0].line == "h: not asked the same on knowledge"


def test_break_downs_by_any_facet() -> None:
    rows = [
        {**r, "facets": {**r["facets"], "depth": "early" if i % 2 else "late"}}
        for i, r in enumerate(hop_rows((1.0, 0.5, 0.1)))
    ]
    rows += known([True] * 10)
    result = compare.compare([make("full", rows), make("h", rows)], by=["hops", "depth"])
    assert [dict(at.keys)["depth"] for at in result.broken] == ["early", "late"] * 3
    assert {at.n for at in result.broken} == {"50"}
    text = table.as_markdown(result)
    assert "### By hops, depth" in text
    assert "Without such a facet: knowledge." in text
    families = compare.compare([make("full", rows), make("h", rows)], by=["family", "hops"]).broken
    assert [at.get("family") for at in families] == ["multihop"] * 3
    with pytest.raises(UserError, match="unknown facet 'dept'; did you mean 'depth'"):
        compare.compare([make("full", rows)], by=["dept"])


def everything(result: Comparison) -> dict[str, str]:
    buffer = io.StringIO()
    table.render(result, "rich", Console(file=buffer, width=300))
    return {form: table.render(result, form, Console()) or buffer.getvalue() for form in table.FORMATS}


def flipped() -> list[Run]:
    runs = three()
    for run in runs:
        for r in run.rows:
            r["text"] = f"{run.name} said\nthis of {r['id']}"
    return runs


@pytest.mark.parametrize("form", table.FORMATS)
def test_every_form_carries_the_same(form: str) -> None:
    result = compare.compare(flipped(), flips=True, by=["hops"])
    text = everything(result)[form]
    for verdict in result.verdicts:
        assert verdict.line in text
    wanted = ["LEFT OUT ruler.qa_1", "UNFINISHED", "said", "detectable"]
    assert [word for word in wanted if word not in text] == []
    assert ("3.0 MiB" if form in ("rich", "md") else "3145728") in text
    assert "-0.93" in text
    assert ("200 tokens/s" if form in ("rich", "md") else "200.0") in text


def test_flips_come_with_prompt_and_completions() -> None:
    result = compare.compare(flipped(), flips=True)
    assert result.flips is not None
    assert len(result.flips) > table.SHOWN
    flips = json.loads(table.as_json(result))["flips"]
    assert len(flips) == len(result.flips)
    assert flips[0]["texts"][1].startswith("hybrid-kda said\nthis of ")
    assert flips[0]["prompt"] == "facts=32,hops=1,length=1024 95"
    rows = [r for r in csv.DictReader(io.StringIO(table.as_csv(result))) if r["table"] == "flip"]
    assert {r["model"] for r in rows} == {"hybrid-kda", "hybrid-lightning"}
    assert all(r["score"] != r["first_score"] and r["completion"] != r["first_completion"] for r in rows)
    text = table.as_markdown(result)
    assert text.count(": prompt (right: x)") == table.SHOWN
    assert f"Below: the first {table.SHOWN} of {len(flips)}; json and csv have all." in text


def test_a_completion_cannot_move_the_cursor_of_a_terminal() -> None:
    runs = flipped()
    for r in runs[1].rows:
        r["text"] = r["answer"] = "\x1b[2Jclean\x07 slate\r"
    texts = everything(compare.compare(runs[:2], flips=True))
    assert not any(character in texts["rich"] + texts["md"] for character in "\x1b\x07\r")


def test_a_family_is_not_equal_by_two_questions_of_one_of_its_tasks() -> None:
    """A thousand ties of one task say nothing of the other, which is half of the family's mean."""

    def tie(task: str, i: int) -> Row:
        return {"task": task, "id": str(i), "prompt_hash": "h", "score": 1.0, "cluster": ""}

    rows = [*(tie("f.a", i) for i in range(1000)), *(tie("f.b", i) for i in range(2))]
    found = pairs.paired(rows, {(each["task"], each["id"]): each for each in rows}, by_task=True)
    assert judge(found) == "not told apart"
