"""The Model protocol: what the runner needs of anything that answers questions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from evalsuite.records import Completion, Sample


@dataclass(slots=True)
class Speed:
    """Work done so far, for tokens per second; the runner takes differences."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0


@runtime_checkable
class Model(Protocol):
    """Answers samples. A plugin in the entry-point group `evalsuite.models` is a callable `(args: str) -> Model`.

    It may also have `versions()`, names and versions of what computes, and `ran()`, what computed each operator so far:
    both go into the run's record.
    """

    name: str
    context: int  # tokens of prompt and answer that fit
    wording: str  # "natural", or "terse" for models trained on the closed lexicon
    speed: Speed

    def identity(self) -> Mapping[str, Any]:
        """What makes two models the same: weights, tokenizer, dtype, kernels. Plain JSON; a resume compares it."""
        ...

    def count(self, text: str) -> int:
        """Tokens that a prompt costs, special tokens included."""
        ...

    def cost(self, length: int) -> Mapping[str, int]:
        """Bytes that a sequence of `length` tokens keeps: {"kv": ..., "index": ..., "state": ...}; empty if unknown."""
        ...

    def answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
        """One completion for every sample, in any order, drawn at the sample's own temperature. A prompt that does not
        fit raises no error: its completion has `error` set, and nothing is ever cut in silence."""
        ...
