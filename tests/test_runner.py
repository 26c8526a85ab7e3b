"""The runner believes no model: answers that are missing, doubled, strange or too long are counted or refused."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalsuite import plan, runner, store
from evalsuite.errors import UserError
from evalsuite.models.base import Speed
from evalsuite.records import Completion, Facet, Sample, Score
from evalsuite.task import Cell, Count, Request, sample_id


class Echo:
    """Asks for one word; at length 64 the prompt is 60 words."""

    name, version, licence, source, needs = "echo", 1, "CC0-1.0", "here", ""
    data = "word"
    value = 1.0

    def subtasks(self) -> tuple[str, ...]:
        return ()

    def knobs(self) -> Mapping[str, tuple[Facet, ...]]:
        return {}

    def cells(self, request: Request) -> Sequence[Cell]:
        return [Cell("echo", {"length": n}, 0.1) for n in request.lengths or (64,)]

    def missing(self, request: Request) -> Mapping[str, str]:
        return {}

    def sample(self, cell: Cell, index: int, request: Request, count: Count) -> Sample:
        prompt = f"{self.data} " * (int(cell.facets["length"]) - 4) + str(index)
        return Sample(sample_id(cell.task, cell.facets, index), "echo", prompt, (self.data,), max_new_tokens=4)

    def score(self, sample: Sample, completion: Completion) -> Score:
        return Score(sample.id, self.value if completion.text in sample.target else 0.0, completion.text)


class Fake:
    """Answers `word`; remembers what it was asked."""

    name, context, wording = "fake", 128, "natural"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.speed = Speed()

    def identity(self) -> Mapping[str, Any]:
        return {"weights": 1}

    def count(self, text: str) -> int:
        return len(text.split())

    def cost(self, length: int) -> Mapping[str, int]:
        return {"kv": length, "state": 0}

    def answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
        for sample in samples:
            self.asked.append(sample.id)
            self.speed.decode_tokens += 2
            self.speed.decode_seconds += 0.5
            yield Completion(sample.id, "word", self.count(sample.text), 2)


def select(*lengths: int, limit: int = 5, seed: int = 0) -> plan.Selection:
    return plan.Selection({"echo": Echo()}, {"echo": ()}, lengths or (64,), limit, seed)


def go(model: Any, out: Path, selection: plan.Selection | None = None, **options: Any) -> store.Run:
    return runner.run(model, plan.make(selection or select(), "natural"), out, **options)


def test_a_run_and_what_it_leaves(tmp_path: Path) -> None:
    run = go(Fake(), tmp_path)
    assert [row["score"] for row in run.rows] == [1.0] * 5
    assert {p.name for p in (tmp_path / "fake").iterdir()} == {
        ".lock", "run.json", "samples.parquet", "summary.json", "timings-0.jsonl",
    }  # fmt: skip
    assert run.meta["requests"][0]["limit"] == 5
    assert {"python", "torch", "evalsuite"} <= run.meta["requests"][0]["versions"].keys()
    assert run.meta["cost"] == {"64": {"kv": 64, "state": 0}}
    assert "seconds" not in str(run.rows[0])


def test_the_record_names_what_computed_and_a_resume_does_not_compare_it(tmp_path: Path) -> None:
    class OnGpu(Fake):
        driver = "570.1"

        def versions(self) -> dict[str, str]:
            return {"driver": self.driver}

    assert go(OnGpu(), tmp_path).meta["requests"][0]["versions"]["driver"] == "570.1"
    again = OnGpu()
    again.driver = "580.2"
    go(again, tmp_path)
    assert again.asked == []


def test_again_asks_nothing_and_more_asks_the_rest(tmp_path: Path) -> None:
    go(Fake(), tmp_path)
    first = (tmp_path / "fake" / "samples.parquet").read_bytes()
    again = Fake()
    go(again, tmp_path, must_exist=True)
    assert again.asked == []
    assert (tmp_path / "fake" / "samples.parquet").read_bytes() == first
    more = Fake()
    run = go(more, tmp_path, select(32, 64, limit=7))
    assert len(more.asked) == 2 + 7
    assert len(run.rows) == 14
    go(Fake(), tmp_path / "direct", select(32, 64, limit=7))
    grown, direct = (p / "fake" / "samples.parquet" for p in (tmp_path, tmp_path / "direct"))
    assert grown.read_bytes() == direct.read_bytes()
    fewer = Fake()
    assert len(go(fewer, tmp_path, select(limit=1)).rows) == 14
    assert fewer.asked == []


def test_other_questions_under_the_same_ids_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(Fake(), tmp_path)
    monkeypatch.setattr(Echo, "data", "other")
    with pytest.raises(UserError, match="another prompt: its data or the model's tokenizer has changed"):
        go(Fake(), tmp_path)
    with pytest.raises(UserError, match=r"echo\.seed: 0 -> 3"):
        go(Fake(), tmp_path, select(seed=3))


def test_errors_are_stored_counted_and_wrong(tmp_path: Path) -> None:
    class Flaky(Fake):
        def answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
            for i, completion in enumerate(super().answer(samples)):
                broken = Completion(completion.sample_id, "word", 0, finish="error", error="server said 500")
                yield broken if i == 2 else completion

    run = go(Flaky(), tmp_path)
    assert sorted(row["score"] for row in run.rows) == [0, 1, 1, 1, 1]
    assert [row["error"] for row in run.rows if not row["score"]] == ["server said 500"]
    again = Flaky()
    go(again, tmp_path)
    assert again.asked == []


def test_prompts_over_the_context_are_errors_and_never_asked(tmp_path: Path) -> None:
    model = Fake()
    with pytest.raises(runner.OverContextError) as caught:
        go(model, tmp_path, select(64, 256))
    assert "length 256 is over the context of fake (128 tokens): all 5 samples" in str(caught.value)
    rows = caught.value.run.rows
    assert len(rows) == 10
    assert len(model.asked) == 5
    assert {row["error"] for row in rows if row["facets"]["length"] == 256} == {"prompt 253 tokens > context 128"}
    with pytest.raises(runner.OverContextError):
        go(model, tmp_path, select(256))
    assert len(model.asked) == 5
    go(model, tmp_path, select(64))


def test_the_answer_needs_room_too(tmp_path: Path) -> None:
    class Tight(Fake):
        context = 63

    with pytest.raises(runner.OverContextError) as caught:
        go(Tight(), tmp_path)
    assert {row["error"] for row in caught.value.run.rows} == {"prompt 61 tokens + answer 4 > context 63"}

    class Enough(Fake):
        context = 65
        name = "enough"

    assert all(row["score"] for row in go(Enough(), tmp_path).rows)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda cs: cs[:-2], "left 2 of 5 samples unanswered"),
        (lambda cs: [*cs, cs[0]], "twice"),
        (lambda cs: [*cs, Completion("nobody", "", 0)], "'nobody' without being asked"),
    ],
)
def test_a_model_that_breaks_the_protocol(tmp_path: Path, spoil: Any, message: str) -> None:
    class Broken(Fake):
        def answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
            yield from spoil(list(super().answer(samples)))

    with pytest.raises(UserError, match=message):
        go(Broken(), tmp_path)
    kept = len(store.read(tmp_path / "fake").rows)
    assert kept >= 3
    good = Fake()
    assert len(go(good, tmp_path).rows) == 5
    assert len(good.asked) == 5 - kept


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_a_score_outside_its_range_is_a_fault_of_the_task(
    tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Echo, "value", value)
    with pytest.raises(UserError, match="outside"):
        go(Fake(), tmp_path)


def test_an_interrupt_keeps_what_was_answered(tmp_path: Path) -> None:
    class Interrupted(Fake):
        def answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
            for i, completion in enumerate(super().answer(samples)):
                if i == 3:
                    raise KeyboardInterrupt
                yield completion

    with pytest.raises(KeyboardInterrupt):
        go(Interrupted(), tmp_path)
    rest = Fake()
    assert len(go(rest, tmp_path).rows) == 5
    assert len(rest.asked) == 2


def test_slices_never_part_samples_of_one_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SLICE", 4)
    task = Echo()
    cells = [Cell("echo", {"length": 64, "hops": h}) for h in range(3)]
    items = [plan.Item("echo", task, c, i, Request()) for i in range(5) for c in cells]
    planned = [(item, Sample("", "echo", "", ())) for item in items]
    parts = [[item.index for item, _ in part] for part in runner._slices(planned)]
    assert parts == [[0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3], [4, 4, 4]]


def test_the_record_names_what_really_computed(tmp_path: Path) -> None:
    """In the request that was answered, of all its sittings; asking it again adds neither a request nor a name."""

    class Named(Fake):
        impl = "chunked"

        def ran(self) -> Mapping[str, list[str]]:
            return {"delta_rule": [self.impl]} if self.asked else {}

    def recorded() -> list[Any]:
        (folder,) = tmp_path.iterdir()
        return [request.get("ran") for request in json.loads((folder / "run.json").read_text())["requests"]]

    class Killed(Named):
        def answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
            yield next(super().answer(samples))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(Killed(), tmp_path)
    assert recorded() == [{"delta_rule": ["chunked"]}]
    other = Named()
    other.impl = "triton"
    go(other, tmp_path, select(32))
    go(other, tmp_path)
    go(Named(), tmp_path)
    assert recorded() == [{"delta_rule": ["chunked", "triton"]}, {"delta_rule": ["triton"]}]


def test_a_full_disk_is_one_clear_error_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(Fake):
        def ran(self) -> Mapping[str, list[str]]:
            return {"delta_rule": ["chunked"]}

    kept, calls = store.write_json, []

    def full(path: Path, content: Any) -> None:
        calls.append(path)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        kept(path, content)

    monkeypatch.setattr(store, "write_json", full)
    with pytest.raises(UserError, match="No space left on device; the 5 stored samples are kept"):
        go(Named(), tmp_path)


def test_log_probabilities_that_are_no_numbers_choose_nothing(tmp_path: Path) -> None:
    """A model whose values overflow would else be right wherever the first choice is."""

    class Overflown(Fake):
        def answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
            for sample in samples:
                yield Completion(sample.id, "word", 60, choice_logprobs=(float("nan"), -1.0))

    run = go(Overflown(), tmp_path, select())
    assert {(row["score"], row["text"], row["finish"]) for row in run.rows} == {(0.0, "", "error")}
    assert all("not numbers (NaN)" in row["error"] for row in run.rows)


def test_a_prompt_that_is_no_text_is_that_samples_error(tmp_path: Path) -> None:
    """A lone surrogate, as broken data hold it, raises in tokenizers and clients: the others are asked all the same."""

    class Torn(Echo):
        def sample(self, cell: Cell, index: int, request: Request, count: Count) -> Sample:
            made = Echo.sample(self, cell, index, request, count)
            return replace(made, prompt=f"{made.prompt} \ud83d") if index == 2 else made

    model = Fake()
    run = go(model, tmp_path, plan.Selection({"echo": Torn()}, {"echo": ()}, (64,), 5, 0))
    assert [row["error"] for row in run.rows if row["error"]] == [
        "the prompt is no valid Unicode: surrogates not allowed"
    ]
    assert sum(row["score"] for row in run.rows) == len(model.asked) == 4


def test_a_key_of_the_command_line_is_recorded_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = (
        "local-completions:model=m,auth_token=SECRET,tokenizer=words,base_url=http://me:SECRET@host:1/v1,max_length=9"
    )
    words = ["evalsuite", "run", "--model", spec, "-m", 'x:header={"Authorization": "SECRET", "b": "SECRET"}']
    monkeypatch.setattr("sys.argv", [*words, "-m", "y:token=SECRET", "-m", "openai:key_env=MINE,api_key=SECRET"])
    run = go(Fake(), tmp_path, select())
    text = (run.folder / "run.json").read_text()
    assert "SECRET" not in text
    for kept in ("tokenizer=words", "max_length=9", "key_env=MINE", "http://***@host:1/v1", "auth_token=***,"):
        assert kept in text
