"""The language model of this package behind the Model protocol."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedTokenizerFast

from evalsuite.errors import UserError, unknown
from evalsuite.models import loading
from evalsuite.models.batching import common_prefix
from evalsuite.models.decoding import Sampling
from evalsuite.models.engine import Ask, Engine, Job, Limits
from evalsuite.models.modeling import EvalsuiteForCausalLM
from evalsuite.records import Completion, Sample
from evalsuite_kernels import record
from evalsuite_kernels.sparse.api import UNIT

Found = TypeVar("Found")
KERNELS = (*record.IMPLEMENTATIONS, "recurrent")  # "recurrent": each token is a step of decoding, prompts too


class OwnModel:
    """A model and its tokenizer, answering samples. `weights` is a hash of the weights, computed where not given.

    `kernels` says what computes: one of KERNELS. Raises UserError where that cannot run.
    """

    def __init__(
        self,
        name: str,
        model: EvalsuiteForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        *,
        wording: str = "terse",
        weights: str = "",
        limits: Limits | None = None,
        sampling: Sampling | None = None,
        kernels: str = "auto",
    ) -> None:
        self.name, self.wording, self.kernels = name, wording, _checked(kernels, model)
        self.context: int = model.config.max_position_embeddings
        self.model, self.tokenizer = model, tokenizer
        self.sampling = sampling or Sampling()
        self.engine = Engine(
            model, tokenizer, limits,
            exact_head=model.dtype in (torch.bfloat16, torch.float16), stepwise=kernels == "recurrent",
        )  # fmt: skip
        self.speed = self.engine.speed  # tokens that really went through the model: a shared prefix counts once
        self.tokens: dict[str, list[int]] | None = None  # while somebody asks, what each sample was answered
        self._weights, self._limits = weights, limits
        self._ran: dict[str, set[str]] = {}

    def identity(self) -> Mapping[str, Any]:
        """Hashes of weights, tokenizer and configuration, and what computes with them."""
        self._weights = self._weights or state_hash(self.model)
        config = self.model.config.to_dict()
        passing = {"transformers_version", "_name_or_path", "dtype", "architectures"}
        plain = json.dumps({k: v for k, v in sorted(config.items()) if k not in passing}, sort_keys=True, default=str)
        identity: dict[str, Any] = {
            "weights": self._weights,
            "tokenizer": hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "config": hashlib.sha256(plain.encode()).hexdigest(),
            "pattern": self.model.config.pattern,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "kernels": self.implementations(),
        }
        if self.kernels == "recurrent":
            identity["prefill"] = "token by token"
        if self.sampling.temperature:
            identity["sampling"] = {name: getattr(self.sampling, name) for name in self.sampling.__slots__}
        return identity

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The operators are those of `kernels` meanwhile."""
        with record.meaning("auto" if self.kernels == "recurrent" else self.kernels):
            yield

    def with_kernels(self, kernels: str) -> "OwnModel":
        """The same weights, computed otherwise. Raises UserError where that cannot run."""
        return OwnModel(
            self.name, self.model, self.tokenizer,
            wording=self.wording, weights=self._weights, limits=self._limits, sampling=self.sampling, kernels=kernels,
        )  # fmt: skip

    def losses(self, asked: Sequence[tuple[Sample, str]]) -> list[float]:
        """-log p (natural) of a text as the continuation of each sample; NaN where it cannot be asked."""
        found = [math.nan] * len(asked)
        asks = []
        for i, (sample, text) in enumerate(asked):
            if text:
                ask, error = self.ask(sample.text, (text,))
                if ask is not None and not error:
                    asks.append((i, ask))
        with self.computing():
            for at, (value,) in self.engine.score([ask for _, ask in asks]):
                found[asks[at][0]] = -value
        return found

    def implementations(self) -> Mapping[str, str]:
        """Operator -> implementation that `kernels` stands for here."""
        with self.computing():
            return record.implementations(next(self.model.parameters()), self.model.config.head_dim)

    def versions(self) -> Mapping[str, str]:
        """What a GPU's kernels were made with and run on; nothing of the model, and so not compared on a resume."""
        return record.versions(next(self.model.parameters())) or {}

    def ran(self) -> Mapping[str, list[str]]:
        """Operator -> implementations that answered so far."""
        return record.told(self._ran)

    def encode(self, text: str, *, templated: bool = False) -> list[int]:
        """Tokens with `<s>` first. Text that looks like a special token stays text; only where a chat template wrote
        the text (`templated`) are its special tokens read as such, and none is put before them."""
        made = self.tokenizer(text, split_special_tokens=not templated, add_special_tokens=not templated, verbose=False)
        return made["input_ids"]

    def count(self, text: str) -> int:
        """Tokens of a prompt, `<s>` included."""
        return len(self.encode(text))

    def cost(self, length: int) -> Mapping[str, int]:
        """Bytes that one sequence of `length` tokens keeps, over all layers."""
        rows = self.model.state_bytes(length)
        return {kind: sum(row[kind] for row in rows) for kind in ("kv", "index", "state")}

    def answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
        """One completion for every sample: first those that cannot be asked, then batch by batch."""
        yield from self.computed(self._answer(samples))

    def computed(self, answers: Iterator[Found]) -> Iterator[Found]:
        """What an iterator over this model's engine yields, computed by `kernels` and noted for `ran()`."""
        while True:  # between two answers others may compute
            with record.listening(self._ran), self.computing():
                found = next(answers, None)
            if found is None:
                return
            yield found

    def _answer(self, samples: Sequence[Sample]) -> Iterator[Completion]:
        jobs: list[tuple[Sample, Job]] = []
        asks: list[tuple[Sample, Ask, int]] = []
        for sample in samples:
            prompt = self.encode(sample.text)
            if sample.choices:
                ask, error = self.ask(sample.text, sample.choices)
                if ask is not None and not error:
                    asks.append((sample, ask, len(prompt)))
                    continue
            else:
                error = self.fits(len(prompt), sample.max_new_tokens)
                if not error:
                    jobs.append((sample, Job(prompt, sample.max_new_tokens, sample.stop, sample.id)))
                    continue
            yield Completion(sample.id, "", len(prompt), finish="error", error=error)
        for sampling in dict.fromkeys(self._sampling(sample) for sample, _ in jobs):
            alike = [(sample, job) for sample, job in jobs if self._sampling(sample) == sampling]
            for i, answer in self.engine.generate([job for _, job in alike], sampling):
                sample, job = alike[i]
                if self.tokens is not None:
                    self.tokens[sample.id] = answer.tokens
                yield Completion(sample.id, answer.text, len(job.prompt), len(answer.tokens), (), answer.finish)
        for i, values in self.engine.score([ask for _, ask, _ in asks]):
            sample, _, length = asks[i]
            best = max(range(len(values)), key=values.__getitem__)
            yield Completion(sample.id, sample.choices[best], length, choice_logprobs=tuple(values))

    def _sampling(self, sample: Sample) -> Sampling:
        """The sample's own way of drawing, else the model's."""
        if not sample.temperature:
            return self.sampling
        return replace(self.sampling, temperature=sample.temperature, top_p=sample.top_p)

    def fits(self, prompt: int, new: int) -> str:
        """Why a prompt of so many tokens, with `new` more, cannot be asked; "" where it can."""
        if not prompt:
            return "the prompt has no tokens"
        if prompt + new > self.context:
            return f"prompt of {prompt} tokens + {new} new > context {self.context}"
        return ""

    def ask(self, text: str, choices: Sequence[str], *, templated: bool = False) -> tuple[Ask | None, str]:
        """The choices as tokens of the joined text, all scored from the same context; or why they cannot be asked.

        Where a choice changes how the prompt's end is tokenized, the context of all choices ends before that place: so
        each sum is the probability of the same text given the same tokens, of tokens that the tokenizer really gives.
        """
        if "" in choices:
            return None, "a choice is empty"
        prompt = self.encode(text, templated=templated)
        wholes = [self.encode(text + choice, templated=templated) for choice in choices]
        start = min(len(prompt), *(min(common_prefix(prompt, whole), len(whole) - 1) for whole in wholes))
        if start < 1:
            return None, "prompt and choice share no token to start from"
        longest = max(map(len, wholes)) - start
        ask = Ask(wholes[0][:start], [whole[start:] for whole in wholes])
        return ask, self.fits(start, longest)


def _checked(kernels: str, model: EvalsuiteForCausalLM) -> str:
    """The name of what shall compute. Raises UserError where it is unknown or cannot run for this model."""
    if kernels not in KERNELS:
        raise unknown("kernels", kernels, KERNELS)
    if kernels != "triton":
        return kernels
    config = model.config
    try:
        with record.meaning(kernels):
            record.implementations(next(model.parameters()), max(config.head_dim, config.index_dim))
    except ValueError as error:
        reason = str(error).partition("cannot run here: ")[2].partition(";")[0]
        raise UserError(f"--kernels triton cannot run here: {reason}; take chunked, or leave --kernels out") from error
    if {"B", "T"} & set(config.pattern) and config.block_size % UNIT:
        raise UserError(
            f"--kernels triton reads blocks of multiples of {UNIT} tokens, and this model's have {config.block_size}; "
            "take chunked, or leave --kernels out"
        )
    return kernels


def state_hash(model: EvalsuiteForCausalLM) -> str:
    """Hash of names, dtypes, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def open_checkpoint(
    folder: Path,
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    limits: Limits | None = None,
    kernels: str = "auto",
) -> OwnModel:
    """The model of a checkpoint folder in the layout of transformers. Raises UserError for any fault of it."""
    config = loading.read_config(folder)
    tokenizer = loading.read_tokenizer(folder, config)
    where = loading.pick_device(device)
    model = loading.read_model(folder, config, loading.pick_dtype(dtype, where, config), where)
    wording = loading.read_wording(folder, config)
    weights = loading.sha256(*loading.weight_files(folder))
    return OwnModel(name, model, tokenizer, wording=wording, weights=weights, limits=limits, kernels=kernels)
