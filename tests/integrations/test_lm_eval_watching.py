"""Servers behind lm_eval's models: whole prompts, counts that are held, and what cannot be held said."""

import contextlib
import gc
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evalsuite import models
from evalsuite.errors import UserError
from evalsuite.models import ZOO
from evalsuite.models.own import OwnModel, open_checkpoint
from evalsuite.records import Sample

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
pytest.importorskip("tenacity", reason="tenacity is not installed; lm_eval's servers need it")
from evalsuite.integrations.lm_eval import watching

FOLDER = ZOO / "hybrid-kda"


@pytest.fixture(scope="module")
def native() -> OwnModel:
    return open_checkpoint(FOLDER, "hybrid-kda", device="cpu")


@pytest.fixture
def server() -> Iterator[SimpleNamespace]:
    """A server of completions and chats that answers with a number, and keeps what it was sent. It reads no more than
    the last `limit` tokens of a prompt, and says how many that were where it `counts`; of a chat, what `reads` says."""
    seen: list[dict[str, Any]] = []
    told = SimpleNamespace(seen=seen, limit=4000, counts=True, url="", reads=None)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body)
            if "messages" in body:
                content = None if "silent" in body["messages"][0]["content"] else f"chat {body.get('seed')}"
                choices: list[dict[str, Any]] = [{"index": 0, "message": {"content": content}}]
            elif body.get("echo"):
                tokens = body["prompt"][0][-told.limit :]
                logprobs = [None, *(-float(t) / 1000 for t in tokens[1:]), -1.0]
                tops = [{"x": p} for p in logprobs]
                choices = [{"index": 0, "logprobs": {"token_logprobs": logprobs, "top_logprobs": tops}}]
            else:
                choices = [{"index": i, "text": f"seed {body['seed']}"} for i in range(len(body["prompt"]))]
            answer: dict[str, Any] = {"choices": choices}
            if told.reads is not None and "messages" in body:
                answer["usage"] = {"prompt_tokens": told.reads(body["messages"][0]["content"])}
            if told.counts and "prompt" in body:
                answer["usage"] = {"prompt_tokens": sum(min(len(each), told.limit) for each in body["prompt"])}
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # another request's fault has ended this one
                self.wfile.write(data)

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{listening.server_port}/v1"
    yield told
    listening.shutdown()
    listening.server_close()
    thread.join()


def test_a_server_of_completions_gets_whole_prompts(server: SimpleNamespace, native: OwnModel) -> None:
    spec = f"local-completions:model=m,base_url={server.url}/completions,tokenizer={FOLDER},add_bos_token=true"
    model = models.load(f"{spec},tokenizer_backend=huggingface,max_length=4000", device="cpu")
    long = Sample("long", "t", "edge " * 3000 + "end", (), max_new_tokens=5)
    longer = replace(long, id="longer", prompt="edge " * 4000)
    found = {c.sample_id: c for c in model.answer([long, longer])}
    assert "> context 3999" in found["longer"].error
    assert [body["prompt"] for body in server.seen] == [[native.encode(long.prompt)]]  # past lm_eval's 2,048
    assert server.seen[0]["max_tokens"] == 5
    draws = [replace(long, id=f"d{i}", prompt="edge", temperature=0.8) for i in range(3)]
    assert len({c.text for c in model.answer(draws)}) == 3  # one seed for all would draw one answer three times
    choice = Sample("c", "t", "edge", (), choices=(" edge", " end"))
    (ranked,) = model.answer([choice])
    ids = [native.encode("edge" + c)[2:] for c in choice.choices]
    assert ranked.choice_logprobs == pytest.approx([sum(-t / 1000 for t in row) for row in ids])


@pytest.mark.parametrize("several", ["", ",num_concurrent=3", ",batch_size=2"])
def test_a_server_that_cuts_prompts_is_found_out(
    server: SimpleNamespace, several: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It has less room than the user believes: what it answers is no answer to the question."""
    spec = f"local-completions:model=m,base_url={server.url}/completions,tokenizer={FOLDER},max_retries=1"
    spec += f",tokenizer_backend=huggingface,max_length=4000{several}"
    server.limit = 40
    short = [Sample(f"s{i}", "t", f"edge a {i}", (), max_new_tokens=5) for i in range(3)]
    model = models.load(spec, device="cpu")
    assert len(list(model.answer(short))) == 3
    long = Sample("long", "t", "edge " * 60, (), max_new_tokens=5)
    with pytest.raises(UserError, match=r"the server read \d+ of \d+ tokens that it was sent: it cuts"):
        list(models.load(spec, device="cpu").answer([*short, long]))
    gc.collect()  # of lm_eval's other requests: each prints its error when it is collected, be it inside a parser
    server.counts = False
    assert "would not be noticed" not in caplog.text
    assert len(list(models.load(spec, device="cpu").answer(short))) == 3
    assert caplog.text.count("a prompt that the server cuts would not be noticed") == 1
    ranked = replace(long, choices=(" a", " b"))
    if "batch" not in several:  # the server ranks one at a time
        with pytest.raises(UserError, match=r"log probabilities of 41 tokens for \d+ that it was sent"):
            list(models.load(spec, device="cpu").answer([ranked]))
        gc.collect()


def test_a_chat_server_ranks_nothing_and_says_so(server: SimpleNamespace) -> None:
    spec = f"local-chat-completions:model=m,base_url={server.url}/chat/completions,max_length=100,tokenizer={FOLDER}"
    model = models.load(spec, device="cpu")
    samples = [
        Sample("w", "t", "question", (), answer_prefix=" so", max_new_tokens=5),
        Sample("c", "t", "question", (), choices=(" a", " b")),
        Sample("l", "t", "edge " * 99, (), max_new_tokens=5),
        Sample("n", "t", "silent", (), max_new_tokens=5),
    ]
    found = {c.sample_id: c for c in model.answer(samples)}
    assert found["w"].text == "chat 1234"
    assert "no log probabilities" in found["c"].error
    assert "> context" in found["l"].error
    assert found["n"].error == "the server gave no text"
    probes, asked = server.seen[:2], server.seen[2:]
    assert [body["messages"][0]["content"] for body in probes] == list(watching.PROBES)
    assert asked[0]["messages"] == [{"role": "user", "content": "question so"}]
    assert not any("stop" in body for body in server.seen)  # an empty list is an error to some servers
    assert len(asked) == 2
    counted = models.load(spec.replace(str(FOLDER), "bytes"), device="cpu")
    assert counted.count("né") == 3


def chat(server: SimpleNamespace, tokenizer: object, more: str = "") -> str:
    where = f"base_url={server.url}/chat/completions,max_retries=1{more}"
    return f"local-chat-completions:model=m,{where},max_length=4000,tokenizer={tokenizer}"


@pytest.mark.parametrize("several", ["", ",num_concurrent=3"])
@pytest.mark.parametrize("template", [False, True])
def test_a_chat_server_that_cuts_prompts_is_found_out(
    server: SimpleNamespace, native: OwnModel, tmp_path: Path, several: str, template: bool
) -> None:
    """Its template is known by the tokenizer's, exactly, or by what it counts more for two short questions."""
    import shutil

    from transformers import AutoTokenizer

    place = tmp_path / "tokenizer"
    shutil.copytree(FOLDER, place)
    if template:
        (place / "chat_template.jinja").write_text("edge hop edge {{ messages[0].content }} hop hop")
    beside, unseen = 31, watching.JOINED + 1
    if template:
        turn = [{"role": "user", "content": "edge"}]
        made = AutoTokenizer.from_pretrained(place).apply_chat_template(turn, return_dict=False)
        beside, unseen = len(made) - len(native.encode("edge")), 1
    server.reads = lambda text: len(native.encode(text)) + beside - (unseen if "z z" in text else 0)
    short = [Sample(f"s{i}", "t", f"edge a {i}", (), max_new_tokens=5) for i in range(3)]
    model = models.load(chat(server, place, several), device="cpu")
    assert model.identity()["tokens"] == "checked"
    assert model.count("edge a") == server.reads("edge a")  # its template takes room too
    found = list(model.answer(short))
    assert {c.sample_id: c.prompt_tokens for c in found} == {s.id: server.reads(s.prompt) for s in short}
    cut = Sample("cut", "t", f"edge {'z z ' * 40} and {'edge ' * 99}", (), max_new_tokens=5)
    with pytest.raises(UserError, match=r"the server read \d+ of \d+ tokens that it was sent: it cuts"):
        list(model.answer([*short, cut]))
    gc.collect()
    server.reads = None
    with pytest.raises(UserError, match=r"the server did not say how many of \d+ tokens it read, as it did before"):
        list(model.answer(short[:1]))
    gc.collect()


def test_a_chat_server_whose_counts_cannot_be_held_is_marked_and_said_once(
    server: SimpleNamespace, native: OwnModel, caplog: pytest.LogCaptureFixture
) -> None:
    silent: Any = models.load(chat(server, FOLDER), device="cpu")
    assert silent.identity()["tokens"] == "as the server tells them, unchecked"
    assert len(list(silent.answer([Sample(f"s{i}", "t", "edge a", (), max_new_tokens=5) for i in range(3)]))) == 3
    assert caplog.text.count("a prompt that the server cuts would not be noticed") == 1
    server.reads = lambda text: len(native.encode(text)) + 9
    assert models.load(chat(server, FOLDER), device="cpu").identity()["tokens"] == "checked"
    caplog.clear()
    counted = models.load(chat(server, "bytes"), device="cpu")
    assert counted.identity()["tokens"] == "as the server tells them, unchecked"
    assert caplog.text.count("the tokenizer is bytes") == 1
    server.reads = lambda text: len(text.split())
    with pytest.raises(UserError, match=r"tokens of two texts of which m reads 2 and \d+: give tokenizer="):
        models.load(chat(server, FOLDER), device="cpu")


def test_a_chat_server_that_is_gone_is_one_line() -> None:
    gone = SimpleNamespace(url="http://127.0.0.1:9/v1")
    with pytest.raises(
        UserError, match=r"m does not answer a short question, ConnectionError.*check base_url"
    ) as found:
        models.load(chat(gone, "bytes"), device="cpu")
    assert "\n" not in str(found.value)


def test_a_server_that_is_gone_is_one_line() -> None:
    spec = f"local-completions:model=m,base_url=http://127.0.0.1:9/v1,tokenizer={FOLDER},max_retries=1,max_length=99"
    model = models.load(f"{spec},tokenizer_backend=huggingface", device="cpu")
    with pytest.raises(UserError, match="local-completions-m failed, ConnectionError"):
        list(model.answer([Sample("s", "t", "edge", (), max_new_tokens=2)]))
