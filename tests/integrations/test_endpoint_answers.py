"""Answers that are none, prompts that came back shorter, refusals in other clothes: each is its sample's error."""

import pytest

from evalsuite.errors import UserError
from evalsuite.integrations.endpoint import open_endpoint
from evalsuite.records import Sample
from strict_server import Strict


def opened(server: Strict, **more: object):
    given = {"base_url": server.url, "model": "wise", "patience": 5, **more}
    return open_endpoint(",".join(f"{name}={value}" for name, value in given.items()))


def samples(count: int, **fields: object) -> list[Sample]:
    return [Sample(f"t/{i}", "t", f"say this: w{i}", (f"w{i}",), **fields) for i in range(count)]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"content": None, "reasoning_content": "w0, I think"}, "the server gave no text, but reasoning_content"),
        ({"content": None, "refusal": "I cannot"}, "the server gave no text, but refusal"),
        ({"content": [{"type": "text", "text": "w0"}]}, "the server gave a list instead of a text"),
        ({"content": ""}, ""),
    ],
)
def test_what_is_no_text_is_no_answer(server: Strict, said: dict[str, object], error: str) -> None:
    """A list would be scored as the words that Python prints it in, and nothing as an empty answer."""
    model = opened(server, chat="true")
    server.says = lambda prompt: said
    (found,) = model.answer(samples(1))
    assert (found.text, found.error) == ("", error)


def test_an_echo_shows_a_cut_prompt_without_a_tokenizer(server: Strict) -> None:
    """The choices of a question whose beginning the server dropped were ranked after another question."""
    model = opened(server, concurrency=1)
    assert model.identity()["tokens"] == "as the server tells them, unchecked"
    assert model.identity()["choices"] == "log probabilities"
    server.cuts = 20
    short = Sample("t/short", "t", "is it so", ("yes",), choices=(" yes", " no"))
    long = Sample("t/long", "t", "word " * 40 + "is it so", ("yes",), choices=(" yes", " no"))
    found = {completion.sample_id: completion.error for completion in model.answer([short, long])}
    assert found["t/short"] == ""
    assert found["t/long"].startswith("the server sent ")
    assert "of 166 characters of the prompt back" in found["t/long"]
    server.cuts, server.strips = 0, True  # and one that drops blanks from tokens is not blamed
    assert [completion.error for completion in model.answer([short, long])] == ["", ""]


@pytest.mark.parametrize(
    "error", [{"message": "the prompt is too long"}, {"message": "no", "code": 422}, "prompt exceeds maximum context"]
)
def test_a_refusal_with_a_status_of_success_is_not_asked_again(server: Strict, error: object) -> None:
    """It would be refused until patience ends, and so would the same command's next try."""
    model = opened(server, concurrency=1)
    server.arm(lambda handler: handler.reply(200, {"error": error}))
    if isinstance(error, dict) and "code" in error:
        with pytest.raises(UserError, match=r"refused with HTTP 200: no$"):
            list(model.answer(samples(1)))
    else:
        first, second = model.answer(samples(2))
        assert first.error.startswith("the server refused the prompt: ")
        assert second.error == ""
    assert server.prompts.count("say this: w0") == 1


def test_a_prompt_that_is_given_no_choices_does_not_end_the_run(server: Strict) -> None:
    """It would end there again, whenever the same command goes on."""
    model = opened(server, concurrency=1)
    server.arm(lambda handler: handler.reply(200, {"choices": [], "model": server.calls_itself}))
    first, second = model.answer(samples(2))
    assert first.error.startswith("the server gave no choices")
    assert second.error == ""


@pytest.mark.parametrize(("finish", "wanted"), [("eos_token", "stop"), ("stop_sequence", "stop"), ("length", "length")])
def test_other_words_for_an_end(server: Strict, finish: str, wanted: str) -> None:
    server.finish = finish
    (found,) = opened(server).answer(samples(1))
    assert (found.finish, found.error) == (wanted, "")
