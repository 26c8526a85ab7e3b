"""`evalsuite train`: one token stream, and every named design trained on it in turn."""

import fcntl
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evalsuite.errors import UserError
from evalsuite.lab.data import Stream, build
from evalsuite.lab.train import Recipe, Trainer, publish
from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.loading import pick_device
from evalsuite.models.presets import pattern_of
from evalsuite.models.tokenizer import vocabulary
from evalsuite.revision import revision
from evalsuite_kernels import record

MIXTURE = (
    ("multihop.graph", 0.50),
    ("multihop.path", 0.06),
    ("multihop.chain", 0.04),
    ("multihop.binding", 0.03),
    ("multihop.callchain", 0.02),
    ("ruler.niah_single_1", 0.01),
    ("ruler.niah_multikey_1", 0.02),
    ("ruler.niah_multikey_2", 0.03),
    ("ruler.niah_multivalue", 0.03),
    ("ruler.niah_multiquery", 0.03),
    ("ruler.vt", 0.02),
    ("ruler.cwe", 0.02),
    ("ruler.fwe", 0.02),
    ("knowledge.cloze", 0.06),
    ("knowledge.letter", 0.11),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What `evalsuite train` was asked for."""

    models: Sequence[str]  # presets or patterns
    out: Path
    steps: int = 4000
    tokens_per_step: int = 4096
    width: int = 64
    lr: float = 2e-3
    seed: int = 0
    device: str = "auto"
    context: int = 1024
    compiled: bool = False  # torch.compile
    mimetic: bool = False  # keys start equal to queries
    head: int = 16  # dims of a head


def config_of(name: str, plan: Plan) -> EvalsuiteConfig:
    """The configuration of a preset or pattern at the plan's width: SwiGLU of 8/3 the width, heads of 16 by default.

    Small heads, because two of 32 would hold the 32 facts of a question with room to spare, as no head holds a long
    context, and would show nothing of the spread of decays from head to head.
    """
    heads = plan.width // plan.head
    if plan.width % plan.head or heads == 0:
        raise UserError(f"--width {plan.width} is no multiple of {plan.head}, the head dim")
    return EvalsuiteConfig(
        vocab_size=len(vocabulary()),
        hidden_size=plan.width,
        pattern=pattern_of(name),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=plan.head,
        intermediate_size=round(plan.width * 8 / 3 / 16) * 16,
        max_position_embeddings=plan.context,
        mimetic_init=plan.mimetic,
        index_topk=_longest() // 16,
        tie_word_embeddings=True,  # what is recalled can be looked for: no letter was learned from 41M tokens without
    )


def train(plan: Plan, say: Callable[[str], None]) -> list[Path]:
    """Train every model of the plan; returns the checkpoint folders, `OUT/<model>`."""
    configs = {name: config_of(name, plan) for name in plan.models}  # a wrong name fails before any work
    _check(plan)
    device = str(pick_device(plan.device))
    stream = Stream(MIXTURE, steps=plan.steps, tokens_per_step=plan.tokens_per_step, seed=plan.seed)
    recipe = Recipe(lr=plan.lr, seed=plan.seed)
    with locked(plan.out, wait=True):  # whoever comes first makes the stream that all read
        data = build(stream, plan.out / "stream", workers=os.cpu_count() or 1)
    done = []
    for name, config in configs.items():
        folder = plan.out / name.replace(" ", "")
        with locked(folder):
            trainer = Trainer(config, recipe, device, compiled=plan.compiled)
            trainer.run(stream, data, folder, partial(_say, say, name))
            publish(trainer, folder, provenance(stream, recipe, trainer))
        done.append(folder)
    return done


def _longest() -> int:
    """Tokens of the longest row of the stream."""
    return max(length for length, _ in Stream(MIXTURE).lengths)


def _check(plan: Plan) -> None:
    if plan.steps < 1:
        raise UserError(f"--steps must be at least 1, not {plan.steps}")
    longest = _longest()
    if plan.tokens_per_step < longest or plan.tokens_per_step % longest:
        raise UserError(f"--tokens must be a multiple of {longest}, the longest row, not {plan.tokens_per_step}")
    if not 0 < plan.lr < math.inf:
        raise UserError(f"--lr must be a positive number, not {plan.lr}")
    if str(pick_device(plan.device)) not in ("cpu", "cuda"):
        raise UserError(f"--device {plan.device!r} does not train; use cpu, cuda or auto, and CUDA_VISIBLE_DEVICES")


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """One process at a time in a folder, made where it is missing; the lock goes with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 - held until the block ends
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; take another --out") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {folder}; wait for it, or take another --out") from None
        yield


def _say(say: Callable[[str], None], name: str, line: dict[str, float]) -> None:
    rate = line["tokens"] / max(line["seconds"], 1e-9)
    recall = f"recall {line['recall']:.3f}, " if "recall" in line else ""
    say(
        f"{name}: step {line['step']:.0f}, {line['tokens'] / 1e6:.1f}M tokens, loss {line['loss']:.3f}, "
        f"right {line['accuracy']:.3f}, {recall}{rate:,.0f} tokens/s"
    )


def provenance(stream: Stream, recipe: Recipe, trainer: Trainer) -> dict[str, Any]:
    """What `training.json` tells of a checkpoint."""
    return {
        "wording": "terse",
        "command": shlex.join(["evalsuite", *sys.argv[1:]]),
        "revision": revision(),
        "seed": recipe.seed,
        "tokens": trainer.step * stream.tokens_per_step,
        "seconds": round(trainer.seconds),
        "device": trainer.device if trainer.device == "cpu" else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "versions": record.versions(next(trainer.model.parameters())),
        "ran": record.told(trainer.ran),
        "compiled": trainer.compiled,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "recipe": asdict(recipe),
        "stream": asdict(stream),
        "history": trainer.history,
    }
