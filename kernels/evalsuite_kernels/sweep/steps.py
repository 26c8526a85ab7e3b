"""The decode step against the copy bandwidth, and its time in a replayed CUDA graph."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evalsuite_kernels.decode import decode_step
from evalsuite_kernels.sweep.common import Report, Row, call, half_lives, inputs, spread

H, D, W = 32, 128, 4
L2 = 256 * 2**20  # bytes of state that a graph walks through at least, so that no state waits in a cache
STEPS = 64  # in a graph


def replayed(calls: list[Callable[[], Any]], rounds: int = 20) -> Row:
    """Microseconds a call inside a CUDA graph of all `calls`: median, p10 and p90 over replays."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for one in calls[:3]:
            one()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in calls:
            one()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds + 3)]
    for a, b in pairs:
        a.record()
        graph.replay()
        b.record()
    torch.cuda.synchronize()
    times = spread([a.elapsed_time(b) * 1e3 / len(calls) for a, b in pairs[3:]])
    return {"us": times["ms"], "p10": times["p10"], "p90": times["p90"], "calls": len(calls), "replays": rounds}


def fused(op: str, HV: int, slots: int) -> dict[str, Any]:
    """Everything a Kimi Linear layer does around the step."""
    channels = 3 * HV * D
    vector = op == "kda"
    return {
        "conv_state": torch.randn(slots, channels, W - 1, device="cuda", dtype=torch.bfloat16),
        "taps": torch.randn(channels, W, device="cuda", dtype=torch.bfloat16),
        "silu": True,
        "l2norm": True,
        "A_log": torch.rand(HV, device="cuda"),
        "dt_bias": torch.randn(HV * D if vector else HV, device="cuda") - 4,
        "beta_sigmoid": True,
        "norm_weight": torch.ones(D, device="cuda", dtype=torch.bfloat16),
        "gate": torch.randn(slots, HV, D, device="cuda", dtype=torch.bfloat16),
    }


def one(op: str, B: int, with_all: bool, rates: dict[str, float]) -> Row:
    x = inputs(op, B, 1, H, D, regime="softplus", gate_dtype=torch.float32)
    q, k, v, g, beta = (None if t is None else t[:, 0].contiguous() for t in x.values())
    assert q is not None and k is not None and v is not None  # noqa: PT018
    each = B * H * D * D * 4
    states = [torch.randn(B, H, D, D, device="cuda") for _ in range(max(2, -(-L2 // each)))]
    options = fused(op, H, B) if with_all else {}

    def run(S: Tensor) -> Tensor:
        return decode_step(q, k, v, g, beta, S, **options)

    row: Row = {}
    if not with_all:  # the same step by the definition, in fp64
        S = states[0].clone()
        o = run(S)
        exact = {n: None if t is None else t.double() for n, t in x.items()}
        want, final = call(op, exact, "reference", initial_state=states[0].double(), output_final_state=True)
        assert final is not None
        row["errors"] = {
            "o": ((o.double() - want[:, 0]).norm() / want.norm()).item(),
            "state": ((S.double() - final).norm() / final.norm()).item(),
        }
        del exact, want, final, S
    n = max(STEPS, len(states)) if B == 1 else max(8, len(states))
    row |= replayed([partial(run, states[i % len(states)]) for i in range(n)])
    other = [torch.empty_like(S) for S in states[:2]]
    copies = replayed([partial(other[i % 2].copy_, states[i % len(states)]) for i in range(n)])
    small = [t for t in (q, k, v, g, beta, v, options.get("gate")) if t is not None]
    tails = options["conv_state"].nbytes * 2 if with_all else 0
    moved = 2 * each + sum(t.nbytes for t in small) + tails
    rate = moved / row["us"] * 1e6
    return row | {
        "op": op, "B": B, "H": H, "D": D, "fused": with_all, "bytes": moved, "bytes_per_s": rate,
        "of_copy": rate / rates["copy_bytes_per_s"], "copy_of_its_state_us": copies["us"],
        "half_lives": None if with_all else half_lives(g),
    }  # fmt: skip


def decode(report: Report, rates: dict[str, float], tiny: bool) -> None:
    """Fill the report."""
    for with_all in (False, True):
        for op in ("kda", "gdn"):
            for B in (1, 2) if tiny else (1, 32, 128, 256):
                report.add(f"{op} B{B} {'fused' if with_all else 'plain'}", partial(one, op, B, with_all, rates))
    report.close()
