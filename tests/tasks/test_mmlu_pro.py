"""MMLU-Pro: lm-eval's prompt byte for byte, upstream's three patterns, and no reward for silence."""

import json
from pathlib import Path

import pytest

from evalsuite.errors import UserError
from evalsuite.records import Completion
from evalsuite.task import Request, load
from evalsuite_tasks.mmlu.pro import letter

PRO = load("mmlu_pro")


def row(category, number, answer="C", **more):
    return {
        "question": f"Which one is {number}?", "options": [f" w{i} " for i in range(4 + number % 3)], "answer": answer,
        "answer_index": "ABCD".index(answer), "category": category, **more,
    }  # fmt: skip


def thought(number):
    return f"A: Let's think step by step. It is w{number}. The answer is (C)."


CATEGORIES = ("biology", "computer science")
TEST = [row(category, i) for i in range(3) for category in CATEGORIES]
SHOTS = [row(category, 100 + i, cot_content=thought(i)) for category in CATEGORIES for i in range(5)]


@pytest.fixture
def given(tmp_path: Path) -> dict[str, str]:
    for split, rows in (("test", TEST), ("validation", SHOTS)):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"mmlu_pro": str(tmp_path)}


def samples(given, **asked):
    request = Request(data=given, **asked)
    (cell,) = PRO.cells(request)
    return [PRO.sample(cell, i, request, len) for i in range(6 if not request.subtasks else 3)]


@pytest.mark.filterwarnings("ignore")  # lm-eval's
@pytest.mark.parametrize("category", CATEGORIES)
def test_the_prompt_is_lm_evals(given, category, monkeypatch):
    import datasets
    from lm_eval import tasks

    def made(path, *_, **__):
        assert path == "TIGER-Lab/MMLU-Pro"
        test = [{**each, "cot_content": ""} for each in TEST]
        return datasets.DatasetDict(test=datasets.Dataset.from_list(test), validation=datasets.Dataset.from_list(SHOTS))

    monkeypatch.setattr(datasets, "load_dataset", made)
    name = f"mmlu_pro_{category.replace(' ', '_')}"
    folder = str(Path(tasks.__file__).parent / "mmlu_pro")
    task = tasks.TaskManager(include_path=folder, include_defaults=False).load([name])["tasks"][name]
    task.config.num_fewshot = 5
    task.build_all_requests(rank=0, world_size=1)
    theirs = {request.args[0]: request.args[1]["until"] for request in task.instances}
    ours = samples(given, subtasks=(category.replace(" ", "_"),))
    assert {sample.text: list(sample.stop) for sample in ours} == theirs


def test_all_categories_are_one_task_and_a_part_is_its_own(given):
    assert {s.facets["category"] for s in samples(given)} == set(CATEGORIES)
    assert {s.facets["options"] for s in samples(given)} == {4, 5, 6}
    assert samples(given, subtasks=("biology",))[0].id == "mmlu_pro/biology/shots=5/0"
    request = Request(data=given)
    with pytest.raises(IndexError):
        PRO.sample(PRO.cells(request)[0], 6, request, len)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("So the answer is (C).", "C"),
        ("the answer is D. Or, answer: B", "D"),
        ("Answer: B", "B"),
        ("A is wrong, B is wrong, it must be J", "J"),
        ("No idea", ""),
        ("Apples", ""),
        ("the answer is (K)", ""),
        ("", ""),
    ],
)
def test_a_letter_is_read_by_three_patterns(text, found):
    assert letter(text) == found


def test_no_letter_is_no_score(given):
    sample = samples(given)[0]
    assert PRO.score(sample, Completion(sample.id, "the answer is (C)", 1)).value == 1.0
    for text in ("", "I would say A or C or so", "the answer is (c)"):
        assert PRO.score(sample, Completion(sample.id, text, 1)).value == float(letter(text) == "C")
    assert PRO.score(sample, Completion(sample.id, "the answer is (C)", 1, error="died")).value == 0.0
    assert PRO.score(sample, Completion(sample.id, "", 1)).value == 0.0


def test_what_is_wrong_is_one_clear_line(given, tmp_path):
    assert "--data mmlu_pro=PATH" in PRO.missing(Request())["mmlu_pro"]
    with pytest.raises(UserError, match=r"mmlu_pro\.biology"):
        PRO.cells(Request(subtasks=("biologie",)))
    with pytest.raises(UserError, match="choose 0 to 5"):
        PRO.cells(Request(knobs={"shots": (9,)}))
    with pytest.raises(UserError, match=r"mmlu_pro\.shots"):
        PRO.cells(Request(knobs={"form": ("cloze",)}))
    (tmp_path / "validation.jsonl").write_text(json.dumps(SHOTS[0]))
    with pytest.raises(UserError, match="has 1 validation rows of biology, not 5"):
        samples(given, subtasks=("biology",))
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "?"}))
    with pytest.raises(UserError, match=r"row 0 of .* lacks options, answer, category"):
        PRO.cells(Request(data={"mmlu_pro": str(tmp_path / "test.jsonl")}))
