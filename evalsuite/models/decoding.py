"""From logits to text: the choice of the next token, stop strings, and the end of a sequence."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evalsuite.models.mixers import wide


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, else drawn among the `top_k` (0: all) likeliest tokens
    that hold the first `top_p` of the probability (Holtzman et al. 2020)."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError("sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1")

    def generator(self, key: str) -> random.Random:
        """Draws that depend on the seed and the sequence's own key, not on its companions in a batch."""
        return random.Random(f"{self.seed}/{key}")

    def pick(self, logits: Tensor, draws: list[random.Random]) -> list[int]:
        """The next token of each of `logits [N, vocab]`."""
        if self.temperature == 0:
            return logits.argmax(-1).tolist()
        ordered, tokens = (logits.double() / self.temperature).sort(dim=-1, descending=True, stable=True)
        if self.top_k:
            ordered[:, self.top_k :] = -torch.inf
        probs = ordered.softmax(-1)
        before = probs.cumsum(-1) - probs
        probs = probs.masked_fill(before >= self.top_p, 0)
        mass = probs.cumsum(-1)
        u = torch.tensor([draw.random() for draw in draws], dtype=mass.dtype, device=mass.device)[:, None]
        place = torch.searchsorted(mass, u * mass[:, -1:], right=True)
        last = (probs > 0).sum(-1, keepdim=True) - 1  # u * total can round up to the total
        return tokens.gather(-1, place.minimum(last))[:, 0].tolist()


def log_probs(logits: Tensor) -> Tensor:
    """Natural-log probabilities of logits `[N, vocab]`, in fp32 or wider."""
    return wide(logits).log_softmax(-1)


class Detokenizer:
    """Text of generated tokens as it stands behind a prompt."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special = frozenset(tokenizer.all_special_ids)
        # many decoders drop the space at the beginning of a text: behind an anchor it stays
        self.anchor: list[int] = tokenizer.encode("x", add_special_tokens=False)
        self.skip = len(self._decode(self.anchor))

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def after(self, ids: list[int]) -> str:
        """The text with the space that joins it to the prompt."""
        return self._decode(self.anchor + ids)[self.skip :]

    def cut(self, ids: list[int], stops: tuple[str, ...]) -> tuple[str, bool]:
        """The text as the tokenizer decodes it, up to the first stop string; and whether there was one."""
        ids = [i for i in ids if i not in self.special]
        joined = self.after(ids)
        found = [place for stop in stops if (place := joined.find(stop)) >= 0]
        dropped = len(joined) - len(self._decode(ids))
        if joined[dropped : dropped + 1].isspace():
            dropped = 0  # an indentation, of which no decoder's rule about the first space may take a part
        return joined[dropped : min(found)] if found else joined[dropped:], bool(found)

    def reached(self, ids: list[int], stops: tuple[str, ...]) -> bool:
        """Whether the last token completed a stop string. Reads only as many tokens as a stop string can span."""
        if not stops:
            return False
        span = 4 * max(map(len, stops)) + 8  # a character takes up to four byte tokens
        tail = self.after([i for i in ids[-2 * span :] if i not in self.special][-span:])
        return any(stop in tail for stop in stops) and self.cut(ids, stops)[1]


@dataclass(slots=True)
class Answer:
    """What was generated: all tokens, eos included, and the text before eos or a stop string."""

    tokens: list[int]
    text: str
    finish: str  # "stop" or "length"


class Writer:
    """One sequence that is being generated."""

    def __init__(self, limit: int, stops: tuple[str, ...], draws: random.Random) -> None:
        self.limit, self.draws = limit, draws
        self.stops = tuple(stop for stop in stops if stop)
        self.tokens: list[int] = []
        self.ended = False

    def push(self, token: int, eos: frozenset[int], text: Detokenizer) -> bool:
        """Take the next token; whether there should be another."""
        self.tokens.append(token)
        self.ended = token in eos or text.reached(self.tokens, self.stops)
        return not self.ended and len(self.tokens) < self.limit

    def answer(self, text: Detokenizer) -> Answer:
        """What came of it."""
        return Answer(self.tokens, text.cut(self.tokens, self.stops)[0], "stop" if self.ended else "length")
