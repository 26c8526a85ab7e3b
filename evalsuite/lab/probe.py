"""What a model can do so far: the tasks' own one-word questions, many read off one forward pass.

A question that begins another one, as `ask x next` begins `ask x next next`, is asked by the same row: a causal model
that is asked both answers the first at its last word.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evalsuite import plan
from evalsuite.errors import UserError
from evalsuite.models.modeling import EvalsuiteForCausalLM
from evalsuite.models.tokenizer import build_tokenizer

TOKENS = 65536  # of one forward pass


@dataclass(frozen=True, slots=True)
class Questions:
    """A request as `evalsuite run` takes it: tasks at these lengths and settings, so many questions a cell."""

    tasks: str
    limit: int
    lengths: tuple[int, ...] = ()
    settings: tuple[str, ...] = ()
    seed: int = 0

    def plan(self) -> plan.Plan:
        """Its plan in the terse wording."""
        selection = plan.select(
            self.tasks.split(","), lengths=self.lengths, limit=self.limit, seed=self.seed, settings=self.settings
        )
        return plan.make(selection, "terse")


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a question ends: its row, the position of its last word, what should follow and what may."""

    row: int
    position: int
    target: int
    choices: tuple[int, ...]
    cell: str


class Probe:
    """Questions as rows of tokens. Raises UserError for a question whose answer is not one word."""

    def __init__(self, questions: Iterable[Questions]) -> None:
        tokenizer = build_tokenizer(2**20)
        words = tokenizer.get_vocab()

        def encode(text: str) -> list[int]:
            ids: list[int] = tokenizer(text).input_ids
            return ids

        asked: list[tuple[list[int], int, tuple[int, ...], str]] = []
        for each in questions:
            for item, sample in each.plan().samples(lambda text: len(encode(text))):
                ends = [words.get(f"▁{word.strip()}") for word in (sample.target[0], *sample.choices)]
                if None in ends or sample.max_new_tokens != 1:
                    raise UserError(f"{sample.id} has an answer of more than one word: no probe can ask it")
                target, *choices = (end for end in ends if end is not None)
                asked.append((encode(sample.text), target, tuple(choices), plan.describe(item.cell)))
        self.rows: list[list[int]] = []
        self.spots: list[_Spot] = []
        for ids, goal, among, cell in sorted(asked, key=lambda each: each[0], reverse=True):
            if not (self.rows and self.rows[-1][: len(ids)] == ids):  # sorted, so that a beginning follows its whole
                self.rows.append(ids)
            self.spots.append(_Spot(len(self.rows) - 1, len(ids) - 1, goal, among, cell))

    @torch.no_grad()
    def measure(self, model: EvalsuiteForCausalLM) -> dict[str, float]:
        """Accuracy of each cell, `multihop.graph (facts=32, hops=2, ...)` -> share of right answers."""
        right: dict[str, list[bool]] = {}
        training = model.training
        model.eval()
        try:
            for rows in self._batches():
                hidden = model.model(_padded([self.rows[i] for i in rows], model.device))
                spots = [spot for spot in self.spots if spot.row in rows]
                at = torch.tensor([[spot.row - rows.start, spot.position] for spot in spots], device=model.device)
                logits = model.lm_head(hidden[at[:, 0], at[:, 1]]).float().cpu()
                for spot, row in zip(spots, logits, strict=True):
                    said = spot.choices[int(row[list(spot.choices)].argmax())] if spot.choices else int(row.argmax())
                    right.setdefault(spot.cell, []).append(said == spot.target)
        finally:
            model.train(training)
        return {cell: sum(each) / len(each) for cell, each in sorted(right.items())}

    def _batches(self) -> list[range]:
        """Rows in their order, as many as TOKENS holds."""
        batches, start = [], 0
        while start < len(self.rows):
            end, longest = start, 0
            while end < len(self.rows) and (end - start + 1) * max(longest, len(self.rows[end])) <= max(
                TOKENS, len(self.rows[start])
            ):
                longest = max(longest, len(self.rows[end]))
                end += 1
            batches.append(range(start, end))
            start = end
        return batches


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Token ids [rows, longest], padding behind: nothing that a causal model answers looks there."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for each, row in zip(ids, rows, strict=True):
        each[: len(row)] = torch.tensor(row)
    return ids.to(device)


def solved(history: Sequence[dict[str, object]], cell: str, level: float = 0.9) -> int | None:
    """Tokens trained until the accuracy of a cell reached `level` and stayed there; None where it never did."""
    tokens: int | None = None
    for line in history:
        probe = line.get("probe")
        if not isinstance(probe, dict) or cell not in probe:
            continue
        if probe[cell] < level:
            tokens = None
        elif tokens is None:
            tokens = int(str(line["tokens"]))
    return tokens
