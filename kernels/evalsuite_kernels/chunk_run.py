"""One call of either recurrence as launches of the kernels by chunks.

Launch settings are fixed by dtype and head size alone, never by batch, heads or length, but for the groups of chunks of
linear attention, which no result knows of: results depend on none of them.
"""

import importlib
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from evalsuite_kernels import chunk_channels as channels
from evalsuite_kernels import chunk_gradients as gradients
from evalsuite_kernels import chunk_kernels as kernels
from evalsuite_kernels import chunk_wide as wide
from evalsuite_kernels.arguments import GLUON, INTERPRETED, hopper
from evalsuite_kernels.chunk_plan import CHUNK, even_plan, parts, planned
from evalsuite_kernels.launches import Launches

WIDEST = 128  # head dim of q and k with which three tiles of a chunk fit into shared memory
TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
# Warps of each kernel and columns of its blocks; measured on an H200, torch 2.11, Triton 3.6 (ptxas 12.8). Neither a
# scan of one stage nor narrower blocks with four warps: there the compiled wgmma reads wrong shared memory.
SETTINGS = {
    "channel_gates": {"BK": 128, "num_warps": 4},
    "channel_levels": {"BK": 32, "num_warps": 2, "num_stages": 3},
    "channel_rest": {"BK": 128, "num_warps": 4, "num_stages": 1},
    "head_products": {"BK": 64, "num_warps": 4},
    "wide": {"BK": 64, "BV": 64, "num_warps": 4, "num_stages": 1},  # both scans of heads above 128
    "solve": {"num_warps": 1},
    "fold": {"BK": 64, "num_warps": 4, "num_stages": 1},
    "fold_channels": {"BK": 128, "num_warps": 4},  # under a gate per channel on Hopper, where heads are one block
    "scan": {"BV": 32, "STAGES": 2, "num_warps": 4},
    "scan_back": {"BV": 32, "STAGES": 3, "num_warps": 4},
    "pairs_back": {"BV": 64, "num_warps": 4, "num_stages": 1},
    "inside_back": {"BK": 64, "BV": 64, "num_warps": 8, "num_stages": 1},
}


@cache
def hopper_part(name: str) -> Any:
    """The kernels in Gluon, which not every Triton has."""
    return importlib.import_module(f"evalsuite_kernels.hopper_{name}")


class Run:
    """One call's tensors and constants, and what the forward and the backward pass both need."""

    def __init__(  # noqa: PLR0913 - a call's arguments
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None,
        beta: Tensor | None,
        S: Tensor,
        cu: Tensor | None,
        scale: float,
        *,
        keep: bool,
    ) -> None:
        B, T, self.H, self.K = q.shape
        self.keep = keep  # for the backward pass
        self.launches = Launches()
        self.HV, self.V = v.shape[2:]
        columns = self.HV * self.V // 64
        self.plan = even_plan(B, T, columns, q.device) if cu is None else planned(cu.tolist(), columns, q.device)
        self.q, self.k, self.v, self.scale = q.contiguous(), k.contiguous(), v.contiguous(), scale
        self.g = None if g is None else g.contiguous()
        self.beta = None if beta is None else beta.contiguous()
        self.KP, self.VP = (max(16, triton.next_power_of_2(x)) for x in (self.K, self.V))
        self.S = self.padded(S)
        half = q.dtype if q.dtype == k.dtype == v.dtype else torch.float32
        self.dtype = torch.float32 if INTERPRETED and half == torch.bfloat16 else half
        self.chunks, self.N = len(self.plan.starts), len(self.plan.firsts) - 1
        self.gate = 0 if g is None else 2 if g.dim() == 4 else 1
        # three products of tf32 keep what fp32 has, and compile in a tenth of the time of fp32's own; the interpreter
        # knows fp32 alone
        self.exactly = "ieee" if INTERPRETED else "tf32x3"
        self.precision = self.exactly if self.dtype == torch.float32 else "tf32"
        exact = {"DOT": TYPES[self.dtype], "PRECISION": self.precision}
        # the gradient of a fixed gate is one number for all tokens, and what half precision takes from states too much;
        # without a gate nothing ever damps it
        fixed = g is not None and g.dim() == 1
        self.state_type = torch.float32 if fixed else self.dtype
        self.exact_states = self.dtype.itemsize == 2 and (fixed or (beta is not None and g is None))
        self.split = self.KP > WIDEST and (beta is not None or self.gate == 2)
        self.tma = self.dtype.itemsize == 2 and hopper(q.device) and not self.split
        # fp16 has no room for keys that decay up; TMA reads from whole 16 bytes on
        bf16 = self.tma and GLUON and self.dtype == torch.bfloat16 and self.K in {64, 128}
        bf16 &= all(x.data_ptr() % 16 == 0 for x in (self.q, self.k, self.v))
        self.blocks = bf16 and self.gate == 2
        self.wide = bf16 and self.V in {64, 128, 256} and not keep
        self.shared: dict[str, Any] = {"KP": self.KP, "GATE": self.gate, "DELTA": beta is not None, **exact}
        self._prepare()

    def run(self) -> None:
        self.launches.run((*self.shared.values(), self.VP, self.keep, self.blocks, self.wide), self.q.device)

    def padded(self, S: Tensor) -> Tensor:
        """A state [N, HV, K, V] for the kernels: [N, HV, KP, VP]."""
        return F.pad(S, (0, self.VP - self.V, 0, self.KP - self.K)).contiguous()

    def buffer(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.q.new_empty(self.HV, self.chunks, *shape, dtype=dtype or self.dtype)

    def _prepare(self) -> None:
        starts, stops = self.plan[:2]
        delta, sizes = self.beta is not None, (self.scale, self.chunks, self.H, self.HV, self.K)
        exact = torch.float64 if self.dtype == torch.float32 else torch.float32
        made_late = self.wide and self.gate < 2 and not delta  # the scan makes P
        whole = torch.float32 if delta else self.dtype  # rounded by `fold`
        folded = delta and self.gate < 2  # `fold` makes P
        self.P = None if made_late or folded else self.buffer(CHUNK, CHUNK, dtype=whole)
        self.B = self.buffer(CHUNK, CHUNK, dtype=torch.float32) if delta else None
        self.G: Tensor | None = None
        self.Qs = self.Kd = self.Kg = None
        grid = (self.chunks, self.HV)
        shared = {name: value for name, value in self.shared.items() if name != "GATE"}
        if self.gate == 2:
            self.Qs, self.Kg = self.buffer(CHUNK, self.KP), self.buffer(CHUNK, self.KP, dtype=whole)
            self.Kd = self.buffer(CHUNK, self.KP) if delta else None
            self._channels(shared, sizes)
        else:
            strides = (0, 1) if self.g is None or self.g.dim() == 1 else (self.HV, 1)
            if not made_late:
                self.G = None if self.g is None else self.buffer(CHUNK, dtype=exact)
                self.launches.add(
                    kernels.head_products, grid,
                    self.q, self.k, self.g, starts, stops, self.G, self.P, self.B, self.scale, *strides, *sizes[1:],
                    **self.shared, **self._settings("head_products"),
                )  # fmt: skip
            elif self.g is not None:
                self.G = self.buffer(4, CHUNK, dtype=exact)
                self.launches.add(
                    hopper_part("linear").gates, (self.chunks, -(-self.HV // 8)),
                    self.g, self.G, starts, stops, self.chunks, self.HV, *strides, HEADS=8, num_warps=2,
                )  # fmt: skip
        self.T = self.each = self.rest = None
        if delta:
            self.T, self.each = (self.buffer(CHUNK, *n, dtype=torch.float32) for n in ((CHUNK,), ()))
            self.launches.add(
                kernels.solve, grid, self.beta, starts, stops, self.B, self.each, self.T, self.chunks, self.HV,
                PRECISION=self.exactly, **SETTINGS["solve"],
            )  # fmt: skip
            made = self.buffer(CHUNK, CHUNK), self.buffer(CHUNK, self.KP)
            halves = self.keep and self.dtype.itemsize == 2
            self.rest = self.buffer(CHUNK, self.KP) if halves else None
            self.launches.add(
                kernels.fold, grid, self.q, self.k, self.each, self.G, self.P, self.T, self.Kg, starts, stops,
                *made, self.rest if halves else made[1], self.scale, int(self.wide), int(halves), *sizes[1:],
                KP=self.KP, GATE=self.gate, DOT=TYPES[self.dtype], PRECISION=self.precision,
                **self._settings("fold_channels" if self.blocks else "fold"),
            )  # fmt: skip
            self.P, self.Kg = made

    def _channels(self, shared: dict[str, Any], sizes: tuple[Any, ...]) -> None:
        """G, P, B, Qs, Kd and Kg under a gate per channel."""
        assert self.g is not None
        starts, stops = self.plan[:2]
        grid = (self.chunks, self.HV)
        exact = torch.float64 if self.dtype == torch.float32 else torch.float32
        self.G = self.buffer(CHUNK, self.KP, dtype=exact)
        made = self.Qs, self.Kd, self.Kg
        if self.blocks:
            whole = self.g.dtype == torch.bfloat16
            slow = self.buffer(CHUNK, dtype=torch.int8)
            self.D = self.buffer(self.K, dtype=torch.float32)
            self.launches.add(
                hopper_part("channels").channel_blocks, grid,
                self.q, self.k, self.g, parts(self.q.device), starts, stops,
                self.G, self.D, self.P, self.B, *made, slow, self.scale, self.chunks, self.H, self.HV,
                int(not self.wide), K=self.K, DELTA=shared["DELTA"], TERMS=1 if whole else 3, num_warps=4,
            )  # fmt: skip
            self.launches.add(
                channels.channel_rest, (triton.cdiv(self.chunks, channels.MANY.value), self.HV),
                self.q, self.k, self.G, slow, starts, stops, self.P, self.B, *sizes, **shared,
                **self._settings("channel_rest"),
            )  # fmt: skip
        else:
            self.launches.add(
                channels.channel_gates, grid,
                self.q, self.k, self.g, starts, stops, self.G, self.P, *made, *sizes,
                KP=self.KP, DELTA=shared["DELTA"], DOT=shared["DOT"], **self._settings("channel_gates"),
            )  # fmt: skip
            self.launches.add(
                channels.channel_levels, grid,
                self.q, self.k, self.G, starts, stops, self.P, self.B, *sizes, **shared,
                **self._settings("channel_levels"),
            )  # fmt: skip

    def _chunks(self, *buffers: Tensor | None) -> list[Any]:
        """Buffers [HV, chunks, C, width] for the scans: as TMA reads them, where it can."""
        if not self.tma:
            return list(buffers)
        return [
            x if x is None else TensorDescriptor.from_tensor(x.view(-1, x.shape[-1]), [CHUNK, x.shape[-1]])
            for x in buffers
        ]

    def _settings(self, kernel: str) -> dict[str, int]:
        """The kernel's settings, its blocks no wider than the heads.

        Below 64 columns Triton 3.6's wgmma reads outside its shared memory (seen by compute-sanitizer on an H200): two
        warps take the older tensor core instructions. With the delta rule's tiles a third stage does not fit.
        """
        most = {"BK": self.KP, "BV": self.VP, "STAGES": 2 if self.KP > WIDEST or self.beta is not None else 8}
        if min(self.KP, self.VP) < 64:
            most["num_warps"] = 2
        return {name: min(value, most.get(name, value)) for name, value in SETTINGS[kernel].items()}

    def _scan_by(self, name: str) -> tuple[Any, dict[str, Any]]:
        """The kernel of a scan and its settings."""
        if self.split:
            return getattr(wide, name), self._settings("wide")
        exact = {"TMA": self.tma, "EXACT": self.exact_states}
        return getattr(kernels if name == "scan" else gradients, name), exact | self._settings(name)

    def forward(self) -> tuple[Tensor | None, Tensor, list[Tensor | None]]:
        """o and the last states; or, to keep for the backward pass, each chunk's state and X, not launched yet."""
        o = None if self.keep else torch.empty_like(self.v)
        S = torch.empty_like(self.S)
        delta = self.beta is not None
        kept: list[Tensor | None] = [None] * 2
        if self.keep:
            kept = [self.buffer(self.KP, self.VP, dtype=self.state_type)]
            kept.append(self.buffer(CHUNK, self.VP, dtype=torch.float32) if delta else None)
        if self.wide:
            assert o is not None
            self._scan(o, S)
            self.run()
            return o, S[..., : self.K, : self.V].contiguous(), kept
        kernel, settings = self._scan_by("scan")
        self.launches.add(
            kernel, (self.VP // settings["BV"], self.HV, self.N),
            self.q, self.k, self.v, self.each, self.G, *self._chunks(self.P, self.Qs, self.Kd, self.Kg), self.S,
            *self.plan[:3],
            o, S, *kept, self.scale, self.chunks, self.H, self.HV, self.K, self.V,
            VP=self.VP, KEEP=self.keep, **self.shared, **settings,
        )  # fmt: skip
        if self.keep:  # nothing has run yet
            return None, S, kept
        self.run()
        return o, S[..., : self.K, : self.V].contiguous(), kept

    def _scan(self, o: Tensor, S: Tensor) -> None:
        """`forward` on Hopper."""
        if self.beta is None and self.gate < 2:
            self._linear(o, S)
            return
        tiles = importlib.import_module("evalsuite_kernels.gluon").tiles
        buffers = {name: getattr(self, name) for name in ("P", "Qs", "Kd", "Kg")}
        given = {name: None if x is None else tiles(x, x.shape[-1]) for name, x in buffers.items()}
        raw = self.gate < 2
        given |= {name: tiles(x.flatten(2), self.K) if raw else None for name, x in (("q", self.q), ("k", self.k))}
        self.launches.add(
            hopper_part("scan").scan, (self.V // 64, self.HV, self.N),
            **given, v=tiles(self.v.flatten(2), 64), G=self.G if raw else self.D, S0=self.S,
            starts=self.plan.starts, stops=self.plan.stops, firsts=self.plan.firsts, o=o, S1=S, scale=self.scale,
            chunks=self.chunks, H=self.H, HV=self.HV, K=self.K, V=self.V, DELTA=self.beta is not None, GATE=self.gate,
            STAGES=3, num_warps=4,
        )  # fmt: skip

    def _linear(self, o: Tensor, S: Tensor) -> None:
        """`_scan` of linear attention without a gate per channel."""
        linear = hopper_part("linear")
        starts, stops, firsts, begins, owners, size = self.plan
        tiles = importlib.import_module("evalsuite_kernels.gluon").tiles
        k, v = (tiles(x.flatten(2), 64) for x in (self.k, self.v))
        G = linear.describe_gates(self.G)
        counts, heads = (self.chunks, self.H, self.HV, size), {"K": self.K, "V": self.V, "GATE": self.gate}
        between = self.S  # not read
        if len(owners) > self.N:
            between = self.q.new_empty(self.HV, -(-self.chunks // size), self.V, self.K, dtype=torch.float32)
            self.launches.add(
                linear.states, (self.V // 64 * (self.K // 64), self.HV, self.N),
                k, v, G, self.S, starts, firsts, between, *counts, **heads, KEYS=64, STAGES=6, num_warps=4, maxnreg=128,
            )  # fmt: skip
        self.launches.add(
            linear.outputs, (self.V // 64, self.HV, len(owners)),
            *(tiles(x.flatten(2), self.K) for x in (self.q, self.k)), v, G, self.S, between,
            starts, stops, firsts, begins, owners, o, S, self.scale, *counts, **heads, STAGES=2, num_warps=4,
        )  # fmt: skip

    def _inside_back(self, *tensors: Tensor | None) -> None:
        """What q, k and g are owed."""
        *given, d_q, d_k, d_g = tensors
        arguments = (self.q, self.k, self.G, *given, *self.plan[:2], d_q, d_k, d_g)
        sizes = (self.scale, self.chunks, self.H, self.HV)
        if self.blocks and self.V in {64, 128}:
            self.launches.add(
                hopper_part("gradients").channel_back, (self.chunks, self.HV, self.K // 64), *arguments, *sizes,
                K=self.K, V=self.V, DELTA=self.beta is not None, num_warps=4,
            )  # fmt: skip
            return
        name, shared, parts = "head_back", self.shared, 1
        settings = self._settings("inside_back")
        if self.gate == 2:
            name, shared = "channel_back", {n: x for n, x in self.shared.items() if n != "GATE"}
            parts = self.KP // settings["BK"]
        self.launches.add(
            getattr(gradients, name), (self.chunks, self.HV, parts), *arguments, *sizes, self.K, self.V,
            VP=self.VP, STATE=TYPES[self.state_type], **shared, **settings,
        )  # fmt: skip

    def backward(self, d_o: Tensor, d_S: Tensor) -> list[Tensor]:
        """The gradients of q, k, v, g, beta and the initial state."""
        _, _, (states, X) = self.forward()
        d_o, d_S = d_o.contiguous(), self.padded(d_S.float())
        if d_o.data_ptr() % 16:  # tiles are copied by whole 16 bytes
            d_o = d_o.clone()
        delta, starts, stops = self.beta is not None, *self.plan[:2]
        d_v, d_S0 = torch.empty_like(self.v), torch.empty_like(d_S)
        d_states = self.buffer(self.KP, self.VP, dtype=self.state_type)
        W = self.buffer(CHUNK, self.VP, dtype=torch.float32) if delta else None
        kernel, settings = self._scan_by("scan_back")
        sizes = (self.scale, self.chunks, self.H, self.HV, self.K, self.V)
        self.launches.add(
            kernel, (self.VP // settings["BV"], self.HV, self.N),
            self.q, self.k, d_o, self.each, self.G, *self._chunks(self.P, self.Qs, self.Kd, self.Kg, self.rest), d_S,
            *self.plan[:3],
            d_v, d_S0, d_states, W, *sizes,
            VP=self.VP, **self.shared, **settings,
        )  # fmt: skip
        d_P = self.buffer(CHUNK, CHUNK, dtype=self.dtype if self.blocks else torch.float32)
        d_B = R = d_beta = d_g = None
        if self.beta is not None:
            d_B, R, d_beta = torch.empty_like(d_P), self.buffer(CHUNK, self.VP), torch.empty_like(self.beta)
        self.launches.add(
            gradients.pairs_back, (self.chunks, self.HV),
            self.v, d_o, self.each, X, W, self.T, self.B, starts, stops, R, d_P, d_B, d_beta,
            self.chunks, self.H, self.HV, self.V,
            VP=self.VP, DELTA=delta, PRECISION=self.precision, **self._settings("pairs_back"),
        )  # fmt: skip
        B, T = self.q.shape[:2]
        group = self.HV // self.H
        kind = self.q.dtype if group == 1 and self.q.dtype == self.k.dtype else torch.float32
        d_q, d_k = (self.q.new_empty(B, T, self.HV, self.K, dtype=kind) for _ in range(2))
        if self.g is not None:
            tokens = (B, T, self.HV, self.K) if self.gate == 2 else (B, T, self.HV)
            kind = torch.float64 if self.g.dim() == 1 else self.g.dtype  # one number for all tokens: sums that cancel
            d_g = self.q.new_empty(tokens, dtype=kind)
        self._inside_back(d_o, d_v, states, d_states, R if delta else self.v, d_P, d_B, d_q, d_k, d_g)
        self.run()
        if group > 1:
            d_q, d_k = (x.unflatten(2, (self.H, group)).sum(3) for x in (d_q, d_k))
        if d_g is not None and self.g is not None and self.g.dim() == 1:
            d_g = d_g.sum((0, 1))
        d_g = self.q.new_empty(0) if d_g is None or self.g is None else d_g.to(self.g.dtype)
        d_beta = self.q.new_empty(0) if d_beta is None else d_beta
        d_S0 = d_S0[..., : self.K, : self.V].contiguous()
        return [d_q.to(self.q.dtype), d_k.to(self.k.dtype), d_v, d_g, d_beta, d_S0]
