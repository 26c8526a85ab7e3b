"""How fast each design writes behind a long text: `python -m evalsuite.lab.decode --device cuda --out FILE`.

Weights are random: speed does not depend on them. The models run as everywhere here, without a recorded graph, so a
step of a small batch waits for Python, and the batch must be large for what is kept to count.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evalsuite.errors import UserError
from evalsuite.lab.budget import Budget, named
from evalsuite.lab.cost import kept
from evalsuite.models.loading import pick_device
from evalsuite.models.modeling import EvalsuiteForCausalLM
from evalsuite.revision import revision
from evalsuite_kernels import record

WARM = 5  # steps


@torch.inference_mode()
def speed(budget: Budget, design: str, *, batch: int, length: int, steps: int, device: torch.device) -> dict[str, Any]:
    """Seconds of a decoding step for `batch` texts of `length` tokens each, in bf16 on a GPU and fp32 elsewhere."""
    config = budget.config(design)
    config.max_position_embeddings = max(config.max_position_embeddings, length + steps + WARM)
    torch.manual_seed(0)
    model = EvalsuiteForCausalLM(config).eval()
    nn.Module.to(model, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    cache = model.model.new_cache(batch)
    cache.reserve(length + steps + WARM)
    for row in range(batch):  # text by text: whole ones take attention's fast way
        ids = torch.randint(3, config.vocab_size, (1, length), device=device)
        bounds = torch.tensor([0] * (row + 1) + [length] * (batch - row), device=device)
        model.model(ids, cu_seqlens=bounds, cache=cache)
    seconds = []
    for _ in range(WARM + steps):
        ids = torch.randint(3, config.vocab_size, (batch, 1), device=device)
        _wait(device)
        began = time.perf_counter()
        model.lm_head(model.model(ids, cache=cache)[:, 0])
        _wait(device)
        seconds.append(time.perf_counter() - began)
    each = sorted(seconds[WARM:])
    return {
        "design": design,
        "pattern": config.pattern,
        "kept_bytes": kept(config, length),
        "step_seconds": statistics.median(each),
        "step_seconds_p10_p90": [each[len(each) // 10], each[-1 - len(each) // 10]],
        "tokens_per_second": batch / statistics.median(each),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line a design as it is done, and write the report where --out says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="reference")
    parser.add_argument("--models", default="", help="presets or patterns: a,b,c; default: the budget's")
    parser.add_argument("--batch", type=int, default=256, help="texts at a time")
    parser.add_argument("--length", type=int, default=16384, help="tokens of each")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--out", type=Path, help="JSON file of the report")
    args = parser.parse_args(arguments)
    try:
        budget, device = named(args.budget), pick_device(args.device)
        if min(args.batch, args.length, args.steps) < 1:
            raise UserError("--batch, --length and --steps must be at least 1")
        names = args.models.split(",") if args.models else list(budget.designs)
        for name in names:
            budget.config(name)  # a wrong name fails before any work
        if args.out and not args.out.parent.is_dir():
            raise UserError(f"--out {args.out}: there is no folder {args.out.parent}")
        measured = partial(speed, budget, batch=args.batch, length=args.length, steps=args.steps, device=device)
        rows = []
        for name in names:
            rows.append(measured(name))
            step = rows[-1]["step_seconds"] * 1e3
            print(f"{name:<20} {step:8.2f} ms a step, {rows[-1]['tokens_per_second']:>10,.0f} tokens/s", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if args.out:
        told = {
            "command": " ".join(["python -m evalsuite.lab.decode", *sys.argv[1:]]),
            "revision": revision(),
            "torch": torch.__version__,
            "versions": record.versions(torch.empty(0, device=device)),
            "batch": args.batch,
            "length": args.length,
            "rows": rows,
        }
        args.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
