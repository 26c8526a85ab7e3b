"""Questions with choices: their log probabilities from an echoed prompt, and what a generated text chose."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEAD = r"(?:(?:the )?(?:correct |final |best )?(?:answer|option|choice)(?: is)?\W*)?"


@dataclass(frozen=True, slots=True)
class Echo:
    """Tokens of a text as the server read it, each with its natural-log probability; the first has none."""

    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]


def echo(answer: Mapping[str, Any], text: str) -> Echo | None:
    """The part of `text`, the prompt, in an answer to `echo` and `logprobs` with one more token; None where the server
    gives none, or where its tokens do not show which of them are the prompt's."""
    choice = answer["choices"][0]
    given = choice.get("logprobs")
    if not isinstance(given, dict):
        return None
    tokens, values = given.get("tokens"), given.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        return None
    told = (answer.get("usage") or {}).get("prompt_tokens")
    size = _size(list(map(str, tokens)), told if isinstance(told, int) else len(tokens) - 1, text)
    if not 2 <= size <= len(tokens) or not all(isinstance(value, int | float) for value in values[1:size]):
        return None  # of what it generated alone
    return Echo(tuple(map(str, tokens[:size])), tuple(values[:size]))


def _size(tokens: Sequence[str], told: int, text: str) -> int:
    """How many of the tokens are the prompt's, of which the server counts `told`: some count a beginning of the text
    that they do not list, and then the last of so many is not the prompt's. 0 where it cannot be told."""
    if not 2 <= told <= len(tokens):
        return 0
    if "".join(tokens[: told - 1]) == text:
        return told - 1
    if told < len(tokens) or text.endswith(tokens[-1]):
        return told
    return told - 1 if text.endswith(tokens[-2]) else 0


def logprobs(prompt: Echo, wholes: Sequence[Echo]) -> tuple[float, ...] | None:
    """The sum of each choice, all from the same context: where a choice changes how the prompt's end is tokenized, the
    context of all ends before that place. None where prompt and choices share no token to start from."""
    start = min(len(prompt.tokens), *(min(_common(prompt, whole), len(whole.tokens) - 1) for whole in wholes))
    if start < 1:
        return None
    return tuple(sum(value or 0.0 for value in whole.logprobs[start:]) for whole in wholes)


def _common(a: Echo, b: Echo) -> int:
    """Tokens that two texts begin with alike."""
    alike = zip(a.tokens, b.tokens, strict=False)
    return next((i for i, (x, y) in enumerate(alike) if x != y), min(len(a.tokens), len(b.tokens)))


def instruction(choices: Sequence[str]) -> str:
    """What a chat is asked beside the question, since it would otherwise explain itself at length."""
    return "\n\nAnswer with one of these and nothing else: " + " | ".join(choice.strip() for choice in choices)


def room(choices: Sequence[str]) -> int:
    """Tokens in which any choice can be said, with a few words before it."""
    return 32 + max(len(choice.encode()) for choice in choices) // 2


def chosen(text: str, choices: Sequence[str]) -> str | None:
    """The choice that a generated text begins with, after no more than marks and "the answer is"; None: it is none.

    A single letter must stand alone: "A." is the choice A, and "A cat" is not.
    """
    for choice in sorted(choices, key=len, reverse=True):
        said = choice.strip()
        end = r"(?=\s*(?:$|[^\w\s'’-]|\n))" if len(said) == 1 else r"(?!\w)"
        if said and re.match(rf"\W*(?i:{LEAD}){re.escape(said)}{end}", text):
            return choice
    return None
