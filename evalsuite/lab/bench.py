"""Times the trainer's own step on random tokens: `python -m evalsuite.lab.bench --device cuda --out FILE`.

With --compare-kernels it trains for a few steps under each implementation of the operators instead, and shows how far
apart their losses are.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from evalsuite.errors import UserError
from evalsuite.lab.run import Plan, config_of
from evalsuite.lab.train import Recipe, Recorded, Trainer
from evalsuite.models import mixers, sparse
from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.loading import pick_device
from evalsuite.revision import revision
from evalsuite_kernels import record

Row = dict[str, Any]
Batch = tuple[np.ndarray, np.ndarray]  # ids and labels [rows, length]

FIRST = Recorded.WARM + 1  # steps until everything is compiled and, on a GPU, recorded
IMPLEMENTATIONS = ("reference", "chunked", "triton")


def batch(config: EvalsuiteConfig, tokens: int, length: int, seed: int) -> Batch:
    """Random words, each labelled with the next one. On a GPU a step costs the same however many labels there are."""
    shape = (tokens // length, length)
    ids = np.random.default_rng(seed).integers(3, config.vocab_size, shape, dtype=np.uint16)
    return ids, np.roll(ids, -1, axis=1)


def speed(config: EvalsuiteConfig, args: argparse.Namespace, length: int) -> Row:
    """Seconds until a model is at full speed, then tokens/s over every single step, and the peak of memory.

    The first step compiles what no earlier row of this process and no cache on disk holds.
    """
    cuda = args.device.type == "cuda"
    if cuda:
        x = torch.ones(64, 64, device=args.device)
        (x @ x).sum().item()  # what CUDA itself needs to start is not the step's
        torch.cuda.reset_peak_memory_stats(args.device)
    trainer = Trainer(config, Recipe(bf16=not args.fp32, seed=args.seed), str(args.device))
    trainer.model.train()
    seconds: list[float] = []
    loss = 0.0
    for step in range(args.steps):
        ids, labels = batch(config, args.tokens_per_step, length, args.seed + step)
        _wait(args.device)
        began = time.perf_counter()
        result, _ = trainer.update(ids, labels, trainer.recipe.rate(step, args.steps))
        _wait(args.device)
        seconds.append(time.perf_counter() - began)
        loss = result[0].item()
    rates = sorted(args.tokens_per_step / each for each in seconds[FIRST:])
    low, high = (float(np.quantile(rates, q)) for q in (0.1, 0.9))
    return {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "recorded": trainer.replayed,  # as a CUDA graph
        "first_step_seconds": seconds[0],
        "ready_seconds": sum(seconds[:FIRST]),
        "steps_timed": len(rates),
        "tokens_per_second": statistics.median(rates),
        "tokens_per_second_p10": low,
        "tokens_per_second_p90": high,
        "peak_bytes": torch.cuda.max_memory_allocated(args.device) if cuda else None,
        "last_loss": loss,
    }


def losses(config: EvalsuiteConfig, args: argparse.Namespace, length: int, *, recorded: bool) -> list[float]:
    """The losses of the first steps on one batch, at the full learning rate, so that the mixers soon count."""
    trainer = Trainer(config, Recipe(bf16=not args.fp32, seed=args.seed), str(args.device))
    trainer.replayed = recorded and trainer.replayed
    trainer.model.train()
    ids, labels = batch(config, args.tokens_per_step, length, args.seed)
    return [trainer.update(ids, labels, 1.0)[0].sum().item() for _ in range(args.steps)]


@contextmanager
def kernels(impl: str) -> Iterator[None]:
    """Every mixer's operator under one implementation; models have no switch for it, and need none but here."""
    operators = {
        mixers: ("delta_rule", "linear_attention", "full_attention"),
        sparse: ("full_attention", "lightning_index", "sparse_attention", "indexed_attention", "block_attention"),
    }
    with ExitStack() as stack:
        for module, names in operators.items():
            chosen: dict[str, Any] = {name: partial(getattr(module, name), impl=impl) for name in names}
            stack.enter_context(patch.multiple(module, **chosen))
        yield


def parity(config: EvalsuiteConfig, args: argparse.Namespace, length: int) -> Row:
    """Losses under each implementation step by step, and as the trainer runs ("auto"), recorded where it records.

    Each "max_difference" is to the first implementation; where "triton" cannot run, it says so.
    """
    found: dict[str, list[float]] = {}
    row: Row = {"losses": found, "max_difference": {}}
    for impl in args.kernels:
        try:
            with kernels(impl):
                found[impl] = losses(config, args, length, recorded=False)
        except ValueError as error:  # what an operator says of an implementation that cannot run here
            row.setdefault("left_out", {})[impl] = str(error)
    found["auto"] = losses(config, args, length, recorded=True)
    first = next(iter(found.values()))
    for name, each in found.items():
        row["max_difference"][name] = max(abs(a - b) for a, b in zip(each, first, strict=True))
    return row


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _freed(device: torch.device) -> None:
    """Give back what the last row's trainer and its graph held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def configs(args: argparse.Namespace) -> Iterator[tuple[Row, EvalsuiteConfig, int]]:
    """What each row is about, its model's configuration and its row length; a wrong name fails before any work."""
    made = []
    for size in args.sizes.split(","):
        width, _, head = size.partition("x")
        if not (width.isdecimal() and head.isdecimal() and int(head)):
            raise UserError(f"--sizes takes WIDTHxHEAD such as 256x64, not {size!r}")
        for name in args.models.split(","):
            for length in _lengths(args):
                plan = Plan((name,), Path(), width=int(width), head=int(head), context=length)
                row = {"model": name, "width": int(width), "head_dim": int(head), "length": length}
                made.append((row, config_of(name, plan), length))
    yield from made


def _lengths(args: argparse.Namespace) -> list[int]:
    lengths = [int(part) if part.isdecimal() else 0 for part in args.lengths.split(",")]
    for length, part in zip(lengths, args.lengths.split(","), strict=True):
        if length < 1 or args.tokens_per_step % length or args.tokens_per_step < length:
            raise UserError(f"--tokens-per-step {args.tokens_per_step} is no multiple of the row length {part}")
    return lengths


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> Row:
    """The whole report: what ran on what, and a row each model, size and length."""
    args.device = pick_device(args.device)
    work = parity if args.compare_kernels else speed
    if not args.compare_kernels and args.steps <= FIRST:
        raise UserError(f"--steps must be over {FIRST}, the steps that warm up, not {args.steps}")
    unknown = sorted(set(args.kernels) - set(IMPLEMENTATIONS))
    if unknown:
        raise UserError(f"unknown kernels {', '.join(unknown)}; known: {', '.join(IMPLEMENTATIONS)}")
    chosen = list(configs(args))
    x = torch.empty(0, device=args.device, dtype=torch.float32 if args.fp32 else torch.bfloat16)
    report: Row = {
        "command": " ".join(["python -m evalsuite.lab.bench", *sys.argv[1:]]),
        "revision": revision(),
        "torch": torch.__version__,
        "versions": record.versions(x),
        "kernels": record.implementations(x, max(config.head_dim for _, config, _ in chosen)),
        "autocast": "none" if args.fp32 else "bfloat16",
        "tokens_per_step": args.tokens_per_step,
        "steps": args.steps,
        "rows": [],
    }
    for about, config, length in chosen:
        with record.listening() as ran:
            row = {**about, **work(config, args, length)}
        row["ran"] = record.told(ran)
        report["rows"].append(row)
        _freed(args.device)
        say(line(row))
    return report


def line(row: Row) -> str:
    """A row as printed."""
    place = f"{row['model']:<18} {row['width']:>4} / {row['head_dim']:<3} T {row['length']:<5}"
    if "losses" in row:
        far = ", ".join(f"{name} {value:.1e}" for name, value in row["max_difference"].items())
        return f"{place} loss {row['losses']['auto'][0]:.4f} -> {row['losses']['auto'][-1]:.4f}; furthest: {far}"
    memory = f"{row['peak_bytes'] / 2**30:.2f} GiB" if row["peak_bytes"] else "-"
    return (
        f"{place} first {row['first_step_seconds']:6.2f} s, ready {row['ready_seconds']:6.2f} s, "
        f"{row['tokens_per_second']:>11,.0f} tokens/s "
        f"[{row['tokens_per_second_p10']:,.0f}, {row['tokens_per_second_p90']:,.0f}], {memory}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line a row as it is done, and write the report where --out says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="full,hybrid-kda,hybrid-lightning", help="presets or patterns: a,b,c")
    parser.add_argument("--sizes", default="64x16,256x64", help="hidden size x head dim: a,b,c")
    parser.add_argument("--lengths", default="2048", help="tokens of a row: a,b,c")
    parser.add_argument("--tokens-per-step", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--fp32", action="store_true", help="no autocast")
    parser.add_argument("--compare-kernels", action="store_true", help="losses, not speed")
    parser.add_argument("--kernels", nargs="+", default=list(IMPLEMENTATIONS), help="what --compare-kernels compares")
    parser.add_argument("--out", type=Path, help="JSON file of the report")
    args = parser.parse_args(arguments)
    try:
        report = measure(args, partial(print, flush=True))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
