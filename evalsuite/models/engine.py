"""The engine: packed prefill in chunks, shared prefixes, cached decoding and log-likelihoods, without a pad token."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evalsuite.errors import UserError
from evalsuite.models.base import Speed
from evalsuite.models.batching import Group, Tokens, capacity, share, slices
from evalsuite.models.cache import HybridCache
from evalsuite.models.decoding import Answer, Detokenizer, Sampling, Writer, log_probs
from evalsuite.models.mixers import wide
from evalsuite.models.modeling import EvalsuiteForCausalLM

HEAD_ROWS = 256  # positions that meet the vocabulary at once


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the engine does at once. None of these changes a result."""

    tokens: int = 8192  # prompt tokens of one forward pass
    memory: int = 2**30  # bytes that the caches of one batch may take
    share: int = 32  # tokens that prompts must have in common to be prefilled once; 0: never


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt to continue. With a seed, `key` decides the draws."""

    prompt: Tokens
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    key: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """A context and the continuations, none of them empty, whose log-likelihoods are wanted."""

    context: Tokens
    continuations: Sequence[Tokens]


class Engine:
    """Runs one model. `exact_head` computes the logits in fp32 whatever the weights' dtype; `stepwise` reads prompts
    token by token too, as in decoding."""

    def __init__(
        self,
        model: EvalsuiteForCausalLM,
        tokenizer: Any,
        limits: Limits | None = None,
        *,
        exact_head: bool = False,
        stepwise: bool = False,
    ) -> None:
        self.model, self.limits, self.speed = model.eval(), limits or Limits(), Speed()
        assert self.limits.tokens > 0
        self.stepwise = stepwise
        if stepwise:
            self.limits = replace(self.limits, share=0)
        self.text = Detokenizer(tokenizer)
        ends = model.config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self.eos = frozenset(i for i in (*ends, tokenizer.eos_token_id) if i is not None)
        self.exact = wide(model.lm_head.weight.detach()) if exact_head else None

    def generate(self, jobs: Sequence[Job], sampling: Sampling | None = None) -> Iterator[tuple[int, Answer]]:
        """The answer to every job with its index, batch after batch, the longest first."""
        for i, job in enumerate(jobs):
            if job.max_new_tokens <= 0:
                yield i, Answer([], "", "length")
        todo = [i for i, job in enumerate(jobs) if job.max_new_tokens > 0]
        prompts = [jobs[i].prompt for i in todo]
        ends = [len(jobs[i].prompt) + jobs[i].max_new_tokens for i in todo]
        for batch in self._batches(prompts, ends, [1] * len(todo)):
            part = [[jobs[todo[i]] for i in group.members] for group in batch]
            answers = self._decode(part, [group.shared for group in batch], sampling or Sampling())
            yield from zip([todo[i] for group in batch for i in group.members], answers, strict=True)

    def score(self, asks: Sequence[Ask]) -> Iterator[tuple[int, list[float]]]:
        """For every ask, with its index, the summed natural-log probability of each continuation after the context."""
        for i, judged in self.judge(asks):
            yield i, [value for value, _ in judged]

    def judge(self, asks: Sequence[Ask]) -> Iterator[tuple[int, list[tuple[float, bool]]]]:
        """`score`, and beside each sum whether greedy decoding would write this continuation."""
        assert all(continuation for ask in asks for continuation in ask.continuations)
        ends = [len(ask.context) + max(map(len, ask.continuations), default=0) for ask in asks]
        # a continuation of several tokens needs a copy of the context's cache
        rows = [1 + sum(len(c) > 1 for c in ask.continuations) for ask in asks]
        for batch in self._batches([ask.context for ask in asks], ends, rows):
            part = [[asks[i] for i in group.members] for group in batch]
            scores = self._score(part, [group.shared for group in batch])
            yield from zip([i for group in batch for i in group.members], scores, strict=True)

    def size(self, length: int) -> int:
        """Bytes that one sequence of `length` tokens keeps."""
        return sum(sum(row.values()) for row in self.model.state_bytes(length))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits `[N, vocab]` of hidden states `[N, hidden]`. Raises UserError where they are not finite."""
        logits = self.model.lm_head(hidden) if self.exact is None else F.linear(hidden.to(self.exact.dtype), self.exact)
        if not bool(logits.isfinite().all()):
            raise UserError("the model's logits are not finite; its checkpoint is damaged or overflows in this dtype")
        return logits

    def _batches(self, prompts: Sequence[Tokens], ends: list[int], rows: list[int]) -> list[list[Group]]:
        assert all(prompts), "an empty prompt has no last token"
        groups = [Group(0, (i,)) for i in range(len(prompts))]
        if self.limits.share:
            groups = share(prompts, self.limits.share)
        return slices(groups, ends, rows, self.size, self.limits.memory)

    @torch.inference_mode()
    def _decode(self, part: list[list[Job]], shared: list[int], sampling: Sampling) -> list[Answer]:
        jobs = [job for group in part for job in group]
        writers = [Writer(job.max_new_tokens, job.stop, sampling.generator(job.key)) for job in jobs]
        room = max(len(job.prompt) + job.max_new_tokens for job in jobs)
        with self._timed("prefill"):
            cache, hidden = self._prefill([[job.prompt for job in group] for group in part], shared, room)
        live = writers
        with self._timed("decode"):
            while True:
                tokens = sampling.pick(self._logits(hidden), [writer.draws for writer in live])
                goes_on = [w.push(token, self.eos, self.text) for w, token in zip(live, tokens, strict=True)]
                keep = [i for i, more in enumerate(goes_on) if more]
                if not keep:
                    break
                if len(keep) < len(live):
                    cache.select(self._tensor(keep))
                    live = [live[i] for i in keep]
                step = self._tensor([tokens[i] for i in keep])[:, None]
                hidden = self.model.model(step, cache=cache)[:, 0]
                self.speed.decode_tokens += len(keep)
        return [writer.answer(self.text) for writer in writers]

    @torch.inference_mode()
    def _score(self, part: list[list[Ask]], shared: list[int]) -> list[list[tuple[float, bool]]]:
        asks = [ask for group in part for ask in group]
        with self._timed("prefill"):
            contexts = [[ask.context for ask in group] for group in part]
            cache, hidden = self._prefill(contexts, shared, max(len(ask.context) for ask in asks))
            sums = self._pick_out(hidden, [[c[0] for c in ask.continuations] for ask in asks])
            longer = [(i, j) for i, ask in enumerate(asks) for j, c in enumerate(ask.continuations) if len(c) > 1]
            ends = [len(asks[i].context) + len(asks[i].continuations[j]) for i, j in longer]
            count = capacity(self.size(max(ends, default=1)), self.limits.memory)
            for start in range(0, len(longer), count):
                chosen = longer[start : start + count]
                rest = [asks[i].continuations[j] for i, j in chosen]
                fork = cache.fork(self._tensor([i for i, _ in chosen]))
                hidden = self._feed(fork, [c[:-1] for c in rest], [len(c) - 1 for c in rest])
                values = self._pick_out(hidden, [[token] for c in rest for token in c[1:]])
                bounds = [0, *accumulate(len(c) - 1 for c in rest)]
                for (i, j), a, b in zip(chosen, bounds, bounds[1:], strict=False):
                    total, greedy = sums[i][j]
                    total += sum(value for ((value, _),) in values[a:b])
                    sums[i][j] = total, greedy and all(best for ((_, best),) in values[a:b])
        return sums

    def _prefill(self, prompts: list[list[Tokens]], shared: list[int], room: int) -> tuple[HybridCache, Tensor]:
        """A cache of every prompt, with room for `room` tokens, and the hidden states `[N, hidden]` of their ends."""
        cache = self.model.model.new_cache(len(prompts))
        if any(shared):
            self._feed(cache, [group[0][:s] for group, s in zip(prompts, shared, strict=True)], [0] * len(prompts))
            cache.select(self._tensor([row for row, group in enumerate(prompts) for _ in group]))
        cache.reserve(room)
        tails = [prompt[s:] for group, s in zip(prompts, shared, strict=True) for prompt in group]
        return cache, self._feed(cache, tails, [1] * len(tails))

    def _feed(self, cache: HybridCache, pieces: Sequence[Tokens], wanted: list[int]) -> Tensor:
        """Append to each sequence of the cache its piece, `limits.tokens` at a time; hidden states `[sum(wanted),
        hidden]` of the last `wanted` tokens of each piece."""
        if self.stepwise:
            return self._step(cache, pieces, wanted)
        out, bounds = [], [0, *accumulate(map(len, pieces))]
        for start in range(0, bounds[-1], self.limits.tokens):
            stop = min(start + self.limits.tokens, bounds[-1])
            spans = [(max(a, start), min(b, stop)) for a, b in pairwise(bounds)]
            takes = [max(0, b - a) for a, b in spans]
            ids = [
                token
                for piece, a, (c, d) in zip(pieces, bounds, spans, strict=False)
                if c < d
                for token in piece[c - a : d - a]
            ]
            cu_seqlens = torch.tensor([0, *accumulate(takes)])
            hidden = self.model.model(self._tensor(ids)[None], cu_seqlens=cu_seqlens, cache=cache)[0]
            for (c, d), end, want in zip(spans, bounds[1:], wanted, strict=True):
                first = max(c, end - want)
                if first < d:
                    out.append(hidden[first - start : d - start])
            self.speed.prefill_tokens += stop - start
        return torch.cat(out) if out else self.model.lm_head.weight.new_zeros(0, self.model.config.hidden_size)

    def _step(self, cache: HybridCache, pieces: Sequence[Tokens], wanted: list[int]) -> Tensor:
        """`_feed`, one token of every sequence at a time. A sequence that has ended repeats its last token, and is put
        back: what it writes in its cache stands where the next token will."""
        assert all(pieces), "a state is kept from the first token on"
        lengths = self._tensor([len(piece) for piece in pieces])
        kept: list[list[Tensor]] = [[] for _ in pieces]
        for at in range(max(map(len, pieces))):
            goes_on, before = lengths > at, cache.snapshot()
            step = self._tensor([piece[min(at, len(piece) - 1)] for piece in pieces])[:, None]
            hidden = self.model.model(step, cache=cache)[:, 0]
            cache.put_back(before, ~goes_on)
            for row, (piece, want) in enumerate(zip(pieces, wanted, strict=True)):
                if len(piece) - want <= at < len(piece):
                    kept[row].append(hidden[row])
        self.speed.prefill_tokens += sum(map(len, pieces))
        return torch.stack([h for row in kept for h in row])

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits `[N, vocab]` of the sequences of one batch."""
        return torch.cat([self.head(block) for block in hidden.split(HEAD_ROWS)])

    def _pick_out(self, hidden: Tensor, tokens: list[list[int]]) -> list[list[tuple[float, bool]]]:
        """The log-probabilities of `tokens[i]` at `hidden[i]`, and whether each is the likeliest; the vocabulary of
        HEAD_ROWS positions at a time."""
        out = []
        for start in range(0, len(tokens), HEAD_ROWS):
            block = tokens[start : start + HEAD_ROWS]
            values = log_probs(self.head(hidden[start : start + HEAD_ROWS]))
            best = values.argmax(-1).tolist()
            rows = [i for i, row in enumerate(block) for _ in row]
            flat = iter(values[self._tensor(rows), self._tensor([t for row in block for t in row])].tolist())
            out += [[(next(flat), token == first) for token in row] for row, first in zip(block, best, strict=True)]
        return out

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.model.device)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            if self.model.device.type == "cuda":
                torch.cuda.synchronize()
            name = f"{phase}_seconds"
            setattr(self.speed, name, getattr(self.speed, name) + time.perf_counter() - began)
