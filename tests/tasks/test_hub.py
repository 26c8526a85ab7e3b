"""Sets as the hub has them: as files on a disk with no hub in reach, and from a hub, in one revision and no other."""

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalsuite.errors import UserError
from evalsuite.records import Sample
from evalsuite.task import Request, load
from evalsuite_tasks.rows import COMMIT, SETS
from hub_server import Hub

Rows = list[dict[str, Any]]
MMLU: Rows = [
    {"question": f"What is {i} + 1?", "subject": subject, "choices": [str(i + k) for k in range(4)], "answer": 1}
    for subject in ("virology", "anatomy")
    for i in range(3)
]
HUMANEVAL: Rows = [
    {
        "task_id": f"HumanEval/{i}",
        "prompt": f"def add{i}(a, b):\n",
        "canonical_solution": "    return a + b\n",
        "entry_point": f"add{i}",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    }
    for i in range(3)
]
SQUAD: Rows = [
    {"id": str(i), "title": "Rivers", "context": f"River {i // 2} flows. It is long.", "question": f"Which is {i}?",
     "answers": {"text": [] if i == 3 else [f"River {i // 2}"], "answer_start": [] if i == 3 else [0]}}
    for i in range(6)
]  # fmt: skip
HOTPOTQA: Rows = [
    {"id": str(i), "question": f"Who is {i}?", "answer": "Ada", "type": "bridge", "level": "hard",
     "supporting_facts": {"title": ["A", f"B{i}"], "sent_id": [0, 0]},
     "context": {"title": ["A", f"B{i}"], "sentences": [["Ada. ", "She."], [f"Person {i}."]]}}
    for i in range(4)
]  # fmt: skip
ESSAYS: Rows = [{"title": f"Essay {i}", "text": f"Essay {i} begins. " + "It goes on and on. " * 400} for i in range(3)]
SQUAD_FILE = {
    "data": [
        {"title": "Rivers", "paragraphs": [
            {"context": f"River {p} flows. It is long.",
             "qas": [{"question": r["question"], "is_impossible": not r["answers"]["text"],
                      "answers": [{"text": text} for text in r["answers"]["text"]]} for r in SQUAD[2 * p : 2 * p + 2]]}
            for p in range(3)
        ]}
    ]
}  # fmt: skip
HOTPOTQA_FILE = [
    {"question": r["question"], "answer": r["answer"], "supporting_facts": [["A", 0], [f"B{i}", 0]],
     "context": [["A", ["Ada. ", "She."]], [f"B{i}", [f"Person {i}."]]]}
    for i, r in enumerate(HOTPOTQA)
]  # fmt: skip
KINDS = {  # --data's name -> task, a part, the hub's folder and split, rows, a column without which nothing is asked
    "mmlu": ("mmlu", "stem", "all", "test", MMLU, "choices"),
    "humaneval": ("code", "humaneval", "openai_humaneval", "test", HUMANEVAL, "canonical_solution"),
    "squad": ("ruler", "qa_1", "squad_v2", "validation", SQUAD, "context"),
    "hotpotqa": ("ruler", "qa_2", "distractor", "validation", HOTPOTQA, "context"),
    "essays": ("ruler", "niah_single_2", "data", "train", ESSAYS, "text"),
}


def parquet(rows: Rows) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


LAYOUTS = {
    "parquet": (parquet, "{split}-00000-of-00001.parquet"),
    "jsonl": (jsonl, "{split}.jsonl"),
    "jsonl.gz": (lambda rows: gzip.compress(jsonl(rows)), "{split}.jsonl.gz"),
}


def laid_out(folder: Path, kind: str, layout: str, rows: Rows | None = None) -> Path:
    _, _, place, split, own, _ = KINDS[kind]
    make, name = LAYOUTS[layout]
    (folder / place).mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / place / name.format(split=split)).write_bytes(make(own if rows is None else rows))
    return folder


def asked(kind: str, source: str) -> list[Sample]:
    name, part, *_ = KINDS[kind]
    knobs = {"shots": (0,)} if kind in ("mmlu", "humaneval") else {}
    task = load(name)
    request = Request(() if kind == "mmlu" else (part,), data={kind: source}, lengths=(512,), knobs=knobs)
    cells = task.cells(request)
    assert cells, task.missing(request)
    return [task.sample(cells[0], i, request, lambda text: len(text.split())) for i in range(3)]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("files on the disk need no network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_files_laid_out_as_the_hubs_need_no_hub(kind: str, layout: str, tmp_path: Path) -> None:
    folder = laid_out(tmp_path / "set", kind, layout)
    found = asked(kind, str(folder))
    assert len({sample.prompt for sample in found}) == 3
    (file,) = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")
    assert [sample.prompt for sample in asked(kind, str(file))] == [sample.prompt for sample in found]


def test_the_hubs_columns_ask_what_the_official_files_ask(tmp_path: Path) -> None:
    for kind, official in (("squad", SQUAD_FILE), ("hotpotqa", HOTPOTQA_FILE)):
        (tmp_path / f"{kind}.json").write_text(json.dumps(official))
        ours = asked(kind, str(laid_out(tmp_path / kind, kind, "parquet")))
        theirs = asked(kind, str(tmp_path / f"{kind}.json"))
        assert [(a.prompt, a.target) for a in ours] == [(b.prompt, b.target) for b in theirs]
    text = tmp_path / "essays"
    text.mkdir()
    (text / "all.txt").write_text("\n".join(row["text"] for row in ESSAYS))
    ours = asked("essays", str(laid_out(tmp_path / "rows", "essays", "parquet")))
    assert [a.prompt for a in ours] == [b.prompt for b in asked("essays", str(text))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_column_is_one_line_that_names_the_mend(kind: str, tmp_path: Path) -> None:
    _, _, _, _, rows, column = KINDS[kind]
    lacking = [{name: value for name, value in row.items() if name != column} for row in rows]
    folder = laid_out(tmp_path / "set", kind, "parquet", lacking)
    with pytest.raises(UserError, match=rf"(?s){column}.*--data {kind}=PATH, or --data {kind}=hub") as caught:
        asked(kind, str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_without_the_split_and_a_damaged_file_are_one_line(kind: str, tmp_path: Path) -> None:
    folder = laid_out(tmp_path / "set", kind, "parquet")
    (file,) = folder.rglob("*.parquet")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"is not laid out as its name says.*--data {kind}=PATH") as caught:
        asked(kind, str(folder))
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(UserError, match=rf"(no rows of|holds no text).*--data {kind}=PATH"):
        asked(kind, str(folder))


@pytest.mark.parametrize(("kind", "more"), [("hotpotqa", "fullwiki"), ("squad", "again")])
def test_two_configurations_are_not_taken_together(kind: str, more: str, tmp_path: Path) -> None:
    folder = laid_out(tmp_path / "set", kind, "parquet")
    (file,) = folder.rglob("*.parquet")
    (folder / more).mkdir()
    (folder / more / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="holds its questions twice; give one of its folders"):
        asked(kind, str(folder))


ASK = """
import json, sys
from evalsuite.task import Request, load
told = {}
for kind, name, part in json.loads(sys.argv[1]):
    knobs = {"shots": (0,)} if kind in ("mmlu", "humaneval") else {}
    told[kind] = dict(load(name).missing(Request(() if kind == "mmlu" else (part,), data={kind: "hub"}, knobs=knobs)))
print(json.dumps(told))
"""


def python(code: str, home: Path, *args: str, **env: str) -> str:
    """What a process prints that has its own cache of the hub."""
    given = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env=given, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("offline", [False, True])
def test_a_hub_out_of_reach_is_one_line_for_every_set(offline: bool, tmp_path: Path) -> None:
    kinds = json.dumps([(kind, name, part) for kind, (name, part, *_) in KINDS.items()])
    told = json.loads(python(ASK, tmp_path, kinds, **({"HF_HUB_OFFLINE": "1"} if offline else {})))
    assert set(told) == set(KINDS)
    for kind, missing in told.items():
        (line,) = missing.values()
        assert line.startswith(f"{SETS[kind][0]} cannot be had from the hub (")
        assert f"--data {kind}=PATH" in line
        assert "\n" not in line


RUN = """
import json, sys
from evalsuite import plan, runner
from evalsuite.errors import UserError
from evalsuite.models.base import Speed
from evalsuite.records import Completion

class Guesser:
    name, context, wording = "guesser", 4096, "natural"
    speed = Speed()
    def identity(self): return {}
    def count(self, text): return len(text.split())
    def cost(self, length): return {}
    def answer(self, samples):
        for sample in samples:
            yield Completion(sample.id, sample.choices[1], 9, choice_logprobs=(-2.0, -1.0, -2.0, -2.0))

out, source = sys.argv[1:]
try:
    asked = plan.select(["mmlu"], limit=6, settings=["mmlu.shots=0"], data=[f"mmlu={source}"])
    run = runner.run(Guesser(), plan.make(asked, "natural"), out)
    print(json.dumps([run.meta["tasks"]["mmlu"]["data"]["mmlu"], sorted(row["prompt"] for row in run.rows)]))
except UserError as error:
    print(json.dumps(["error", str(error)]))
"""
NAME, PINNED = SETS["mmlu"]
NEWER = "b" * 40
CARD = b"---\nconfigs:\n- config_name: all\n  data_files:\n  - split: test\n    path: all/test-*\n---\n"


@pytest.fixture
def hub() -> Iterator[Hub]:
    rows = [{**row, "question": f"Newer: {row['question']}"} for row in MMLU]
    file = "all/test-00000-of-00001.parquet"
    commits = {PINNED: {"README.md": CARD, file: parquet(MMLU)}, NEWER: {"README.md": CARD, file: parquet(rows)}}
    made = Hub({NAME: commits})
    yield made
    made.stop()


def test_the_pinned_revision_is_read_and_recorded_and_no_other_taken_for_it(hub: Hub, tmp_path: Path) -> None:
    def run(out: str, source: str, **env: str) -> Any:
        return json.loads(python(RUN, tmp_path / "home", str(tmp_path / out), source, **env))

    online = {"HF_ENDPOINT": hub.url}
    data, prompts = run("a", "hub", **online)
    assert data == f"{NAME}@{PINNED}"  # though the hub has a newer one
    assert len(prompts) == 6
    assert not any("Newer" in prompt for prompt in prompts)
    assert run("a", "hub", HF_HUB_OFFLINE="1")[0] == data  # the cache knows which revision it holds
    data, newer = run("b", f"hub:{NAME}@main", **online)
    assert data == f"{NAME}@{NEWER}"  # what a branch means today
    assert all("Newer" in prompt for prompt in newer)
    told, line = run("c", "hub", HF_HUB_OFFLINE="1")  # the client would take the last it has seen
    assert told == "error"
    assert f"in revision {PINNED[:8]}, and the cache holds {NEWER[:8]}" in line
    assert run("b", f"hub:{NAME}@{NEWER}", HF_HUB_OFFLINE="1")[0] == f"{NAME}@{NEWER}"
    told, line = run("a", f"hub:{NAME}@{NEWER}", **online)  # nor does a run go on with another
    assert told == "error"
    assert f'mmlu.data.mmlu: "{NAME}@{PINNED}" -> "{NAME}@{NEWER}"' in line


def test_every_set_but_one_is_pinned_to_a_commit() -> None:
    assert [kind for kind, (_, revision) in SETS.items() if not COMMIT.fullmatch(revision)] == ["mmlu_redux"]
