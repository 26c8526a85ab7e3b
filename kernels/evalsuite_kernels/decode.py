"""One decoding step of the recurrences in one Triton launch, the state updated in place.

A step is bound by memory: the state [HV, K, V] of each sequence is read once and written once, and all around it
(short convolution, activations, norms, gates) rides along in registers. With S~ = exp(g) S, one pass over S~ gives both
sums over K that are needed, S~^T k and S~^T q, since

    change = beta (v - S~^T k),   S = S~ + k change^T,   o = S^T q = S~^T q + (q.k) change

(linear attention: change = v). What a sequence gets depends on nothing but itself, bit for bit: tiles depend on K and V
alone. Recurrences as in `delta.reference` and `linear.reference`; the order of the fused steps as in Kimi Linear
(arXiv:2510.26692) and flash-linear-attention's layers.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from evalsuite_kernels.arguments import INTERPRETED, expect

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CHANGING = ["q", "k", "v", "g", "beta", "o", "slots", "conv_state", "taps", "A_log", "dt_bias", "norm_weight", "gate"]
NUMBERS = ["q_b", "k_b", "v_b", "g_b", "beta_b", "gate_b", "H", "HV"]


def settings(K: int, V: int, whole: bool) -> tuple[int, int, int]:
    """Columns of V in a tile, tiles that one program walks, warps. `whole`: one program holds all V of a head.

    A tile is at most 64 KB of state, or 32 KB (rows of 128 bytes) where programs share V: with two or more programs on
    a multiprocessor (hence `maxnreg`), enough is in flight. No tile is so small that two threads hold one element.
    """
    rows, cols = max(16, triton.next_power_of_2(K)), max(16, triton.next_power_of_2(V))
    tile = min(cols, max(16, 16384 // rows)) if whole else min(cols, 32)
    return tile, cols // tile if whole else 1, min(8, max(1, rows * tile // 1024))


@triton.jit
def _softplus(x):
    """log(1 + exp(x)), exact to the last digits where it is small (Kahan's log1p)."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    return tl.maximum(x, 0.0) + tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _window(x, conv_state, channel, mask, W: tl.constexpr, BW: tl.constexpr):
    """The last W inputs of each channel [channels, BW], oldest first, x [channels] among them."""
    w = tl.arange(0, BW)[None, :]
    past = tl.load(conv_state + channel[:, None] * (W - 1) + w, mask=mask[:, None] & (w < W - 1), other=0.0)
    return tl.where(w == W - 1, x[:, None], past.to(tl.float32))


@triton.jit
def _mix(window, x, taps, channel, mask, W: tl.constexpr, BW: tl.constexpr, RESIDUAL: tl.constexpr):
    w = tl.arange(0, BW)[None, :]
    tap = tl.load(taps + channel[:, None] * W + w, mask=mask[:, None] & (w < W), other=0.0).to(tl.float32)
    y = tl.sum(window * tap, 1)
    if RESIDUAL:
        y += x
    return y


@triton.jit
def _shift(window, conv_state, channel, mask, W: tl.constexpr, BW: tl.constexpr):
    w = tl.arange(0, BW)[None, :]
    to = conv_state + channel[:, None] * (W - 1) + (w - 1)
    tl.store(to, window.to(conv_state.dtype.element_ty), mask=mask[:, None] & (w >= 1) & (w < W))


@triton.jit
def _activated(x, SILU: tl.constexpr, UNIT: tl.constexpr):
    if SILU:
        x = x * _sigmoid(x)
    if UNIT:
        x = x / tl.maximum(tl.sqrt(tl.sum(x * x)), 1e-12)
    return x


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=CHANGING)
def _step(
    q, k, v, g, beta, state, o, slots, conv_state, taps, A_log, dt_bias, norm_weight, gate,
    q_b, k_b, v_b, g_b, beta_b, gate_b, H, HV, scale, beta_max, eps,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, TILES: tl.constexpr, GROUP: tl.constexpr,
    W: tl.constexpr, BW: tl.constexpr, VECTOR: tl.constexpr, RESIDUAL: tl.constexpr, SILU: tl.constexpr,
    UNIT: tl.constexpr, SIGMOID: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Program: (a sequence's GROUP value heads of one key head, TILES tiles of V). `*_b`: strides between sequences."""
    per = HV // GROUP
    b = (tl.program_id(0) // per).to(tl.int64)
    first = (tl.program_id(0) % per) * GROUP
    key = first // (HV // H)
    slot = b
    rows = tl.arange(0, BK)
    in_k = rows < K
    own_k = in_k  # what of the state and the tails is this sequence's: nothing if it is padding
    if slots is not None:
        slot = tl.load(slots + b).to(tl.int64)
        own_k = rows < tl.where(slot >= 0, K, 0)
    early = tl.program_id(1) * BV + tl.arange(0, BV)
    if EARLY:  # the one tile is on its way while all else is made ready
        place = state + ((slot * HV + first) * K + rows[:, None]) * V + early[None, :]
        S = tl.load(place, mask=own_k[:, None] & (early < V)[None, :], other=0.0)
    x_q = tl.load(q + b * q_b + key * K + rows, mask=in_k, other=0.0).to(tl.float32)
    x_k = tl.load(k + b * k_b + key * K + rows, mask=in_k, other=0.0).to(tl.float32)
    if conv_state is not None:
        tail = conv_state + slot * (2 * H * K + HV * V) * (W - 1)
        past_q = _window(x_q, tail, key * K + rows, own_k, W, BW)
        past_k = _window(x_k, tail, (H + key) * K + rows, own_k, W, BW)
        tl.debug_barrier()  # several threads may hold one channel: all have read before any writes
        _shift(past_q, tail, key * K + rows, own_k, W, BW)
        _shift(past_k, tail, (H + key) * K + rows, own_k, W, BW)
        x_q = _mix(past_q, x_q, taps, key * K + rows, in_k, W, BW, RESIDUAL)
        x_k = _mix(past_k, x_k, taps, (H + key) * K + rows, in_k, W, BW, RESIDUAL)
    x_q = _activated(x_q, SILU, UNIT) * scale
    x_k = _activated(x_k, SILU, UNIT)
    overlap = tl.sum(x_q * x_k)
    tiles = tl.arange(0, TILES)[:, None]
    every = (tl.program_id(1) * TILES + tiles) * BV + tl.arange(0, BV)[None, :]
    for i in range(GROUP):
        head = first + i
        strength = 1.0
        if beta is not None:
            strength = tl.load(beta + b * beta_b + head).to(tl.float32)
            if SIGMOID:
                strength = beta_max * _sigmoid(strength)
        if g is not None:
            if VECTOR:
                decay = tl.load(g + b * g_b + head * K + rows, mask=in_k, other=0.0).to(tl.float32)
                if A_log is not None:
                    if dt_bias is not None:
                        decay += tl.load(dt_bias + head * K + rows, mask=in_k, other=0.0).to(tl.float32)
                    decay = -tl.exp(tl.load(A_log + head).to(tl.float32)) * _softplus(decay)
                decay = tl.exp(decay)[:, None]
            else:
                decay = tl.load(g + b * g_b + head).to(tl.float32)
                if A_log is not None:
                    if dt_bias is not None:
                        decay += tl.load(dt_bias + head).to(tl.float32)
                    decay = -tl.exp(tl.load(A_log + head).to(tl.float32)) * _softplus(decay)
                decay = tl.exp(decay)
        out = tl.zeros([TILES, BV], tl.float32)
        for j in range(TILES):
            cols = (tl.program_id(1) * TILES + j) * BV + tl.arange(0, BV)
            in_v = cols < V
            own_v = in_v
            if slots is not None:
                own_v = cols < tl.where(slot >= 0, V, 0)
            x = tl.load(v + b * v_b + head * V + cols, mask=in_v, other=0.0).to(tl.float32)
            if conv_state is not None:
                channel = 2 * H * K + head * V + cols
                past = _window(x, tail, channel, own_v, W, BW)
                tl.debug_barrier()
                _shift(past, tail, channel, own_v, W, BW)
                x = _mix(past, x, taps, channel, in_v, W, BW, RESIDUAL)
            x = _activated(x, SILU, False)
            place = state + ((slot * HV + head) * K + rows[:, None]) * V + cols[None, :]
            mask = own_k[:, None] & in_v[None, :]
            if not EARLY:
                S = tl.load(place, mask=mask, other=0.0)
            T = S
            if g is not None:
                T = S * decay
            read = tl.sum(T * x_q[:, None], 0)
            if beta is not None:
                x = strength * (x - tl.sum(T * x_k[:, None], 0))
            tl.store(place, T + x_k[:, None] * x[None, :], mask=mask)
            out = tl.where(tiles == j, (read + overlap * x)[None, :], out)
        inside = every < V
        if norm_weight is not None:
            squares = tl.sum(tl.sum(tl.where(inside, out * out, 0.0), 1), 0)
            weight = tl.load(norm_weight + every, mask=inside, other=0.0).to(tl.float32)
            out = out * (1.0 / tl.sqrt(squares / V + eps)) * weight
        if gate is not None:
            out *= _sigmoid(tl.load(gate + b * gate_b + head * V + every, mask=inside, other=0.0).to(tl.float32))
        if slots is not None:
            out = tl.where(slot >= 0, out, 0.0)
        tl.store(o + (b * HV + head) * V + every, out.to(o.dtype.element_ty), mask=inside)


@torch.library.custom_op("evalsuite::decode_step", mutates_args=("state", "conv_state"))
def _decode_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    state: Tensor,
    scale: float,
    state_indices: Tensor | None,
    conv_state: Tensor | None,
    taps: Tensor | None,
    residual: bool,
    silu: bool,
    l2norm: bool,
    A_log: Tensor | None,
    dt_bias: Tensor | None,
    beta_sigmoid: bool,
    beta_max: float,
    norm_weight: Tensor | None,
    eps: float,
    gate: Tensor | None,
) -> Tensor:
    (B, H, K), (HV, V) = q.shape, v.shape[1:]
    o = torch.empty_like(v, memory_format=torch.contiguous_format)
    if not B * HV:
        return o
    W = taps.shape[1] if taps is not None else 1
    # the tails of q and k are read and moved on by one program: it takes all value heads of its key head
    whole, group = norm_weight is not None or taps is not None, HV // H if taps is not None else 1
    BV, tiles, warps = settings(K, V, whole)
    _step[(B * (HV // group), 1 if whole else triton.cdiv(V, BV))](
        q, k, v, g, beta, state, o, state_indices, conv_state, taps, A_log, dt_bias, norm_weight, gate,
        q.stride(0), k.stride(0), v.stride(0), 0 if g is None or g.dim() == 1 else g.stride(0),
        0 if beta is None else beta.stride(0), 0 if gate is None else gate.stride(0), H, HV, scale, beta_max, eps,
        K=K, V=V, BK=max(16, triton.next_power_of_2(K)), BV=BV, TILES=tiles, GROUP=group,
        W=W, BW=triton.next_power_of_2(W), VECTOR=g is not None and g.dim() == 3, RESIDUAL=residual, SILU=silu,
        UNIT=l2norm, SIGMOID=beta_sigmoid, EARLY=tiles == 1 and conv_state is None, num_warps=warps, maxnreg=128,
    )  # fmt: skip
    return o


@_decode_step.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


def decode_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor | None,
    state: Tensor,
    *,
    scale: float | None = None,
    state_indices: Tensor | None = None,
    conv_state: Tensor | None = None,
    taps: Tensor | None = None,
    residual: bool = False,
    silu: bool = False,
    l2norm: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    beta_sigmoid: bool = False,
    beta_max: float = 1.0,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    gate: Tensor | None = None,
) -> Tensor:
    """One token of `delta_rule`, or of `linear_attention` where beta is None; no gradients.

    In this order: convolution, SiLU, L2 norm of q and k, gate and beta, the recurrence, RMSNorm, output gate. All is
    computed in fp32; q to gate may be bf16, fp16 or fp32, each its own.

    Args:
        q: [B, H, K].
        k: [B, H, K].
        v: [B, HV, V], HV a multiple of H; value head h reads key head h // (HV // H).
        g: natural-log decay <= 0: None, [HV], [B, HV] or [B, HV, K].
        beta: [B, HV], or None for linear attention.
        state: fp32 [B, HV, K, V], contiguous, updated in place; [N, HV, K, V] with `state_indices`.
        scale: of q, K^-0.5 if None.
        state_indices: int32 or int64 [B], each sequence's place in `state` and `conv_state`, no two alike; a negative
            one is padding, which touches no state and gives zeros.
        conv_state: [B or N, 2 H K + HV V, W - 1], contiguous, the last inputs of the channels of q, k and v in this
            order, oldest first, updated in place.
        taps: [2 H K + HV V, W], the short convolution of q, k and v; taps[:, -1] meets the current token.
        residual: x + conv(x) instead of conv(x).
        silu: q, k, v through SiLU.
        l2norm: q and k divided by their length (at least 1e-12).
        A_log: [HV]; g becomes -exp(A_log) softplus(g + dt_bias).
        dt_bias: as many numbers as g has for one sequence, [HV] or [HV K]; 0 if None.
        beta_sigmoid: beta becomes beta_max sigmoid(beta).
        beta_max: 2 allows negative eigenvalues.
        norm_weight: [V]; each head's output becomes o / rms(o) * norm_weight.
        norm_eps: in that norm, beside the mean square.
        gate: [B, HV, V]; the output, after the norm, times sigmoid(gate).

    Returns:
        o [B, HV, V] in v's dtype.

    Raises:
        ValueError: shapes, dtypes, layouts or a device that do not fit.
    """
    _check_inputs(q, k, v, g, beta)
    (B, H, K), (HV, V) = q.shape, v.shape[1:]
    expect("state", state, B if state_indices is None else "N", HV, K, V)
    if state.dtype != torch.float32 or not state.is_contiguous():
        raise ValueError(f"state is updated in place: it must be contiguous fp32, not {state.dtype}")
    if state_indices is not None:
        expect("state_indices", state_indices, B)
        if state_indices.dtype not in {torch.int32, torch.int64}:
            raise ValueError(f"state_indices must be int32 or int64, not {state_indices.dtype}")
    _check_taps(conv_state, taps, 2 * H * K + HV * V, len(state))
    if A_log is not None:
        if g is None:
            raise ValueError("A_log makes a gate of g, which is None")
        expect("A_log", A_log, HV)
        if dt_bias is not None:
            expect("dt_bias", dt_bias, HV * K if g.dim() == 3 else HV)
    elif dt_bias is not None:
        raise ValueError("dt_bias needs A_log")
    if norm_weight is not None:
        expect("norm_weight", norm_weight, V)
    if gate is not None:
        expect("gate", gate, B, HV, V)
    if not (q.is_cuda or INTERPRETED):
        raise ValueError(f"decode_step runs on CUDA (or with TRITON_INTERPRET=1), not on {q.device.type}")
    q, k, v, g, beta, gate = (_rows(x) for x in (q, k, v, g, beta, gate))
    taps, A_log, dt_bias, norm_weight = (
        None if x is None else x.contiguous() for x in (taps, A_log, dt_bias, norm_weight)
    )
    return _decode_step(
        q, k, v, g, beta, state, K**-0.5 if scale is None else scale,
        None if state_indices is None else state_indices.contiguous(), conv_state, taps, residual, silu, l2norm,
        A_log, dt_bias, beta_sigmoid, beta_max, norm_weight, norm_eps, gate,
    )  # fmt: skip


def _rows(x: Any) -> Any:
    """x with each sequence's numbers side by side; slices of a wider projection are, and are not copied."""
    return x if x is None or x.dim() == 1 or not len(x) or x[0].is_contiguous() else x.contiguous()


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None) -> None:
    expect("q", q, "B", "H", "K")
    B, H, K = q.shape
    expect("k", k, B, H, K)
    expect("v", v, B, "HV", "V")
    HV, V = v.shape[1:]
    if H == 0 or HV % H:
        raise ValueError(f"v has {HV} heads, which is no multiple of the {H} heads of q and k")
    if K > 256 or V > 256:
        raise ValueError(f"K and V go up to 256, not {K} and {V}")
    if beta is not None:
        expect("beta", beta, B, HV)
    if g is not None and tuple(g.shape) not in {(HV,), (B, HV), (B, HV, K)}:
        raise ValueError(f"g must be None, [{HV}], [{B}, {HV}] or [{B}, {HV}, {K}], not {list(g.shape)}")
    for name, x in {"q": q, "k": k, "v": v, "g": g, "beta": beta}.items():
        if x is not None and x.dtype not in DTYPES:
            raise ValueError(f"{name} must be bf16, fp16 or fp32, not {x.dtype}")


def _check_taps(conv_state: Tensor | None, taps: Tensor | None, channels: int, slots: int) -> None:
    if (conv_state is None) != (taps is None):
        raise ValueError("a convolution needs both conv_state and taps")
    if conv_state is None or taps is None:
        return
    expect("taps", taps, channels, "W")
    if taps.shape[1] < 2:
        raise ValueError("taps must be at least 2 wide; fold a single tap into the projection")
    expect("conv_state", conv_state, slots, channels, taps.shape[1] - 1)
    if not conv_state.is_contiguous():
        raise ValueError("conv_state is updated in place: it must be contiguous")
