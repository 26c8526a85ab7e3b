"""Whether a server reads what lm_eval sends: lm_eval itself drops the server's count of tokens unread."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from evalsuite.errors import UserError

MEND = "give max_length=N as the server has it, and take another --out"
CHECKED, UNCHECKED = "checked", "as the server tells them, unchecked"  # what a run's record says of a chat's tokens
PROBES = ("How many?", "Zoë counted 31,415 apples:\n\tdef f(x): return x**2  # naïve café, 東京 How many?")
JOINED = 4  # tokens that may join where a text meets a template that is not known here
UNSEEN = "%s: a prompt that the server cuts would not be noticed: %s"
SILENT = "it tells no usage.prompt_tokens"
log = logging.getLogger(__name__)
_sent: ContextVar[Sequence[Any]] = ContextVar("sent", default=())  # of the request under way, in this thread or task


def watch(lm: Any) -> None:
    """Have an lm_eval TemplateAPI raise UserError where its server says that it read fewer tokens than it was sent, or
    gives the log probabilities of more or fewer than it was sent and made: it would sum the wrong ones."""
    call, later = lm.model_call, lm.amodel_call
    generations, logprobs = lm.parse_generations, lm.parse_logprobs
    silent = False

    def model_call(messages: Sequence[Any], **options: Any) -> Any:
        _sent.set(messages)
        return call(messages, **options)

    async def amodel_call(*, messages: Sequence[Any], **options: Any) -> Any:
        _sent.set(messages)
        return await later(messages=messages, **options)

    def parse_generations(outputs: Any, **options: Any) -> Any:
        nonlocal silent
        _whole(_listed(outputs))
        if not silent and _tokenized() and any(_read(output) is None for output in _listed(outputs)):
            silent = True
            log.warning(UNSEEN, lm.model, SILENT)
        return generations(outputs=outputs, **options)

    def parse_logprobs(outputs: Any, tokens: Sequence[Sequence[int]], **options: Any) -> Any:
        _whole(_listed(outputs))
        _each(_listed(outputs), tokens)
        return logprobs(outputs=outputs, tokens=tokens, **options)

    def payload(*args: Any, **options: Any) -> dict[str, Any]:  # an empty list of stops is an error to some servers
        return {name: value for name, value in made(*args, **options).items() if name != "stop" or value}

    made, lm._create_payload = lm._create_payload, payload
    lm.model_call, lm.amodel_call = model_call, amodel_call
    lm.parse_generations, lm.parse_logprobs = parse_generations, parse_logprobs


def hold(lm: Any, tokenizer: Any) -> tuple[str, int]:
    """Have a chat server's own counts held against those of `tokenizer`, and return CHECKED with how many tokens more
    it counts; or UNCHECKED and 0, with a line in the log, where there is nothing to hold: the server tells no count, or
    the tokenizer is `bytes`.

    The server is asked two short questions. What it counts beside the tokenizer, its template, has to be the same for
    both; every later prompt has to be read with as much. Where the template is not the tokenizer's own, up to four
    tokens may join with the text, and a cut of so few is not seen. Raises UserError where the server does not answer,
    and where the tokenizer is not the server's.
    """
    told = [_read(_probed(lm, text)) for text in PROBES]
    known = [count for count in told if count is not None]
    if tokenizer is bytes or len(known) < len(told):
        why = "the tokenizer is bytes" if tokenizer is bytes else SILENT
        log.warning(UNSEEN, lm.model, why)
        return UNCHECKED, 0
    ours = [len(chat_tokens(tokenizer, text)) for text in PROBES]
    more = known[0] - ours[0]
    if known[1] - ours[1] != more:
        raise UserError(
            f"the tokenizer makes {ours[0]} and {ours[1]} tokens of two texts of which {lm.model} reads {known[0]} and "
            f"{known[1]}: give tokenizer=... as the server has it, or tokenizer=bytes, by which no cut is noticed"
        )
    slack = 0 if abs(more) <= 1 else JOINED
    parse = lm.parse_generations

    def parse_generations(outputs: Any, **options: Any) -> Any:
        for output, sent in zip(_listed(outputs), _sent.get(), strict=True):
            (turn,) = json.loads(sent.prompt)
            expected, read = len(chat_tokens(tokenizer, turn["content"])) + more, _read(output)
            if read is None:
                raise UserError(
                    f"the server did not say how many of {expected} tokens it read, as it did before; {MEND}"
                )
            if read < expected - slack:
                raise UserError(
                    f"the server read {read} of {expected} tokens that it was sent: it cuts prompts; {MEND}"
                )
        return parse(outputs=outputs, **options)

    lm.parse_generations = parse_generations
    return CHECKED, more


def chat_tokens(tokenizer: Any, text: str) -> Sequence[Any]:
    """Tokens of one user turn, those of the tokenizer's chat template included where it has one."""
    if tokenizer is bytes:
        return text.encode()
    if not getattr(tokenizer, "chat_template", None):
        return tokenizer(text, verbose=False)["input_ids"]
    turns = [{"role": "user", "content": text}]
    made = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True)
    return made["input_ids"] if isinstance(made, Mapping) else made


def _probed(lm: Any, text: str) -> Mapping[str, Any]:
    """The answer to a short question, asked as often as lm_eval would ask."""
    from tenacity import retry, stop_after_attempt, wait_exponential

    wait = wait_exponential(multiplier=0.5, min=1, max=10)
    call = retry(stop=stop_after_attempt(lm.max_retries), wait=wait, reraise=True)(lm.model_call)
    sent = [lm.apply_chat_template([{"role": "user", "content": text}])]
    try:
        return dict(call(sent, generate=True, gen_kwargs={"max_gen_toks": 16, "until": [], "do_sample": False}))
    except Exception as error:  # of any library that a server is asked with
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{lm.model} does not answer a short question, {type(error).__name__}: {line}; check base_url, model, key"
        ) from error


def _read(output: Mapping[str, Any]) -> int | None:
    """Tokens of the prompt that a server says it read."""
    count = (output.get("usage") or {}).get("prompt_tokens")
    return count if isinstance(count, int) else None


def _listed(outputs: Any) -> list[Mapping[str, Any]]:
    return outputs if isinstance(outputs, list) else [outputs]


def _whole(outputs: Sequence[Mapping[str, Any]]) -> None:
    """Texts that the server tokenizes itself have no number of tokens to hold against its own."""
    sent = _sent.get()
    told = [_read(output) for output in outputs]
    read = [count for count in told if count is not None]
    if len(read) == len(told) and _tokenized():
        tokens = sum(map(len, sent))
        if sum(read) < tokens:
            raise UserError(f"the server read {sum(read)} of {tokens} tokens that it was sent: it cuts prompts; {MEND}")


def _tokenized() -> bool:
    """Whether tokens were sent, and no text or chat."""
    return all(isinstance(prompt, list) for prompt in _sent.get())


def _each(outputs: Sequence[Mapping[str, Any]], tokens: Sequence[Sequence[int]]) -> None:
    choices = [choice for output in outputs for choice in sorted(output["choices"], key=lambda each: each["index"])]
    for choice, prompt in zip(choices, tokens, strict=False):
        given = (choice.get("logprobs") or {}).get("token_logprobs")
        if given is not None and len(given) != len(prompt) + 1:
            raise UserError(
                f"the server gives log probabilities of {len(given)} tokens for {len(prompt)} that it was sent and one "
                f"more: it cuts prompts, or reads them otherwise; {MEND}"
            )
