"""Our own models as a model of lm_eval: `--model evalsuite --model_args pretrained=hybrid-kda`."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook, hash_args
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from evalsuite.errors import UserError
from evalsuite.integrations.lm_eval import MAX_NEW, NAME, NEUTRAL, register
from evalsuite.models import load
from evalsuite.models.decoding import Sampling
from evalsuite.models.engine import Ask, Job
from evalsuite.models.own import OwnModel

REFUSED = (float("-inf"), False)
register()  # whoever imports the class may name it
OWNER = "evalsuite: the model that gave these answers"  # no key of lm_eval's own, which are hashes
UNASKED = "evalsuite: the requests that were refused"


class Templated(str):
    """A prompt that a chat template wrote: its special tokens are tokens. In any other prompt they are plain text."""

    __slots__ = ()


class EvalsuiteLM(LM):
    """A preset, a checkpoint folder of this package or an OwnModel, asked by lm_eval.

    A prompt that does not fit the context is never cut: its answer is "" or -inf, it counts as wrong, and
    `get_model_info` says how many there were. Batches are made by the engine, so that `batch_size` changes nothing.
    Under `torchrun` or `accelerate launch` each process answers its share. Raises UserError for arguments it does not
    know, and for what `evalsuite.models.load` refuses.
    """

    def __init__(
        self,
        pretrained: str | OwnModel,
        *,
        device: str = "auto",
        dtype: str = "auto",
        kernels: str = "auto",
        max_length: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise UserError(
                f"--model {NAME} knows no argument {', '.join(sorted(unknown))}; it takes pretrained, device, dtype, "
                "kernels and max_length"
            )
        self._rank, self._world_size = _ranks()
        if isinstance(pretrained, OwnModel):
            self.model = pretrained
        else:
            model = load(pretrained, device=self._place(device), dtype=dtype, kernels=kernels)
            if not isinstance(model, OwnModel):
                raise UserError(f"--model {NAME} is for this package's own models, and {pretrained!r} is a plugin")
            self.model = model
        if max_length is not None and not 0 < int(max_length) <= self.model.context:
            raise UserError(f"max_length={max_length} is not within the model's context of {self.model.context} tokens")
        self.max_length = int(max_length or self.model.context)
        self.tokenizer = self.model.tokenizer
        self.refused: dict[str, str] = {}  # lm_eval's hash of each request that was not asked -> why

    @property
    def device(self) -> torch.device:
        return self.model.model.device

    @property
    def eot_token_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def max_gen_toks(self) -> int:
        return MAX_NEW

    @property
    def tokenizer_name(self) -> str:
        """Tokenizer and chat template, by their content."""
        core = self.tokenizer.backend_tokenizer.to_str()
        text = json.dumps([core, self.tokenizer.chat_template], sort_keys=True)
        return f"{self.model.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The text of the template in use; None without one."""
        if not chat_template:
            return None
        self._templates()
        return self.tokenizer.get_chat_template(None if chat_template is True else chat_template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as one prompt; without `add_generation_prompt` the last, the assistant's, goes on."""
        self._templates()
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return Templated(text)

    def get_model_info(self) -> dict[str, Any]:
        """What makes the model the one that it is, and the requests that did not fit."""
        identity = dict(self.model.identity())
        return {
            "model_num_parameters": sum(p.numel() for p in self.model.model.parameters()),
            "model_dtype": identity["dtype"],
            "model_sha": identity["weights"],
            "evalsuite_model": self.model.name,
            "evalsuite_identity": identity,
            "evalsuite_refused": dict(Counter(self.refused.values())),
        }

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Raises UserError for a cache that another model's answers are in: its keys name no model. What was refused is
        no answer: it is taken out, to be refused and counted again."""
        super().set_cache_hook(cache_hook)
        if (kept := cache_hook.dbdict) is None:
            return
        mine = json.dumps({**self.model.identity(), "context": self.max_length}, sort_keys=True)
        if OWNER not in kept:
            if len(kept):
                raise UserError("--use_cache names a file with answers of an unknown model; take another file")
            kept[OWNER] = mine
        elif kept[OWNER] != mine:
            raise UserError("--use_cache names a file with another model's answers; take another file")
        for request in kept.pop(UNASKED, ()):
            kept.pop(request, None)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """ln p of each continuation after its context, and whether greedy decoding writes it. Continuations of one
        context are scored from the same tokens, as in `evalsuite run`."""
        places: dict[str, dict[str, list[int]]] = {}
        for i, request in enumerate(requests):
            context, continuation = request.args
            places.setdefault(context, {}).setdefault(continuation, []).append(i)
        answers = [REFUSED] * len(requests)
        asks: list[tuple[str, Ask]] = []
        for context, continuations in places.items():
            ask, error = self.model.ask(context, tuple(continuations), templated=isinstance(context, Templated))
            error = error or self._over(ask)
            if ask is None or error:
                same = [(context, continuation) for continuation in continuations]
                self._refuse(error, "loglikelihood", same)
            else:
                asks.append((context, ask))
        for i, judged in self._progress(self.model.engine.judge([ask for _, ask in asks]), len(asks), disable_tqdm):
            for indices, answer in zip(places[asks[i][0]].values(), judged, strict=True):
                for index in indices:
                    answers[index] = answer
                    self.cache_hook.add_partial("loglikelihood", requests[index].args, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """ln p of each text after `<s>`: every token predicted once, in windows of the whole context."""
        windows: list[tuple[int, Ask]] = []
        answers = [0.0] * len(requests)
        left: Counter[int] = Counter()
        for i, request in enumerate(requests):
            first, *tokens = self.model.encode(request.args[0])
            for pair in get_rolling_token_windows(tokens, first, self.max_length, 1):
                context, continuation = make_disjoint_window(pair)
                windows.append((i, Ask(context, [continuation])))
                left[i] += 1
        scored = self.model.engine.judge([ask for _, ask in windows])
        for at, ((value, _),) in self._progress(scored, len(windows), disable_tqdm):
            i = windows[at][0]
            answers[i] += value
            left[i] -= 1
            if not left[i]:
                self.cache_hook.add_partial("loglikelihood_rolling", requests[i].args, answers[i])
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context before the first stop string. Raises UserError for settings of generation
        that the engine does not have."""
        answers = [""] * len(requests)
        alike: dict[Sampling, list[tuple[int, Job]]] = {}
        repeats: Counter[str] = Counter()
        for i, request in enumerate(requests):
            context, given = request.args
            sampling, stops, new = self._generation(given)
            prompt = self.model.encode(context, templated=isinstance(context, Templated))
            if error := self.model.fits(len(prompt), new) or self._long(len(prompt) + new):
                self._refuse(error, "generate_until", [request.args])
                continue
            key = _key(request, context)
            job = Job(prompt, new, stops, f"{key}/{repeats[key]}" if repeats[key] else key)
            repeats[key] += 1
            alike.setdefault(sampling, []).append((i, job))
        for sampling, jobs in alike.items():
            written = self.model.engine.generate([job for _, job in jobs], sampling)
            for at, answer in self._progress(written, len(jobs), disable_tqdm):
                i = jobs[at][0]
                answers[i] = answer.text
                self.cache_hook.add_partial("generate_until", requests[i].args, answer.text)
        return answers

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes in one, on the CPU."""
        if self.world_size == 1:
            return tensor
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, tensor.cpu().reshape(-1))
        return torch.cat(found)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all processes, by rank, on `dst`; None elsewhere. What they refused is told with them."""
        if self.world_size == 1:
            return [obj]
        found: list[Any] | None = [None] * self.world_size if self.rank == dst else None
        dist.gather_object((obj, self.refused), found, dst)
        if found is None:
            return None
        for _, refused in found:
            self.refused |= refused
        return [each for each, _ in found]

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def _templates(self) -> None:
        if not self.tokenizer.chat_template:
            raise UserError(f"{self.model.name} has no chat template; leave --apply_chat_template out")

    def _place(self, device: str) -> str:
        """lm_eval says cuda:0 where nobody said anything."""
        if not torch.cuda.is_available():
            return "auto" if device.startswith("cuda") else device
        if self.world_size > 1 and device in ("auto", "cuda", "cuda:0"):
            return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        return device

    def _progress(self, answers: Iterator[Any], total: int, quiet: bool) -> Iterator[Any]:
        yield from tqdm(self.model.computed(answers), total=total, disable=quiet or self.rank > 0, desc=self.model.name)

    def _refuse(self, error: str, kind: str, requests: Sequence[tuple[Any, ...]]) -> None:
        why = "over the context" if "> context" in error else error
        self.refused |= {hash_args(kind, request): why for request in requests}
        if (kept := self.cache_hook.dbdict) is not None:
            kept[UNASKED] = sorted(self.refused)

    def _over(self, ask: Ask | None) -> str:
        return "" if ask is None else self._long(len(ask.context) + max(map(len, ask.continuations)))

    def _long(self, tokens: int) -> str:
        return f"{tokens} tokens > context {self.max_length}" if tokens > self.max_length else ""

    def _generation(self, given: Mapping[str, Any]) -> tuple[Sampling, tuple[str, ...], int]:
        """How to draw, where to stop, and after how many tokens."""
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), MAX_NEW))
        new, until = int(wanted.pop("max_gen_toks")), wanted.pop("until", None) or []
        temperature = float(wanted.pop("temperature", 0.0)) if wanted.pop("do_sample", False) else 0.0
        top_k, top_p = int(wanted.pop("top_k", 0)), float(wanted.pop("top_p", 1.0))
        wanted = {name: value for name, value in wanted.items() if name != "temperature" and value != NEUTRAL.get(name)}
        if wanted:
            raise UserError(f"evalsuite's engine generates without {', '.join(sorted(wanted))}; leave it out")
        stops = tuple([until] if isinstance(until, str) else until)
        return (Sampling(temperature, top_k, top_p) if temperature else Sampling()), stops, new


def _key(request: Instance, context: str) -> str:
    """What decides the draws of a request: the sample's own id for tasks of evalsuite, else its prompt."""
    doc = request.doc
    if isinstance(doc, Mapping) and {"id", "prompt_hash"} <= doc.keys():
        return str(doc["id"])
    return hashlib.sha256(context.encode()).hexdigest()


def _ranks() -> tuple[int, int]:
    """Rank and number of the processes that a launcher started."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()
