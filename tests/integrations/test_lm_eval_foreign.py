"""lm_eval's tasks inside ours: its prompts, few-shot examples, filters and scores, sample by sample."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from evalsuite import compare, plan, runner, store
from evalsuite import task as tasks
from evalsuite.errors import UserError
from evalsuite.models.base import Speed
from evalsuite.models.own import OwnModel
from evalsuite.records import Completion, Sample

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

from evalsuite.integrations.lm_eval import export
from evalsuite.integrations.lm_eval.model import EvalsuiteLM
from foreign_tasks import ran, theirs


@pytest.mark.parametrize("name", ["mc", "gen", "ll", "part"])
def test_prompts_answers_and_scores_are_lm_evals(native: OwnModel, place: Path, tmp_path: Path, name: str) -> None:
    rows = ran(native, place, tmp_path, name).rows
    found = theirs(native, place, name)
    samples: dict[int, list[dict[str, Any]]] = {}
    for sample in found["samples"][name]:
        samples.setdefault(sample["doc_id"], []).append(sample)
    assert len(rows) == len(samples) == 9
    for row in rows:
        first, *more = samples[int(row["id"].rpartition("/")[2])]
        assert row["prompt"] == first["arguments"][0][0]
        metrics = {"mc": "acc", "gen": "exact_match", "ll": "acc", "part": "512"}
        assert row["score"] == first[metrics[name]]
        for sample in (first, *more):
            for metric in sample["metrics"]:
                if metric != "perplexity":
                    assert row["detail"][f"{metric},{sample['filter']}"] == pytest.approx(float(sample[metric]))
        if name == "mc":
            values = [value for ((value, _),) in first["resps"]]
            assert row["choice_logprobs"] == pytest.approx(values, abs=1e-5)
        elif name != "ll":
            assert row["text"] == first["resps"][0][0]
    if name in ("mc", "gen"):
        assert len({row["prompt"] for row in rows}) == 9
        assert all(row["facets"] == {"shots": {"mc": 2, "gen": 1}[name]} for row in rows)


def test_what_the_model_writes_is_right_in_a_loglikelihood_task(native: OwnModel, place: Path, tmp_path: Path) -> None:
    lm, (row, *_) = EvalsuiteLM(native), ran(native, place, tmp_path, "ll", limit=1).rows
    from lm_eval.api.instance import Instance

    (text,) = lm.generate_until(
        [Instance("generate_until", {}, (row["prompt"], {"until": [], "max_gen_toks": 2}), 0)], disable_tqdm=True
    )
    (place / "docs.py").write_text((place / "docs.py").read_text().replace('f"word {i}"', repr(text.strip())))
    (again,) = ran(native, place, tmp_path / "again", "ll", limit=1).rows
    assert (again["text"], again["target"], again["score"]) == (text, [f" {text.strip()}"], 1.0)


def test_a_sample_depends_on_no_limit_and_no_order(native: OwnModel, place: Path, tmp_path: Path) -> None:
    some = ran(native, place, tmp_path / "some", "mc", limit=3).rows
    every = ran(native, place, tmp_path / "every", "gen", "mc").rows
    again = ran(native, place, tmp_path / "some", "mc").rows  # the same run, gone on
    whole = {row["id"]: row["prompt_hash"] for row in every}
    assert all(whole[row["id"]] == row["prompt_hash"] for row in some)
    assert {row["id"]: row["prompt_hash"] for row in again}.items() <= whole.items()
    assert len(again) == 9


def test_runs_are_compared_and_versions_kept_apart(native: OwnModel, place: Path, tmp_path: Path) -> None:
    first = ran(native, place, tmp_path / "a", "mc")
    second = ran(native, place, tmp_path / "b", "mc")
    assert first.meta["tasks"]["lm_eval:mc"]["version"] == 210
    result = compare.compare([first, second])
    assert [line.get("task") for line in result.scores] == ["lm_eval:mc"]
    text = (place / "mc.yaml").read_text().replace("2.1", "3")
    (place / "mc.yaml").write_text(text)
    with pytest.raises(UserError, match=r"version: 210 -> 300"):
        ran(native, place, tmp_path / "a", "mc")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odd", "none of its metrics is a share of right answers"),
        ("away", "ConnectionError: nobody answers; its data may need the hub"),
        ("rolling", "loglikelihood_rolling"),
        ("unsafe", "outside any sandbox"),
        ("repeats", "draws 5 answers"),
        ("twice", "several contexts"),
        ("beams", "it generates with num_beams=10, which"),
        ("targetless", "lm_eval cannot make it: TypeError"),
    ],
)
def test_what_cannot_be_asked_is_one_line(native: OwnModel, place: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as found:
        plan.make(plan.select([f"lm_eval:{place / name}.yaml"]), "natural")
    assert "\n" not in str(found.value)


def test_a_name_that_lm_eval_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lm_eval.tasks.manager.TaskIndex.build", lambda *_: {}
    )  # its own 14,000 files take long to read
    with pytest.raises(UserError, match="unknown lm_eval task 'arc_esy'"):
        plan.make(plan.select(["lm_eval:arc_esy"]), "natural")
    with pytest.raises(UserError, match=r"^--tasks lm_eval:nowhere/x\.yaml: there is no such file$"):
        plan.make(plan.select(["lm_eval:nowhere/x.yaml"]), "natural")
    many = {f"task{i:05}": TaskIndex for i in range(14000)}
    monkeypatch.setattr("lm_eval.tasks.manager.TaskManager.all_tasks", many)
    with pytest.raises(UserError, match=r"known: task00000, .* and 13960 more$") as found:
        plan.make(plan.select(["lm_eval:?"]), "natural")
    assert len(str(found.value)) < 1000
    with pytest.raises(UserError, match="unknown task 'lmeval:x'"):
        plan.select(["lmeval:x"])


def test_of_a_group_what_can_be_asked_is_asked(
    native: OwnModel, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "some.yaml").write_text("group: some\ntask: [inner, gen, away]\n")
    (place / "inner.yaml").write_text("group: inner\ntask:\n  - mc\n  - odd\n")
    build = TaskIndex.build
    monkeypatch.setattr("lm_eval.tasks.manager.TaskIndex.build", lambda *_: build([place]))
    run = runner.run(native, plan.make(plan.select(["lm_eval:some"], limit=2), "natural"), tmp_path)
    assert {row["task"] for row in run.rows} == {"lm_eval:some.mc", "lm_eval:some.gen"}
    assert "nobody answers" in run.meta["missing"]["lm_eval:some.away"]
    assert "share of right answers" in run.meta["missing"]["lm_eval:some.odd"]
    text = (place / "away.yaml").read_text()
    (place / "away.yaml").write_text(text.replace("docs.unreachable", "docs.docs"))  # its data are there now
    run = runner.run(native, plan.make(plan.select(["lm_eval:some"], limit=2), "natural"), tmp_path)
    assert {row["task"] for row in run.rows} == {"lm_eval:some.mc", "lm_eval:some.gen", "lm_eval:some.away"}
    assert run.meta["missing"].keys() == {"lm_eval:some.odd"}


def test_two_tasks_of_one_name_are_not_one(place: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for file in ("docs.py", "mc.yaml"):
        (tmp_path / "other" / file).write_text((place / file).read_text())
    names = [f"lm_eval:{folder / 'mc.yaml'}" for folder in (place, tmp_path / "other")]
    with pytest.raises(UserError, match="another task is called 'lm_eval:mc' too"):
        plan.select(names)
    assert list(plan.select([names[0], names[0]]).tasks) == ["lm_eval:mc"]


def test_a_seed_is_lm_evals_own_seed(native: OwnModel, place: Path, tmp_path: Path) -> None:
    """Other questions, as for every other task, and not the same ones under another name."""
    import random

    def prompts(seed: int) -> list[str]:
        made = plan.make(plan.select([f"lm_eval:{place / 'mc'}.yaml"], seed=seed), "natural")
        return [sample.prompt for _, sample in made.samples(len)]

    manager = TaskManager(include_defaults=False)
    random.seed(7)
    (task,) = manager.load([str(place / "mc.yaml")])["tasks"].values()
    seeds = {f"{name}_seed": 7 for name in ("random", "numpy_random", "torch_random", "fewshot_random")}
    found = simple_evaluate(model=EvalsuiteLM(native), tasks=[task], task_manager=manager, bootstrap_iters=10, **seeds)
    assert prompts(7) == [sample["arguments"][0][0] for sample in found["samples"]["mc"]]
    assert not set(prompts(7)) & set(prompts(0))


def test_the_global_generators_and_loggers_are_left_alone(native: OwnModel, place: Path) -> None:
    import random

    random.seed(5)
    before, level = random.getstate(), logging.getLogger("lm_eval").level
    plan.make(plan.select([f"lm_eval:{place / 'mc'}.yaml"]), "natural")
    assert random.getstate() == before
    assert logging.getLogger("lm_eval").level == level


def test_examples_in_the_prompt_are_a_knob(place: Path) -> None:
    name = f"lm_eval:{place / 'mc'}.yaml"
    family = tasks.load(name).name
    made = plan.make(plan.select([name], settings=[f"{family}.num_fewshot=0"], limit=2), "natural")
    found = [sample for _, sample in made.samples(len)]
    assert [sample.id for sample in found] == ["lm_eval:mc/0", "lm_eval:mc/1"]
    assert all(sample.prompt.startswith("edge") and "\n" not in sample.prompt for sample in found)


def test_no_answer_is_scored_on_another_scale(native: OwnModel, place: Path, tmp_path: Path) -> None:
    """A figure of 0 to 100 that happens to lie in [0, 1], or does so for an empty answer, is no share."""
    rows = ran(native, place, tmp_path, "hundred").rows
    assert {row["detail"]["bleu,none"] for row in rows} & {0.5, 37.0}
    assert [row["score"] for row in rows] == [row["detail"]["right,none"] for row in rows]


def test_settings_of_generation_are_read_as_lm_eval_reads_them(place: Path) -> None:
    made = plan.make(plan.select([f"lm_eval:{place / 'hundred'}.yaml"], limit=1), "natural")
    ((_, sample),) = made.samples(len)
    assert (sample.max_new_tokens, sample.temperature, sample.stop) == (3, 0.7, ())


def test_choices_that_were_written_are_scored_too(native: OwnModel, place: Path, tmp_path: Path) -> None:
    """As an endpoint answers that gives no log probabilities: a choice, or what is none."""

    class Writer:
        name, context, wording, speed = "writer", 4096, "natural", Speed()
        identity = dict
        count = staticmethod(len)

        def cost(self, length: int) -> dict[str, int]:
            return {}

        def answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
            for i, sample in enumerate(samples):
                yield Completion(sample.id, [*sample.choices, "none of these"][i % 4], 9)

    chosen = plan.select([f"lm_eval:{place / 'mc'}.yaml"])
    rows = runner.run(Writer(), plan.make(chosen, "natural"), tmp_path).rows  # type: ignore[arg-type]
    right = [float(i % 4 == i % 3) for i in range(9)]
    assert [row["score"] for row in rows] == right
    assert [row["detail"].get("acc,none") for row in rows] == [None if i % 4 == 3 else right[i] for i in range(9)]
    assert {row["detail"]["choices"] for row in rows} == {"generated"}
    _, file = export.write(store.read(tmp_path / "writer"), tmp_path)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["acc"] for line in lines] == right


def test_what_greedy_decoding_would_write_is_not_made_up(native: OwnModel, place: Path, tmp_path: Path) -> None:
    rows = ran(native, place, tmp_path, "greedy").rows
    found = {sample["doc_id"]: sample["acc"] for sample in theirs(native, place, "greedy")["samples"]["greedy"]}
    assert [row["detail"] for row in rows] == [{"acc,none": found[i]} for i in range(9)]
    assert [row["score"] for row in rows] == [found[i] for i in range(9)]
    assert sum(found.values()) > 0
