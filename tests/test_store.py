"""The folder of a run: torn tails, two writers, full disks, other identities, hostile text."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from evalsuite import store
from evalsuite.errors import UserError
from evalsuite.records import Completion, Sample, Score
from evalsuite.store import Row, Store

META: dict[str, Any] = {
    "format": 1,
    "model": "full",
    "created": "1",
    "identity": {"weights": "abc", "dtype": "bfloat16"},
    "tasks": {"walk": {"version": 1, "seed": 0, "wording": "terse"}},
    "missing": {},
    "cost": {"512": {"kv": 1}},
    "requests": [{"limit": 1, "time": "noon", "command": "a"}],
}


def row(index: int, text: str = "x", **facets: str | int | float) -> Row:
    sample = Sample(f"walk/{index}", "walk", f"prompt {index}", ("x",), choices=("x", "y"), facets=facets)
    completion = Completion(sample.id, text, 3, choice_logprobs=(-0.5, float("-inf")))
    return store.make_row(sample, completion, Score(sample.id, 1.0, text, {"n": 1}), cell={"length": 512}, chance=0.5)


def finish(folder: Path) -> None:
    with Store.open(folder, META) as opened:
        opened.finish(store.read(folder).rows, {"done": True})


@pytest.mark.parametrize("tail", [b'{"task": "walk", "id"', b"\x00\x00\x00", b'{"task": "walk", "id": "walk/9"}', b"{"])
def test_a_torn_tail_costs_one_sample_and_spoils_no_other(tmp_path: Path, tail: bytes) -> None:
    with Store.open(tmp_path, META) as opened:
        opened.append(row(1))
    with (tmp_path / "samples-0.jsonl").open("ab") as log:
        log.write(tail)
    assert [r["id"] for r in store.read(tmp_path).rows] == ["walk/1"]
    with Store.open(tmp_path, META) as opened:
        assert opened.done.keys() == {("walk", "walk/1")}
        opened.append(row(2))
    run = store.read(tmp_path)
    assert [r["id"] for r in run.rows] == ["walk/1", "walk/2"]
    assert run.unreadable == 0


def test_a_damaged_line_in_the_middle_is_counted_and_asked_again(tmp_path: Path) -> None:
    with Store.open(tmp_path, META) as opened:
        for i in range(3):
            opened.append(row(i))
    log = tmp_path / "samples-0.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + b"\x00" * 40 + b"\n" + lines[2])
    assert store.read(tmp_path).unreadable == 1
    with Store.open(tmp_path, META) as opened:
        assert ("walk", "walk/1") not in opened.done


def test_a_huge_torn_line_is_cut_off(tmp_path: Path) -> None:
    with Store.open(tmp_path, META) as opened:
        opened.append(row(1, "y" * 300_000))
    with (tmp_path / "samples-0.jsonl").open("ab") as log:
        log.write(b"z" * 200_000)
    with Store.open(tmp_path, META) as opened:
        opened.append(row(2))
    assert [len(r["text"]) for r in store.read(tmp_path).rows] == [300_000, 1]


HOSTILE = ["Zürich 東京 🧮", "nul \x00 inside", "lone \ud83d end", "\udcff\udc80", "line\nbreak\u2028 \r", "", '"\\']


def test_any_text_survives_the_log_and_parquet(tmp_path: Path) -> None:
    with Store.open(tmp_path, META) as opened:
        for i, text in enumerate(HOSTILE):
            opened.append(row(i, text, name=text))
    logged = store.read(tmp_path).rows
    finish(tmp_path)
    assert not (tmp_path / "samples-0.jsonl").exists()
    rows = store.read(tmp_path).rows
    assert [r["text"] for r in rows] == HOSTILE
    assert [r["answer"] for r in rows] == HOSTILE
    assert rows == logged
    assert store.read(tmp_path, prompts=False).rows[0].keys() == rows[0].keys() - {"prompt", "answer_prefix"}
    table = pq.read_table(tmp_path / "samples.parquet")
    assert table["text"].to_pylist()[:2] == HOSTILE[:2]
    assert table["text"].to_pylist()[2] == "lone ? end"


def test_columns_are_typed_and_nullable(tmp_path: Path) -> None:
    facets: list[dict[str, Any]] = [
        {"hops": 1, "depth": 0.5, "kind": "a"},
        {"hops": 2, "depth": 1, "kind": 7},
        {"big": 2**70},
    ]
    with Store.open(tmp_path, META) as opened:
        for i, mixed in enumerate(facets):
            opened.append(row(i, **mixed))
    finish(tmp_path)
    table = pq.read_table(tmp_path / "samples.parquet")
    kinds = {name: str(table.schema.field(name).type) for name in table.column_names if name.startswith("facet.")}
    assert kinds == {
        "facet.big": "string",
        "facet.depth": "double",
        "facet.hops": "int64",
        "facet.kind": "string",
        "facet.length": "int64",
    }
    assert table["facet.hops"].to_pylist() == [1, 2, None]
    assert "hops" not in store.read(tmp_path).rows[2]["facets"]


def test_history_leaves_no_trace_in_the_samples(tmp_path: Path) -> None:
    """Two sittings in any order and one sitting give the same bytes; numbers in ids sort as numbers."""
    orders = {"one": [list(range(12))], "two": [[7, 3, 11], [10, 9, 8, 0, 1, 2, 4, 5, 6]]}
    for name, sittings in orders.items():
        for sitting in sittings:
            with Store.open(tmp_path / name, META) as opened:
                for i in sitting:
                    opened.append(row(i))
            finish(tmp_path / name)
    one, two = (tmp_path / name / "samples.parquet" for name in orders)
    assert one.read_bytes() == two.read_bytes()
    assert pq.read_table(one)["id"].to_pylist() == [f"walk/{i}" for i in range(12)]


@pytest.mark.parametrize("step", range(5))
def test_a_crash_at_any_step_of_finishing_loses_nothing(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CrashError(BaseException):
        pass

    with Store.open(tmp_path, META) as opened:
        for i in range(4):
            opened.append(row(i))
    calls = [0]

    def fragile(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] > step:
                raise CrashError
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch, pytest.raises(CrashError):  # noqa: PT012
        patch.setattr(os, "fsync", fragile(os.fsync))
        patch.setattr(os, "replace", fragile(os.replace))
        patch.setattr(Path, "unlink", fragile(Path.unlink))
        finish(tmp_path)
        raise CrashError  # fewer steps than the largest number here
    assert len(store.read(tmp_path).rows) == 4
    finish(tmp_path)
    assert len(store.read(tmp_path).rows) == 4
    assert sorted(p.name for p in tmp_path.iterdir() if "samples" in p.name) == ["samples.parquet"]


def test_two_writers(tmp_path: Path) -> None:
    with Store.open(tmp_path, META), pytest.raises(UserError, match=f"being written by process {os.getpid()}"):
        Store.open(tmp_path, META)
    Store.open(tmp_path, META).close()
    code = f"from evalsuite.store import Store; Store.open({str(tmp_path)!r}, {META!r})"
    with Store.open(tmp_path, META):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "being written by process" in other.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity": {"weights": "abc", "dtype": "float32"}}, 'model.dtype: "bfloat16" -> "float32"'),
        ({"identity": {"weights": "abd", "dtype": "bfloat16", "new": 1}}, "model.new: null -> 1; model.weights:"),
        ({"model": "other"}, 'model: "full" -> "other"'),
        ({"tasks": {"walk": {"version": 2, "seed": 0, "wording": "terse"}}}, "walk.version: 1 -> 2"),
        (
            {"tasks": {"walk": {"version": 1, "seed": 0, "wording": "terse", "data": {"essays": "0123"}}}},
            'walk.data.essays: null -> "0123"',
        ),
        ({"tasks": {"walk": {"version": 1, "seed": 7, "wording": "terse"}}}, "walk.seed: 0 -> 7"),
        ({"tasks": {"walk": {"version": 1, "seed": 0, "wording": "natural"}}}, 'walk.wording: "terse" -> "natural"'),
    ],
)
def test_another_identity_is_refused_and_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with Store.open(tmp_path, META) as opened:
        opened.append(row(1))
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(UserError) as caught:
        Store.open(tmp_path, {**META, **change})
    assert message in str(caught.value)
    assert "take another --out" in str(caught.value)
    assert (tmp_path / "run.json").read_bytes() == before
    Store.open(tmp_path, META).close()


def test_tasks_and_lengths_are_added(tmp_path: Path) -> None:
    Store.open(tmp_path, META).close()
    more = {
        **META,
        "tasks": {"ruler": {"version": 4, "seed": 3, "wording": "terse"}},
        "cost": {"1024": {"kv": 2}},
        "missing": {"ruler.qa_1": "no data"},
        "requests": [{"limit": 2, "time": "later", "command": "b"}],
    }
    Store.open(tmp_path, more).close()
    Store.open(tmp_path, more).close()
    meta = store.read_meta(tmp_path)
    assert meta["tasks"].keys() == {"walk", "ruler"}
    assert meta["cost"].keys() == {"512", "1024"}
    assert [r["limit"] for r in meta["requests"]] == [1, 2]
    assert meta["missing"] == {"ruler.qa_1": "no data"}
    Store.open(tmp_path, {**more, "missing": {}}).close()
    assert store.read_meta(tmp_path)["missing"] == {}


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run in"):
        Store.open(tmp_path / "none", META, must_exist=True)
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*: Not a directory; take another --out"):
        Store.open(tmp_path / "file" / "runs", META)
    with pytest.raises(UserError, match="cannot write to"):
        Store.open("/proc/evalsuite", META)


def test_no_run_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run"):
        store.read(tmp_path)
    (tmp_path / "samples-0.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"no run\.json"):
        Store.open(tmp_path, META)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "run format None"),
        ('{"format": 99}', "run format 99"),
        ('{"format": 1, "model": "full"}', "lacks cost, created, identity"),
    ],
)
def test_a_damaged_run_json_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=message):
        store.read(tmp_path)


def test_damaged_samples_are_counted_or_named(tmp_path: Path) -> None:
    with Store.open(tmp_path, META) as opened:
        opened.append(row(1))
    log = tmp_path / "samples-0.jsonl"
    strange = [{"of": "another program"}, {**row(2), "score": 7.0}]
    log.write_text(log.read_text() + "".join(json.dumps(line) + "\n" for line in strange))
    (tmp_path / "timings-7.jsonl").write_text('{"of": "another program"}\n')
    found = store.read(tmp_path)
    assert (len(found.rows), found.unreadable, found.timings) == (1, 2, [])

    finish(tmp_path)
    whole = (tmp_path / "samples.parquet").read_bytes()
    (tmp_path / "samples.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"samples\.parquet cannot be read"):
        store.read(tmp_path)


@pytest.fixture
def _small_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_small_files")
def test_when_no_byte_more_fits_what_is_stored_stays(tmp_path: Path) -> None:
    opened = Store.open(tmp_path, META)
    stored = 0
    with pytest.raises(UserError, match=r"the \d+ stored samples are kept: make room and give the same"):  # noqa: PT012
        for i in range(100):
            opened.append(row(i, "text" * 20))
            stored += 1
    assert 5 < stored < 100
    opened.close()
    data = (tmp_path / "samples-0.jsonl").read_bytes()
    assert data.endswith(b"\n")
    assert [json.loads(line)["id"] for line in data.splitlines()] == [f"walk/{i}" for i in range(stored)]
    with Store.open(tmp_path, META) as again:
        assert len(again.done) == stored


def test_a_full_disk_while_finishing_keeps_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path, META) as opened:
        opened.append(row(1))

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match="No space left on device; the 1 stored samples are kept"):
            finish(tmp_path)
    assert len(store.read(tmp_path).rows) == 1
    assert not list(tmp_path.glob(".*.tmp"))
    finish(tmp_path)


def test_folder_names() -> None:
    assert store.folder_name("hybrid-kda") == "hybrid-kda"
    assert store.folder_name("hf:pretrained=Qwen/Qwen3-0.6B") == "hf-pretrained=Qwen-Qwen3-0.6B"
    assert store.folder_name("../..") == "model"
