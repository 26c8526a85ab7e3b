"""Runs as a dataset: nothing is lost on the way, nobody's folder is overwritten, and it loads without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from huggingface_hub import DatasetCard

from evalsuite import runner, store
from evalsuite.errors import UserError
from evalsuite.integrations import dataset
from evalsuite.models.base import Speed
from evalsuite.plan import Selection, make
from evalsuite.records import Completion, Sample, Score
from evalsuite.task import Cell

TEXTS = ("plain", "Zürich 東京 🧮", "nul \x00 inside", "lone \ud83d surrogate", "pipe | and\nnewline", "")


class Riddles:
    """Two parts whose facets differ."""

    name, version, licence, source, needs = "riddles", 3, "MIT; given by the user", "this file | its second half", ""

    def subtasks(self):
        return ("deep", "flat")

    def knobs(self):
        return {}

    def cells(self, request):
        cells = {
            "deep": Cell("riddles.deep", {"length": 64, "hops": 2}, 0.25),
            "flat": Cell("riddles.flat", {"key": "u"}),
        }
        return [cells[part] for part in request.subtasks or cells]

    def missing(self, request):
        return {}

    def sample(self, cell, index, request, count):
        facets = {"depth": index / 8} if cell.task == "riddles.deep" else {}
        return Sample(f"{cell.task}/{index}", cell.task, f"SECRET-QUESTION {index}", (f"SECRET-KEY {index}",),
                      cluster=f"c{index // 3}", facets=facets, meta={"walk": ["SECRET-NAME"]})  # fmt: skip

    def score(self, sample, completion):
        return Score(
            sample.id, len(completion.text) % 3 / 2, f"SECRET-READ {completion.text}",
            {"size": len(completion.text), "reason": f"SECRET-REASON {completion.text}"},
        )  # fmt: skip


class Teller:
    context, wording = 4096, "natural"

    def __init__(self, name):
        self.name, self.speed = name, Speed()

    def identity(self):
        return {"weights": f"hash of {self.name}"}

    def count(self, text):
        return len(text.split())

    def cost(self, length):
        return {"kv": length}

    def answer(self, samples):
        for i, sample in enumerate(samples):
            yield Completion(sample.id, f"SECRET-SAYING {TEXTS[i % len(TEXTS)]}", 40, 2, (-0.5, float("-inf")))


def told(out: Path, name: str, *parts: str) -> Path:
    chosen = Selection({"riddles": Riddles()}, {"riddles": parts}, limit=8)
    return runner.run(Teller(name), make(chosen, "natural"), out).folder


def loaded(folder: Path, tmp_path: Path) -> datasets.Dataset:
    return datasets.load_dataset(str(folder), split="test", cache_dir=str(tmp_path / "cache"))


def test_every_sample_is_a_row_with_all_that_is_stored(tmp_path: Path) -> None:
    runs = [told(tmp_path, "one", "deep"), told(tmp_path, "two-b", "deep", "flat")]
    dataset.write([str(run) for run in runs], tmp_path / "made")
    rows = list(loaded(tmp_path / "made", tmp_path))
    assert [row["model"] for row in rows] == ["one"] * 8 + ["two-b"] * 16
    kept = [row for run in runs for row in store.read(run).rows]
    for row, own in zip(rows, kept, strict=True):
        exact = json.loads(row["raw"]) if row["raw"] else {}
        for name in (
            "task",
            "id",
            "prompt",
            "target",
            "walk",
            "text",
            "answer",
            "score",
            "choice_logprobs",
            "prompt_hash",
        ):
            assert exact.get(name, row[name]) == own[name]
        facets = {k.removeprefix("facet."): v for k, v in row.items() if k.startswith("facet.") and v is not None}
        assert facets == own["facets"]
        assert row["detail.size"] == own["detail"]["size"]
    assert {row["facet.hops"] for row in rows} == {2, None}


def test_the_card_says_what_is_in_it_and_where_it_is_from(tmp_path: Path) -> None:
    runs = [told(tmp_path, "one", "deep"), told(tmp_path, "two-b", "deep", "flat")]
    dataset.write([str(run) for run in runs], tmp_path / "made")
    card = DatasetCard.load(tmp_path / "made" / "README.md")
    found = loaded(tmp_path / "made", tmp_path)
    assert (card.data.license, card.data.license_name) == ("other", "per-task")
    assert [each["name"] for each in card.data.dataset_info["features"]] == found.column_names
    assert card.data.dataset_info["splits"][0]["num_examples"] == len(found) == 24
    assert card.data.configs[0]["data_files"][0]["split"] == "test"
    body = card.content
    for said in ("MIT; given by the user", "this file \\| its second half", "hash of two-b", "riddles.deep",
                 store.read(runs[0]).meta["requests"][0]["time"]):  # fmt: skip
        assert said in body
    assert str(tmp_path) not in body  # no path of the machine


def test_without_prompts_no_text_of_questions_or_answers_goes_with_it(tmp_path: Path) -> None:
    run = told(tmp_path, "one")
    dataset.write([str(run)], tmp_path / "made", prompts=False)
    found = loaded(tmp_path / "made", tmp_path)
    assert len(found) == 16
    assert "score" in found.column_names
    assert "SECRET" not in json.dumps(list(found)) + (tmp_path / "made" / "README.md").read_text()
    dataset.write([str(run)], tmp_path / "whole")
    assert "SECRET-SAYING" in json.dumps(list(loaded(tmp_path / "whole", tmp_path)))


def test_without_prompts_no_error_quotes_one(tmp_path: Path) -> None:
    class Refused(Teller):
        def answer(self, samples):
            for sample in samples:
                yield Completion(sample.id, "", 40, finish="error", error=f"the server refused: {sample.prompt}")

    chosen = Selection({"riddles": Riddles()}, {"riddles": ()}, limit=8)
    run = runner.run(Refused("one"), make(chosen, "natural"), tmp_path).folder
    dataset.write([str(run)], tmp_path / "made", prompts=False)
    found = loaded(tmp_path / "made", tmp_path)
    assert set(found["error"]) == {"left out"}
    assert "SECRET" not in json.dumps(list(found)) + (tmp_path / "made" / "README.md").read_text()


def test_no_rows_take_the_place_of_others(tmp_path: Path) -> None:
    """Two names may be one as files."""
    runs = [str(told(tmp_path / place, name, "deep")) for place, name in (("1", "a b"), ("2", "a-b"))]
    with pytest.raises(UserError, match="a b, a-b would be written to files of one name"):
        dataset.write(runs, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_an_export_may_be_the_current_folder_or_behind_a_link(tmp_path: Path, monkeypatch) -> None:
    one = told(tmp_path, "one")
    (tmp_path / "made").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "made")
    for _ in range(2):
        monkeypatch.chdir(tmp_path / "made")
        assert dataset.write([str(one)], Path())[0] == Path("README.md")
        assert len(loaded(tmp_path / "made", tmp_path)) == 16
    monkeypatch.chdir(tmp_path)
    dataset.write([str(one)], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(file.name for file in (tmp_path / "made").rglob("*.*")) == ["README.md", "one.parquet"]


def test_an_export_is_written_anew_and_nothing_else_ever_is(tmp_path: Path) -> None:
    one, two = told(tmp_path, "one"), told(tmp_path, "two")
    dataset.write([str(one), str(two)], tmp_path / "made")
    dataset.write([str(one)], tmp_path / "made")
    assert sorted(file.name for file in (tmp_path / "made").rglob("*.*")) == ["README.md", "one.parquet"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("---\ntags:\n- mine\n---\n- evalsuite\n")
    for place in (tmp_path / "mine", one):
        before = sorted(place.iterdir())
        with pytest.raises(UserError, match="holds something else than an export of evalsuite"):
            dataset.write([str(one)], place)
        assert sorted(place.iterdir()) == before
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch) -> None:
    one = told(tmp_path / "a", "one")
    again = told(tmp_path / "b", "one")
    with pytest.raises(UserError, match="two of the runs are of one"):
        dataset.write([str(one), str(again)], tmp_path / "made")
    with pytest.raises(UserError, match="is no run"):
        dataset.write([str(tmp_path / "nowhere")], tmp_path / "made")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "made", tmp_path / "file" / "further" / "made", Path("/proc/made")):
        with pytest.raises(UserError, match=f"cannot write to {place}: .*; take another folder"):
            dataset.write([str(one)], place)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'evalsuite\[hub\]'"):
        dataset.write([str(one)], tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_the_command_line_and_a_process_without_a_network(tmp_path: Path) -> None:
    told(tmp_path / "runs", "one")
    told(tmp_path / "runs", "two")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    words = ["export", "hf", str(tmp_path / "runs" / "one"), str(tmp_path / "runs" / "two"), "made"]
    made = subprocess.run(
        [sys.executable, "-m", "evalsuite.cli", *words],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.stdout.splitlines() == ["made/README.md", "made/data/one.parquet", "made/data/two.parquet"], made.stderr
    code = "import datasets; print(len(datasets.load_dataset('made')['test']))"
    read = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert read.stdout.strip() == "32", read.stderr
