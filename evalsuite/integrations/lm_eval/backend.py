"""A model of lm_eval behind our Model protocol: `--model hf:pretrained=...`, `vllm:...`, `local-completions:...`."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook, TemplateLM, hash_args
from lm_eval.models.api_models import LMEVAL_MODEL_NONE_ANSWER_PLACEHOLDER, TemplateAPI

from evalsuite.errors import UserError
from evalsuite.integrations.lm_eval.watching import chat_tokens
from evalsuite.models.base import Speed
from evalsuite.records import Completion, Sample

NO_RANKS = "the backend gives no log probabilities, by which choices are ranked"


class Kept(CacheHook):
    """What a backend has answered so far, so that an error takes nothing away that was computed."""

    def __init__(self) -> None:
        super().__init__(None)
        self.found: dict[str, Any] = {}

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.found[hash_args(attr, req)] = res

    def get(self, attr: str, arguments: tuple[Any, ...]) -> Any:
        """The answer to a request; None if there is none."""
        return self.found.get(hash_args(attr, arguments))


class Backend:
    """Answers samples with an lm_eval model, `size` of them at a time.

    Nothing is cut: tokens are counted as the backend counts them before it is asked, and what does not fit `context` is
    a completion with an error; a server that says it read less than it was sent ends the run. Choices are ranked by
    `loglikelihood`; a chat server has no log probabilities, and there they are errors too. Whether an answer ended or
    was cut by its limit is read off its number of tokens.
    """

    def __init__(  # noqa: PLR0913 - what the arguments of a backend come to
        self,
        name: str,
        lm: LM,
        *,
        context: int,
        identity: Mapping[str, Any],
        wording: str = "natural",
        tokenizer: Any = None,
        chat: str = "",
        size: int = 16,
        swapped: Any = None,
        ranks: tuple[int, str] = (1, ""),
        beside: int = 0,
    ) -> None:
        assert chat in ("", "template", "server")
        self.name, self.context, self.wording, self.speed = name, context, wording, Speed()
        self.lm, self.tokenizer, self.chat, self.size, self.swapped = lm, tokenizer, chat, size, swapped
        self.together, self.share = ranks  # ranks that hold one model, and in words what this one holds
        self.beside = beside  # tokens that a chat server counts beside ours: its template's
        self._identity = dict(identity)
        self.kept = Kept()
        lm.set_cache_hook(self.kept)

    def identity(self) -> Mapping[str, Any]:
        """Backend, arguments, and hashes of what is local."""
        return self._identity

    def versions(self) -> Mapping[str, str]:
        """lm_eval's, which is not compared on a resume."""
        return {"lm_eval": version("lm_eval")}

    def ran(self) -> Mapping[str, list[str]]:
        """Operators of ours that computed something, where they were swapped in; and ranks that held one model."""
        found = {} if self.swapped is None else {operator: ["evalsuite"] for _, operator in sorted(self.swapped.calls)}
        if self.together > 1:
            found["tensor parallel"] = [self.share]
        return found

    def count(self, text: str) -> int:
        """Tokens of a prompt as the backend sends it, those of a chat template included."""
        return len(self._tokens(self._prompt(text, ""))) + self.beside

    def cost(self, length: int) -> Mapping[str, int]:
        """Unknown."""
        return {}

    def answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
        """One completion for every sample; those that cannot be asked first. Raises UserError where the backend fails,
        after what it had answered."""
        ranked: list[tuple[Sample, int]] = []
        written: list[tuple[Sample, int]] = []
        for sample in samples:
            tokens, error = self._fits(sample)
            if error:
                yield Completion(sample.id, "", tokens, finish="error", error=error)
            else:
                (ranked if sample.choices else written).append((sample, tokens))
        for start in range(0, len(ranked), self.size):
            yield from self._rank(ranked[start : start + self.size])
        own_draws = not isinstance(self.lm, TemplateAPI)
        alone = [
            pair for pair in written if own_draws and pair[0].temperature
        ]  # torch's generator serves one at a time
        rest = [pair for pair in written if not (own_draws and pair[0].temperature)]
        for start in range(0, len(rest), self.size):
            yield from self._write(rest[start : start + self.size])
        for pair in alone:
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                torch.manual_seed(_seed(pair[0]))
                yield from self._write([pair])

    def _rank(self, part: Sequence[tuple[Sample, int]]) -> Iterator[Completion]:
        pairs = [(self._sent(sample), choice) for sample, _ in part for choice in sample.choices]
        started = time.perf_counter()
        answers, failure = self._call("loglikelihood", pairs)
        self.speed.prefill_seconds += time.perf_counter() - started
        if isinstance(failure, NotImplementedError):
            yield from (Completion(s.id, "", tokens, finish="error", error=NO_RANKS) for s, tokens in part)
            return
        at = 0
        for sample, tokens in part:
            own = answers[at : at + len(sample.choices)]
            at += len(sample.choices)
            if all(answer is not None for answer in own):
                values = tuple(float(value) for value, _ in own)
                best = max(range(len(values)), key=values.__getitem__)
                self.speed.prefill_tokens += tokens
                yield Completion(sample.id, sample.choices[best], tokens, choice_logprobs=values)
        self._after(failure)

    def _write(self, part: Sequence[tuple[Sample, int]]) -> Iterator[Completion]:
        started = time.perf_counter()
        pairs = [(self._sent(sample), self._generation(sample)) for sample, _ in part]
        answers, failure = self._call("generate_until", pairs)
        self.speed.decode_seconds += time.perf_counter() - started
        for (sample, tokens), text in zip(part, answers, strict=True):
            if text is None:
                continue
            # lm_eval writes it where a server's content is null; a model that ends at once has answered, and wrongly
            if text == LMEVAL_MODEL_NONE_ANSWER_PLACEHOLDER and isinstance(self.lm, TemplateAPI):
                yield Completion(sample.id, "", tokens, finish="error", error="the server gave no text")
                continue
            places = [place for stop in sample.stop if stop and (place := text.find(stop)) >= 0]
            text = text[: min(places)] if places else text  # noqa: PLW2901 - some servers take four stop strings alone
            new = len(self._tokens(text, special=False)) if text else 0
            self.speed.decode_tokens += new
            finish = "length" if new >= sample.max_new_tokens else "stop"
            yield Completion(sample.id, text, tokens, new, finish=finish)
        self._after(failure)

    def _call(self, attr: str, pairs: Sequence[tuple[Any, ...]]) -> tuple[list[Any], BaseException | None]:
        """The answers to requests, None where an error came before."""
        self.kept.found.clear()
        requests = [
            Instance(attr, {}, pair, 0, (self.name, i, 1))  # type: ignore[arg-type, unused-ignore]
            for i, pair in enumerate(pairs)
        ]
        try:
            return list(getattr(self.lm, attr)(requests, disable_tqdm=True)), None
        except (Exception, KeyboardInterrupt) as error:
            return [self.kept.get(attr, pair) for pair in pairs], error

    def _after(self, failure: BaseException | None) -> None:
        """Once what was answered is handed over: the error that ended it, or a layer that ours never computed."""
        if isinstance(failure, KeyboardInterrupt | UserError):
            raise failure
        if failure is not None:
            reason = f"{type(failure).__name__}: {(str(failure).strip() or 'no reason given').splitlines()[0][:200]}"
            raise UserError(
                f"{self.name} failed, {reason}; what was answered is stored and the same command goes on"
            ) from failure
        if self.swapped is not None:
            ran = {layer for layer, _ in self.swapped.calls}
            idle = sorted({row["layer"] for row in self.swapped.layers if row["operators"]} - ran)
            if idle:
                raise UserError(
                    f"--kernels evalsuite: layers {', '.join(map(str, idle))} of {self.name} ran without our "
                    "operators; leave --kernels out, or report the model's architecture"
                )

    def _prompt(self, prompt: str, prefix: str) -> str:
        """The text that the model reads, as far as it is known here."""
        if self.chat != "template":
            return prompt + prefix
        turns = [{"role": "user", "content": prompt}]
        turns += [{"role": "assistant", "content": prefix}] if prefix else []
        return self.lm.apply_chat_template(turns, add_generation_prompt=not prefix)

    def _sent(self, sample: Sample) -> Any:
        """The context of a request; a chat server gets one user turn, the answer's beginning at its end."""
        if self.chat == "server":
            return self.lm.apply_chat_template([{"role": "user", "content": sample.text}])
        return self._prompt(sample.prompt, sample.answer_prefix)

    def _generation(self, sample: Sample) -> dict[str, Any]:
        given: dict[str, Any] = {
            "until": list(sample.stop),
            "max_gen_toks": sample.max_new_tokens,
            "do_sample": sample.temperature > 0,
        }
        if sample.temperature:
            given |= {"temperature": sample.temperature, "top_p": sample.top_p}
            if isinstance(self.lm, TemplateAPI):  # it sends one seed with every request, and all draws would be one
                given["seed"] = _seed(sample)
        return given

    def _tokens(self, text: str, *, special: bool = True) -> Sequence[Any]:
        """Tokens as the backend makes them, or with the tokenizer that was named for counting."""
        if self.tokenizer is bytes:
            return text.encode()
        if self.tokenizer is not None:
            if special and self.chat == "server":
                return chat_tokens(self.tokenizer, text)
            return self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return self.lm.tok_encode(text) if special else self.lm.tok_encode(text, add_special_tokens=False)

    def _fits(self, sample: Sample) -> tuple[int, str]:
        """Tokens of the prompt, and why the sample cannot be asked."""
        text = self._prompt(sample.prompt, sample.answer_prefix)
        tokens = len(self._tokens(text)) + self.beside
        pairs = bool(sample.choices) and isinstance(self.lm, TemplateLM) and self.tokenizer is None
        if not tokens and not (pairs and not text):
            return 0, "the prompt has no tokens"
        if not sample.choices:
            return tokens, self._room(tokens, sample.max_new_tokens)
        if self.chat == "server":
            return tokens, NO_RANKS
        longest = 0
        for choice in sample.choices:
            if pairs:
                context, continuation = self._pair(text, choice)
                if not (context and continuation):
                    return tokens, f"the choice {choice!r} adds no token to the prompt, or has none before it"
                longest = max(longest, len(context) + len(continuation) - tokens)
            else:
                longest = max(longest, len(self._tokens(text + choice)) - tokens)
        return tokens, self._room(tokens, longest)

    def _pair(self, text: str, choice: str) -> tuple[Sequence[int], Sequence[int]]:
        """Tokens of prompt and choice as lm_eval tells them apart; an empty prompt is its one token for that."""
        if text:
            found: tuple[Sequence[int], Sequence[int]] = self.lm._encode_pair(text, choice)
            return found
        return [self.lm.prefix_token_id], self.lm.tok_encode(choice, add_special_tokens=False)

    def _room(self, prompt: int, new: int) -> str:
        return f"prompt of {prompt} tokens + {new} new > context {self.context}" if prompt + new > self.context else ""


def _seed(sample: Sample) -> int:
    """What a sample's draws depend on, besides the model: its id."""
    return int.from_bytes(hashlib.sha256(sample.id.encode()).digest()[:4]) >> 1
