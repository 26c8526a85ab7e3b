"""The command line: starts at once, and says every mistake in one line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evalsuite import cli, doctor, progress, verbs
from evalsuite.errors import UserError

HEAVY = ("torch", "transformers", "scipy", "pyarrow", "numpy", "triton")


def evalsuite(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "evalsuite.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env())


def env() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def best(*command: str, times: int) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True, env=env())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_help_starts_five_times_faster_than_torch() -> None:
    ours = best("-m", "evalsuite.cli", "--help", times=4)
    torch = best("-c", "import torch", times=2)
    assert torch > 5 * ours, f"--help {ours:.2f} s, import torch {torch:.2f} s"


def test_help_imports_nothing_heavy() -> None:
    code = f"import sys, evalsuite.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env())
    assert found.stdout.strip() == "[]"


def test_help_names_every_verb() -> None:
    text = evalsuite("--help").stdout
    for verb in ("run", "compare", "kernels", "list", "doctor"):
        assert verb in text
    options = evalsuite("run", "--help").stdout
    for option in ("--model", "--tasks", "--lengths", "--limit", "--seed", "--set", "--data", "--out", "--resume"):
        assert option in options


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "--model", "full", "--tasks", "multihp"), "unknown task 'multihp'; did you mean 'multihop'?"),
        (("run", "--model", "fulll", "--tasks", "multihop", "--limit", "1"), "unknown model 'fulll'"),
        (("run", "--model", "full", "--tasks", "multihop", "--lengths", "1q"), "length '1q' is no number of tokens"),
        (("run", "--model", "full", "--tasks", "multihop", "--set", "multihop.hopps=1"), "did you mean 'hops'?"),
        (("run", "--model", "full", "--tasks", "multihop", "--wording", "ters"), "did you mean 'terse'?"),
        (("compare", "/nowhere"), "/nowhere is no run: it has no run.json"),
        (("compare", ".", "--format", "xml"), "unknown format 'xml'"),
        (("run", "--tasks", "multihop"), "Missing option '--model'"),
        (("run", "--limit", "few"), "Invalid value for '--limit'"),
        (("gat",), "No such command 'gat'"),
        (
            ("train", "--model", "full", "--mixer", "a:B"),
            "--mixer, --seeds, --each, --shuffled and --json are for --budget",
        ),
        (("train", "--budget", "tini"), "did you mean 'tiny'?"),
        (("train", "--budget", "tiny", "--lr", "0.1"), "--budget tiny decides lr"),
        (("train", "--budget", "tiny", "--model", "FF", "--mixer", "a:B"), "--mixer is for layers X"),
        (("train", "--budget", "tiny", "--model", "XF", "--mixer", "nowhere:B"), "No module named 'nowhere'"),
        (("lab", "/nowhere"), "/nowhere holds no finished training"),
        (("list", "task"), "unknown list 'task'; did you mean 'tasks'?"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(words: tuple[str, ...], message: str) -> None:
    result = evalsuite(*words)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert message in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert result.stdout == ""


def test_debug_shows_the_traceback() -> None:
    result = evalsuite("--debug", "compare", "/nowhere")
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (UserError("a line"), 2, "error: a line\n"),
        (RuntimeError("two\nlines"), 2, "error: RuntimeError: two lines (--debug before the verb shows where)\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; what was answered is stored and the same command goes on\n"),
    ],
)
def test_exit_codes(
    raised: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(verbs, "compare", fail)
    monkeypatch.setattr(sys, "argv", ["evalsuite", "compare", "x"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    assert capsys.readouterr().err == message


def test_options_reach_their_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    for verb in ("compare", "kernels", "run"):
        monkeypatch.setattr(verbs, verb, lambda *given, **named: seen.append((given, named)))
    for words in (
        "compare a b --by hops,length --margin 3 --flips --format csv",
        "kernels -m full -t ruler --kernels triton --against reference --prompts 2 --tolerance 0.1 --json",
        "run -m full -t ruler --kernels recurrent",
    ):
        monkeypatch.setattr(sys, "argv", ["evalsuite", *words.split()])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 0
    (given, named), (asked, more), (ran, _) = seen
    assert (given, named) == ((["a", "b"], "csv"), {"flips": True, "by": "hops,length", "margin": 3.0})
    assert (asked[0].kernels, asked[0].limit, asked[1:]) == ("triton", 20, ("reference", "json"))
    assert more == {"prompts": 2, "tolerance": 0.1}
    assert (ran[0].kernels, ran[0].limit, ran[0].resume) == ("recurrent", 100, False)


def test_models_are_split_at_commas_but_not_within_a_backends_arguments() -> None:
    split = verbs.split_models
    assert split(["a,b", "c"]) == ["a", "b", "c"]
    assert split(["full,hf:pretrained=x/y,dtype=auto,full"]) == ["full", "hf:pretrained=x/y,dtype=auto", "full"]
    assert split(["local:base_url=http://h:1/v1,model=m,vllm:pretrained=z"]) == [
        "local:base_url=http://h:1/v1,model=m",
        "vllm:pretrained=z",
    ]
    with pytest.raises(UserError, match="no model named"):
        split([","])


def test_doctor_says_what_is_there_and_how_to_mend_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.show(as_json=True)
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert {"python", "torch", "gpu", "disk", "models", "task multihop"} <= found.keys()
    assert found["torch"]["ok"]
    assert all(check["fix"] for check in found.values() if not check["ok"])
    doctor.show(as_json=False)
    assert "multihop" in capsys.readouterr().out


def test_doctor_survives_a_broken_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("no module named nothing")

    monkeypatch.setattr(doctor.tasks, "load", broken)
    found = [check for check in doctor.checks() if check.name.startswith("task ")]
    assert found
    assert not any(check.ok for check in found)


ROW: dict[str, Any] = {"score": 1.0, "finish": "stop", "prompt_tokens": 90, "completion_tokens": 10}


def test_plain_lines_of_progress(capsys: pytest.CaptureFixture[str]) -> None:
    lines = progress.Lines(Console(width=120), seconds=0)
    lines.begin("full", 4)
    lines.skip()
    lines.add(ROW)
    lines.add({**ROW, "score": 0.0, "finish": "error"})
    lines.end()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "full: 4 samples"
    assert said[2].startswith("full: 3/4, accuracy 0.50, ")
    assert said[2].endswith(" left")
    assert "1 errors" in said[2]
    assert "tokens/s" in said[2]
    assert said[3].startswith("full: 3/4, 1 stored from before, accuracy 0.50")


def test_live_progress() -> None:
    with Path(os.devnull).open("w") as sink:
        live = progress.reporter(Console(file=sink, force_terminal=True, width=120))
        assert isinstance(live, progress.Live)
        for model in ("a", "b"):
            live.begin(model, 2)
            live.skip()
            live.add(ROW)
            live.end()
        live.end()


def test_a_wrong_name_among_models_fails_before_the_first_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt second model must not show after hours of the first."""
    from evalsuite import models

    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("nothing may be loaded"))
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(UserError, match="unknown model 'nope'"):
        verbs.run(verbs.Asked([f"{tmp_path}/checkpoint,nope"], ["knowledge"], out=str(tmp_path / "runs")))
