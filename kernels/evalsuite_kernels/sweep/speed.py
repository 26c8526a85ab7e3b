"""Times beside flash-linear-attention and torch's SDPA in one process, with the roofline of every row.

Bytes: each input read once and each output written once (backward: inputs and the output's gradient read, the inputs'
gradients written). FLOPs per token and head, by dense tiles of chunks of C = 64 (shared/spec/kernels.md §5): delta rule
6 d^2 + 10 C d, linear attention 4 d^2 + 4 C d; causal softmax 2 T d; a backward pass costs two forward passes, softmax
attention's two and a half. The roofline is the slower of bytes at the copy bandwidth and FLOPs at the matmul rate.
"""

import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from evalsuite_kernels.arguments import Raw
from evalsuite_kernels.recurrent import activated
from evalsuite_kernels.sweep.common import (
    OPERATORS,
    Inputs,
    Report,
    Row,
    attend,
    brief,
    call,
    half_lives,
    inputs,
    milliseconds,
)

CHUNK = 64
SETS = 3  # sets of inputs taken in turn
SECONDS = 0.4  # of timed calls for each implementation in a row: all rows fit in a few minutes
SHAPES = [(1, 8192, 32), (1, 32768, 32), (1, 131072, 32), (8, 4096, 16)]  # B, T, H
FULL_SHAPES = [(1, 8192, 32), (1, 32768, 32), (8, 4096, 16)]  # softmax attention is quadratic in T
FEW_HEADS = [(1, 65536, 4)]
SEGMENT = 4096
Run = Callable[[Inputs], Tensor]


def peer(op: str) -> Run:
    """flash-linear-attention's operator: o of {q, k, v, g, beta}."""
    if op in {"kda", "gdn"}:
        place, name = {"kda": ("kda", "chunk_kda"), "gdn": ("gated_delta_rule", "chunk_gated_delta_rule")}[op]
        delta = getattr(import_module(f"fla.ops.{place}"), name)
        return lambda x: delta(x["q"], x["k"], x["v"], g=x["g"], beta=x["beta"])[0]
    if op == "gla":
        gla = import_module("fla.ops.gla").chunk_gla
        return lambda x: gla(x["q"], x["k"], x["v"], x["g"])[0]
    simple = import_module("fla.ops.simple_gla").chunk_simple_gla  # fla's Lightning has slopes other than MiniMax's
    return lambda x: simple(x["q"], x["k"], x["v"], g_gamma=x["g"], scale=1.0)[0]


def cost(op: str, x: Inputs, way: str) -> tuple[float, float]:
    """Bytes and FLOPs."""
    q, v = x["q"], x["v"]
    assert q is not None
    assert v is not None
    (B, T, H, d), HV = q.shape, v.shape[2]
    read = sum(t.nbytes for t in x.values() if t is not None)
    if op == "full":
        flops = 2.0 * B * T * T * H * d
        moved = {"forward": read + q.nbytes, "backward": 2 * read + q.nbytes}
        return moved.get(way, sum(moved.values())), flops * {"forward": 1, "backward": 2.5}.get(way, 3.5)
    each = 6 * d * d + 10 * CHUNK * d if OPERATORS[op][0] == "delta" else 4 * d * d + 4 * CHUNK * d
    flops = float(B * T * HV * each)
    both = way == "both"
    return read + v.nbytes + (2 * read + v.nbytes if both else 0), flops * (3 if both else 1)


def rooflined(row: Row, bytes_: float, flops: float, rates: dict[str, float]) -> Row:
    floor = {"bytes": bytes_ / rates["copy_bytes_per_s"] * 1e3, "flops": flops / rates["matmul_flop_per_s"] * 1e3}
    bound = max(floor, key=lambda name: floor[name])
    counted = {"bytes": bytes_, "flops": flops, "roofline_ms": floor[bound], "bound": bound}
    return row | counted | {"roofline": floor[bound] / row["ms"]}


def step(run: Run, x: Inputs, towards: Tensor, way: str) -> Callable[[], Any]:
    """One call: "forward", "both" (forward, and backward from the output's gradient `towards`) or "backward"."""
    if way == "forward":
        return lambda: run(x)
    leaves = {n: t.detach().requires_grad_() for n, t in x.items() if t is not None and t.dim() > 1}
    if way == "backward":
        with torch.enable_grad():
            o = run({**x, **leaves})
        return lambda: torch.autograd.grad(o, list(leaves.values()), towards, allow_unused=True, retain_graph=True)

    def both() -> Any:
        return torch.autograd.grad(run({**x, **leaves}), list(leaves.values()), towards, allow_unused=True)

    return both


def compare(
    op: str, runs: dict[str, Run | Exception], sets: list[Inputs], way: str, rates: dict[str, float]
) -> list[Row]:
    """A row for each of `runs`, which take turns; the first is ours. What fails leaves its error as text."""
    rows: dict[str, Row] = {}
    calls: dict[str, list[Callable[[], Any]]] = {}
    first: list[Tensor] = []
    towards = [torch.randn_like(v) for v in (x["v"] for x in sets) if v is not None]
    for impl, run in runs.items():
        try:
            if isinstance(run, Exception):
                raise run
            each = [step(run, x, d, way) for x, d in zip(sets, towards, strict=True)]
            began = time.perf_counter()
            result = each[0]()
            torch.cuda.synchronize()
            rows[impl] = {"first_call_seconds": round(time.perf_counter() - began, 3)}
            tensors = [t.float() for t in ([result] if way == "forward" else result)]
            first = first or tensors
            rows[impl]["differs"] = max(  # from ours, by the norm: the worst of o or of all gradients
                ((a - b).norm() / b.norm()).item() for a, b in zip(tensors, first, strict=True)
            )
            calls[impl] = each
            del result, tensors
        except Exception as problem:  # an absent or failing peer is a result
            rows[impl] = {"error": brief(problem)}
        torch.cuda.empty_cache()
    first.clear()
    bytes_, flops = cost(op, sets[0], way)
    with torch.set_grad_enabled(way == "both"):
        for impl, times in milliseconds(calls, SECONDS).items():
            rows[impl] |= rooflined(times, bytes_, flops, rates)
    ours = next(iter(rows.values())).get("ms")
    for impl, row in rows.items():
        row["impl"] = impl
        if ours and "ms" in row:
            row["times_as_fast"] = row["ms"] / ours  # how many times as fast as this one ours is
    q = sets[0]["q"]
    assert q is not None
    shape = dict(zip("BTHD", q.shape, strict=True))
    about = shape | {"op": op, "dtype": str(q.dtype).removeprefix("torch."), "half_lives": half_lives(sets[0].get("g"))}
    return [about | {"way": way} | row for row in rows.values()]


def recurrent(
    op: str, B: int, T: int, H: int, D: int, way: str, gate: torch.dtype, rates: dict[str, float]
) -> list[Row]:
    sets = [inputs(op, B, T, H, D, regime="softplus", gate_dtype=gate) for _ in range(SETS)]
    runs: dict[str, Run | Exception] = {"ours": lambda x: call(op, x, "triton")[0]}
    try:
        runs["fla"] = peer(op)
    except Exception as problem:  # not installed, or not on this machine
        runs["fla"] = problem
    return compare(op, runs, sets, way, rates)


def raw(op: str, B: int, T: int, H: int, D: int, way: str, gate: torch.dtype, rates: dict[str, float]) -> list[Row]:
    """Norms and activations inside the kernels, beside the same in torch before them."""
    sets = [inputs(op, B, T, H, D, regime="raw", gate_dtype=gate) for _ in range(SETS)]

    def prepared(x: Inputs) -> Tensor:
        names = ("q", "k", "v", "g", "beta")
        ready = activated([x[name] for name in names], Raw(True, x["A_log"], x["dt_bias"], True, 2.0), torch.float32)
        given: Inputs = dict(zip(names, ready, strict=True))
        return call(op, given | {n: t.bfloat16() for n, t in given.items() if t is not None and n in "qk"}, "triton")[0]

    runs: dict[str, Run | Exception] = {
        "ours": lambda x: call(op, x, "triton", raw=True)[0],
        "ours after torch": prepared,
    }
    return compare(op, runs, sets, way, rates)


def in_segments(
    op: str, B: int, T: int, H: int, D: int, way: str, gate: torch.dtype, rates: dict[str, float]
) -> list[Row]:
    """Segments of SEGMENT tokens walked over at once, beside chunk after chunk."""
    sets = [inputs(op, B, T, H, D, regime="softplus", gate_dtype=gate) for _ in range(SETS)]
    runs: dict[str, Run | Exception] = {"ours": lambda x: call(op, x, "triton", segment=SEGMENT)[0]}
    runs["ours, no segments"] = lambda x: call(op, x, "triton")[0]
    return compare(op, runs, sets, way, rates)


def full(B: int, T: int, H: int, D: int, way: str, rates: dict[str, float]) -> list[Row]:
    sets: list[Inputs] = [
        {n: torch.randn(B, T, H, D, device="cuda", dtype=torch.bfloat16) for n in "qkv"} for _ in range(SETS)
    ]

    def ours(impl: str, x: Inputs) -> Tensor:
        q, k, v = x["q"], x["k"], x["v"]
        assert q is not None and k is not None and v is not None  # noqa: PT018
        return attend(q, k, v, impl)

    def sdpa(backend: SDPBackend, x: Inputs) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (x["q"], x["k"], x["v"]) if t is not None)
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    runs: dict[str, Run | Exception] = {"ours": partial(ours, "triton"), "auto": partial(ours, "auto")}
    backends = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
    runs |= {f"sdpa {backend.name.lower()}": partial(sdpa, backend) for backend in backends}
    return compare("full", runs, sets, way, rates)


def speed(report: Report, rates: dict[str, float], gate: torch.dtype, tiny: bool) -> None:
    """Fill the report: what is asked most first."""
    D = 128
    shapes = [(1, 512, 4)] if tiny else SHAPES
    single, batched = [s for s in shapes if s[0] == 1], [s for s in shapes if s[0] > 1]
    others, ways = ("gdn", "gla", "lightning"), ("forward", "both")
    jobs: list[tuple[str, tuple[int, int, int], str]] = [("kda", s, way) for way in ways for s in single]
    jobs += [(op, s, "forward") for op in others for s in single]
    full_shapes = [(1, 512, 4)] if tiny else FULL_SHAPES
    jobs += [("full", s, way) for way in ("forward", "backward", "both") for s in full_shapes]
    # fla tunes itself for a minute at every new batch or number of heads, and for a backward pass
    jobs += [("kda", s, way) for way in ways for s in batched] + [(op, s, "forward") for op in others for s in batched]
    jobs += [(op, s, "both") for op in others for s in shapes]
    for op, (B, T, H), way in [(op, shapes[0], way) for op in ("kda", "gdn") for way in ways]:
        report.add(f"{op} raw B{B} T{T} H{H} {way}", partial(raw, op, B, T, H, D, way, gate, rates))
    for op, (B, T, H), way in [(op, s, way) for op in ("kda", "gdn") for s in FEW_HEADS for way in ways if not tiny]:
        report.add(f"{op} segments B{B} T{T} H{H} {way}", partial(in_segments, op, B, T, H, D, way, gate, rates))
    for op, (B, T, H), way in jobs:
        name = f"{op} B{B} T{T} H{H} {way}"
        if op == "full":
            report.add(name, partial(full, B, T, H, D, way, rates))
        else:
            report.add(name, partial(recurrent, op, B, T, H, D, way, gate, rates))
    report.close()


def figure(rows: list[Row], rates: dict[str, float], path: Path) -> None:
    """Attained FLOP/s over FLOPs per byte below the roof that this machine showed: a panel for each way, a colour for
    each operator, a marker for each implementation, a point for each shape."""
    try:
        Figure = import_module("matplotlib.figure").Figure
    except ImportError:
        print(f"{path.name} left out: matplotlib is not installed (pip install matplotlib)")
        return
    timed = [row for row in rows if "ms" in row and row["impl"] != "auto"]
    if not timed:
        return
    ways, operators, impls = (list(dict.fromkeys(row[key] for row in timed)) for key in ("way", "op", "impl"))
    colours = {op: f"C{i}" for i, op in enumerate(operators)}
    markers = dict(zip(impls, "o^sDv*Px", strict=False))
    bandwidth, peak = rates["copy_bytes_per_s"], rates["matmul_flop_per_s"]
    x = [row["flops"] / row["bytes"] for row in timed]
    ends = [min(*x, peak / bandwidth) / 2, peak / bandwidth, max(*x, peak / bandwidth) * 2]
    drawing = Figure(figsize=(5 * len(ways) + 1, 5), layout="constrained")
    panels = drawing.subplots(1, len(ways), sharey=True, squeeze=False)[0]
    for way, axes in zip(ways, panels, strict=True):
        axes.plot(ends, [min(peak, bandwidth * each) / 1e12 for each in ends], "k-", linewidth=1)
        for row in (row for row in timed if row["way"] == way):
            ours = row["impl"] == "ours"
            axes.plot(
                row["flops"] / row["bytes"], row["flops"] / row["ms"] / 1e9, markers[row["impl"]],
                color=colours[row["op"]], markerfacecolor=None if ours else "none", markersize=7 if ours else 5,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte", title=way)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"TFLOP/s (roof: {bandwidth / 1e12:.2f} TB/s, {peak / 1e12:.0f} TFLOP/s)")
    for op in operators:
        panels[-1].plot([], [], "s", color=colours[op], label=op)
    for impl in impls:
        panels[-1].plot(
            [], [], markers[impl], color="k", markerfacecolor=None if impl == "ours" else "none", label=impl
        )
    drawing.legend(loc="outside right upper", fontsize=8)
    drawing.savefig(path, dpi=150)
