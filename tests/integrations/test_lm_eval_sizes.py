"""Lengths and other options that lm_eval's tasks heed, and those that they do not, which is said."""

import json
from pathlib import Path

import pytest

from evalsuite import compare, plan, runner
from evalsuite.errors import UserError
from evalsuite.models.own import OwnModel

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
from lm_eval.tasks._index import TaskIndex

from evalsuite.integrations.lm_eval import export
from foreign_tasks import asked, ran


def test_every_length_is_asked_and_depends_on_no_other(native: OwnModel, place: Path, tmp_path: Path) -> None:
    """lm_eval's own `--limit` takes the shortest length alone, and its longer texts depend on the shorter ones."""
    both = runner.run(native, asked(place, "sized", lengths=(512, 4096), limit=2), tmp_path / "both")
    assert [row["facets"] for row in both.rows] == [{"length": 512}] * 2 + [{"length": 4096}] * 2
    assert all(row["prompt"].startswith(f"edge {row['facets']['length']} ") for row in both.rows)
    one = runner.run(native, asked(place, "sized", lengths=(4096,), limit=5), tmp_path / "one")
    assert {row["id"]: row["prompt"] for row in both.rows[2:]}.items() <= {
        r["id"]: r["prompt"] for r in one.rows
    }.items()
    assert {row["id"]: row["prompt"] for row in ran(native, place, tmp_path / "none", "sized").rows} == {
        row["id"]: row["prompt"] for row in one.rows
    }  # its own length is 4,096, and said to be
    assert all(row["score"] == row["detail"][f"{row['facets']['length']},none"] for row in both.rows)
    assert not both.meta["missing"]
    found = json.loads(export.write(both, tmp_path / "out")[0].read_text())["results"]["sized"]
    for length, rows in ((512, both.rows[:2]), (4096, both.rows[2:])):
        assert found[f"{length},none"] == sum(row["score"] for row in rows) / 2


def test_a_length_as_a_word_and_one_that_cannot_be_made(place: Path) -> None:
    """As babilong takes it; and what fails at one length is asked at the others."""
    made = asked(place, "worded", lengths=(1024, 4096), limit=1)
    assert [(i.cell.facets["length"], s.prompt) for i, s in made.samples(len)] == [
        (1024, "edge 1000 0"),
        (4096, "edge 4000 0"),
    ]
    made = asked(place, "sized", lengths=(333, 512), limit=1)
    assert [item.cell.facets for item, _ in made.samples(len)] == [{"length": 512}]
    assert "no text is so short" in made.missing["lm_eval:sized (length=333)"]
    with pytest.raises(UserError, match=r"nothing to ask: lm_eval:sized: .*no text is so short"):
        asked(place, "sized", lengths=(333,))


def test_an_option_that_does_not_reach_the_texts_is_said(native: OwnModel, place: Path, tmp_path: Path) -> None:
    from evalsuite import notes

    made = asked(place, "mc", "sized", wording="terse", lengths=(512, 1024), limit=1)
    own = "have the lengths that lm_eval gives them, and are asked as they are"
    assert made.missing == {
        "lm_eval:mc with lengths 512, 1024": f"its texts {own}",
        "lm_eval:mc with wording terse": "its texts are lm_eval's, and are asked as they are",
        "lm_eval:sized with wording terse": "its texts are lm_eval's, and are asked as they are",
    }
    assert len(made.items) == 3
    run = runner.run(native, made, tmp_path)
    said = notes.warnings(compare.compare([run]))
    assert [line.partition(":")[0] for line in said].count("LEFT OUT lm_eval") == 3
    file = place / "plain.yaml"
    rows = [json.dumps({"q": f"edge {i}", "answer": "a"}) for i in range(3)]
    (place / "rows.json").write_text("\n".join(rows))
    text = (place / "none.yaml").read_text().replace("custom_dataset: !function docs.docs", "dataset_path: json")
    text = text.replace("task: none", "task: plain").replace("fewshot_split: train", "fewshot_split: test")
    file.write_text(f"{text}dataset_kwargs: {{data_files: {{test: {place / 'rows.json'}}}}}\n")
    made = asked(place, "plain", settings=["lm_eval:plain.tokenizer=x"], limit=1)
    assert made.missing == {
        "lm_eval:plain with a tokenizer": "it sizes no texts, and uses none; leave --set ...tokenizer out"
    }


def test_a_text_of_a_group_depends_on_no_other_member(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on whether another member's data are there."""
    (place / "some.yaml").write_text("group: some\ntask: [gen, sized, mc]\n")
    build = TaskIndex.build
    monkeypatch.setattr("lm_eval.tasks.manager.TaskIndex.build", lambda *_: build([place]))
    whole = plan.make(plan.select(["lm_eval:some"], lengths=(512,), limit=2), "natural")
    prompts = {item.cell.task: sample.prompt for item, sample in whole.samples(len)}
    for name in ("gen", "sized", "mc"):
        alone = [sample.prompt for _, sample in asked(place, name, lengths=(512,), limit=2).samples(len)]
        assert prompts[f"lm_eval:some.{name}"] == alone[-1]
    assert list(whole.missing) == ["lm_eval:some with lengths 512"]
    assert whole.missing["lm_eval:some with lengths 512"].startswith("texts of gen, mc have the lengths")


def test_a_number_of_examples_that_is_not_used_is_said(place: Path) -> None:
    def made(name: str, value: str) -> plan.Plan:
        asked = plan.select([f"lm_eval:{place / name}.yaml"], settings=[f"lm_eval:{name}.num_fewshot={value}"], limit=1)
        return plan.make(asked, "natural")

    assert "it takes none, and is asked without, not with 3" in "".join(made("none", "3").missing.values())
    assert not made("none", "0").missing
    assert not made("mc", "1").missing
    for value, message in (("0,2", "num_fewshot=0,2: it takes one value"), ("-5", "=-5 is no"), ("1.5", "=1.5 is no")):
        with pytest.raises(UserError, match=message):
            made("mc", value)
