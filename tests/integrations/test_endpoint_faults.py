"""How an endpoint would lie: a cut prompt, a lost answer, a score of another kind, a key on a disk, an endless wait."""

import email.utils
import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evalsuite import compare, store
from evalsuite.errors import UserError
from evalsuite.integrations.endpoint import open_endpoint
from evalsuite.plan import Selection, make
from evalsuite.records import Sample, Score
from evalsuite.runner import run
from evalsuite.task import Cell
from strict_server import Strict, dropped, slow, status, torn


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """A tokenizer that counts as the strict server does: one token a word, its space with it."""
    core = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    made.chat_template = "{{ messages[0]['content'] }}"
    folder: Path = tmp_path_factory.mktemp("words")
    made.save_pretrained(folder)
    return folder


def opened(server: Strict, **more: object):
    given = {"base_url": server.url, "model": "wise", "patience": 5, **more}
    return open_endpoint(",".join(f"{name}={value}" for name, value in given.items()))


def samples(count: int, **fields: object) -> list[Sample]:
    return [Sample(f"t/{i}", "t", f"say this: w{i}", (f"w{i}",), **fields) for i in range(count)]


class Echoes:
    """A task whose answer is the prompt's last word; in part `pick` it is chosen."""

    name, version, licence, source, needs = "echoes", 1, "CC0-1.0", "this file", ""

    def subtasks(self):
        return ("say", "pick")

    def knobs(self):
        return {}

    def cells(self, request):
        return [Cell(f"echoes.{part}", {}, 0.0) for part in request.subtasks or self.subtasks()]

    def missing(self, request):
        return {}

    def sample(self, cell, index, request, count):
        choices = (" yes", " no") if cell.task == "echoes.pick" else ()
        return Sample(f"{cell.task}/{index}", cell.task, f"say this: w{index}", ("yes",) if choices else (f"w{index}",),
                      choices=choices)  # fmt: skip

    def score(self, sample, completion):
        answer = completion.text.strip()
        return Score(sample.id, float(answer == sample.target[0]), answer)


def plan(*parts: str, limit: int = 12):
    return make(Selection({"echoes": Echoes()}, {"echoes": parts}, limit=limit), "natural")


@pytest.mark.parametrize(
    "fault",
    [status(429), status(500), status(503, "starting"), status(408), dropped, torn, slow(1.5),
     lambda handler: handler.reply(200, b"<html>a proxy's page</html>"),
     lambda handler: handler.reply(200, {"error": {"message": "upstream is gone"}})],
)  # fmt: skip
def test_what_may_pass_is_asked_again(server: Strict, fault) -> None:
    model = opened(server, timeout=0.8, concurrency=4)
    server.arm(fault, fault)
    found = {c.sample_id: c for c in model.answer(samples(6))}
    assert {name: (c.text, c.error) for name, c in found.items()} == {f"t/{i}": (f" w{i}", "") for i in range(6)}
    assert len(server.prompts) == 6 + 2


@pytest.mark.parametrize("dated", [False, True])
def test_a_server_that_asks_to_wait_is_left_alone_by_all(server: Strict, dated: bool) -> None:
    model = opened(server, concurrency=3)
    after = email.utils.formatdate(time.time() + 2, usegmt=True) if dated else 1
    server.arm(status(429, "slowly", Retry_After=after))
    server.seconds = 0.05
    list(model.answer(samples(12)))
    moments = [moment for moment, _, _ in server.asked]
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    assert max(gaps) >= 0.9
    assert len(moments) == 13


def test_a_request_that_waits_for_its_turn_keeps_quiet_too(server: Strict) -> None:
    """With a rate, the next ones have their moments already when the server asks to be left alone."""
    model = opened(server, concurrency=8, rate=10)
    server.arm(status(429, "slowly", Retry_After=1))
    assert not any(completion.error for completion in model.answer(samples(8)))
    moments = [moment for moment, _, _ in server.asked]
    assert len(moments) == 9
    assert moments[1] - moments[0] >= 0.95
    assert all(b - a >= 0.08 for a, b in itertools.pairwise(moments[1:]))


def test_a_wait_longer_than_the_patience_ends_the_run_at_once(server: Strict) -> None:
    model = opened(server)
    server.arm(status(429, "quota", Retry_After=3600))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"asks to wait 3600 s, after 1 tries .*the same command goes on"):
        list(model.answer(samples(1)))
    assert time.monotonic() - began < 2


def test_when_patience_ends_nothing_is_recorded_as_wrong_and_the_same_command_goes_on(server, tmp_path) -> None:
    model = opened(server, patience=1, concurrency=1)
    server.arm()
    server.poison |= {f"say this: w{i}" for i in range(6, 12)}
    with pytest.raises(UserError, match=r"does not answer: HTTP 500 .*, after \d tries") as caught:
        run(model, plan("say"), tmp_path)
    assert "\n" not in str(caught.value)
    half = store.read(tmp_path / "wise")
    assert [row["score"] for row in half.rows] == [1.0] * 6
    server.poison.clear()
    server.arm()
    whole = run(opened(server), plan("say"), tmp_path)
    assert [(row["score"], row["error"]) for row in whole.rows] == [(1.0, "")] * 12
    assert sorted(p for p in server.prompts if p.startswith("say")) == sorted(f"say this: w{i}" for i in range(6, 12))


def test_answers_that_are_there_are_given_before_the_error(server: Strict) -> None:
    model = opened(server, patience=2)
    server.poison.add("say this: w3")
    given: set[str] = set()
    with pytest.raises(UserError, match=r"does not answer: HTTP 500 this one never works.*\(asked: t/3\)"):
        given.update(completion.sample_id for completion in model.answer(samples(8)))
    assert given == {f"t/{i}" for i in range(8)} - {"t/3"}


def test_a_refusal_ends_the_run_in_one_line(server: Strict) -> None:
    model = opened(server)
    server.arm(status(400, "unknown parameter: stop"))
    with pytest.raises(UserError, match="refused with HTTP 400: unknown parameter: stop"):
        list(model.answer(samples(1)))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (400, "This model's maximum context length is 64 tokens, and you asked for 99"),
        (400, "content_filter: the prompt was held back"),
        (413, "no more than a megabyte"),
    ],
)
def test_a_refusal_of_one_prompt_is_that_samples_error(server: Strict, code: int, said: str) -> None:
    model = opened(server, concurrency=1)
    server.arm(status(code, said))
    first, second = list(model.answer(samples(2)))
    assert (first.finish, first.text) == ("error", "")
    assert said in first.error
    assert second.finish == "stop"


@pytest.mark.parametrize("chat", [False, True])
def test_a_prompt_cut_in_silence_is_that_samples_error(server: Strict, words: Path, chat: bool, tmp_path) -> None:
    model = opened(server, tokenizer=words, concurrency=1, chat=str(chat).lower())
    assert model.identity()["tokens"] == "checked"
    assert model.count("a b c") == 3
    server.cuts = 4
    long = Sample("t/long", "t", "one two three four five", ("five",))
    short = Sample("t/short", "t", "one two", ("two",))
    found = {c.sample_id: c for c in model.answer([long, short])}
    assert found["t/long"].error == "the server read 4 tokens of a prompt of 5: it was cut, or altered, on the way"
    assert found["t/long"].text == ""
    assert (found["t/short"].error, found["t/short"].prompt_tokens) == ("", 2)
    over = Sample("t/over", "t", "w " * 60, ("x",), max_new_tokens=16)
    server.arm()
    assert "> context 64" in next(model.answer([over])).error
    assert server.prompts == []


def test_a_server_that_stops_telling_its_counts_is_found_out(server: Strict, words: Path) -> None:
    model = opened(server, tokenizer=words)
    server.usage = False
    assert "did not say how many" in next(model.answer(samples(1))).error
    silent = opened(server, tokenizer=words)
    assert silent.identity()["tokens"] == "as the server tells them, unchecked"
    assert next(silent.answer(samples(1))).error == ""


def test_another_models_tokenizer_is_refused(server: Strict) -> None:
    zoo = Path(__file__).parents[2] / "evalsuite" / "zoo" / "full"
    with pytest.raises(UserError, match=r"makes \d+ tokens of a text of which .* reads \d+; give the tokenizer"):
        opened(server, tokenizer=zoo)
    with pytest.raises(UserError, match="tokenizer=/nowhere/none cannot be had") as caught:
        opened(server, tokenizer="/nowhere/none")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="has no chat template"):
        opened(server, tokenizer=zoo, chat="true")


def test_choices_by_log_probability(server: Strict, words: Path) -> None:
    server.surprise = lambda token, before: {" yes": 0.25, " no": 0.5, " really": 4.0}.get(token, 9.0)
    model = opened(server, tokenizer=words)
    assert model.identity()["choices"] == "log probabilities"
    asked = Sample("t/1", "t", "is it so", ("yes",), choices=(" no", " yes", " yes really"))
    (found,) = model.answer([asked])
    assert (found.text, found.choice_logprobs) == (" yes", (-0.5, -0.25, -4.25))
    joined = Sample(
        "t/2", "t", "is it s", ("o",), choices=("o yes", "o no")
    )  # the prompt's last token is another's part
    (found,) = model.answer([joined])
    assert found.choice_logprobs == (-9.25, -9.5)
    assert found.error == ""


@pytest.mark.parametrize(("begins", "lists_end"), [(1, True), (0, False), (0, True)])
def test_what_the_server_wrote_after_a_choice_is_no_part_of_it(
    server: Strict, words: Path, begins: int, lists_end: bool
) -> None:
    """A count of the prompt's tokens may hold one that is not listed; what ends the text may not be listed either."""
    server.surprise = lambda token, before: {" yes": 0.25, " no": 0.5}.get(token, 100.0)
    server.begins, server.lists_end = begins, lists_end
    model = opened(server, tokenizer=words)
    assert model.identity()["choices"] == "log probabilities"
    (found,) = model.answer([Sample("t/1", "t", "is it so", ("yes",), choices=(" no", " yes"))])
    assert (found.text, found.choice_logprobs, found.error) == (" yes", (-0.5, -0.25), "")


def test_a_server_without_log_probabilities_is_told_apart(server: Strict, tmp_path: Path) -> None:
    server.surprise = lambda token, before: 0.1 if token == " yes" else 2.0
    scored = run(opened(server, name="scored"), plan("pick"), tmp_path)
    server.logprobs = False
    server.says = lambda prompt: " yes, of course"
    model = opened(server, name="said")
    assert model.identity()["choices"] == "generation"
    said = run(model, plan("pick"), tmp_path)
    assert json.loads((tmp_path / "said" / "run.json").read_text())["identity"]["choices"] == "generation"
    assert {row["score"] for row in scored.rows + said.rows} == {1.0}
    assert {row["detail"].get("choices") for row in said.rows} == {"generated"}
    assert not any(row["choice_logprobs"] for row in said.rows)
    assert {row["detail"].get("choices") for row in scored.rows} == {None}
    both = compare.compare([scored, said])
    assert "by log probability and by generated text" in both.unlike["echoes"]
    assert "by generated text" in compare.compare([said]).unlike["echoes"]
    assert not compare.compare([scored]).unlike
    with pytest.raises(UserError, match="gives no log probabilities of a prompt; leave choices=logprobs out"):
        opened(server, choices="logprobs")


def test_a_refused_echo_means_generation_and_a_failing_one_means_nothing(server: Strict) -> None:
    server.echo_fault = status(400, "echo is not supported with logprobs")
    assert opened(server).identity()["choices"] == "generation"
    server.echo_fault = status(503, "busy")  # as it may be for a moment: no reason to score otherwise
    with pytest.raises(UserError, match="if it fails at log probabilities alone, add choices=generation"):
        opened(server, patience=1)
    assert opened(server, choices="generation").identity()["choices"] == "generation"


def test_a_run_never_mixes_the_two_kinds_of_scores(server: Strict, tmp_path: Path) -> None:
    run(opened(server), plan("pick", limit=2), tmp_path)
    server.logprobs = False
    with pytest.raises(UserError, match=r'model\.choices: "log probabilities" -> "generation"'):
        run(opened(server), plan("pick", limit=4), tmp_path)
    server.logprobs = True
    model = opened(server, name="mid")
    server.logprobs = False  # and not in the middle of a run either
    found = run(model, plan("pick", limit=2), tmp_path)
    assert all("no log probabilities of the prompt" in row["error"] for row in found.rows)


def test_a_server_that_comes_back_as_another_model_is_found_out(server: Strict, tmp_path: Path) -> None:
    model = opened(server, concurrency=1)
    list(model.answer(samples(1)))
    server.calls_itself = "wise-2027"
    with pytest.raises(UserError, match="answers as 'wise-2027', and began as 'wise-2026'"):
        list(model.answer(samples(1)))
    server.calls_itself = "wise-2026"
    run(opened(server), plan("say", limit=2), tmp_path)
    server.calls_itself = "wise-2027"
    with pytest.raises(UserError, match=r'model\.answers as: "wise-2026" -> "wise-2027"'):
        run(opened(server), plan("say", limit=4), tmp_path)


def test_a_key_is_written_nowhere(server: Strict, tmp_path: Path, monkeypatch) -> None:
    server.key = "sk-very-secret-0815"
    monkeypatch.setenv("WISE_KEY", server.key)
    model = opened(server, key_env="WISE_KEY")
    run(model, plan("say"), tmp_path)
    held = [path for path in tmp_path.rglob("*") if path.is_file() and server.key.encode() in path.read_bytes()]
    assert held == []
    monkeypatch.setenv("WISE_KEY", "sk-wrong-4711")
    with pytest.raises(UserError, match="HTTP 401: Incorrect key: Bearer") as caught:
        opened(server, key_env="WISE_KEY")
    assert "4711" not in str(caught.value)
    monkeypatch.delenv("WISE_KEY")
    with pytest.raises(UserError, match="key_env=WISE_KEY names a variable that is not set"):
        opened(server, key_env="WISE_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other-service")
    server.key = ""
    server.arm()
    list(opened(server).answer(samples(1)))
    assert not any("Authorization" in headers for headers in server.headers)


def test_the_context_is_stated_or_asked_of_the_server(server: Strict) -> None:
    assert opened(server).context == 64
    assert opened(server, context=32).context == 32
    with pytest.raises(UserError, match=r"context=1024, and .* serves 64 tokens"):
        opened(server, context="1k")
    server.tells_context = False
    with pytest.raises(UserError, match="does not say how long a context it serves; give context=N"):
        opened(server)
    server.lists = False
    assert opened(server, context=32).context == 32


def test_another_model_and_nobody_at_all_are_one_line(server: Strict) -> None:
    with pytest.raises(UserError, match="serves no model 'wiser'; it serves wise"):
        opened(server, model="wiser")
    gone = Strict()
    gone.shutdown()
    gone.server_close()
    began = time.monotonic()
    with pytest.raises(UserError, match="does not answer: ConnectError"):
        opened(gone, patience=1)
    assert time.monotonic() - began < 5


def test_identity_is_the_same_at_every_start(server: Strict, words: Path) -> None:
    one, two = (opened(server, tokenizer=words).identity() for _ in range(2))
    assert one == two
    assert one["says"] == {"id": "wise", "owned_by": "nobody", "max_model_len": 64}
    assert json.dumps(one)


def test_no_more_at_a_time_and_no_faster_than_was_said(server: Strict) -> None:
    model = opened(server, concurrency=3)
    server.seconds = 0.05
    server.arm()
    list(model.answer(samples(15)))
    assert server.most == 3
    slowly = opened(server, rate=20)
    server.arm()
    began = time.monotonic()
    list(slowly.answer(samples(11)))
    assert time.monotonic() - began >= 10 / 20


def test_sampling_stops_and_seeds_are_sent(server: Strict) -> None:
    model = opened(server)
    server.says = lambda prompt: " one\ntwo"
    server.arm()
    stops = ("\n", "Q", "R", "S", "T")
    drawn = samples(2, stop=stops, temperature=0.8, top_p=0.9, max_new_tokens=7)
    found = list(model.answer(drawn))
    assert {(c.text, c.finish) for c in found} == {(" one", "stop")}
    bodies = [body for _, _, body in server.asked]
    assert all(b["stop"] == list(stops[:4]) and b["max_tokens"] == 7 and b["temperature"] == 0.8 for b in bodies)
    assert len({b["seed"] for b in bodies}) == 2


def test_without_a_tokenizer_lengths_are_refused_and_not_guessed(server: Strict) -> None:
    with pytest.raises(UserError, match="add tokenizer=DIR or tokenizer=NAME"):
        opened(server).count("how many tokens")


def test_an_interrupt_does_not_wait_for_the_server(server: Strict) -> None:
    model = opened(server)
    server.arm(*[slow(20)] * 8)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without
    try:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            list(model.answer(samples(8)))
        assert time.monotonic() - began < 5
    finally:
        signal.signal(signal.SIGINT, before)
