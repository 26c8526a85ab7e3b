"""Models on our operators beside transformers' own torch path: `python -m evalsuite.integrations.hf.bench --out FILE`.

Of every architecture a prompt, a padded batch, stretches and single steps behind a cache, in fp32 and in bf16, each
beside fp32 on the same weights; greedy tokens; and the peak memory of Kimi Linear's prompt of 8k tokens. With `--device
cpu --tiny` it is tried anywhere. A case that fails is a row, and the others go on.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from evalsuite.integrations.hf import use
from evalsuite.integrations.hf.cases import VOCABULARY, WIDE, build, steady
from evalsuite_kernels import record

Row = dict[str, Any]

LIMITS = {"float32": 1e-4, "bfloat16": 1e-2}  # RMS of the difference over RMS
MEMORY = 0.1  # of transformers' peak
NEW = 64
RESIDUAL = {
    "olmo_hybrid": 3.0
}  # it norms what layers add, so that they would outgrow embeddings of 1, and bf16 with them
KIMI: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "mlp_layer_types": ["dense"] * 3,
    "linear_head_dim": 128,
    "linear_num_heads": 32,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


def apart(found: Tensor, wanted: Tensor) -> float:
    """RMS of the difference over RMS of what was wanted."""
    a, b = found.double(), wanted.double()
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


def prompts(tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two rows of random tokens [2, T], the first with a fifth of padding at its left, and their mask."""
    x = torch.randint(2, VOCABULARY, (2, tokens), generator=torch.Generator().manual_seed(1)).to(device)
    mask = torch.ones_like(x)
    mask[0, : tokens // 5] = 0
    return x, mask


def whole(model: PreTrainedModel, x: Tensor, mask: Tensor | None) -> Tensor:
    """Logits [B, T, V] in one pass."""
    logits: Tensor = model(x, attention_mask=mask, use_cache=False).logits
    return logits


def in_stretches(model: PreTrainedModel, x: Tensor, mask: Tensor) -> Tensor:
    """Logits [B, T, V] of a prompt, a stretch and eight single steps, each behind the cache of those before."""
    T = x.shape[1]
    ends = [T // 2, T - 8, *range(T - 7, T + 1)]
    positions, logits = (mask.cumsum(1) - 1).clamp(min=0), []
    cache: dict[str, Any] = {}
    for start, stop in zip([0, *ends], ends, strict=False):
        where = {"attention_mask": mask[:, :stop], "position_ids": positions[:, start:stop]}
        out = model(x[:, start:stop], use_cache=True, **where, **cache)
        cache = {"past_key_values": out.past_key_values}
        logits.append(out.logits)
    return torch.cat(logits, 1)


def logits_of(model: PreTrainedModel, x: Tensor, mask: Tensor, ours: bool) -> dict[str, Tensor]:
    """Logits of real tokens [n, V] by way of asking. Transformers' own are all of one pass: behind a cache its MiniMax
    takes a stretch's queries for the first tokens, and raises where there is padding."""
    real = mask.bool()
    return {
        "prefill": whole(model, x, None).flatten(0, 1),
        "padded": whole(model, x, mask)[real],
        "stretches and steps": (in_stretches if ours else whole)(model, x, mask)[real],
    }


def without_mixers(model: PreTrainedModel, x: Tensor) -> Tensor:
    """Logits [B, T, V] of a prompt if no layer wrote anything of other tokens: what a fault of them is worth."""
    ends = [module for name, module in model.named_modules() if name.endswith((".o_proj", ".out_proj"))]
    hooks = [end.register_forward_hook(lambda _module, _given, made: torch.zeros_like(made)) for end in ends]
    try:
        return whole(model, x, None)
    finally:
        for hook in hooks:
            hook.remove()


def greedy(model: PreTrainedModel, x: Tensor) -> list[int]:
    """NEW tokens after one row."""
    return model.generate(x[1:], do_sample=False, max_new_tokens=NEW)[0, -NEW:].tolist()  # type: ignore[operator]


def architecture(name: str, args: argparse.Namespace) -> Iterator[Row]:
    """The rows of one architecture."""
    x, mask = prompts(args.tokens, args.device)
    sizes = steady(name, args.tokens) | ({} if args.tiny else WIDE[name])
    model = build(name, gain=0.5, embedding=RESIDUAL.get(name, 1.0), **sizes)
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())  # the same weights in both; its buffers stay those of fp32
    module: nn.Module = model.to(args.device)
    truth: dict[str, Tensor] = {}
    for dtype in (torch.float32, torch.bfloat16):
        module.to(dtype)
        start, kind = time.monotonic(), str(dtype).removeprefix("torch.")
        theirs, their_tokens = logits_of(model, x, mask, False), greedy(model, x)
        truth = truth or theirs
        share = apart(without_mixers(model, x).flatten(0, 1), theirs["prefill"])
        swapped = use(model)
        with record.listening() as heard:
            ours, our_tokens = logits_of(model, x, mask, True), greedy(model, x)
        common: Row = {"case": name, "dtype": kind, "ran": record.told(heard)}
        expected = {(row["layer"], operator) for row in swapped.layers for operator in row["operators"]}
        common["every layer counted"] = set(swapped.calls) == expected and len(set(swapped.calls.values())) == 1
        swapped.undo()
        for what, logits in ours.items():
            row = common | {
                "what": what,
                "ours beside torch": apart(logits, theirs[what]),
                "ours beside fp32": apart(logits, truth[what]),
                "torch beside fp32": apart(theirs[what], truth[what]),
                "without mixers beside torch": share,
                "limit": LIMITS[kind],
            }
            yield row | {"passed": row["ours beside torch"] <= row["limit"] and row["every layer counted"]}
        same = sum(a == b for a, b in zip(our_tokens, their_tokens, strict=True))
        needed = NEW if dtype == torch.float32 else 0  # bf16 may turn a near tie over, in either
        yield common | {
            "what": f"{NEW} greedy tokens",
            "the same": same,
            "needed": needed,
            "passed": same >= needed,
            "seconds": round(time.monotonic() - start, 2),
        }


def memory(args: argparse.Namespace) -> Iterator[Row]:
    """Peak bytes of Kimi Linear's prompt, weights included, in bf16: H = 32, K = 128, two KDA layers and one MLA."""
    if args.device.type != "cuda":
        yield {"case": "kimi_linear", "what": "peak memory", "passed": None, "skipped": "it is counted on a GPU"}
        return
    tokens = args.memory_tokens
    model = build("kimi_linear", gain=0.5, embedding=1.0, device=str(args.device), **KIMI).bfloat16()
    x = torch.randint(2, VOCABULARY, (1, tokens), device=args.device)

    def peak() -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        model(x, use_cache=True, logits_to_keep=1)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    swapped = use(model)
    model(x[:, :256], use_cache=True, logits_to_keep=1)  # compiles
    torch.cuda.empty_cache()
    resting, ours = torch.cuda.memory_allocated(), peak()
    swapped.undo()
    row: Row = {"case": "kimi_linear", "what": "peak memory", "tokens": tokens, "resting bytes": resting}
    try:
        theirs = peak()
    except torch.cuda.OutOfMemoryError as error:
        total = torch.cuda.get_device_properties(args.device).total_memory
        yield row | {"ours bytes": ours, "torch": f"out of memory: {error}"[:200], "passed": ours <= MEMORY * total}
        return
    row |= {"ours bytes": ours, "torch bytes": theirs, "ratio": ours / theirs, "limit": MEMORY}
    row["ratio above weights"] = (ours - resting) / (theirs - resting)
    yield row | {"passed": ours <= MEMORY * theirs}


@contextmanager
def _kept(path: Path, result: dict[str, Any]) -> Iterator[Callable[[Row], None]]:
    """What adds a row to the file, which is whole after each."""

    def keep(row: Row) -> None:
        result["rows"].append(row)
        part = path.with_suffix(path.suffix + ".part")
        part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
        print({True: "passed", False: "FAILED", None: "-"}[row["passed"]], json.dumps(row), flush=True)

    path.parent.mkdir(parents=True, exist_ok=True)
    yield keep


def main(argv: list[str] | None = None) -> int:
    """Write all rows to a file; 1 if one has failed."""
    parser = argparse.ArgumentParser(prog="python -m evalsuite.integrations.hf.bench", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file, whole after each row")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--tiny", action="store_true", help="heads of 16 and 100 tokens")
    parser.add_argument("--tokens", type=int, help="of a prompt; 600, or 100 with --tiny")
    parser.add_argument("--memory-tokens", type=int, default=8192)
    parser.add_argument("--seconds", type=float, default=220, help="after so many no further case is begun")
    parser.add_argument("--only", nargs="+", choices=["memory", *WIDE], help="of all cases")
    args = parser.parse_args(argv)
    args.tokens = args.tokens or (100 if args.tiny else 600)
    if record.version("flash-linear-attention"):
        parser.error("flash-linear-attention is installed, and transformers runs it for its own torch path: remove it")
    start = time.monotonic()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = (
        False  # convolutions too: fp32 is the truth
    )
    example = torch.empty(0, device=args.device)
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
    }
    result: dict[str, Any] = {"environment": versions | (record.versions(example) or {}), "rows": []}
    with torch.no_grad(), _kept(args.out, result) as keep:
        for name in args.only or ["memory", *WIDE]:
            if time.monotonic() - start > args.seconds:
                keep({"case": name, "passed": False, "error": f"not begun within {args.seconds:.0f} seconds"})
                continue
            try:
                for row in memory(args) if name == "memory" else architecture(name, args):
                    keep(row)
            except Exception as error:
                where = traceback.format_exc().strip().splitlines()[-8:]
                keep({"case": name, "passed": False, "error": f"{type(error).__name__}: {error}"[:500], "where": where})
            if args.device.type == "cuda":
                torch.cuda.empty_cache()
    failed = sum(row["passed"] is False for row in result["rows"])
    print(f"{len(result['rows'])} rows, {failed} failed, {time.monotonic() - start:.0f} s; {args.out}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
