"""What the sections share: results on disk within a time budget, inputs, event timing, the machine's own rates."""

import json
import math
import os
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evalsuite_kernels import delta_rule, full_attention, lightning_slopes, linear_attention
from evalsuite_kernels.record import output, version

# operator -> (family, shape of its gate)
OPERATORS = {
    "linear": ("linear", "none"),
    "lightning": ("linear", "head"),
    "mamba2": ("linear", "scalar"),
    "gla": ("linear", "vector"),
    "deltanet": ("delta", "none"),
    "gdn": ("delta", "scalar"),
    "kda": ("delta", "vector"),
}
MODULE = "evalsuite_kernels.sweep"
Row = dict[str, Any]
Inputs = dict[str, Tensor | None]


class Report:
    """The rows of one section, on disk after every row; `over` once its time is spent."""

    def __init__(self, path: Path, seconds: float, match: str) -> None:
        self.path, self.deadline, self.match = path, time.monotonic() + seconds, re.compile(match)
        self.rows: list[Row] = []
        self.about: Row = {}
        self.left_out = 0

    def wants(self, name: str) -> bool:
        return self.match.search(name) is not None

    def add(self, name: str, work: Callable[[], Row | list[Row]]) -> None:
        """Run `work` and keep what it gives, or its error as text; past the budget only count it."""
        if not self.wants(name):
            return
        if time.monotonic() > self.deadline:
            self.left_out += 1
            return
        began = time.monotonic()
        try:
            result = work()
        except Exception as error:  # a row that fails is a result too
            result = {"error": brief(error)}
        rows = result if isinstance(result, list) else [result]
        for row in rows:
            self.rows.append({"name": name} | row)
            shown = {key: value for key, value in row.items() if key in SHOWN}
            print(f"{name}: {json.dumps(shown)} ({time.monotonic() - began:.1f} s)", flush=True)
        self.write()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def write(self) -> None:
        content = self.about | {"left_out_for_time": self.left_out, "rows": self.rows}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1))
        part.replace(self.path)

    def close(self) -> None:
        """Write what there is, and say what is missing."""
        self.write()
        if self.left_out:
            print(f"{self.path.name}: {self.left_out} cases left out, the time budget was spent")


SHOWN = {
    "error", "errors", "equal", "found",
    "impl", "ms", "p10", "p90", "roofline", "times_as_fast", "differs", "of_copy", "us",
    "seconds", "first_call_seconds", "host_ms", "shape", "ratio", "best", "committed", "rejected",
}  # fmt: skip


def brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}"


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that was never written reads as NaN, so that no kernel lives off what a page happens to hold."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned_make(*args: Any, **kwargs: Any) -> Tensor:
            x = make(*args, **kwargs)
            return x.fill_(torch.nan) if x.is_floating_point() else x

        return poisoned_make

    places: list[tuple[Any, str]] = [(torch, n) for n in ("empty", "empty_like", "empty_strided")]
    places += [(Tensor, "new_empty")]
    kept = [getattr(place, name) for place, name in places]
    try:
        for (place, name), make in zip(places, kept, strict=True):
            setattr(place, name, poison(make))
        yield
    finally:
        for (place, name), make in zip(places, kept, strict=True):
            setattr(place, name, make)


def gates(kind: str, shape: tuple[int, ...], regime: str, device: str) -> Tensor:
    """Log decays [shape] in fp32.

    mixed: half-lives log-uniform from 1 to 100,000 tokens, a tenth of them -200; long: without those; storm: 70 % are
    -200; softplus: -exp(A_log) softplus(x + dt_bias) as Mamba-2, Gated DeltaNet and Kimi Linear start (A in [1, 16],
    dt in [0.001, 0.1]), x ~ N(0, 1).
    """
    if regime == "softplus":
        heads = shape[2]
        channels = shape[3:] or (1,)
        A = torch.empty(heads, 1, device=device).uniform_(1, 16)
        dt = torch.empty(heads, *channels, device=device).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        bias = dt + torch.log(-torch.expm1(-dt))
        x = torch.randn(*shape[:3], *channels, device=device)
        return (-A * F.softplus(x + bias)).view(shape)
    g = -math.log(2) / 10 ** (5 * torch.rand(shape, device=device))
    share = {"mixed": 0.1, "storm": 0.7}.get(regime, 0.0) if kind != "head" else 0.0
    return g.masked_fill(torch.rand(shape, device=device) < share, -200.0)


def inputs(  # noqa: PLR0913 - a case has this many sides
    op: str, B: int, T: int, H: int, K: int, *, HV: int = 0, V: int = 0, regime: str = "mixed",
    dtype: torch.dtype = torch.bfloat16, gate_dtype: torch.dtype | None = None, device: str = "cuda",
) -> Inputs:  # fmt: skip
    """Fresh {q, k, v, g, beta} of an operator: keys of length 1, beta in (0, 2); in (0, 1) if collinear or softplus.

    Under the regime "raw", what a layer's projections give: q and k of any length, g and beta before their activations,
    and A_log and dt_bias of g; for `call` with raw=True.
    """
    family, kind = OPERATORS[op]
    HV, V = HV or H, V or K
    q, k, v, beta = (torch.randn(s, device=device) for s in ((B, T, H, K), (B, T, H, K), (B, T, HV, V), (B, T, HV)))
    if regime == "collinear":
        k = torch.randn(B, 1, H, K, device=device) + 0.01 * k
    shape = {"none": (0,), "head": (HV,), "scalar": (B, T, HV), "vector": (B, T, HV, K)}[kind]
    if kind == "none":
        g = torch.empty(0)
    elif kind == "head" and regime == "softplus":
        g = lightning_slopes(HV, 0, 2, torch.device(device))
    else:
        g = gates(kind, shape, "long" if regime == "collinear" else regime, device)
    half = gate_dtype or torch.float32
    if regime == "raw":
        return _raw(q, k, v, beta, shape, family, dtype, half)
    most = 1.0 if regime in {"collinear", "softplus"} else 2.0
    return {
        "q": q.to(dtype),
        "k": F.normalize(k, dim=-1).to(dtype),
        "v": v.to(dtype),
        "g": None if kind == "none" else g.to(half) if kind == "vector" else g,
        "beta": most * beta.sigmoid() if family == "delta" else None,
    }


def _raw(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    shape: tuple[int, ...],
    family: str,
    dtype: torch.dtype,
    half: torch.dtype,
) -> Inputs:
    long = 10 ** torch.rand(*q.shape[:3], 2, device=q.device)
    x: Inputs = {"q": (q * long[..., :1]).to(dtype), "k": (k * long[..., 1:]).to(dtype), "v": v.to(dtype)}
    x |= {"g": None, "beta": beta if family == "delta" else None}
    if len(shape) > 1:
        dt = torch.empty(shape[2:], device=q.device).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        x["A_log"] = torch.empty(shape[2], device=q.device).uniform_(1, 16).log()
        x["dt_bias"] = (dt + torch.log(-torch.expm1(-dt))).flatten()
        x["g"] = torch.randn(shape, device=q.device).to(half)
    return x


def call(op: str, x: Inputs, impl: str, raw: bool = False, **options: Any) -> tuple[Tensor, Tensor | None]:
    """(o, final state) of an operator on `inputs`."""
    q, k, v, g, beta = x["q"], x["k"], x["v"], x["g"], x["beta"]
    assert q is not None and k is not None and v is not None  # noqa: PT018
    if raw:
        options |= {name: x.get(name) for name in ("A_log", "dt_bias")}
        options |= {} if beta is None else {"l2norm": True, "beta_sigmoid": True, "beta_max": 2.0}
    if beta is not None:
        return delta_rule(q, k, v, beta, g, impl=impl, **options)
    scale = 1.0 if op in {"lightning", "mamba2"} else None
    return linear_attention(q, k, v, g, scale=scale, impl=impl, **options)


def attend(q: Tensor, k: Tensor, v: Tensor, impl: str, **options: Any) -> Tensor:
    return full_attention(q, k, v, impl=impl, **options)


def half_lives(g: Tensor | None) -> list[float] | None:
    """1 %, 50 % and 99 % of the gates' half-lives in tokens."""
    if g is None:
        return None
    some = g.flatten()[:: max(1, g.numel() // 100_000)].double().clamp(max=-1e-12)
    points = torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64, device=g.device)
    return [float(f"{x:.3g}") for x in torch.quantile(-math.log(2) / some, points).tolist()]


def milliseconds(calls: dict[str, list[Callable[[], Any]]], seconds: float = 1.0, flush: bool = True) -> dict[str, Row]:
    """Median, p10 and p90 of each named list of calls (one a set of inputs), timed by CUDA events, in rounds.

    Each round calls all names in an order of its own: a call finds the GPU as warm, and its clock as slow, as the call
    before has left it.
    Before each timed call caches are overwritten, and the GPU spins for longer than the host takes to launch the call:
    the events see the GPU's time alone. Only a call that itself waits for the GPU (for lengths, say) shows the host's
    work after that wait. "host_ms" is the host's median time for a call on an idle GPU. Each name gets about `seconds`
    of calls, 10 to 100 of them.
    """
    flushed = _flusher() if flush else None
    rate = spin_rate()
    cycles, rounds, host = {}, 100, {}
    for name, each in calls.items():
        for one in each:  # compiles, and lets the allocator fill
            one()
        torch.cuda.synchronize()
        launched, whole = zip(*(_clocked(each[i % len(each)]) for i in range(max(3, len(each)))), strict=True)
        host[name] = statistics.median(launched) * 1e3
        cycles[name] = int(rate * min(50.0, 1.5 * max(launched) * 1e3 + 0.2))
        rounds = min(rounds, max(10, int(seconds / max(statistics.median(whole), 1e-5))))
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    order = random.Random(0)
    for i in range(rounds):
        for name, each in order.sample(list(calls.items()), len(calls)):
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            if flushed is not None:
                flushed()
            torch.cuda._sleep(cycles[name])
            pair[0].record()
            each[i % len(each)]()
            pair[1].record()
            events[name].append(pair)
    torch.cuda.synchronize()
    return {
        name: spread([a.elapsed_time(b) for a, b in pairs]) | {"host_ms": host[name]} for name, pairs in events.items()
    }


def _flusher() -> Callable[[], Any]:
    """Overwrites more than the L2 cache holds."""
    return torch.empty(2**26, dtype=torch.int32, device="cuda").zero_


@cache
def spin_rate() -> float:
    """Cycles of torch.cuda._sleep in a millisecond."""
    best = math.inf
    for _ in range(3):  # the first finds the GPU asleep
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        torch.cuda._sleep(10_000_000)
        b.record()
        torch.cuda.synchronize()
        best = min(best, a.elapsed_time(b))
    return 10_000_000 / best


def _clocked(one: Callable[[], Any]) -> tuple[float, float]:
    """Seconds until a call on an idle GPU returns, and until the GPU is done with it."""
    began = time.perf_counter()
    one()
    launched = time.perf_counter() - began
    torch.cuda.synchronize()
    return launched, time.perf_counter() - began


def spread(times: list[float]) -> Row:
    tenths = statistics.quantiles(times, n=10, method="inclusive")
    return {"ms": statistics.median(times), "p10": tenths[0], "p90": tenths[-1], "runs": len(times)}


def machine() -> dict[str, float]:
    """Copy bandwidth in bytes/s (read and written) and bf16 matmul rate in FLOP/s, on random data."""
    x = torch.randn(2**29, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = milliseconds({"copy": [lambda: y.copy_(x)], "matmul": [lambda: a @ b]}, flush=False)
    return {
        "copy_bytes_per_s": 2 * x.nbytes / times["copy"]["ms"] * 1e3,
        "matmul_flop_per_s": 2 * 8192**3 / times["matmul"]["ms"] * 1e3,
    }


def environment() -> Row:
    """Versions and hardware; what cannot be told is said so."""
    import triton

    tools = sorted((Path(triton.__file__).parent / "backends" / "nvidia" / "bin").glob("ptxas*"))
    query = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "ptxas": {tool.name: output([str(tool), "--version"]).splitlines()[-2:] for tool in tools},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "driver": output(query) or "unknown",
        "fla": version("flash-linear-attention"),
        "fla-core": version("fla-core"),
        "evalsuite": version("evalsuite"),
        # no machine's own folders
        "triton_settings": {n: x for n, x in os.environ.items() if n.startswith("TRITON_") and not n.endswith("_DIR")},
        "command": [Path(x).name if Path(x).is_absolute() else x for x in ("python", "-m", MODULE, *sys.argv[1:])],
    }
