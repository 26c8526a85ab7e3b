"""The mixers: attention, linear attention, delta rule and convolution, one class a family, one letter a member."""

import math
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evalsuite.errors import UserError
from evalsuite.models.cache import Keys, KVLayer, Layout, StateLayer
from evalsuite.models.config import ROPE_FRACTION, WINDOWS, EvalsuiteConfig
from evalsuite_kernels import delta_rule, full_attention, lightning_slopes, linear_attention


def wide(x: Tensor) -> Tensor:
    """x in fp32, or in fp64 where it is: gates, norms and rotations are never computed in 16 bits."""
    return x if x.dtype == torch.float64 else x.float()


def _item(linear: nn.Linear) -> int:
    return linear.weight.element_size()


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in fp32 or wider."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(wide(x), (x.shape[-1],), wide(self.weight), self.eps).to(x.dtype)


def rotate(x: Tensor, positions: Tensor, fraction: float, theta: float) -> Tensor:
    """Rotary positions (Su et al. 2021) on the first `fraction` of each head. x [B, T, H, D], positions [B, T]."""
    dim = int(x.shape[-1] * fraction) // 2 * 2
    if dim == 0:
        return x
    frequency = theta ** (-torch.arange(0, dim, 2, device=x.device, dtype=torch.float32) / dim)
    angle = positions[..., None, None].float() * frequency
    cos, sin = angle.cos(), angle.sin()
    a, b = wide(x[..., : dim // 2]), wide(x[..., dim // 2 : dim])
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
    return torch.cat([turned, x[..., dim:]], dim=-1)


class Mixer(nn.Module):
    """q, k, v projections before and a gated, head-normed output projection after, the same for every design."""

    def __init__(self, config: EvalsuiteConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.letter = layer, config.pattern[layer]
        self.heads, self.dim = config.num_attention_heads, config.head_dim
        width = self.heads * self.dim
        rank = config.gate_rank or config.head_dim
        self.v_heads = self.heads
        self.gate_down = nn.Linear(config.hidden_size, rank, bias=False)
        self.gate_up = nn.Linear(rank, width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """x [B, T, hidden] -> [B, T, hidden]."""
        o = self.mix(x, layout).flatten(-2)
        return self.o_proj(o * torch.sigmoid(self.gate_up(self.gate_down(x))))

    @torch.no_grad()
    def match(self) -> None:
        """Make keys equal to queries, so that like finds like from the first step on (`mimetic_init`)."""
        q_proj, k_proj = getattr(self, "q_proj", None), getattr(self, "k_proj", None)
        if isinstance(q_proj, nn.Linear) and isinstance(k_proj, nn.Linear):
            q, k = q_proj.weight.unflatten(0, (self.heads, -1)), k_proj.weight
            k.copy_(q[:: q.shape[1] * self.heads // len(k)].flatten(0, 1))

    def mix(self, x: Tensor, layout: Layout) -> Tensor:
        """x [B, T, hidden] -> o [B, T, heads, head_dim]."""
        raise AssertionError("a family defines its own mix")

    def split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.dim))

    def state_bytes(self, length: int) -> dict[str, int]:
        """Bytes that it keeps for a sequence of `length` tokens, by kind: "kv", "index", "state"."""
        return {}


class Attention(Mixer):
    """Full (F, R, P) and sliding-window (S, W) attention with QK norm and GQA."""

    def __init__(self, config: EvalsuiteConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.kv_heads = config.num_key_value_heads
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.dim, bias=False)
        self.q_norm = RMSNorm(self.dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.dim, config.rms_norm_eps)
        self.window = config.window * WINDOWS[self.letter] if self.letter in WINDOWS else None
        self.rope = (ROPE_FRACTION.get(self.letter, 0.0), config.rope_theta)

    def qkv(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        q = rotate(self.q_norm(self.split(self.q_proj(x), self.heads)), layout.positions, *self.rope)
        k = rotate(self.k_norm(self.split(self.k_proj(x), self.kv_heads)), layout.positions, *self.rope)
        return q, k, self.split(self.v_proj(x), self.kv_heads)

    def mix(self, x: Tensor, layout: Layout) -> Tensor:
        q, k, v = self.qkv(x, layout)
        if layout.cache is None:
            return self.attend(q, Keys(k, v, layout.cu_seqlens), layout)
        store = layout.cache.mixers[self.layer]
        assert isinstance(store, KVLayer)
        return self.attend(q, store.extend(k, v, layout), layout)

    def state_bytes(self, length: int) -> dict[str, int]:
        """Keys and values, as many as the window holds."""
        return {"kv": 2 * self.kv_heads * self.dim * min(length, self.window or length) * _item(self.k_proj)}

    def attend(self, q: Tensor, keys: Keys, layout: Layout) -> Tensor:
        """q [B, T, HQ, D] -> o [B, T, HQ, D]."""
        if layout.step:  # the ring of a window layer holds exactly what this query may see
            return full_attention(q, keys.k, keys.v, key_lengths=keys.lengths)
        return full_attention(
            q, keys.k, keys.v, window=self.window, cu_seqlens=layout.cu_seqlens, cu_seqlens_k=keys.cu_seqlens
        )


class Recurrent(Mixer):
    """What linear attention and the delta rule share: the state's way through the cache, and the norm of each head."""

    def state_bytes(self, length: int) -> dict[str, int]:
        """One fp32 matrix a head, whatever the length."""
        return {"state": 4 * self.heads * self.dim**2}

    def __init__(self, config: EvalsuiteConfig, layer: int) -> None:
        super().__init__(config, layer)
        width = self.heads * self.dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.norm = RMSNorm(self.dim, config.rms_norm_eps)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            self.split(self.q_proj(x), self.heads),
            self.split(self.k_proj(x), self.heads),
            self.split(self.v_proj(x), self.heads),
        )

    def mix(self, x: Tensor, layout: Layout) -> Tensor:
        store = layout.cache.mixers[self.layer] if layout.cache is not None else None
        assert store is None or isinstance(store, StateLayer)
        o, state = self.recur(x, store.state if store else None, store is not None, layout.cu_seqlens)
        if store:
            store.state = state
        return self.norm(o)

    def recur(
        self, x: Tensor, state: Tensor | None, keep: bool, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, T, hidden], state [N, HV, K, V] -> o [B, T, HV, V] and, if `keep`, the state after."""
        raise AssertionError("a family defines its own recurrence")


class DecayGate(nn.Module):
    """g = -exp(A_log) softplus(Wx + dt_bias), as in Mamba-2 (Dao & Gu 2024), Gated DeltaNet and, with a value for every
    channel from a low-rank W, Kimi Linear (arXiv 2510.26692). Half-lives at the start: one to hundreds of tokens."""

    def __init__(self, config: EvalsuiteConfig, channels: int) -> None:
        super().__init__()
        heads, rank = config.num_attention_heads, config.gate_rank or config.head_dim
        self.heads, self.channels = heads, channels
        if channels > 1:
            self.proj: nn.Module = nn.Sequential(
                nn.Linear(config.hidden_size, rank, bias=False), nn.Linear(rank, heads * channels, bias=False)
            )
        else:
            self.proj = nn.Linear(config.hidden_size, heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads * channels))
        self.reset_decay()

    @torch.no_grad()
    def reset_decay(self) -> None:
        """A uniform in [1, 16], dt log-uniform in [0.001, 0.1]."""
        self.A_log.copy_(torch.empty_like(self.A_log).uniform_(1, 16).log())
        dt = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus

    def raw(self, x: Tensor) -> Tensor:
        """x [B, T, hidden] -> Wx [B, T, heads] or [B, T, heads, channels], of which the operator makes the gate."""
        y: Tensor = self.proj(x)
        return y.unflatten(-1, (self.heads, self.channels)) if self.channels > 1 else y

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, hidden] -> log decay g and step dt, fp32, [B, T, heads]."""
        dt = F.softplus(wide(self.raw(x)) + wide(self.dt_bias))
        return -wide(self.A_log).exp() * dt, dt


class LinearMixer(Recurrent):
    """Lightning (L), gated linear attention (A) and Mamba-2 (M): one recurrence, three gates."""

    def __init__(self, config: EvalsuiteConfig, layer: int) -> None:
        super().__init__(config, layer)
        if self.letter == "A":
            rank = config.gate_rank or config.head_dim
            self.decay = nn.Sequential(
                nn.Linear(config.hidden_size, rank, bias=False), nn.Linear(rank, self.heads * self.dim)
            )
        elif self.letter == "M":
            self.step = DecayGate(config, 1)
            self.skip = nn.Parameter(torch.ones(self.heads))
        self.layers = config.num_hidden_layers

    def recur(
        self, x: Tensor, state: Tensor | None, keep: bool, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = (F.silu(t) for t in self.qkv(x))
        scale = 1.0 if self.letter in "LM" else None
        skip: Tensor | None = None
        if self.letter == "L":
            g = lightning_slopes(self.heads, self.layer, self.layers, x.device)
        elif self.letter == "A":  # Yang et al. 2024: sigmoid to the power 1/16
            g = F.logsigmoid(self.split(wide(self.decay(x)), self.heads)) / 16
        else:
            g, dt = self.step(x)
            skip, v = v * self.skip[:, None], v * dt[..., None].to(v.dtype)
        o, state = linear_attention(
            q, k, v, g, scale=scale, initial_state=state, output_final_state=keep, cu_seqlens=cu_seqlens
        )
        return (o if skip is None else o + skip), state


class DeltaMixer(Recurrent):
    """DeltaNet (N), Gated DeltaNet (G) and Kimi Delta Attention (K): keys and queries of unit length."""

    def __init__(self, config: EvalsuiteConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.beta = nn.Linear(config.hidden_size, self.heads, bias=False)
        self.beta_max = config.beta_max
        self.decay = {"N": None, "G": DecayGate(config, 1), "K": DecayGate(config, self.dim)}[self.letter]

    def recur(
        self, x: Tensor, state: Tensor | None, keep: bool, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = (F.silu(t) for t in self.qkv(x))
        g = A_log = dt_bias = None
        if self.decay is not None:
            g, A_log, dt_bias = self.decay.raw(x), self.decay.A_log, self.decay.dt_bias
        return delta_rule(
            q, k, v, self.beta(x), g, A_log=A_log, dt_bias=dt_bias, l2norm=True, beta_sigmoid=True,
            beta_max=self.beta_max, initial_state=state, output_final_state=keep, cu_seqlens=cu_seqlens,
        )  # fmt: skip


class ConvOnly(Mixer):
    """The control (C): what the block's short convolution alone can do."""

    def __init__(self, config: EvalsuiteConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.v_proj = nn.Linear(config.hidden_size, self.heads * self.dim, bias=False)
        self.norm = RMSNorm(self.dim, config.rms_norm_eps)

    def mix(self, x: Tensor, layout: Layout) -> Tensor:
        return self.norm(self.split(F.silu(self.v_proj(x)), self.heads))


def own(spec: str) -> type[Mixer]:
    """The class that "module:Class" names, a subclass of Mixer, Recurrent or Attention.

    Raises UserError, one line, where there is none.
    """
    module, _, name = spec.partition(":")
    try:
        found = getattr(import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise UserError(f"mixer {spec!r}: {error}; run where the module can be imported, or set PYTHONPATH") from error
    if not (isinstance(found, type) and issubclass(found, Mixer)):
        raise UserError(f"mixer {spec!r} is no subclass of evalsuite.models.mixers.Mixer; write module:Class")
    return found
