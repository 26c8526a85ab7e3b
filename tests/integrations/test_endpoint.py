"""A server of somebody else's, killed and started again in the middle: nothing lost, and the scores of the process."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from evalsuite import compare, models, plan, runner, store
from evalsuite.store import Row, Run
from strict_server import Handler, Strict

ZOO = Path(models.__file__).parents[1] / "zoo"
ASKED = ["--tasks", "multihop,ruler", "--lengths", "256", "--limit", "2"]
ALSO = ["--tasks", "knowledge", "--limit", "6"]


class Served:
    """`transformers serve` on a checkpoint, on one port through all its lives."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder, self.checkpoint = folder, checkpoint
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "hub").mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin, and return when it answers."""
        script = Path(__file__).with_name("zoo_server.py")
        words = [sys.executable, str(script), str(self.folder / "log"), str(self.port), str(self.checkpoint)]
        env = {**os.environ, "HF_HOME": str(self.folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with (self.folder / "stderr").open("ab") as stderr:
            self.process = subprocess.Popen(words, env=env, stdout=stderr, stderr=stderr)
        for _ in range(600):
            assert self.process.poll() is None, (self.folder / "stderr").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the server does not start")

    def kill(self) -> None:
        """As a machine that loses power."""
        if self.process is not None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def answered(self) -> list[str]:
        """Every prompt that got its answer, over all lives."""
        lines = (self.folder / "log").read_text().splitlines()
        return [line["prompt"] for line in map(json.loads, lines) if line["status"] == 200]


@pytest.fixture(params=["full"])
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    (tmp_path / "server").mkdir()
    checkpoint = ZOO / "full"
    if request.param != "full":
        checkpoint = shutil.copytree(checkpoint, tmp_path / "full")
        (checkpoint / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0]['content'] }}")
    made = Served(tmp_path / "server", checkpoint)
    made.start()
    yield made
    made.kill()


def begin(served: Served, out: Path, asked: list[str], **more: object) -> subprocess.Popen[str]:
    """`evalsuite run` on the server."""
    given = {"base_url": f"http://127.0.0.1:{served.port}/v1", "model": served.checkpoint, "context": 1024,
             "wording": "terse", "tokenizer": served.checkpoint, "concurrency": 4, **more}  # fmt: skip
    spec = "openai:" + ",".join(f"{name}={value}" for name, value in given.items())
    words = [sys.executable, "-m", "evalsuite.cli", "run", "--model", spec, *asked, "--out", str(out)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stored(out: Path) -> list[Row]:
    folder = out / "full"
    return store.read(folder).rows if (folder / "run.json").exists() else []


def wait(until: Callable[[], bool]) -> None:
    for _ in range(1200):
        if until():
            return
        time.sleep(0.1)
    raise AssertionError("it does not come to pass")


def in_process(out: Path, asked: list[str]) -> Run:
    """The same questions, of the same checkpoint, without a server: fp32, greedy."""
    given = dict(zip(asked[::2], asked[1::2], strict=True))
    model = models.load(str(ZOO / "full"), device="cpu", dtype="float32")
    lengths = plan.parse_lengths(given.get("--lengths", ""))
    chosen = plan.select(given["--tasks"].split(","), lengths=lengths, limit=int(given["--limit"]))
    return runner.run(model, plan.make(chosen, "terse"), out)


def test_killed_twice_it_ends_in_the_scores_of_the_process(served: Served, tmp_path: Path) -> None:
    out = tmp_path / "served"
    first = begin(served, out, ASKED, patience=2)
    wait(lambda: len(stored(out)) >= 20)
    served.kill()
    _, told = first.communicate(timeout=120)
    assert first.returncode == 2
    last = told.splitlines()[-1]
    assert last.startswith("error: http://127.0.0.1:")
    assert "what was answered is stored, and the same command goes on" in last
    assert "Traceback" not in told
    kept = {(row["task"], row["id"]): row for row in stored(out)}
    before = len(served.answered())
    assert len(kept) >= 20
    assert not any(row["error"] for row in kept.values())

    served.start()
    second = begin(served, out, ASKED, patience=300)
    wait(lambda: len(stored(out)) >= len(kept) + 20)
    served.kill()
    middle = {row["prompt"] + row["answer_prefix"] for row in stored(out)}
    between = len(served.answered())
    time.sleep(1)
    assert second.poll() is None  # it waits
    served.start()
    _, told = second.communicate(timeout=300)
    assert second.returncode == 0, told

    ours, theirs = in_process(tmp_path / "own", ASKED), store.read(out / "full")
    assert [(row["task"], row["id"]) for row in theirs.rows] == [(row["task"], row["id"]) for row in ours.rows]
    assert len({row["task"] for row in ours.rows}) > 10
    assert not any(row["error"] for row in theirs.rows)
    both = list(zip(ours.rows, theirs.rows, strict=True))
    assert [a["id"] for a, b in both if (a["score"], a["answer"]) != (b["score"], b["answer"])] == []
    assert [a["id"] for a, b in both if a["text"].strip() != b["text"].strip()] == []
    assert [a["id"] for a, b in both if a["prompt_tokens"] != b["prompt_tokens"]] == []
    assert 0 < sum(row["score"] for row in ours.rows) < len(ours.rows)
    ended = {(row["task"], row["id"]): row for row in theirs.rows}
    assert [key for key, row in kept.items() if row != ended[key]] == []
    again = served.answered()
    assert not {row["prompt"] + row["answer_prefix"] for row in kept.values()} & set(again[before:])
    assert not middle & set(again[between:])


def test_choices_of_a_server_without_log_probabilities_are_told_apart(served: Served, tmp_path: Path) -> None:
    process = begin(served, tmp_path / "served", ALSO)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    theirs, ours = store.read(tmp_path / "served" / "full"), in_process(tmp_path / "own", ALSO)
    assert theirs.meta["identity"]["choices"] == "generation"
    assert theirs.meta["identity"]["tokens"] == "checked"
    marks = {(bool(row["choices"]), row["detail"].get("choices")) for row in theirs.rows}
    assert marks == {(False, None), (True, "generated")}
    words = [sys.executable, "-m", "evalsuite.cli", "compare", str(ours.folder), str(theirs.folder), "--format", "md"]
    shown = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert "UNLIKE knowledge" in shown.stdout
    assert "by log probability and by generated text" in shown.stdout


@pytest.mark.parametrize("served", ["chat"], indirect=True)
def test_a_chat_is_counted_with_its_template(served: Served, tmp_path: Path) -> None:
    asked = ["--tasks", "multihop.graph", "--lengths", "256", "--limit", "3"]
    process = begin(served, tmp_path / "served", asked, chat="true")
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    theirs, ours = store.read(tmp_path / "served" / "full"), in_process(tmp_path / "own", asked)
    assert (theirs.meta["identity"]["api"], theirs.meta["identity"]["tokens"]) == ("chat", "checked")
    for a, b in zip(ours.rows, theirs.rows, strict=True):
        assert b["error"] == ""
        assert (a["answer"], a["score"]) == (b["answer"], b["score"])
        assert b["prompt_tokens"] == a["prompt_tokens"] + 1  # behind a template's <s> the first space is a token


@pytest.mark.parametrize("served", ["chat"], indirect=True)
def test_lm_evals_chat_is_held_to_the_same_servers_counts(served: Served, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    pytest.importorskip("tenacity", reason="tenacity is not installed; lm_eval's servers need it")
    url = f"http://127.0.0.1:{served.port}/v1/chat/completions"
    given = f"model={served.checkpoint},base_url={url},max_length=1024,wording=terse,name=chat"
    model = models.load(f"local-chat-completions:{given},tokenizer={served.checkpoint}")
    assert model.identity()["tokens"] == "checked"
    asked = ["--tasks", "multihop.graph", "--lengths", "256", "--limit", "2"]
    chosen = plan.select(["multihop.graph"], lengths=(256,), limit=2)
    theirs = runner.run(model, plan.make(chosen, "terse"), tmp_path)
    ours = in_process(tmp_path / "own", asked)
    assert [(row["error"], row["answer"], row["score"]) for row in theirs.rows] == [
        ("", row["answer"], row["score"]) for row in ours.rows
    ]


class Scoring(Handler):
    """Log probabilities of an echoed prompt, by the checkpoint itself, in vLLM's layout: `<s>` is a token of it."""

    def answer(self, prompt: str, body: dict[str, Any], chat: bool) -> dict[str, Any]:
        own = self.server.own
        ids = own.encode(prompt)
        with torch.no_grad():
            told = own.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        values = [None, *(told[i, token].item() for i, token in enumerate(ids[1:]))]
        more = int(told[-1].argmax())
        tokens = own.tokenizer.convert_ids_to_tokens([*ids, more])
        logprobs = {"tokens": tokens, "token_logprobs": [*values, told[-1, more].item()], "text_offset": []}
        choice = {"index": 0, "text": prompt + " x", "finish_reason": "length", "logprobs": logprobs}
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}}


def test_log_probabilities_of_choices_are_those_of_the_process(tmp_path: Path) -> None:
    server = Strict()
    server.own = models.load(str(ZOO / "full"), device="cpu", dtype="float32")
    server.RequestHandlerClass = Scoring
    given = {"base_url": server.url, "model": "wise", "context": 64, "wording": "terse", "tokenizer": ZOO / "full"}
    model = models.load("openai:" + ",".join(f"{name}={value}" for name, value in given.items()))
    chosen = plan.select(["knowledge.letter"], limit=20)
    theirs = runner.run(model, plan.make(chosen, "terse"), tmp_path)
    server.shutdown()
    server.server_close()
    ours = in_process(tmp_path, ["--tasks", "knowledge.letter", "--limit", "20"])
    assert len(ours.rows) == 20
    for a, b in zip(ours.rows, theirs.rows, strict=True):
        assert b["error"] == ""
        assert (a["answer"], a["score"], a["prompt_tokens"]) == (b["answer"], b["score"], b["prompt_tokens"])
        assert b["choice_logprobs"] == pytest.approx(a["choice_logprobs"], rel=1e-4, abs=1e-4)
    assert not compare.compare([ours, theirs]).unlike
