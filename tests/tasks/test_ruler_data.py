"""What RULER is made of: given, missing, mistaken, or from the hub."""

import gzip
import json

import huggingface_hub
import pytest

from evalsuite.errors import UserError
from evalsuite.task import Request
from evalsuite_tasks.ruler import Ruler, data
from evalsuite_tasks.ruler.specs import TASKS


def test_missing_names_task_and_fix():
    task = Ruler()
    missing = task.missing(Request())
    assert set(missing) == {f"ruler.{t}" for t in TASKS} - {
        f"ruler.{t}" for t in ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")
    }
    assert "--data squad=PATH" in missing["ruler.qa_1"]
    assert "--data hotpotqa=PATH" in missing["ruler.qa_2"]
    assert "--data essays=PATH" in missing["ruler.niah_single_2"]
    assert all("\n" not in line for line in missing.values())
    made = {cell.task for cell in task.cells(Request())}
    assert made.isdisjoint(missing)
    assert made | set(missing) == {f"ruler.{t}" for t in TASKS}
    assert len(task.cells(Request())) == 6 * 6
    lexicon = Request(knobs={"haystack": ("lexicon",)})
    assert set(task.missing(lexicon)) == {"ruler.qa_1", "ruler.qa_2"}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(("niah_sngle_1",)), "did you mean 'niah_single_1'"),
        (Request(knobs={"variant": ("nvida",)}), "did you mean 'nvidia'"),
        (Request(knobs={"haystack": ("paprika",)}), "did you mean 'paper'"),
        (Request(wording="tersely"), "did you mean 'terse'"),
        (Request(("qa_1",), data={"squad": "/nowhere.json"}), "cannot read --data squad=/nowhere.json"),
        (Request(("niah_single_2",), data={"essays": "/nowhere"}), "cannot read essays /nowhere"),
    ],
)
def test_mistakes_are_one_line(request_, message):
    with pytest.raises(UserError, match=message):
        Ruler().cells(request_)


def test_wrong_files(tmp_path):
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"[]" * 50)[:-12])
    for name in ("list.json", "text.json", "cut.json.gz"):
        for kind, subtask in (("squad", "qa_1"), ("hotpotqa", "qa_2")):
            with pytest.raises(UserError, match=f"--data {kind}="):
                Ruler().cells(Request((subtask,), data={kind: str(tmp_path / name)}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no text"):
        Ruler().cells(Request(("niah_single_2",), data={"essays": str(tmp_path / "empty")}))


def test_hub_that_does_not_answer_is_missing(monkeypatch):
    def refuse(self, name, revision, timeout):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    request = Request(("qa_1", "vt"), data={"squad": "hub:nobody/none"})
    lack = Ruler().missing(request)
    assert set(lack) == {"ruler.qa_1"}
    assert "no route" in lack["ruler.qa_1"]
    assert {cell.task for cell in Ruler().cells(request)} == {"ruler.vt"}


def test_hub_rows_equal_the_files(tmp_path, monkeypatch):
    squad = [("T", "Para one.", "Q1?", ["one"]), ("T", "Para one.", "Q2?", []), ("T", "Para two.", "Q3?", ["two", "2"])]
    rows = [{"title": t, "context": c, "question": q, "answers": {"text": a}} for t, c, q, a in squad]
    paragraphs = {}
    for _, context, question, answers in squad:
        qa = {"question": question, "is_impossible": not answers, "answers": [{"text": a} for a in answers]}
        paragraphs.setdefault(context, []).append(qa)
    listed = [{"context": context, "qas": qas} for context, qas in paragraphs.items()]
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"title": "T", "paragraphs": listed}]}))
    monkeypatch.setattr(data, "_hub", lambda kind, source: rows)
    assert data.corpus("squad", "hub:a") == data.corpus("squad", str(tmp_path / "squad.json"))
    assert [q.answers for q in data.corpus("squad", "hub:a").questions] == [("one",), ("two", "2")]
    block = [["A", ["One. ", "Two."]], ["B", ["Three."]]]
    official = {"question": "Q?", "answer": "yes", "supporting_facts": [["B", 0]], "context": block}
    (tmp_path / "hotpot.json").write_text(json.dumps([official]))
    context = {"title": ["A", "B"], "sentences": [["One. ", "Two."], ["Three."]]}
    row = official | {"context": context, "supporting_facts": {"title": ["B"], "sent_id": [0]}}
    monkeypatch.setattr(data, "_hub", lambda kind, source: [row])
    corpus = data.corpus("hotpotqa", "hub:b")
    assert corpus == data.corpus("hotpotqa", str(tmp_path / "hotpot.json"))
    assert corpus.documents == ("A\nOne. Two.", "B\nThree.")
    assert corpus.questions[0].gold == (1,)


def test_sentences_join_to_the_text():
    text = 'Mr. Smith left. "Why?" asked J. Doe. He paid 3.5 dollars. (Really.) 7 days later... It ended'
    parts = data.sentences(text)
    assert " ".join(parts) == text
    assert parts == [
        "Mr. Smith left.",
        '"Why?" asked J. Doe.',
        "He paid 3.5 dollars.",
        "(Really.)",
        "7 days later...",
        "It ended",
    ]


def test_word_lists():
    _, nouns, pool = data.wonderwords()
    assert (len(nouns), len(pool)) == (6782, 8166)
