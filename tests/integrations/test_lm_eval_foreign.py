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
from evalsuite.models import ZOO
from evalsuite.models.base import Speed
from evalsuite.models.own import OwnModel, open_checkpoint
from evalsuite.records import Completion, Sample

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

from evalsuite.integrations.lm_eval import export
from evalsuite.integrations.lm_eval.model import EvalsuiteLM

DOCS = """
import datasets
import random

def docs(**metadata):
    rows = [{"q": f"edge {i} then {random.random():.3f}", "gold": i % 3, "answer": f"word {i}"} for i in range(9)]
    return {"test": datasets.Dataset.from_list(rows), "train": datasets.Dataset.from_list(rows[:5])}

def sized(**metadata):
    lengths = metadata.get("max_seq_lengths", [4096])
    if 333 in lengths:
        raise ValueError("no text is so short")
    rows = [{"q": f"edge {n} {random.random():.6f}", "answer": "a", "max_length": n} for n in lengths for _ in range(5)]
    return {"test": datasets.Dataset.from_list(rows), "train": datasets.Dataset.from_list(rows)}

def by_length(doc, results):
    return {"4096": -1.0, str(doc["max_length"]): float(len(results[0]) % 2)}

def worded(max_seq_lengths="0k", **metadata):
    size = {"0k": 0, "1k": 1000, "4k": 4000}[max_seq_lengths]
    rows = [{"q": f"edge {size} {i}", "answer": "a"} for i in range(5)]
    return {"test": datasets.Dataset.from_list(rows), "train": datasets.Dataset.from_list(rows)}

def unreachable(**metadata):
    raise ConnectionError("nobody answers" + chr(10) + "here")

def odd(doc, results):
    return {"length": 7.0}

def hundred(doc, results):
    same = results[0] == doc["answer"]
    near = 0.5 if len(results[0]) % 2 else 37.0
    return {"bleu": 100.0 if same else 0.0 if not results[0] else near, "right": float(same)}

def errors(doc, results):
    return {"right": float(results[0] == doc["answer"]), "wer": 0.25, "unlisted": 0.5}

def part(doc, results):
    return {"4096": -1.0, "512": float(len(results[0]) % 2)}
"""
HEAD = "custom_dataset: !function docs.docs\ntest_split: test\nfewshot_split: train\ndoc_to_text: '{{q}}'\n"
TASKS = {
    "mc": "output_type: multiple_choice\nnum_fewshot: 2\ndoc_to_choice: ['fowa', 'lefe', 'teacher next']\n"
    "doc_to_target: '{{gold}}'\nmetadata: {version: 2.1}\n",
    "gen": "output_type: generate_until\nnum_fewshot: 1\ndoc_to_target: '{{answer}}'\n"
    "generation_kwargs: {until: ['o'], max_gen_toks: 6}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    "filter_list:\n  - {name: first, filter: [{function: regex, regex_pattern: '(\\w+)'}, {function: take_first}]}\n"
    "  - {name: whole, filter: [{function: take_first}]}\n",
    "ll": "output_type: loglikelihood\ndoc_to_target: ' {{answer}}'\n"
    "metric_list: [{metric: acc}, {metric: perplexity}]\n",
    "part": "output_type: generate_until\ndoc_to_target: '{{answer}}'\nprocess_results: !function docs.part\n"
    "metric_list: [{metric: '4096', aggregation: mean, higher_is_better: true}]\n"
    "generation_kwargs: {until: [], max_gen_toks: 4}\n",
    "sized": "output_type: generate_until\ndoc_to_target: '{{answer}}'\nprocess_results: !function docs.by_length\n"
    "metric_list: [{metric: '4096', aggregation: mean, higher_is_better: true}]\n"
    "generation_kwargs: {until: [], max_gen_toks: 4}\n",
    "worded": "output_type: generate_until\ndoc_to_target: '{{answer}}'\nmetric_list: [{metric: exact_match}]\n"
    "generation_kwargs: {until: [], max_gen_toks: 4}\n",
    "odd": "output_type: generate_until\ndoc_to_target: x\nprocess_results: !function docs.odd\n"
    "metric_list: [{metric: length, aggregation: mean, higher_is_better: true}]\n",
    "hundred": "output_type: generate_until\ndoc_to_target: ' '\nprocess_results: !function docs.hundred\n"
    "metric_list: [{metric: bleu, aggregation: mean, higher_is_better: true},"
    " {metric: right, aggregation: mean, higher_is_better: true}]\n"
    "generation_kwargs: {until: [], max_tokens: 3, temperature: 0.7, num_beams: 1}\n",
    "lower": "output_type: generate_until\ndoc_to_target: '{{answer}}'\nprocess_results: !function docs.errors\n"
    "metric_list: [{metric: right, aggregation: mean, higher_is_better: true},"
    " {metric: wer, aggregation: mean, higher_is_better: false}]\ngeneration_kwargs: {until: [], max_gen_toks: 3}\n",
    "greedy": "output_type: multiple_choice\ndoc_to_choice: ['fowa', 'lefe', 'teacher next']\n"
    "doc_to_target: '{{gold}}'\nmetric_list: [{metric: exact_match}, {metric: acc}]\n",
    "beams": "output_type: generate_until\ndoc_to_target: x\ngeneration_kwargs: {until: [], num_beams: 10}\n",
    "targetless": "output_type: generate_until\nprocess_results: !function docs.part\n",
    "none": "output_type: generate_until\nnum_fewshot: 0\ndoc_to_target: '{{answer}}'\n"
    "metric_list: [{metric: exact_match}]\n",
    "away": "output_type: generate_until\ndoc_to_target: x\nmetadata: {version: 4}\n"
    "metric_list: [{metric: exact_match}]\n",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_target: '{{q}}'\n",
    "unsafe": "output_type: generate_until\ndoc_to_target: x\nunsafe_code: true\n",
    "repeats": "output_type: generate_until\ndoc_to_target: x\nrepeats: 5\n",
    "twice": "output_type: multiple_choice\ndoc_to_choice: ['a', 'b']\ndoc_to_target: '{{answer}}'\n",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "docs.py").write_text(DOCS)
    for name, text in TASKS.items():
        head = HEAD.replace("docs.docs", "docs.unreachable") if name == "away" else HEAD
        head = head.replace("docs.docs", f"docs.{name}") if name in ("sized", "worded") else head
        head = head.replace("'{{q}}'", "'{{gold % 2}}'") if name == "twice" else head
        (tmp_path / "tasks" / f"{name}.yaml").write_text(f"task: {name}\n{head}{text}")
    return tmp_path / "tasks"


@pytest.fixture(scope="module")
def native() -> OwnModel:
    return open_checkpoint(ZOO / "hybrid-kda", "hybrid-kda", device="cpu")


def ran(model: OwnModel, place: Path, out: Path, *names: str, limit: int = 100) -> store.Run:
    chosen = plan.select([f"lm_eval:{place / name}.yaml" for name in names], limit=limit)
    return runner.run(model, plan.make(chosen, model.wording), out)


def theirs(model: OwnModel, place: Path, name: str) -> dict[str, Any]:
    """What lm_eval makes of the task alone, with its default seeds."""
    manager = TaskManager(include_defaults=False)
    asked = [_seeded(manager, place / f"{name}.yaml")]
    return simple_evaluate(model=EvalsuiteLM(model), tasks=asked, task_manager=manager, bootstrap_iters=10)


def _seeded(manager: TaskManager, file: Path) -> Any:
    import random

    random.seed(0)  # simple_evaluate seeds before it loads what it is given by name
    (task,) = manager.load([str(file)])["tasks"].values()
    return task


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


def asked(place: Path, *names: str, wording: str = "natural", **options: Any) -> plan.Plan:
    return plan.make(plan.select([f"lm_eval:{place / name}.yaml" for name in names], **options), wording)


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


def test_an_exported_run_has_lm_evals_layout(native: OwnModel, place: Path, tmp_path: Path) -> None:
    """Keys and hashes of lm_eval's own files for the same task and model."""
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.utils import handle_non_serializable

    results, samples = export.write(ran(native, place, tmp_path / "run", "mc"), tmp_path / "ours")
    found = theirs(native, place, "mc")
    logged = found.pop("samples")
    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    tracker.general_config_tracker.log_experiment_args("evalsuite", "pretrained=hybrid-kda", "", None, False)
    tracker.save_results_aggregated(results=found, samples=logged)
    tracker.save_results_samples(task_name="mc", samples=logged["mc"])
    (their_results,) = (tmp_path / "theirs").rglob("results_*.json")
    (their_samples,) = (tmp_path / "theirs").rglob("samples_mc_*.jsonl")
    ours, his = json.loads(results.read_text()), json.loads(their_results.read_text())
    optional = {"pretty_env_info", "tokenizer_pad_token", "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id"}
    assert his.keys() - ours.keys() <= optional | {"start_time", "end_time"}
    assert ours["results"]["mc"] == pytest.approx(his["results"]["mc"])
    assert ours["n-samples"] == his["n-samples"]
    assert ours["n-shot"] == his["n-shot"]
    assert his["config"].keys() - ours["config"].keys() <= {
        "model_num_parameters", "model_dtype", "model_sha", "evalsuite_model", "evalsuite_refused",
    }  # fmt: skip
    for own, other in zip(
        map(json.loads, samples.read_text().splitlines()),
        map(json.loads, their_samples.read_text().splitlines()),
        strict=True,
    ):
        assert other.keys() == own.keys()
        for name in ("doc_id", "arguments", "filter", "metrics", "prompt_hash", "acc", "acc_norm"):
            assert own[name] == other[name], name
        assert [[float(value)] for ((value, _),) in own["resps"]] == [
            [pytest.approx(float(value), abs=1e-5)] for ((value, _),) in other["resps"]
        ]
    assert json.dumps(found, default=handle_non_serializable)
    again = export.write(store.read(tmp_path / "run" / "hybrid-kda"), tmp_path / "ours")
    assert again == [results, samples]


def test_a_task_of_two_groups_is_exported_twice(
    native: OwnModel, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for group, names in (("some", "[mc, gen]"), ("other", "[mc, none]")):
        (place / f"{group}.yaml").write_text(f"group: {group}\ntask: {names}\n")
    build = TaskIndex.build
    monkeypatch.setattr("lm_eval.tasks.manager.TaskIndex.build", lambda *_: build([place]))
    chosen = plan.select(["lm_eval:some", "lm_eval:other"], limit=2)
    run = runner.run(native, plan.make(chosen, "natural"), tmp_path)
    results, *samples = export.write(run, tmp_path / "out")
    found = json.loads(results.read_text())
    assert found["group_subtasks"] == {"some": ["gen", "some_mc"], "other": ["other_mc", "none"]}
    assert found["results"].keys() == {"some", "other", "some_mc", "other_mc", "gen", "none"}
    assert sum(len(file.read_text().splitlines()) for file in samples) == 2 * 2 + 2 * 2 + 2  # gen has two filters


@pytest.mark.parametrize("name", ["mc", "gen", "lower", "ll"])
def test_an_export_says_of_each_metric_what_lm_eval_says(
    native: OwnModel, place: Path, tmp_path: Path, name: str
) -> None:
    """A word error rate marked as better when higher would crown the worst model."""
    run = ran(native, place, tmp_path / "run", name, limit=2)
    told = theirs(native, place, name)["higher_is_better"][name]
    found = json.loads(export.write(run, tmp_path)[0].read_text())["higher_is_better"]
    assert found == {name: {metric: told[metric] for metric in told if metric != "perplexity"}}
    if name == "lower":
        assert found == {"lower": {"right": True, "wer": False}}  # and of `unlisted` nobody knows
    del run.meta["tasks"][f"lm_eval:{name}"]["higher_is_better"]  # as in a run of before
    assert json.loads(export.write(run, tmp_path)[0].read_text())["higher_is_better"] == {name: {}}


def test_lm_eval_reads_an_export_whose_metrics_are_partly_unknown(
    native: OwnModel, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that disagree have no direction as a group, in lm_eval's own word for it."""
    from lm_eval.utils import make_table

    (place / "some.yaml").write_text("group: some\ntask: [lower, upper]\n")
    upper = (place / "lower.yaml").read_text().replace("task: lower", "task: upper").replace("false", "true")
    (place / "upper.yaml").write_text(upper)
    build = TaskIndex.build
    monkeypatch.setattr("lm_eval.tasks.manager.TaskIndex.build", lambda *_: build([place]))
    chosen = plan.select(["lm_eval:some", "knowledge.cloze"], limit=2)
    run = runner.run(native, plan.make(chosen, "terse"), tmp_path)
    found = json.loads(export.write(run, tmp_path / "out")[0].read_text())
    assert found["higher_is_better"] == {
        "lower": {"right": True, "wer": False},
        "upper": {"right": True, "wer": True},
        "some": {"right": True, "wer": None},
        "evalsuite_knowledge_cloze": {"score": True},
    }
    cells = [[cell.strip() for cell in line.split("|")] for line in make_table(found).splitlines()]
    arrows = {metric: {row[6] for row in cells if row[5:6] == [metric]} for metric in ("wer", "score", "unlisted")}
    assert arrows == {"wer": {"↓", "↑", ""}, "score": {"↑"}, "unlisted": {""}}


def test_an_exported_run_of_ours_has_groups_errors_and_clear_refusals(native: OwnModel, tmp_path: Path) -> None:
    chosen = plan.select(["knowledge"], limit=4)
    run = runner.run(native, plan.make(chosen, "terse"), tmp_path)
    run.rows[0].update(error="prompt too long", finish="error", choice_logprobs=[], score=0.0, text="")
    results, *samples = export.write(run, tmp_path / "out")
    found = json.loads(results.read_text())
    parts = found["group_subtasks"]["evalsuite_knowledge"]
    means = [found["results"][part]["score,none"] for part in parts]
    assert found["groups"]["evalsuite_knowledge"]["score,none"] == pytest.approx(sum(means) / 2)
    lines = [json.loads(line) for file in samples for line in file.read_text().splitlines()]
    assert [line["error"] for line in lines if "error" in line] == ["prompt too long"]
    assert sum(line["score"] for line in lines) == sum(row["score"] for row in run.rows)
    assert found["config"]["evalsuite_finished"]
    (run.folder / "samples-0.jsonl").write_text("")
    assert not json.loads(export.write(run, tmp_path / "out")[0].read_text())["config"]["evalsuite_finished"]
    (run.folder / "samples-0.jsonl").unlink()
    with pytest.raises(UserError, match="holds no answer yet"):
        export.write(store.Run(tmp_path, run.meta, [], []), tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        export.write(run, tmp_path / "file")


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
