"""Runs in the layout of lm_eval's results, beside its own files for the same task and model."""

import json
from pathlib import Path

import pytest

from evalsuite import plan, runner, store
from evalsuite.errors import UserError
from evalsuite.models.own import OwnModel

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
from lm_eval.tasks._index import TaskIndex

from evalsuite.integrations.lm_eval import export
from foreign_tasks import ran, theirs


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
