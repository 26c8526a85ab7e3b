"""The launches in Gluon of one call of either recurrence on a Hopper GPU."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evalsuite_kernels.gluon import tiles
from evalsuite_kernels.hopper_channels import channel_blocks
from evalsuite_kernels.hopper_gradients import channel_back
from evalsuite_kernels.hopper_heads import head_blocks
from evalsuite_kernels.hopper_linear import describe_gates, gates, outputs, states
from evalsuite_kernels.hopper_scan import scan

if TYPE_CHECKING:
    from evalsuite_kernels.chunk_run import Run


def blocks(run: "Run") -> None:
    """All of a chunk that knows no state."""
    spare = run.S  # for what is not kept
    G, B, T, each = (spare if x is None else x for x in (run.G, run.B, run.T, run.each))
    kept = B, T, each, run.Kg if run.rest is None else run.rest, run.rates
    keep, counts = int(not run.wide), (run.chunks, run.H, run.HV)
    how = {"K": run.K, "UNIT": run.raw.l2norm, "SIGMOID": run.raw.sigmoid, "num_warps": 4}
    given = run.q, run.k, run.g, run.beta, run.raw.A_log, run.raw.dt_bias, *run.plan[:2]
    if run.gate == 2:
        assert run.g is not None
        whole = run.g.dtype == torch.bfloat16 and run.raw.A_log is None
        run.launches.add(
            channel_blocks, (run.chunks, run.HV),
            *given, G, run.D, run.P, run.Qs, run.Kd, run.Kg, *kept, run.scale, run.raw.beta_max, keep, *counts,
            DELTA=run.beta is not None, TERMS=1 if whole else 2, **how,
        )  # fmt: skip
        return
    run.launches.add(
        head_blocks, (run.chunks, run.HV),
        *given, G, run.P, run.Kg, *kept, run.scale, run.raw.beta_max, keep, *run.strides, *counts,
        GATE=run.gate, maxnreg=168, **how,  # three programs share a multiprocessor
    )  # fmt: skip


def late_gates(run: "Run") -> None:
    """The decays of linear attention without a gate per channel."""
    if run.g is not None:
        run.launches.add(
            gates, (run.chunks, -(-run.HV // 8)),
            run.g, run.raw.A_log, run.raw.dt_bias, run.G, *run.plan[:2], run.chunks, run.HV, *run.strides,
            HEADS=8, num_warps=2,
        )  # fmt: skip


def forward(run: "Run", o: Tensor, firsts: Tensor, S0: Tensor, S1: Tensor) -> None:
    """o and the states after stretches of chunks, of the states before them."""
    buffers = {name: getattr(run, name) for name in ("P", "Qs", "Kd", "Kg")}
    given = {name: None if x is None else tiles(x, x.shape[-1]) for name, x in buffers.items()}
    raw = run.gate < 2
    given |= {name: tiles(x.flatten(2), run.K) if raw else None for name, x in (("q", run.q), ("k", run.k))}
    run.launches.add(
        scan, (run.V // 64, run.HV, len(S0)),
        **given, v=tiles(run.v.flatten(2), 64), G=run.G if raw else run.D, rates=run.rates if raw else None, S0=S0,
        starts=run.plan.starts, stops=run.plan.stops, firsts=firsts, o=o, S1=S1, scale=run.scale,
        chunks=run.chunks, H=run.H, HV=run.HV, K=run.K, V=run.V, DELTA=run.beta is not None, GATE=run.gate,
        STAGES=3, num_warps=4,
    )  # fmt: skip


def linear(run: "Run", o: Tensor, S: Tensor) -> None:
    """o and the last states of linear attention without a gate per channel."""
    starts, stops, firsts, begins, owners, size, _ = run.plan
    k, v = (tiles(x.flatten(2), 64) for x in (run.k, run.v))
    G = describe_gates(run.G)
    counts, heads = (run.chunks, run.H, run.HV, size), {"K": run.K, "V": run.V, "GATE": run.gate}
    between = run.S  # not read
    if len(owners) > run.N:
        between = run.q.new_empty(run.HV, -(-run.chunks // size), run.V, run.K, dtype=torch.float32)
        run.launches.add(
            states, (run.V // 64 * (run.K // 64), run.HV, run.N),
            k, v, G, run.S, starts, firsts, between, *counts, **heads, KEYS=64, STAGES=6, num_warps=4, maxnreg=128,
        )  # fmt: skip
    run.launches.add(
        outputs, (run.V // 64, run.HV, len(owners)),
        *(tiles(x.flatten(2), run.K) for x in (run.q, run.k)), v, G, run.S, between,
        starts, stops, firsts, begins, owners, o, S, run.scale, *counts, **heads, STAGES=2, num_warps=4,
    )  # fmt: skip


def inside_back(run: "Run", *arguments: Tensor | None) -> None:
    """What q, k and a gate per channel are owed."""
    run.launches.add(
        channel_back, (run.chunks, run.HV, run.K // 64), *arguments, run.scale, run.chunks, run.H, run.HV,
        K=run.K, V=run.V, DELTA=run.beta is not None, num_warps=4,
    )  # fmt: skip
