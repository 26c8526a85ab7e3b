"""One call of either recurrence as launches of the kernels by chunks."""

import importlib
from collections.abc import Callable
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
from evalsuite_kernels import chunk_segments as segments
from evalsuite_kernels import chunk_wide as wide
from evalsuite_kernels.arguments import GLUON, INTERPRETED, Raw, hopper
from evalsuite_kernels.chunk_plan import CHUNK, even_plan, packed_plan
from evalsuite_kernels.chunk_settings import SETTINGS
from evalsuite_kernels.launches import Launches

WIDEST = 128  # head dim of q and k with which three tiles of a chunk fit into shared memory
Scan = Callable[[Tensor, Tensor, Tensor], None]  # the first chunk of each stretch, the states before and after it
TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@cache
def in_gluon() -> Any:
    """The launches of Hopper's kernels, which not every Triton has."""
    return importlib.import_module("evalsuite_kernels.hopper_run")


class Run:
    """One call's tensors and constants, and what the forward and the backward pass both need."""

    def __init__(  # noqa: PLR0913, PLR0917 - a call's arguments
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None,
        beta: Tensor | None,
        S: Tensor,
        cu: Tensor | None,
        scale: float,
        raw: Raw = Raw(),  # noqa: B008 - a constant
        *,
        segment: int = 0,
        keep: bool,
        gate_owed: bool = True,
        launches: Launches | None = None,
    ) -> None:
        B, T, self.H, self.K = q.shape
        self.keep = keep  # for the backward pass
        self.launches = Launches() if launches is None else launches
        self.HV, self.V = v.shape[2:]
        self.q, self.k, self.v, self.scale = q.contiguous(), k.contiguous(), v.contiguous(), scale
        A_log, dt_bias = (None if x is None else x.contiguous() for x in (raw.A_log, raw.dt_bias))
        self.raw = raw._replace(A_log=A_log, dt_bias=dt_bias)
        self.g = None if g is None else g.contiguous()
        self.beta = None if beta is None else beta.contiguous()
        self.KP, self.VP = (max(16, triton.next_power_of_2(x)) for x in (self.K, self.V))
        self.S = self.padded(S)
        half = q.dtype if q.dtype == k.dtype == v.dtype else torch.float32
        self.dtype = torch.float32 if INTERPRETED and half == torch.bfloat16 else half
        self.gate = 0 if g is None else 2 if g.dim() == 4 else 1
        # of a gate per head: from token to token, and from head to head
        self.strides = (0, 1) if g is None or g.dim() == 1 else (self.HV, 1)
        # three products of tf32 keep what fp32 has, and compile in a tenth of the time of fp32's own; the interpreter
        # knows fp32 alone
        self.exactly = "ieee" if INTERPRETED else "tf32x3"
        self.precision = "tf32" if self.dtype == torch.bfloat16 else self.exactly  # tf32 has fp16's bits, and no more
        exact = {"DOT": TYPES[self.dtype], "PRECISION": self.precision}
        # what a gate per head is owed is a sum over a state, and a fixed gate's over all tokens too: half precision
        # takes too much from states and what meets them, tf32 from a fixed gate's; without a gate nothing damps it
        self.fixed = keep and g is not None and g.dim() == 1 and gate_owed
        self.state_type = torch.float32 if keep and self.gate == 1 and gate_owed else self.dtype
        self.exact_states = self.dtype.itemsize == 2 and (self.fixed or (beta is not None and g is None))
        self.split = self.KP > WIDEST and (beta is not None or self.gate == 2)
        self.tma = self.dtype.itemsize == 2 and hopper(q.device) and not self.split
        # fp16 has no room for keys that decay up; TMA reads from whole 16 bytes on
        bf16 = self.tma and GLUON and self.dtype == torch.bfloat16 and self.K in {64, 128}
        bf16 &= all(x.data_ptr() % 16 == 0 for x in (self.q, self.k, self.v))
        self.blocks = bf16 and (self.gate == 2 or beta is not None)
        self.wide = bf16 and self.V in {64, 128, 256} and not keep
        self.late = self.wide and self.gate < 2 and beta is None  # P is made where it is read
        self.by_channels = self.blocks and self.gate == 2 and self.V in {64, 128}
        if self.split or self.late:
            segment = 0  # neither has a scan of stretches; linear attention's groups need none
        columns = self.HV * self.V // 64
        if cu is None:
            self.plan = even_plan(B, T, columns, q.device, segment)
        else:
            self.plan = packed_plan(tuple(cu.tolist()), columns, q.device, segment)
        self.segments = self.plan.segments
        self.chunks, self.N = len(self.plan.starts), len(self.plan.firsts) - 1
        self.shared: dict[str, Any] = {"KP": self.KP, "GATE": self.gate, "DELTA": beta is not None, **exact}
        self._prepare()

    @property
    def language(self) -> str:
        """ "gluon" where kernels made for Hopper run; those beside them are in Triton."""
        return "gluon" if self.blocks or self.late else "triton"

    def run(self) -> None:
        kind = (*self.shared.values(), self.VP, self.keep, self.blocks, self.wide, self.segments is None)
        kind = (*kind, self.state_type, self.fixed)
        raw = self.raw.l2norm, self.raw.A_log is None, self.raw.dt_bias is None, self.raw.sigmoid
        self.launches.run((*kind, *raw), self.q.device)

    def padded(self, S: Tensor) -> Tensor:
        """A state [N, HV, K, V] for the kernels: [N, HV, KP, VP]."""
        return F.pad(S, (0, self.VP - self.V, 0, self.KP - self.K)).contiguous()

    def buffer(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.q.new_empty(self.HV, self.chunks, *shape, dtype=dtype or self.dtype)

    def _prepare(self) -> None:
        """Room for what is made of chunks before any state is known, where somebody reads it, and its launches."""
        delta = self.beta is not None
        exact = torch.float64 if self.dtype == torch.float32 else torch.float32
        self.G: Tensor | None = None
        self.P = self.Qs = self.Kd = self.Kg = self.B = self.T = self.each = self.rest = self.D = self.rates = None
        if not self.late:
            self.P = self.buffer(CHUNK, CHUNK)
        if self.gate == 2:
            self.Qs = self.buffer(CHUNK, self.KP)
            self.Kd = self.buffer(CHUNK, self.KP) if delta else None
            self.D = self.buffer(self.K, dtype=torch.float32) if self.blocks else None
        if self.gate == 1:
            self.G = self.buffer(*([4] if self.late else []), CHUNK, dtype=exact)
        elif self.gate == 2 and not self.wide:
            self.G = self.buffer(CHUNK, self.KP, dtype=exact)
        if delta or self.gate == 2:
            self.Kg = self.buffer(CHUNK, self.KP)
        if delta and not self.wide:
            self.B, self.T = (self.buffer(CHUNK, CHUNK, dtype=torch.float32) for _ in range(2))
            self.each = self.buffer(CHUNK, dtype=torch.float32)
        if delta and self.dtype.itemsize == 2 and (self.keep or (self.blocks and not self.wide)):
            self.rest = self.buffer(CHUNK, self.KP)
        if self.raw.l2norm:
            self.rates = self.buffer(2, CHUNK, dtype=torch.float32)
        if self.late:
            in_gluon().late_gates(self)
        elif self.blocks:
            in_gluon().blocks(self)
        else:
            self._products()

    def _products(self) -> None:
        """What Hopper has one kernel for, by a kernel for each step."""
        starts, stops = self.plan[:2]
        raw = self.raw.A_log, self.raw.dt_bias
        delta, sizes = self.beta is not None, (self.scale, self.chunks, self.H, self.HV, self.K)
        grid = (self.chunks, self.HV)
        whole = {"dtype": torch.float32 if delta else self.dtype}  # rounded by `fold`
        P = self.buffer(CHUNK, CHUNK, **whole) if delta and self.gate == 2 else self.P  # else `fold` makes it
        Kg = self.buffer(CHUNK, self.KP, **whole) if delta and self.gate == 2 else self.Kg
        if self.gate == 2:
            shared = {name: value for name, value in self.shared.items() if name != "GATE"}
            self.launches.add(
                channels.channel_gates, grid,
                self.q, self.k, self.g, *raw, starts, stops, self.G, P, self.Qs, self.Kd, Kg, self.rates, *sizes,
                KP=self.KP, DELTA=delta, DOT=shared["DOT"], **self._settings("channel_gates"),
            )  # fmt: skip
            self.launches.add(
                channels.channel_levels, grid,
                self.q, self.k, self.G, self.rates, starts, stops, P, self.B, *sizes, **shared,
                **self._settings("channel_levels"),
            )  # fmt: skip
        else:
            self.launches.add(
                kernels.head_products, grid,
                self.q, self.k, self.g, *raw, starts, stops, self.G, P, self.B, self.rates, self.scale, *self.strides,
                *sizes[1:], **self.shared, **self._settings("head_products"),
            )  # fmt: skip
        if delta:
            self.launches.add(
                kernels.solve, grid, self.beta, starts, stops, self.B, self.each, self.T, self.raw.beta_max,
                self.chunks, self.HV, SIGMOID=self.raw.sigmoid, PRECISION=self.exactly, **SETTINGS["solve"],
            )  # fmt: skip
            halves = self.rest is not None
            self.launches.add(
                kernels.fold, grid, self.q, self.k, self.G, P, self.T, Kg, self.rates, starts, stops,
                self.P, self.Kg, self.rest if halves else self.Kg, self.scale, int(halves), *sizes[1:],
                KP=self.KP, GATE=self.gate, DOT=TYPES[self.dtype], PRECISION=self.precision, **self._settings("fold"),
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
        delta = self.beta is not None
        kept: list[Tensor | None] = [None] * 2
        if self.keep:
            kept = [self.buffer(self.KP, self.VP, dtype=self.state_type)]
            kept.append(self.buffer(CHUNK, self.VP, dtype=torch.float32) if delta else None)
        if self.late:
            S = torch.empty_like(self.S)
            ends = S
            in_gluon().linear(self, o, S)
        else:
            S, ends = self._states(self.S, lambda *states: self._scan(o, kept, *states))
        if not self.keep:  # else nothing has run yet
            self.run()
            S = (S if self.segments is None else S[ends])[..., : self.K, : self.V].contiguous()
        return o, S, kept

    def _states(self, S: Tensor, scan: Scan, *, back: bool = False) -> tuple[Tensor, Tensor]:
        """Launch `scan` from the states S before all sequences; with `back`, from the gradients S of those after them.

        Returns the states after all stretches that it walks over (the gradients of those before them), and which of
        these are the sequences'.
        """
        if self.segments is None:
            after = torch.empty_like(S)
            scan(self.plan.firsts, S, after)
            return after, after
        firsts, edges, opening, closing = self.segments
        count = len(firsts) - 1
        from_none = S.new_zeros(count, *S.shape[1:])
        after, before = torch.empty_like(from_none), torch.empty_like(from_none)
        scan(firsts, from_none, after)
        if not back:
            self._transitions(firsts, count)
        settings = self._settings("merge")
        self.launches.add(
            segments.merge, (self.VP // settings["BV"], self.HV, self.N), self.M, after, S, edges, before, self.HV,
            KP=self.KP, VP=self.VP, BACK=back, PRECISION=self.exactly, **settings,
        )  # fmt: skip
        after = torch.empty_like(after)  # the merge still reads the former
        scan(firsts, before, after)
        return after, opening if back else closing

    def _transitions(self, firsts: Tensor, count: int) -> None:
        self.M = self.q.new_empty(count, self.HV, self.KP, self.KP, dtype=torch.float32)
        settings = self._settings("transition")
        self.launches.add(
            segments.transition, (self.KP // settings["BV"], self.HV, count),
            self.k, self.each, self.G, self.D, *self._chunks(self.Kd, self.Kg), self.rates, *self.plan[:2], firsts,
            self.M, self.chunks, self.H, self.HV, self.K, TMA=self.tma, **self.shared, **settings,
        )  # fmt: skip

    def _scan(self, o: Tensor | None, kept: list[Tensor | None], firsts: Tensor, S0: Tensor, S1: Tensor) -> None:
        """Of stretches of chunks, from `firsts` and the states S0 on: o, `kept`, and the states S1 after them."""
        if self.wide:
            in_gluon().forward(self, o, firsts, S0, S1)
            return
        kernel, settings = self._scan_by("scan")
        self.launches.add(
            kernel, (self.VP // settings["BV"], self.HV, len(S0)),
            self.q, self.k, self.v, self.each, self.G, *self._chunks(self.P, self.Qs, self.Kd, self.Kg), self.rates,
            S0, *self.plan[:2], firsts,
            o, S1, *kept, self.scale, self.chunks, self.H, self.HV, self.K, self.V,
            VP=self.VP, KEEP=self.keep, **self.shared, **settings,
        )  # fmt: skip

    def _parts(self) -> int:
        """Programs that share a chunk's channels in `_inside_back`."""
        return self.KP // (64 if self.by_channels else self._settings("inside_back")["BK"]) if self.gate == 2 else 1

    def _inside_back(self, *tensors: Tensor | None) -> None:
        """What q, k and g are owed."""
        *given, d_q, d_k, d_g, d_A = tensors
        raw = self.g, self.raw.A_log, self.raw.dt_bias, self.rates
        arguments = (self.q, self.k, *raw, self.G, *given, *self.plan[:2], d_q, d_k, d_g, d_A)
        if self.by_channels:
            in_gluon().inside_back(self, *arguments)
            return
        name, shared = "head_back", self.shared
        exact = {"STATE": TYPES[self.state_type], "STATES": self.exactly if self.fixed else self.precision}
        settings = self._settings("inside_back")
        if self.gate == 2:
            name, shared = "channel_back", {n: x for n, x in self.shared.items() if n != "GATE"}
        self.launches.add(
            getattr(gradients, name), (self.chunks, self.HV, self._parts()), *arguments,
            self.scale, self.chunks, self.H, self.HV, self.K, self.V,
            VP=self.VP, **exact, **shared, **settings,
        )  # fmt: skip

    def backward(self, d_o: Tensor, d_S: Tensor) -> list[Tensor]:
        """The gradients of q, k, v, g, beta and the initial state."""
        _, _, (states, X) = self.forward()
        d_o, d_S = d_o.contiguous(), self.padded(d_S.float())
        if d_o.data_ptr() % 16:  # tiles are copied by whole 16 bytes
            d_o = d_o.clone()
        delta, starts, stops = self.beta is not None, *self.plan[:2]
        d_v, d_states = torch.empty_like(self.v), self.buffer(self.KP, self.VP, dtype=self.state_type)
        W = self.buffer(CHUNK, self.VP, dtype=torch.float32) if delta else None
        d_S0, begins = self._states(d_S, lambda *states: self._scan_back(d_o, d_v, d_states, W, *states), back=True)
        d_P = self.buffer(CHUNK, CHUNK, dtype=self.dtype if self.blocks and self.gate == 2 else torch.float32)
        d_B = R = d_beta = None
        if self.beta is not None:
            d_B, d_beta = torch.empty_like(d_P), torch.empty_like(self.beta)
            R = self.buffer(CHUNK, self.VP, dtype=self.state_type)
        self.launches.add(
            gradients.pairs_back, (self.chunks, self.HV),
            self.v, d_o, self.each, X, W, self.T, self.B, starts, stops, R, d_P, d_B, d_beta,
            self.raw.beta_max, self.chunks, self.H, self.HV, self.V,
            VP=self.VP, DELTA=delta, SIGMOID=self.raw.sigmoid, PRECISION=self.precision,
            **self._settings("pairs_back"),
        )  # fmt: skip
        B, T = self.q.shape[:2]
        group = self.HV // self.H
        whole = group == 1 and self.q.dtype == self.k.dtype and not self.raw.l2norm
        d_q, d_k = (
            self.q.new_empty(B, T, self.HV, self.K, dtype=self.q.dtype if whole else torch.float32) for _ in range(2)
        )
        d_g = d_A = None
        if self.g is not None:
            tokens = (B, T, self.HV, self.K) if self.gate == 2 else (B, T, self.HV)
            kind = torch.float64 if self.g.dim() == 1 else self.g.dtype  # one number for all tokens: sums that cancel
            d_g = self.q.new_empty(tokens, dtype=kind)
        if self.raw.A_log is not None:
            d_A = self.buffer(self._parts(), dtype=torch.float32)
        self._inside_back(d_o, d_v, states, d_states, R if delta else self.v, d_P, d_B, d_q, d_k, d_g, d_A)
        if self.raw.l2norm:
            d_q, d_k = (self._unit_back(*pair) for pair in ((self.q, d_q), (self.k, d_k)))
        self.run()
        if group > 1 and not self.raw.l2norm:
            d_q, d_k = (x.unflatten(2, (self.H, group)).sum(3) for x in (d_q, d_k))
        if self.segments is not None:
            d_S0 = d_S0[begins]
        d_S0 = d_S0[..., : self.K, : self.V].contiguous()
        d_g, d_A_log, d_dt_bias = self._gates_back(d_g, d_A)
        owed = (d_q.to(self.q.dtype), d_k.to(self.k.dtype), d_v, d_g, d_beta, d_S0, d_A_log, d_dt_bias)
        return [self.q.new_empty(0) if x is None else x for x in owed]

    def _scan_back(
        self,
        d_o: Tensor,
        d_v: Tensor,
        d_states: Tensor,
        W: Tensor | None,
        firsts: Tensor,
        d_S1: Tensor,
        d_S0: Tensor,
    ) -> None:
        kernel, settings = self._scan_by("scan_back")
        buffers = self._chunks(self.P, self.Qs, self.Kd, self.Kg, self.rest)
        self.launches.add(
            kernel, (self.VP // settings["BV"], self.HV, len(d_S1)),
            self.q, self.k, d_o, self.each, self.G, *buffers, self.rates, d_S1, *self.plan[:2], firsts,
            d_v, d_S0, d_states, W, self.scale, self.chunks, self.H, self.HV, self.K, self.V,
            VP=self.VP, **self.shared, **settings,
        )  # fmt: skip

    def _unit_back(self, x: Tensor, d: Tensor) -> Tensor:
        d_x, tokens, rows = torch.empty_like(x), x.shape[0] * x.shape[1], 16
        self.launches.add(
            gradients.unit_back, (triton.cdiv(tokens, rows), self.H), x, d, d_x, tokens, self.H, self.HV, self.K,
            KP=self.KP, BT=rows, num_warps=4,
        )  # fmt: skip
        return d_x

    def _gates_back(self, d_g: Tensor | None, d_A: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of g, A_log and dt_bias."""
        if d_g is None or self.g is None:
            return None, None, None
        if self.g.dim() == 1:
            d_g = d_g.sum((0, 1))
        _, A_log, dt_bias, *_ = self.raw
        d_A_log = None if A_log is None or d_A is None else d_A.sum((1, 2)).to(A_log.dtype)
        d_dt_bias = None if dt_bias is None else d_g.sum((0, 1), dtype=torch.float32).flatten().to(dt_bias.dtype)
        return d_g.to(self.g.dtype), d_A_log, d_dt_bias
