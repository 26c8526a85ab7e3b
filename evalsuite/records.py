"""The three records that flow through everything: Sample -> Completion -> Score."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Facet = str | int | float
Facets = Mapping[str, Facet]


@dataclass(frozen=True, slots=True)
class Sample:
    """One question, complete: nothing else is needed to ask it or to score it.

    `prompt` is the user's turn and `answer_prefix` the beginning of the answer; a plain language model reads them
    joined. With `choices`, the answer is the choice of highest log-likelihood; without, it is generated until one of
    `stop` or `max_new_tokens`: greedily at temperature 0, else drawn by a generator that depends on `id`. In `meta`,
    "walk" holds the names on the way to the answer, from the one asked about on: rows keep it, the report shows it.
    """

    id: str  # "multihop/graph/2048/facts=32,hops=4/17": stable for ever, whatever --limit or task order
    task: str  # "multihop.graph"
    prompt: str
    target: tuple[str, ...]  # accepted answers
    answer_prefix: str = ""
    choices: tuple[str, ...] = ()  # non-empty: scored by log-likelihood over these, joined to the text as they are
    cluster: str = ""  # samples that share a source are not independent
    facets: Facets = field(default_factory=dict)  # length, hops, facts, depth, order ... columns, never metric names
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)  # what the scorer needs beside the target; plain JSON
    temperature: float = 0.0
    top_p: float = 1.0  # drawn among the likeliest tokens that hold so much of the probability

    @property
    def text(self) -> str:
        """What a plain language model reads."""
        return self.prompt + self.answer_prefix

    @property
    def prompt_hash(self) -> str:
        """Identity of the question's bytes, 16 hex digits: two runs are paired only where it agrees."""
        parts = (self.prompt, self.answer_prefix, *self.choices)
        return hashlib.blake2b("\x00".join(parts).encode(errors="surrogatepass"), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model answered to one sample."""

    sample_id: str
    text: str  # the generated answer, or the chosen choice
    prompt_tokens: int
    completion_tokens: int = 0
    choice_logprobs: tuple[float, ...] = ()  # natural log, summed over the choice's tokens
    finish: str = "stop"  # "stop", "length" (cut by max_new_tokens) or "error"
    error: str = ""  # one line; the sample then counts as unanswered, never as dropped


@dataclass(frozen=True, slots=True)
class Score:
    """How good one completion is: `value` in [0, 1], the answer as the scorer read it, and further columns."""

    sample_id: str
    value: float
    answer: str = ""
    detail: Facets = field(default_factory=dict)
