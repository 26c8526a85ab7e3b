"""Trains one design on a token stream: AdamW, warm-up, flat, linear cool-down; loss on the labelled positions only."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalsuite.errors import UserError
from evalsuite.lab.data import IGNORE, Stream, batches
from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.modeling import Block, EvalsuiteForCausalLM
from evalsuite.models.tokenizer import build_tokenizer
from evalsuite_kernels import record

LINE = 50  # steps of a line of history
SAVE = 5 * LINE  # steps of a checkpoint
PROBES = 24


@dataclass(frozen=True, slots=True)
class Recipe:
    """Optimizer and schedule, the same for every design."""

    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05  # on matrices
    warmup: int = 150
    cooldown: float = 0.4  # share of the steps
    clip: float = 1.0
    seed: int = 0
    bf16: bool = True  # autocast
    dense: float = 0.3  # share of the steps in which indexers learn beside full attention (DeepSeek-V3.2's warm-up)

    def phase(self, step: int, steps: int) -> str:
        """config.index_phase at a step."""
        return "dense" if step < self.dense * steps else "sparse"

    def rate(self, step: int, steps: int) -> float:
        """Share of the learning rate at a step."""
        down = (steps - step) / max(1, self.cooldown * steps)
        return min(1.0, (step + 1) / self.warmup, down)


def loss_of(model: EvalsuiteForCausalLM, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the labelled positions of `[B, T]`, and the share of them predicted right.

    A row of n labels weighs sqrt(n): between equal labels, which leaves a task that asks once a text next to nothing,
    and equal rows.
    """
    hidden, asked = model.model(ids).flatten(0, 1), labels != IGNORE
    weight = (asked * asked.sum(1, keepdim=True).clamp(min=1) ** -0.5).flatten()
    labels, asked = labels.flatten(), asked.flatten()
    if not labels.is_cuda:  # spares a CPU the other positions; on a GPU their number would have to be waited for
        hidden, labels, weight, asked = (x[asked] for x in (hidden, labels, weight, asked))
    logits = model.lm_head(hidden).float()
    each = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    return (weight * each).sum() / weight.sum(), (logits.argmax(-1) == labels).sum() / asked.sum()


def optimizer_of(model: EvalsuiteForCausalLM, recipe: Recipe, *, replayed: bool = False) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone; `replayed` where a CUDA graph will hold its step."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    lr = torch.tensor(recipe.lr, device=model.device) if replayed else recipe.lr
    return torch.optim.AdamW(groups, lr=lr, betas=recipe.betas, eps=1e-8, fused=replayed, capturable=replayed)


def compile_layers(model: EvalsuiteForCausalLM) -> None:
    """torch.compile for every layer, so that equal layers are compiled once. A mixer of the user's own runs as written.

    What earlier models of this process had compiled is dropped. Kernels are chosen without timing them, so that a run
    and its repetition have the same.
    """
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = 64  # kinds of layers x lengths of rows x phases of an indexer
    if hasattr(torch._inductor.config, "deterministic"):
        torch._inductor.config.deterministic = True
    for layer in model.model.layers:
        assert isinstance(layer, Block)
        if layer.mixer.letter == "X":
            layer.mixer.forward = torch.compiler.disable(layer.mixer.forward)  # type: ignore[method-assign]
        layer.compile(dynamic=False)


@contextmanager
def repeatable(device: str, *, strict: bool = True) -> Iterator[None]:
    """On a GPU, torch's kernels whose bits are the same every time; an operator that has none raises RuntimeError, or
    warns where `strict` is not asked for.

    Without it the gradient of torch's softmax attention is summed in any order.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks of cuBLAS then
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    memory.fill_uninitialized_memory = False  # a write more for every tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled


class Trainer:
    """One run. Interrupted, it goes on from its last checkpoint and ends in the same weights."""

    def __init__(self, config: EvalsuiteConfig, recipe: Recipe, device: str = "cpu", *, compiled: bool = False) -> None:
        torch.manual_seed(recipe.seed)
        self.model = EvalsuiteForCausalLM(config)
        nn.Module.to(self.model, device)
        self.config, self.recipe, self.device, self.compiled = config, recipe, device, compiled
        if compiled:
            compile_layers(self.model)
        # on a GPU a step of a small model is thousands of short kernels: recorded once, they start without Python;
        # experts are chosen by shapes that a recording cannot hold
        self.replayed = torch.device(device).type == "cuda" and not config.num_experts
        self.optimizer = optimizer_of(self.model, recipe, replayed=self.replayed)
        # an indexer learns from its own loss alone: neither's gradient may shorten the other's step
        indexers = [p for name, p in self.model.named_parameters() if ".index_" in name]
        others = [p for name, p in self.model.named_parameters() if ".index_" not in name]
        self.clipped = (others, indexers) if indexers else (others,)
        self.graphs: dict[tuple[torch.Size, str], Recorded] = {}
        if self.replayed:
            self.side = torch.cuda.Stream(device)  # of all recordings: a gradient is summed on its first one's
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.total = torch.zeros(2, device=device)  # of the losses since the last line of history
        self.stream: dict[str, Any] = {}  # what it is trained on
        self.ran: dict[str, set[str]] = {}  # operator -> the implementations that trained it

    def save(self, folder: Path) -> None:
        """Everything needed to go on, put in place at once."""
        state = {
            "made": self._made(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "total": self.total,
            "ran": record.told(self.ran),
        }
        part = folder / "trainer.pt.part"
        torch.save(state, part)
        os.replace(part, folder / "trainer.pt")

    def _made(self) -> dict[str, Any]:
        """What a run's weights depend on: a state of another making is never gone on with."""
        shape = (
            "vocab_size", "pattern", "mixer", "hidden_size", "num_attention_heads", "head_dim", "intermediate_size",
            "tie_word_embeddings", "mimetic_init", "index_heads", "index_dim", "topk", "index_rope", "block_size",
            "block_topk", "compressed_size", "index_loss_coef", "window",
        )  # fmt: skip
        made = {name: getattr(self.config, name) for name in shape} | asdict(self.recipe)
        made |= {f"stream {name}": value for name, value in self.stream.items()}
        return made | {"device": torch.device(self.device).type}

    def resume(self, folder: Path) -> None:
        """Go on from the checkpoint in `folder`, if there is one."""
        if (folder / "trainer.pt").exists():
            try:
                state = torch.load(folder / "trainer.pt", map_location=self.device, weights_only=True)
            except (RuntimeError, OSError, EOFError, UnpicklingError) as error:
                raise UserError(f"{folder / 'trainer.pt'} cannot be read; remove it to begin anew") from error
            then, now = state["made"], self._made()
            differ = [f"{name}: {then.get(name)!r} -> {now[name]!r}" for name in now if then.get(name) != now[name]]
            if differ:
                raise UserError(f"{folder} holds another run ({'; '.join(differ)}); take another --out")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
            self.total.copy_(state["total"])
            self.ran = {name: set(impls) for name, impls in state.get("ran", {}).items()}

    def run(
        self,
        stream: Stream,
        data: Path,
        out: Path,
        report: Callable[[dict[str, Any]], None],
        probe: Callable[[EvalsuiteForCausalLM], dict[str, float]] | None = None,
    ) -> None:
        """Train to the end of the stream; a line of history every LINE steps, a checkpoint every SAVE.

        `probe` is asked some PROBES times and at the end; the loss of a line is the labels' mean since the line before.
        """
        out.mkdir(parents=True, exist_ok=True)
        self.stream = asdict(stream)
        self.resume(out)
        self.model.train()
        began = time.perf_counter() - self.seconds
        probed = max(1, round(stream.steps / PROBES / LINE)) * LINE
        for ids, labels in batches(stream, data, self.step):
            self._enter(self.step, stream.steps)
            loss, accuracy = self.update(ids, labels, self.recipe.rate(self.step, stream.steps))
            self.step += 1
            self.seconds = time.perf_counter() - began
            self.total += loss
            last = self.step == stream.steps
            if self.step % LINE == 0 or last:
                mean, own = (self.total / ((self.step - 1) % LINE + 1)).tolist()
                self.total.zero_()
                tokens = self.step * stream.tokens_per_step
                line: dict[str, Any] = {"step": self.step, "tokens": tokens, "loss": mean, "accuracy": accuracy.item()}
                if "D" in self.config.pattern:
                    line["index_loss"] = own
                    line["recall"] = self._recall(ids)
                if probe is not None and (self.step % probed == 0 or last):
                    with self._asking():
                        line["probe"] = probe(self.model)
                self.history.append({**line, "seconds": round(self.seconds, 1)})
                report(self.history[-1])
                if not math.isfinite(mean + own):
                    raise UserError(f"loss is {mean + own} at step {self.step}; lower --lr and take another --out")
            if self.step % SAVE == 0:
                self.save(out)
        self._enter(stream.steps - 1, stream.steps)
        self.save(out)

    def _enter(self, step: int, steps: int) -> None:
        """The phase of a step; without an indexer there is one, and no second recording."""
        if "D" in self.config.pattern:
            self.model.config.index_phase = self.recipe.phase(step, steps)

    def update(self, ids: np.ndarray, labels: np.ndarray, rate: float) -> tuple[Tensor, Tensor]:
        """One step on ids and labels `[rows, length]` at this share of the learning rate: its losses [2], of the labels
        and the model's own (experts' balance, indexers' divergence), and its accuracy."""
        strict = "X" not in self.config.pattern  # a mixer of the user's own may do what torch cannot repeat
        with record.listening(self.ran), repeatable(self.device, strict=strict):
            return self._update(ids, labels, rate)

    def _update(self, ids: np.ndarray, labels: np.ndarray, rate: float) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            if self.replayed:
                group["lr"].fill_(self.recipe.lr * rate)
            else:
                group["lr"] = self.recipe.lr * rate
        x, y = torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(labels.astype(np.int64))
        if not self.replayed:
            return self._step(x.to(self.device), y.to(self.device))
        kind = x.shape, self.model.config.index_phase
        if kind not in self.graphs:
            self.graphs[kind] = Recorded(self._step, x.shape, self.side)
        return self.graphs[kind](x, y)

    def _recall(self, ids: np.ndarray) -> float:
        """What indexers' choices cover of full attention over a batch's first row: the mean of layers and queries."""
        row = torch.from_numpy(ids[:1].astype(np.int64)).to(self.device)
        with self._asking():
            return self.model.selection_recall(row).mean().item()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """How a model is asked in the midst of its training: rows of any length, for which nothing is compiled."""
        stance = "force_eager" if self.compiled else "default"
        device = torch.device(self.device).type
        with torch.compiler.set_stance(stance), torch.autocast(device, torch.bfloat16, enabled=self.recipe.bf16):
            yield

    def _step(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            loss, accuracy = loss_of(self.model, ids, labels)
            own = self.model.own_losses()
        self.optimizer.zero_grad()
        (loss + own).backward()
        for part in self.clipped:
            torch.nn.utils.clip_grad_norm_(part, self.recipe.clip)
        self.optimizer.step()
        return torch.stack((loss, own)).detach(), accuracy


class Recorded:
    """A training step as a CUDA graph, for batches of one shape. Its first calls run as they are, to warm up."""

    WARM = 3

    def __init__(
        self, step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], shape: torch.Size, stream: torch.cuda.Stream
    ) -> None:
        self.step, self.calls, self.stream, device = step, 0, stream, stream.device
        self.ids = torch.zeros(shape, dtype=torch.int64, device=device)
        self.labels = torch.zeros_like(self.ids)
        self.graph = torch.cuda.CUDAGraph()
        self.result: tuple[Tensor, Tensor]

    def __call__(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The step's loss and accuracy; on a replay, in memory that the next one overwrites."""
        self.ids.copy_(ids)
        self.labels.copy_(labels)
        self.calls += 1
        if self.calls <= self.WARM:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.result = self.step(self.ids, self.labels)
            torch.cuda.current_stream().wait_stream(self.stream)
            return self.result
        if self.calls == self.WARM + 1:
            with torch.cuda.graph(self.graph, stream=self.stream):  # records, and runs nothing
                self.result = self.step(self.ids, self.labels)
        self.graph.replay()
        return self.result


def publish(trainer: Trainer, folder: Path, provenance: dict[str, Any]) -> None:
    """Write the checkpoint as transformers lays it out, in bf16, with its tokenizer and `training.json`."""
    model = EvalsuiteForCausalLM(trainer.config)
    model.load_state_dict(trainer.model.state_dict())
    nn.Module.to(model, torch.bfloat16).eval().save_pretrained(folder)
    build_tokenizer(trainer.config.max_position_embeddings).save_pretrained(folder)
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in provenance.items())
    (folder / "training.json").write_text(f"{{\n{lines}\n}}\n")  # a line a key: a history of probes is long
