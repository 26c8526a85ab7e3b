"""Whether a server reads what lm_eval sends: lm_eval itself drops the server's count of tokens unread."""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from evalsuite.errors import UserError

MEND = "give max_length=N as the server has it, and take another --out"
_sent: ContextVar[Sequence[Any]] = ContextVar("sent", default=())  # of the request under way, in this thread or task


def watch(lm: Any) -> None:
    """Have an lm_eval TemplateAPI raise UserError where its server says that it read fewer tokens than it was sent, or
    gives the log probabilities of more or fewer than it was sent and made: it would sum the wrong ones."""
    call, later = lm.model_call, lm.amodel_call
    generations, logprobs = lm.parse_generations, lm.parse_logprobs

    def model_call(messages: Sequence[Any], **options: Any) -> Any:
        _sent.set(messages)
        return call(messages, **options)

    async def amodel_call(*, messages: Sequence[Any], **options: Any) -> Any:
        _sent.set(messages)
        return await later(messages=messages, **options)

    def parse_generations(outputs: Any, **options: Any) -> Any:
        _whole(_listed(outputs))
        return generations(outputs=outputs, **options)

    def parse_logprobs(outputs: Any, tokens: Sequence[Sequence[int]], **options: Any) -> Any:
        _whole(_listed(outputs))
        _each(_listed(outputs), tokens)
        return logprobs(outputs=outputs, tokens=tokens, **options)

    lm.model_call, lm.amodel_call = model_call, amodel_call
    lm.parse_generations, lm.parse_logprobs = parse_generations, parse_logprobs


def _listed(outputs: Any) -> list[Mapping[str, Any]]:
    return outputs if isinstance(outputs, list) else [outputs]


def _whole(outputs: Sequence[Mapping[str, Any]]) -> None:
    """Texts that the server tokenizes itself have no number of tokens to hold against its own."""
    sent = _sent.get()
    told = [(output.get("usage") or {}).get("prompt_tokens") for output in outputs]
    read = [count for count in told if isinstance(count, int)]
    if len(read) == len(told) and all(isinstance(prompt, list) for prompt in sent):
        tokens = sum(map(len, sent))
        if sum(read) < tokens:
            raise UserError(f"the server read {sum(read)} of {tokens} tokens that it was sent: it cuts prompts; {MEND}")


def _each(outputs: Sequence[Mapping[str, Any]], tokens: Sequence[Sequence[int]]) -> None:
    choices = [choice for output in outputs for choice in sorted(output["choices"], key=lambda each: each["index"])]
    for choice, prompt in zip(choices, tokens, strict=False):
        given = (choice.get("logprobs") or {}).get("token_logprobs")
        if given is not None and len(given) != len(prompt) + 1:
            raise UserError(
                f"the server gives log probabilities of {len(given)} tokens for {len(prompt)} that it was sent and one "
                f"more: it cuts prompts, or reads them otherwise; {MEND}"
            )
