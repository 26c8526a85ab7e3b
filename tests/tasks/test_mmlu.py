"""MMLU: the official prompt byte for byte, every layout of its data, and lm-eval's answers question by question."""

import csv
import gzip
import hashlib
import json
import os
from functools import cache
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from evalsuite.errors import UserError
from evalsuite.records import Completion
from evalsuite.task import Averaged, Judged, Request, load
from evalsuite_tasks.mmlu import data
from evalsuite_tasks.mmlu.subjects import CATEGORIES, SUBJECTS

DATA = os.environ.get("EVALSUITE_DATA", "")
MMLU = load("mmlu")


def words(text):
    return len(text.split())


def row(subject, number, answer):
    return {
        "question": f" What is {number}? ",
        "subject": subject,
        "choices": [f"w{i}" for i in range(4)],
        "answer": answer,
    }


TEST = [row("virology", i, i % 4) for i in range(6)] + [row("anatomy", i, 3 - i % 4) for i in range(6)]
DEV = [row(subject, 100 + i, i % 4) for subject in ("anatomy", "virology") for i in range(5)]


def as_jsonl(folder: Path) -> str:
    for split, rows in (("test", TEST), ("dev", DEV)):
        with gzip.open(folder / f"mmlu-{split}.jsonl.gz", "wt") as file:
            file.write("\n".join(map(json.dumps, rows)) + "\n")
    return str(folder / "mmlu-test.jsonl.gz")  # the examples are found beside it


def as_hub(folder: Path) -> str:
    (folder / "all").mkdir()
    for split, rows in (("test", TEST), ("dev", DEV)):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "all" / f"{split}-00000-of-00001.parquet")
    return str(folder)


def as_repository(folder: Path) -> str:
    for split, rows in (("test", TEST), ("dev", DEV)):
        (folder / split).mkdir()
        for subject in ("virology", "anatomy"):
            with (folder / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                mine = [each for each in rows if each["subject"] == subject]
                csv.writer(file).writerows(
                    [each["question"], *each["choices"], "ABCD"[each["answer"]]] for each in mine
                )
    return str(folder)


def as_columns(folder: Path) -> str:
    for split, rows in (("test", TEST), ("dev", DEV)):
        (folder / split).mkdir()
        for subject in ("virology", "anatomy"):
            with (folder / split / f"{subject}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["", "question", *(f"choice{i}" for i in range(4)), "answer"])
                mine = [each for each in rows if each["subject"] == subject]
                writer.writerows([i, each["question"], *each["choices"], each["answer"]] for i, each in enumerate(mine))
    return str(folder)


LAYOUTS = (as_jsonl, as_hub, as_repository, as_columns)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, str]:
    return {"mmlu": as_jsonl(tmp_path)}


def samples(given, **asked):
    request = Request(data=given, **asked)
    made = []
    for cell in MMLU.cells(request):
        for index in range(99999):
            try:
                made.append(MMLU.sample(cell, index, request, words))
            except IndexError:
                break
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_same_questions(layout, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    expected = samples({"mmlu": as_jsonl(tmp_path / "one")})
    found = samples({"mmlu": layout(tmp_path / "two")})
    assert len(found) == 12
    assert found == expected


def test_a_folder_called_test_makes_no_test_rows_of_its_dev_rows(tmp_path):
    inside = tmp_path / "my-test-data"
    inside.mkdir()
    as_jsonl(inside)
    (inside / "contest.jsonl").write_text("{}")
    assert len(samples({"mmlu": str(inside)})) == 12
    assert len(samples({"mmlu": str(inside)}, knobs={"shots": (0,)})) == 12


def test_dev_rows_are_never_the_test_rows_themselves(tmp_path):
    (tmp_path / "MMLU-Test.jsonl").write_text("\n".join(map(json.dumps, TEST)))
    with pytest.raises(UserError, match="no rows of dev"):
        samples({"mmlu": str(tmp_path / "MMLU-Test.jsonl")})
    (tmp_path / "MMLU-dev.jsonl").write_text("\n".join(map(json.dumps, DEV)))
    assert len(samples({"mmlu": str(tmp_path / "MMLU-Test.jsonl")})) == 12


def test_what_cannot_be_a_row_is_one_clear_line(tmp_path):
    for name, content in (
        ("test.jsonl", json.dumps({**row("virology", 0, 0), "answer": ""})),
        ("test.jsonl", json.dumps({**row("virology", 0, 0), "answer": "BC"})),
        ("test.json", json.dumps({"a": 1})),
        ("test.csv", "question," + "x" * 200_000),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match="laid out"):
            MMLU.cells(Request(data={"mmlu": str(tmp_path)}))
        (tmp_path / name).unlink()
        data.questions.cache_clear()
    for folder in ("all", "virology"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.jsonl").write_text(json.dumps(row("virology", 0, 0)))
    with pytest.raises(UserError, match="twice"):
        MMLU.cells(Request(data={"mmlu": str(tmp_path)}))


def test_the_prompt_is_the_official_one(given):
    (sample,) = (s for s in samples(given) if s.meta["question"] == "virology/1")
    options = "A. w0\nB. w1\nC. w2\nD. w3\nAnswer:"
    shots = "".join(f"What is {100 + i}?\n{options} {'ABCD'[i % 4]}\n\n" for i in range(5))
    title = "The following are multiple choice questions (with answers) about virology.\n\n"
    assert sample.text == f"{title}{shots}What is 1?\n{options}"
    assert sample.choices == (" A", " B", " C", " D")
    assert sample.target == ("B",)
    assert sample.facets["category"] == "other"
    assert MMLU.score(sample, Completion(sample.id, " B", 9)).value == 1.0
    assert MMLU.score(sample, Completion(sample.id, " A", 9)).value == 0.0
    assert MMLU.score(sample, Completion(sample.id, " B", 9, error="died")).value == 0.0


def test_permuted_options_move_and_the_answer_moves_with_them(given):
    plain = samples(given)
    moved = samples(given, knobs={"form": ("permuted",)})
    for a, b in zip(plain, moved, strict=True):
        assert a.meta["question"] == b.meta["question"]
        listed = [dict(zip("ABCD", s.text.split("\n")[-5:-1], strict=True)) for s in (a, b)]
        assert listed[0] != listed[1]
        assert listed[0][a.target[0]][3:] == listed[1][b.target[0]][3:]  # the same text
        assert a.text.split("\n\n")[:-1] == b.text.split("\n\n")[:-1]  # the examples stay


def test_cloze_goes_by_letter_and_not_by_length(given):
    (sample,) = (
        s for s in samples(given, knobs={"form": ("cloze",), "shots": (1,)}) if s.meta["question"] == "anatomy/0"
    )
    assert sample.text == "Question: What is 100?\nAnswer: w0\n\nQuestion: What is 0?\nAnswer:"
    assert sample.choices == (" w0", " w1", " w2", " w3")
    assert sample.target == ("w3",)
    longer = sample.__class__(**{n: getattr(sample, n) for n in sample.__dataclass_fields__} | {
        "choices": (" w0", " w1", " w2", " a very long answer"), "target": ("a very long answer",),
    })  # fmt: skip
    score = MMLU.score(longer, Completion(sample.id, " w0", 9, choice_logprobs=(-2.0, -3.0, -3.0, -9.0)))
    assert (score.value, score.answer, score.detail) == (1.0, "a very long answer", {"acc": 0.0})


def test_filler_stands_before_the_same_question(given):
    plain, behind = samples(given), samples(given, knobs={"filler": (50,)})
    for a, b in zip(plain, behind, strict=True):
        assert b.text.endswith(a.text)
        assert 50 <= words(b.text) - words(a.text) < 55  # the rest of a sentence
        assert a.id != b.id


def test_the_first_few_are_of_all_subjects_and_a_seed_changes_them(given):
    order = [s.meta["question"] for s in samples(given)]
    assert {name.partition("/")[0] for name in order[:6]} == {"anatomy", "virology"}
    assert sorted(order) == sorted(s.meta["question"] for s in samples(given, seed=1))
    assert order != [s.meta["question"] for s in samples(given, seed=1)]
    assert {s.facets["subject"] for s in samples(given, subtasks=("anatomy",))} == {"anatomy"}
    assert len(samples(given, subtasks=("other",))) == 12
    assert samples(given, subtasks=("stem",)) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"subtasks": ("anatomi",)}, "anatomy"),
        ({"knobs": {"form": ("letter",)}}, "letters"),
        ({"knobs": {"shots": (6,)}}, "choose 0 to 5"),
        ({"knobs": {"filler": (-1,)}}, "choose 0 to"),
        ({"knobs": {"load": (1,)}}, "mmlu.load"),
    ],
)
def test_what_does_not_exist_is_one_clear_line(given, asked, said):
    with pytest.raises(UserError, match=said) as caught:
        MMLU.cells(Request(data=given, **asked))
    assert "\n" not in str(caught.value)


def test_missing_data_is_said_with_the_mend(tmp_path):
    assert "--data mmlu=PATH" in MMLU.missing(Request())["mmlu"]
    assert MMLU.cells(Request()) == []
    assert "closed lexicon" in MMLU.missing(Request(wording="terse", data={"mmlu": "x"}))["mmlu"]
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"question": "a", "subject": "virology", "choices": ["1"], "answer": 0})
    )
    with pytest.raises(UserError, match="question 0 of virology"):
        MMLU.cells(Request(data={"mmlu": str(tmp_path)}))
    (tmp_path / "test.jsonl").write_text(json.dumps(row("astrology", 0, 0)))
    with pytest.raises(UserError, match="subject"):
        MMLU.cells(Request(data={"mmlu": str(tmp_path)}))
    (tmp_path / "test.jsonl").write_text("{")
    with pytest.raises(UserError, match="not laid out"):
        MMLU.cells(Request(data={"mmlu": str(tmp_path)}))
    with pytest.raises(UserError, match="no rows of test"):
        MMLU.cells(Request(data={"mmlu": str(tmp_path / "nowhere")}))
    (tmp_path / "test.jsonl").write_text(json.dumps(row("virology", 0, 0)))
    with pytest.raises(UserError, match="no rows of dev"):
        samples({"mmlu": str(tmp_path)})
    assert len(samples({"mmlu": str(tmp_path)}, knobs={"shots": (0,)})) == 1


def test_averages_are_micro_and_macro_and_name_the_letters():
    facets = {"form": "letters", "shots": 5, "filler": 0}
    rows = [Judged("mmlu", {**facets, "subject": "virology", "category": "other"}, "A", 1.0)] * 3
    rows += [Judged("mmlu", {**facets, "subject": "law", "category": "humanities"}, "B", 0.0)]
    rows += [Judged("mmlu", {**rows[0].facets, "form": "cloze"}, "a text", 1.0)]
    assert isinstance(MMLU, Averaged)
    assert MMLU.averages(rows) == {
        "micro": "75.0", "macro": "50.0 (2 subjects)", "humanities": "0.0", "other": "100.0",
        "answers A/B/C/D": "75/25/0/0", "micro (cloze)": "100.0", "macro (cloze)": "100.0 (1 subjects)",
        "other (cloze)": "100.0",
    }  # fmt: skip


def test_redux_asks_what_is_without_a_fault(tmp_path):
    rows = [{**row("virology", i, i % 4), "error_type": "ok" if i % 2 else "wrong_groundtruth"} for i in range(6)]
    rows[1]["choices"] = str(rows[1]["choices"])  # as a CSV holds a list
    (tmp_path / "redux.jsonl").write_text("\n".join(map(json.dumps, rows)))
    redux = load("mmlu_redux")
    request = Request(data={"mmlu_redux": str(tmp_path / "redux.jsonl")}, knobs={"shots": (0,)})
    (cell,) = redux.cells(request)
    asked = [redux.sample(cell, i, request, words) for i in range(3)]
    assert sorted(s.text.split("\n")[2] for s in asked) == ["What is 1?", "What is 3?", "What is 5?"]
    assert "mmlu_redux.shots=0" in redux.missing(Request(data=request.data))["mmlu_redux"]
    both = Request(data={**request.data, "mmlu": as_jsonl(tmp_path)})
    assert redux.sample(redux.cells(both)[0], 0, both, words).text.count("Answer:") == 6


def test_all_subjects_are_there():
    assert len(SUBJECTS) == 57
    assert {name: len(each) for name, each in CATEGORIES.items()} == {
        "stem": 18, "humanities": 13, "social_sciences": 12, "other": 14,
    }  # fmt: skip


def guess(text: str) -> float:
    """A log-likelihood that anybody derives from the text alone."""
    return -int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


@pytest.mark.skipif(not DATA, reason="EVALSUITE_DATA is not set: no MMLU to ask")
@pytest.mark.filterwarnings("ignore")  # lm-eval's
def test_every_question_and_answer_is_lm_evals(monkeypatch):
    import datasets
    from lm_eval import simple_evaluate, utils
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    rows = {split: list(_rows(split)) for split in ("dev", "test")}

    def from_files(path, name=None, **_):
        assert path == "cais/mmlu"
        columns = {split: [r for r in each if r["subject"] == name] for split, each in rows.items()}
        return datasets.DatasetDict({split: datasets.Dataset.from_list(each) for split, each in columns.items()})

    class Guesser(LM):
        def loglikelihood(self, requests, disable_tqdm=False):
            return [(guess("".join(request.args)), False) for request in requests]

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            raise AssertionError

        generate_until = loglikelihood_rolling

    monkeypatch.setattr(datasets, "load_dataset", from_files)
    monkeypatch.setattr(utils.env, "from_string", cache(utils.env.from_string))  # it compiles 84,000 times otherwise
    folder = Path(utils.__file__).parent / "tasks" / "mmlu" / "default"
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    theirs = simple_evaluate(Guesser(), tasks=["mmlu"], num_fewshot=5, bootstrap_iters=0, task_manager=manager)
    assert theirs is not None
    expected = {}
    for name, logged in theirs["samples"].items():
        for each in logged:
            asked = tuple(map(tuple, each["arguments"]))
            expected[asked] = (name.removeprefix("mmlu_"), each["acc"])
    judged = []
    for sample in samples({"mmlu": f"{DATA}/mmlu-test.jsonl.gz"}):
        asked = tuple((sample.text, choice) for choice in sample.choices)
        each = tuple(guess(sample.text + choice) for choice in sample.choices)
        chosen = sample.choices[each.index(max(each))]
        score = MMLU.score(sample, Completion(sample.id, chosen, 1, choice_logprobs=each))
        assert expected[asked] == (sample.facets["subject"], score.value)
        judged.append(Judged(sample.task, sample.facets, score.answer, score.value))
    assert len(judged) == 14_042
    micro = sum(each.score for each in judged) / len(judged)
    assert micro == pytest.approx(theirs["results"]["mmlu"]["acc,none"], abs=1e-12)
    assert MMLU.averages(judged)["micro"] == f"{100 * micro:.1f}"


def _rows(split):
    with gzip.open(f"{DATA}/mmlu-{split}.jsonl.gz", "rt") as file:
        yield from map(json.loads, file)


def test_the_order_of_a_file_counts_and_not_that_of_its_subjects(given):
    assert [q.name for q in data.questions("mmlu", given["mmlu"], "test")] == [
        *(f"anatomy/{i}" for i in range(6)), *(f"virology/{i}" for i in range(6)),
    ]  # fmt: skip
