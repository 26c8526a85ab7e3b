"""The committed launch settings beside a few others; each is checked, and timed only if it is right."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from evalsuite_kernels.full.dispatch import WIDTHS
from evalsuite_kernels.sweep.apart import all_apart, apart
from evalsuite_kernels.sweep.common import Inputs, Report, Row, call, inputs, milliseconds
from evalsuite_kernels.sweep.dispatch import DTYPES, Sizes, made, runner
from evalsuite_kernels.sweep.dispatch import check as check_attention
from evalsuite_kernels.sweep.exact import Case, judged

# of full/settings.py, (op, bytes of a number): BLOCK_M, BLOCK_N, num_warps, num_stages. BLOCK_N of "decode" and
# "forward" must divide the decoding split. What does not fit a GPU's shared memory is rejected by its error.
FULL: dict[tuple[str, int], list[tuple[int, int, int, int]]] = {
    ("forward", 2): [(128, 64, 8, 3), (128, 128, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3)],
    ("keys", 2): [(64, 128, 8, 2), (32, 128, 8, 2), (64, 64, 4, 2)],
    ("queries", 2): [(128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 2)],
    ("decode", 2): [(16, 128, 4, 2), (16, 128, 4, 3), (16, 64, 4, 3)],
    ("forward", 4): [(64, 32, 8, 2), (32, 32, 4, 2)],
    ("keys", 4): [(32, 32, 8, 1), (16, 32, 4, 1)],
    ("queries", 4): [(32, 32, 8, 1), (32, 16, 4, 1)],
    ("decode", 4): [(16, 64, 4, 2), (16, 32, 4, 3)],
}
# of chunk_settings.py. Neither one stage of a scan nor, where wgmma multiplies, four warps on less than 64 columns, but
# for what is committed: Triton 3.6 miscompiles those (see there), which a check of results need not show.
FUSED: dict[str, list[dict[str, int]]] = {
    "channel_gates": [{"BK": 64, "num_warps": 4}, {"BK": 128, "num_warps": 8}],
    "channel_levels": [{"BK": 32, "num_warps": 2, "num_stages": 2}, {"BK": 64, "num_warps": 4, "num_stages": 2}],
    "head_products": [{"BK": BK, "num_warps": warps} for BK in (64, 128) for warps in (4, 8)],
    "solve": [{"num_warps": warps} for warps in (1, 2)],
    "scan": [{"BV": 64, "STAGES": stages, "num_warps": warps} for stages in (2, 3) for warps in (4, 8)],
    "scan_back": [{"BV": 64, "STAGES": stages, "num_warps": warps} for stages in (2, 3) for warps in (4, 8)],
    "fold": [{"BK": 64, "num_warps": warps, "num_stages": 1} for warps in (4, 8)],
    "wide": [{"BK": 64, "BV": 64, "num_warps": warps, "num_stages": 1} for warps in (4, 8)],
    "pairs_back": [{"BV": 64, "num_warps": warps, "num_stages": 1} for warps in (4, 8)],
    "inside_back": [{"BK": 64, "BV": 64, "num_warps": warps, "num_stages": 1} for warps in (4, 8)],
    "transition": [{"BV": 64, "STAGES": stages, "num_warps": warps} for stages in (2, 3) for warps in (4, 8)],
    "merge": [{"BV": 64, "num_warps": warps, "num_stages": 1} for warps in (4, 8)],
}
# a call that runs the kernel: operator, dtype, whether with gradients; bf16's forward pass has kernels of its own
USES = {
    "channel_gates": ("kda", "float16", False),
    "channel_levels": ("kda", "float16", False),
    "head_products": ("gdn", "float16", False),
    "solve": ("gdn", "float16", False),
    "scan": ("kda", "bfloat16", True),
    "scan_back": ("kda", "bfloat16", True),
    "fold": ("gdn", "float16", False),
    "wide": ("kda", "bfloat16", True),
    "pairs_back": ("kda", "bfloat16", True),
    "inside_back": ("gdn", "bfloat16", True),
    "transition": ("kda", "bfloat16", False),
    "merge": ("kda", "bfloat16", False),
}
SEGMENTS = {"transition": 1024, "merge": 1024}  # tokens, where only segments run the kernel
PLACES = {"full": "evalsuite_kernels.full.settings", "fused": "evalsuite_kernels.chunk_settings"}
LENGTH = {2: 4096, 4: 1024}  # of softmax attention's calls, by bytes of a number


def settings(family: str) -> dict[Any, Any]:
    """The live table of a family, "full" or "fused"."""
    found: dict[Any, Any] = import_module(PLACES[family]).SETTINGS
    return found


def put(family: str, key: Any, candidate: Any) -> Any:
    """Set an entry, given as JSON carries it, and return its key."""
    at = tuple(key) if isinstance(key, list) else key
    settings(family)[at] = tuple(candidate) if isinstance(candidate, list) else candidate
    return at


def check(family: str, key: Any, candidate: Any, device: str = "cuda") -> Row:
    """The reference's result under a candidate, gradients included: {"errors", "limit", "passed"}."""
    at = put(family, key, candidate)
    if family == "full":
        op, size, D = at
        # sinks change nothing of the work, and keep plain calls from the kernels made for Hopper
        return check_attention("cached" if op == "decode" else "sinks", size, D, device)
    op, dtype, _ = USES[at]
    case = Case(300, B=2, H=2, HV=4, K=256 if at == "wide" else 128, regime="softplus", state=True)
    case = replace(case, segment=SEGMENTS.get(at, 0) // 8)
    row = judged(op, case, getattr(torch, dtype), "triton", device)
    return {name: row[name] for name in ("errors", "limit", "passed")}


def work(family: str, key: Any) -> tuple[Callable[[], Any], bool]:
    """A call that runs the entry's kernel, and whether it takes gradients."""
    run: Callable[..., list[Tensor]]
    if family == "full":
        op, size, D = key
        backward, T = op in {"keys", "queries"}, LENGTH[size]
        sizes: Sizes = (8, 1, 2 * T, 32, 8) if op == "decode" else (1, T, T, 32, 32)
        leaves, options = made("cached" if op == "decode" else "sinks", sizes, D, DTYPES[size], "cuda")
        run = runner(options)("triton")
    else:
        name, dtype, backward = USES[key]
        half = getattr(torch, dtype)
        # a gate of fp16 would lose what the operator keeps in fp32
        gate = torch.float32 if half == torch.float16 else half
        x = inputs(name, 1, 8192, 32, 256 if key == "wide" else 128, regime="softplus", dtype=half, gate_dtype=gate)
        leaves = {n: t for n, t in x.items() if t is not None}
        run = partial(recurrent, name, x, SEGMENTS.get(key))

    if not backward:
        return partial(run, **leaves), False
    leaves = {n: t.requires_grad_() for n, t in leaves.items()}
    g = torch.randn_like(leaves["q"])  # all heads are of one size here, and as many
    return lambda: torch.autograd.grad(run(**leaves), list(leaves.values()), [g]), True


def recurrent(op: str, x: Inputs, segment: int | None, **leaves: Tensor) -> list[Tensor]:
    return [call(op, {**x, **leaves}, "triton", segment=segment)[0]]


def timed(family: str, key: Any, candidates: list[Any], seconds: float) -> Row:
    """Milliseconds of the whole call under each candidate, in turns."""
    at = tuple(key) if isinstance(key, list) else key
    one, backward = work(family, at)

    def under(candidate: Any) -> Any:
        put(family, key, candidate)
        return one()

    with torch.set_grad_enabled(backward):
        times = milliseconds({str(i): [partial(under, c)] for i, c in enumerate(candidates)}, seconds)
    return {"times": [times[str(i)] for i in range(len(candidates))]}


def entries() -> list[tuple[str, Any, list[Any]]]:
    """(family, key, candidates with the committed one first) of every entry that is tuned."""
    full, fused = settings("full"), settings("fused")
    found: list[tuple[str, Any, list[Any]]] = []
    for name, blocks in FUSED.items():
        found.append(("fused", name, [fused[name], *(c for c in blocks if c != fused[name])]))
    for (op, size), tiles in FULL.items():
        for D in sorted(WIDTHS, key=lambda D: D != 128):
            now = full[op, size, D]
            found.append(("full", (op, size, D), [now, *(c for c in tiles if c != now)]))
    return found


def name_of(family: str, key: Any) -> str:
    return f"{family} {key if isinstance(key, str) else ' '.join(map(str, key))}"


def chosen(family: str, key: Any, candidates: list[Any], checks: list[Row], seconds: float) -> Row:
    """The fastest of the candidates that are right beside the committed one, which comes first."""
    right = [c for c, row in zip(candidates, checks, strict=True) if row.get("passed", False)]
    rejected = [
        {"settings": c, "why": row.get("error", row.get("errors"))}
        for c, row in zip(candidates, checks, strict=True)
        if c not in right
    ]
    about: Row = {"committed": candidates[0], "rejected": rejected}
    if not right:
        return about | {"error": "no candidate is right"}
    row = apart(__name__, "timed", (family, key, right, seconds))
    if "error" in row:
        return about | row
    times = {str(c): t for c, t in zip(right, row["times"], strict=True)}
    best = min(right, key=lambda c: times[str(c)]["ms"])
    now = times.get(str(candidates[0]))
    ratio = None if now is None else now["ms"] / times[str(best)]["ms"]
    return about | {"best": best, "ms": times[str(best)]["ms"], "ratio": ratio, "times": times}


def tune(report: Report, seconds: float = 0.15) -> None:
    """Fill the report: all candidates are checked first, a few processes at a time, which also fills Triton's cache."""
    tuned = [entry for entry in entries() if report.wants(name_of(*entry[:2]))]
    jobs = [(family, key, c) for family, key, candidates in tuned for c in candidates]
    checks = iter(all_apart(__name__, "check", jobs))
    for family, key, candidates in tuned:
        rows = [next(checks) for _ in candidates]
        report.add(name_of(family, key), partial(chosen, family, key, candidates, rows, seconds))
    report.close()
    print("\nentry, committed, best, how many times as fast")
    for row in report.rows:
        if row.get("ratio"):
            print(f"{row['name']}: {row['committed']} {row['best']} {row['ratio']:.3f}")
