"""Our tasks inside lm_eval: the same questions, answers and scores as `evalsuite run`, sample by sample, offline."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalsuite import cli, plan, runner
from evalsuite import task as tasks
from evalsuite.errors import UserError
from evalsuite.models import ZOO, load

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

from evalsuite.integrations.lm_eval import command, folder
from evalsuite.integrations.lm_eval.model import EvalsuiteLM

ASKED = ("multihop", "knowledge", "ruler.niah_multikey_2", "ruler.vt", "trace.swap")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return folder.write()


def evaluated(place: Path, model: Any, names: list[str], metadata: dict[str, Any], **options: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(place), include_defaults=False, metadata=metadata)
    return simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=10, **options)


def test_every_sample_is_asked_and_scored_as_by_run(place: Path, tmp_path: Path) -> None:
    model = load("hybrid-kda", device="cpu")
    chosen = plan.select(ASKED, lengths=(256,), limit=5, seed=3, settings=["multihop.hops=1,2"])
    run = runner.run(model, plan.make(chosen, model.wording), tmp_path)
    names = [folder.name_of(name) for name in ASKED]
    metadata = {"pretrained": "hybrid-kda", "lengths": 256, "limit": 5, "seed": 3, "set": "multihop.hops=1,2"}
    found = evaluated(place, EvalsuiteLM(model), names, metadata)
    theirs = {s["doc"]["id"]: s for rows in found["samples"].values() for s in rows}
    ours = {row["id"]: row for row in run.rows}
    assert theirs.keys() == ours.keys()
    for key, row in ours.items():
        sample = theirs[key]
        assert sample["score"] == row["score"], key
        assert sample["doc"]["prompt_hash"] == row["prompt_hash"]
        assert sample["arguments"][0][0] == row["prompt"] + row["answer_prefix"]
        if row["choices"]:
            assert [value for ((value, _),) in sample["resps"]] == pytest.approx(row["choice_logprobs"], abs=1e-5)
        else:
            assert sample["resps"] == [[row["text"]]]
    assert {row["score"] for row in run.rows} >= {0.0, 1.0}
    assert any(row["choices"] for row in run.rows)


def test_groups_are_means_of_their_parts_with_versions_and_errors(place: Path) -> None:
    found = evaluated(
        place, EvalsuiteLM("full", device="cpu"), ["evalsuite_multihop"], {"pretrained": "full", "limit": 2}
    )
    parts = found["group_subtasks"]["evalsuite_multihop"]
    assert parts == [folder.name_of(f"multihop.{part}") for part in tasks.load("multihop").subtasks()]
    values = [found["results"][part]["score,none"] for part in parts]
    assert found["groups"]["evalsuite_multihop"]["score,none"] == pytest.approx(sum(values) / len(values))
    for part in parts:
        assert found["versions"][part] == tasks.load("multihop").version
        assert isinstance(found["results"][part]["score_stderr,none"], float)
        assert found["n-samples"][part]["effective"] == 2 * 3
    assert found["versions"]["evalsuite_multihop"] == str(tasks.load("multihop").version)


def test_lm_evals_own_limit_takes_some_of_every_cell(place: Path) -> None:
    metadata = {
        "pretrained": "full",
        "lengths": [128, 256],
        "limit": 3,
        "set": ["multihop.hops=1,2", "multihop.facts=8"],
    }
    found = evaluated(place, EvalsuiteLM("full", device="cpu"), ["evalsuite_multihop_graph"], metadata, limit=4)
    facets = [s["doc"]["facets"] for s in found["samples"]["evalsuite_multihop_graph"]]
    assert {(f["length"], f["hops"]) for f in facets} == {(128, 1), (128, 2), (256, 1), (256, 2)}


def test_prompts_kept_by_lm_eval_are_those_of_this_length(place: Path, tmp_path: Path) -> None:
    lm = EvalsuiteLM("full", device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.caching.cache.PATH", str(tmp_path))
        lengths = []
        for length in (128, 256, 128):
            metadata = {"pretrained": "full", "lengths": length, "limit": 1, "set": "multihop.facts=8"}
            names = ["evalsuite_multihop_graph"]
            found = evaluated(place, lm, names, metadata, cache_requests=True)
            (first, *_) = found["samples"][names[0]]
            lengths.append(lm.model.count(first["arguments"][0][0]))
    assert lengths[0] == lengths[2] <= 128 < lengths[1] <= 256


def test_requests_kept_by_lm_eval_are_asked_in_this_way(place: Path, tmp_path: Path) -> None:
    """The same prompts, to be answered in fewer tokens, or by draws."""
    lm = EvalsuiteLM("full", device="cpu")
    name = "evalsuite_multihop_graph"
    metadata = {"pretrained": "full", "lengths": 128, "limit": 1, "set": "multihop.facts=8"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.caching.cache.PATH", str(tmp_path))
        given = []
        for gen_kwargs in ("max_gen_toks=3", "max_gen_toks=5", "max_gen_toks=3"):
            found = evaluated(place, lm, [name], metadata, cache_requests=True, gen_kwargs=gen_kwargs)
            given.append(found["samples"][name][0]["arguments"][0][1]["max_gen_toks"])
        docs = tasks.load("multihop").sample
        patch.setattr(
            "evalsuite_tasks.multihop.Multihop.sample",
            lambda self, *given: replace(docs.__func__(self, *given), temperature=0.5),
        )
        found = evaluated(place, lm, [name], metadata, cache_requests=True)
        assert found["samples"][name][0]["arguments"][0][1]["temperature"] == 0.5
    assert given == [3, 5, 3]


def test_code_is_refused_without_a_sandbox_before_anything_is_asked(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: object) -> str:
        raise UserError("no sandbox here")

    monkeypatch.setattr("evalsuite_tasks.trace.Trace.tier", none, raising=False)
    monkeypatch.setattr("evalsuite_tasks.trace.Trace.scores", none, raising=False)
    manager = TaskManager(include_path=str(place), include_defaults=False, metadata={"pretrained": "full"})
    with pytest.raises(UserError, match="no sandbox here"):
        manager.load(["evalsuite_trace_swap"])


def test_a_refused_question_is_wrong_even_where_the_first_choice_is_right(place: Path) -> None:
    lm = EvalsuiteLM("full", device="cpu", max_length=8)
    found = evaluated(place, lm, ["evalsuite_knowledge_letter"], {"pretrained": "full", "limit": 12})
    assert any(s["target"] == [s["doc"]["choices"][0].strip()] or s["doc"]["choices"][0] in s["target"]
               for s in found["samples"]["evalsuite_knowledge_letter"])  # fmt: skip
    assert found["results"]["evalsuite_knowledge_letter"]["score,none"] == 0.0
    assert found["config"]["evalsuite_refused"]["over the context"] > 0


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        ("evalsuite_multihop_graph", {}, "none is named; give lm_eval --model_args pretrained"),
        ("evalsuite_multihop_graph", {"tokenizer": "/nowhere"}, "no tokenizer '/nowhere'"),
        ("evalsuite_multihop_graph", {"pretrained": "full", "lengths": "1q"}, "length '1q'"),
        ("evalsuite_multihop_graph", {"pretrained": "full", "set": "multihop.hopps=1"}, "did you mean 'hops'"),
        ("evalsuite_ruler_qa_1", {"pretrained": "full", "wording": "natural"}, "--metadata data="),
        ("evalsuite_multihop_graph", {"pretrained": "full", "lengths": 16}, "nothing to ask: multihop"),
        ("evalsuite_multihop_graph", {"pretrained": "full", "limit": 0}, "--limit must be at least 1, not 0"),
        ("evalsuite_multihop_graph", {"pretrained": "full", "seed": "x"}, "--metadata seed=x is no whole number"),
        ("evalsuite_multihop_graph", {"pretrained": "full", "set": "multihops.hops=1"}, "did you mean 'multihop'"),
        (
            "evalsuite_multihop_graph",
            {"pretrained": "full", "set": "[multihop.hops=1,multihop.facts=8]"},
            "several are",
        ),
        ("evalsuite_multihop_graph", {"pretrained": "full", "data": "sqad=/x"}, "no task takes data called 'sqad'"),
        ("evalsuite_multihop_graph", {"pretrained": "full", "wording": "terce"}, "did you mean 'terse'"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_line(place: Path, name: str, metadata: dict[str, Any], message: str) -> None:
    manager = TaskManager(include_path=str(place), include_defaults=False, metadata=metadata)
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        manager.load([name])


def test_the_folder_holds_every_part_of_every_plugin_and_is_made_anew(place: Path) -> None:
    names = set(TaskManager(include_path=str(place), include_defaults=False).all_tasks)
    for family in tasks.names():
        for part in tasks.load(family).subtasks():
            assert folder.name_of(f"{family}.{part}") in names
    file = place / "evalsuite_multihop_graph.yaml"
    text = file.read_text()
    file.write_text("task: damaged\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place.parents[2]))
        assert folder.write() == place
    assert file.read_text() == text


def test_an_lm_of_another_kind_answers_too(place: Path) -> None:
    found = evaluated(place, "dummy", ["evalsuite_longcode_aliases", "evalsuite_trace_swap"],
                      {"tokenizer": "full", "limit": 2, "wording": "terse", "lengths": 1024})  # fmt: skip
    assert found["results"]["evalsuite_trace_swap"]["score,none"] == 0.0
    assert found["n-samples"]["evalsuite_longcode_aliases"]["effective"] > 0


def test_the_command_line_of_lm_eval(place: Path, tmp_path: Path) -> None:
    """The wrapper verb, lm_eval's own options and files; no network, no hub."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ours = [sys.executable, "-m", "evalsuite.cli"]
    where = subprocess.run([*ours, "path", "lm-eval"], capture_output=True, text=True, check=True, env=env, timeout=60)
    words = ["lm-eval", "--model", "evalsuite", "--model_args", "pretrained=full", "--device", "cpu"]
    words += [
        "--include_path",
        where.stdout.strip(),
        "--tasks",
        "evalsuite_multihop",
        "--metadata",
        "lengths=256",
        "limit=1",
    ]
    words += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    done = subprocess.run([*ours, *words], capture_output=True, text=True, check=False, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "evalsuite_multihop_callchain" in done.stdout
    (results,) = (tmp_path / "out" / "full").glob("results_*.json")
    assert json.loads(results.read_text())["config"]["evalsuite_model"] == "full"
    assert len(list((tmp_path / "out" / "full").glob("samples_*.jsonl"))) == 5


def test_lm_evals_own_hf_answers_our_tasks_as_we_do(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed; lm_eval's backend hf needs it")
    build = TaskIndex.build
    monkeypatch.setattr("lm_eval.tasks.manager.TaskIndex.build", lambda *_: build([place]))
    found = []
    for model, args in (("hf", f"pretrained={ZOO / 'full'},dtype=float32"), ("evalsuite", "pretrained=full")):
        out = tmp_path / model
        words = ["--model", model, "--model_args", args, "--device", "cpu", "--metadata", "limit=4", "lengths=256"]
        words += ["--tasks", "evalsuite_knowledge", "evalsuite_multihop_graph", "--output_path", str(out)]
        command.run([*words, "--log_samples", "--batch_size", "3"])
        lines = [json.loads(line) for file in out.rglob("samples_*") for line in file.read_text().splitlines()]
        found.append({line["doc"]["id"]: (line["score"], line["doc"]["prompt_hash"]) for line in lines})
    assert found[0] == found[1]
    assert len(found[0]) == 4 * (3 + 2)


@pytest.mark.parametrize("words", [["run", "--config", "asked.yaml"], ["--model_args", "x=1"], ["--model=hf"]])
def test_lm_evals_hf_opens_our_checkpoints_however_it_is_named(words: list[str]) -> None:
    """In a file, or as the model that lm_eval takes where none is named."""
    code = (
        "import sys, lm_eval.__main__ as theirs; from evalsuite.integrations.lm_eval import command\n"
        "theirs.cli_evaluate = lambda: print('evalsuite.models.modeling' in sys.modules)\n"
        f"command.run({words!r}); command.run(['ls', 'tasks'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert done.stdout.split()[0] == "True", done.stderr


def test_plain_lm_eval_finds_the_model_by_a_task_given_as_a_file(place: Path) -> None:
    code = (
        "from lm_eval.tasks.manager import TaskIndex; TaskIndex.build = lambda *_: {}\n"  # 14,000 files that take long
        "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    )
    words = ["--model", "evalsuite", "--model_args", "pretrained=full", "--device", "cpu", "--metadata", "limit=1"]
    words += ["--tasks", str(place / "evalsuite_knowledge_cloze.yaml")]
    plain = [sys.executable, "-c", code, *words]
    done = subprocess.run(plain, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "|evalsuite_knowledge_cloze|" in done.stdout


def test_a_mistake_inside_lm_eval_is_one_line(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(
        "lm_eval.tasks.manager.TaskIndex.build", lambda *_: {}
    )  # its own 14,000 files take long to read
    words = ["lm-eval", "--model", "evalsuite", "--model_args", "pretrained=ful", "--tasks"]
    monkeypatch.setattr(sys, "argv", ["evalsuite", *words, str(place / "evalsuite_knowledge_cloze.yaml")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: unknown model 'ful'")
    assert sys.argv[0] == "evalsuite"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--model", "hf:pretrained=x", "--tasks", "knowledge"], "pip install 'evalsuite[lm-eval]'"),
        (["run", "--model", "full", "--tasks", "lm_eval:arc_easy"], "pip install 'evalsuite[lm-eval]'"),
        (["lm-eval", "--help"], "pip install 'evalsuite[lm-eval]'"),
        (["list", "models"], ""),
        (["path", "lm-eval"], ""),
    ],
)
def test_without_lm_eval_everything_else_works(words: list[str], message: str) -> None:
    hidden = (
        "import sys, importlib.metadata as m; from evalsuite import cli\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'lm_eval': raise ModuleNotFoundError(name)\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'lm_eval': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "sys.meta_path.insert(0, Hidden()); cli.main()"
    )
    plain = [sys.executable, "-c", hidden, *words]
    done = subprocess.run(plain, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == (2 if message else 0), done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
