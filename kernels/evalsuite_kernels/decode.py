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

from evalsuite_kernels.activations import sigmoid, softplus
from evalsuite_kernels.arguments import INTERPRETED, expect, note

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CHANGING = ["q", "k", "v", "g", "beta", "o", "slots", "conv_state", "taps", "A_log", "dt_bias", "norm_weight", "gate"]
NUMBERS = ["q_b", "k_b", "v_b", "g_b", "beta_b", "gate_b", "H", "HV"]


def settings(K: int, V: int, whole: bool) -> tuple[int, int, int, int]:
    """Columns of V in a block, blocks in a tile, tiles that one program walks, warps. `whole`: it has all V of a head.

    Few warps with much state each, 64 numbers a thread or 128: enough is in flight, and sums over K are exchanged by
    no more than four warps. A thread's share is about as wide as it is high: it then needs the fewest entries of q, k
    and v, and all fits its registers. No tile is so small that two threads hold one element.
    """
    rows, cols = max(16, triton.next_power_of_2(K)), max(16, triton.next_power_of_2(V))
    block = min(cols, 64, 8192 // rows)
    blocks = min(cols // block, 16384 // (rows * block)) if whole else 1
    return block, blocks, cols // (blocks * block) if whole else 1, min(4, max(1, rows * blocks * block // 2048))


@triton.jit
def _past(conv_state, channel, mask, W: tl.constexpr, BW: tl.constexpr):
    """The W - 1 inputs of each channel before this one [channels, BW], oldest first."""
    w = tl.arange(0, BW)[None, :]
    return tl.load(conv_state + channel[:, None] * (W - 1) + w, mask=mask[:, None] & (w < W - 1), other=0.0)


@triton.jit
def _taps(taps, channel, mask, W: tl.constexpr, BW: tl.constexpr):
    w = tl.arange(0, BW)[None, :]
    return tl.load(taps + channel[:, None] * W + w, mask=mask[:, None] & (w < W), other=0.0)


@triton.jit
def _mix(x, past, tap, W: tl.constexpr, BW: tl.constexpr, RESIDUAL: tl.constexpr):
    """What the convolution makes of x [channels], and the window it saw."""
    w = tl.arange(0, BW)[None, :]
    window = tl.where(w == W - 1, x[:, None], past.to(tl.float32))
    y = tl.sum(window * tap.to(tl.float32), 1)
    if RESIDUAL:
        y += x
    return y, window


@triton.jit
def _shift(window, conv_state, channel, mask, W: tl.constexpr, BW: tl.constexpr):
    w = tl.arange(0, BW)[None, :]
    to = conv_state + channel[:, None] * (W - 1) + (w - 1)
    tl.store(to, window.to(conv_state.dtype.element_ty), mask=mask[:, None] & (w >= 1) & (w < W))


@triton.jit
def _activated(x, SILU: tl.constexpr, UNIT: tl.constexpr):
    if SILU:
        x = x * sigmoid(x)
    if UNIT:
        x = x / tl.maximum(tl.sqrt(tl.sum(x * x)), 1e-12)
    return x


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=CHANGING)
def _step(
    q, k, v, g, beta, state, o, slots, conv_state, taps, A_log, dt_bias, norm_weight, gate,
    q_b, k_b, v_b, g_b, beta_b, gate_b, H, HV, scale, beta_max, eps,
    K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BLOCKS: tl.constexpr, TILES: tl.constexpr,
    PARTS: tl.constexpr, GROUP: tl.constexpr, W: tl.constexpr, BW: tl.constexpr, VECTOR: tl.constexpr,
    RESIDUAL: tl.constexpr, SILU: tl.constexpr, UNIT: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """Program: (a sequence's GROUP value heads of one key head, TILES of V's tiles); `*_b`: strides between sequences.

    The PARTS programs of a head follow each other: they meet on the same pages of memory. All that a tile needs is
    on its way before any of it is used, so that a program waits for memory once. The state is met once a step: caches
    are to let it go first.
    """
    COLS: tl.constexpr = BLOCKS * BV
    part = tl.program_id(0) % PARTS
    per = HV // GROUP
    b = (tl.program_id(0) // PARTS // per).to(tl.int64)
    first = (tl.program_id(0) // PARTS % per) * GROUP
    key = first // (HV // H)
    slot = b
    rows = tl.arange(0, BK)
    in_k = rows < K
    own_k = in_k  # what of the state and the tails is this sequence's: nothing if it is padding
    if slots is not None:
        slot = tl.load(slots + b).to(tl.int64)
        own_k = rows < tl.where(slot >= 0, K, 0)
    x_q = tl.load(q + b * q_b + key * K + rows, mask=in_k, other=0.0)
    x_k = tl.load(k + b * k_b + key * K + rows, mask=in_k, other=0.0)
    if conv_state is not None:
        tail = conv_state + slot * (2 * H * K + HV * V) * (W - 1)
        tap_q = _taps(taps, key * K + rows, in_k, W, BW)
        tap_k = _taps(taps, (H + key) * K + rows, in_k, W, BW)
        past_q = _past(tail, key * K + rows, own_k, W, BW)
        past_k = _past(tail, (H + key) * K + rows, own_k, W, BW)
    tiles = tl.arange(0, TILES)[:, None]
    every = (part * TILES + tiles) * COLS + tl.arange(0, COLS)[None, :]
    inside = every < V
    if norm_weight is not None:
        weight = tl.load(norm_weight + every, mask=inside, other=0.0)
    for i in tl.static_range(GROUP):
        head = first + i
        if beta is not None:
            strength = tl.load(beta + b * beta_b + head)
        if g is not None:
            if VECTOR:
                decay = tl.load(g + b * g_b + head * K + rows, mask=in_k, other=0.0)
                if dt_bias is not None:
                    bias = tl.load(dt_bias + head * K + rows, mask=in_k, other=0.0)
            else:
                decay = tl.load(g + b * g_b + head)
                if dt_bias is not None:
                    bias = tl.load(dt_bias + head)
            if A_log is not None:
                rate = tl.load(A_log + head)
        if gate is not None:
            opening = tl.load(gate + b * gate_b + head * V + every, mask=inside, other=0.0)
        out = tl.zeros([TILES, COLS], tl.float32)
        for j in tl.static_range(TILES):
            cols = (part * TILES + j) * COLS + tl.arange(0, COLS)
            in_v = cols < V
            own_v = in_v
            if slots is not None:
                own_v = cols < tl.where(slot >= 0, V, 0)
            channel = 2 * H * K + head * V + cols
            x = tl.load(v + b * v_b + head * V + cols, mask=in_v, other=0.0)
            if conv_state is not None:
                tap = _taps(taps, channel, in_v, W, BW)
                past = _past(tail, channel, own_v, W, BW)
            blocks = (part * TILES + j) * COLS + tl.arange(0, BLOCKS)[None, :, None] * BV
            wide = blocks + tl.arange(0, BV)[None, None, :]  # cols as [1, BLOCKS, BV]
            place = state + (slot * HV + head) * (K * V) + rows[:, None, None] * V + wide
            mask = own_k[:, None, None] & (wide < V)
            S = tl.load(place, mask=mask, other=0.0, eviction_policy="evict_first")
            if i == 0 and j == 0:
                x_q, x_k = x_q.to(tl.float32), x_k.to(tl.float32)
                if conv_state is not None:
                    x_q, past_q = _mix(x_q, past_q, tap_q, W, BW, RESIDUAL)
                    x_k, past_k = _mix(x_k, past_k, tap_k, W, BW, RESIDUAL)
                x_q = _activated(x_q, SILU, UNIT) * scale
                x_k = _activated(x_k, SILU, UNIT)
                overlap = tl.sum(x_q * x_k)
            if beta is not None and j == 0:
                strength = strength.to(tl.float32)
                if SIGMOID:
                    strength = beta_max * sigmoid(strength)
            if g is not None and j == 0:
                decay = decay.to(tl.float32)
                if A_log is not None:
                    if dt_bias is not None:
                        decay += bias.to(tl.float32)
                    decay = -tl.exp(rate.to(tl.float32)) * softplus(decay)
                decay = tl.exp(decay)
                if VECTOR:
                    decay = decay[:, None, None]
            x = x.to(tl.float32)
            if conv_state is not None:
                x, past = _mix(x, past, tap, W, BW, RESIDUAL)
            x = tl.reshape(_activated(x, SILU, False), [BLOCKS, BV])
            T = S
            if g is not None:
                T = S * decay
            read = tl.sum(T * x_q[:, None, None], 0)
            if beta is not None:
                x = strength * (x - tl.sum(T * x_k[:, None, None], 0))
            tl.store(place, T + x_k[:, None, None] * x[None, :, :], mask=mask, eviction_policy="evict_first")
            read = tl.reshape(read + overlap * x, [1, COLS])
            out = read if TILES == 1 else tl.where(tiles == j, read, out)
            if conv_state is not None:
                tl.debug_barrier()  # several threads may hold one channel: all have read before any writes
                if i == 0 and j == 0:
                    _shift(past_q, tail, key * K + rows, own_k, W, BW)
                    _shift(past_k, tail, (H + key) * K + rows, own_k, W, BW)
                _shift(past, tail, channel, own_v, W, BW)
        if norm_weight is not None:
            squares = tl.sum(tl.sum(tl.where(inside, out * out, 0.0), 1), 0)
            out = out * (1.0 / tl.sqrt(squares / V + eps)) * weight.to(tl.float32)
        if gate is not None:
            out *= sigmoid(opening.to(tl.float32))
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
    note("linear_attention" if beta is None else "delta_rule", "triton")
    (B, H, K), (HV, V) = q.shape, v.shape[1:]
    o = torch.empty_like(v, memory_format=torch.contiguous_format)
    if not B * HV:
        return o
    W = taps.shape[1] if taps is not None else 1
    # the tails of q and k are read and moved on by one program: it takes all value heads of its key head
    whole, group = norm_weight is not None or taps is not None, HV // H if taps is not None else 1
    BV, blocks, tiles, warps = settings(K, V, whole)
    parts = 1 if whole else triton.cdiv(V, BV * blocks)
    _step[(B * (HV // group) * parts,)](
        q, k, v, g, beta, state, o, state_indices, conv_state, taps, A_log, dt_bias, norm_weight, gate,
        q.stride(0), k.stride(0), v.stride(0), 0 if g is None or g.dim() == 1 else g.stride(0),
        0 if beta is None else beta.stride(0), 0 if gate is None else gate.stride(0), H, HV, scale, beta_max, eps,
        K=K, V=V, BK=max(16, triton.next_power_of_2(K)), BV=BV, BLOCKS=blocks, TILES=tiles, PARTS=parts, GROUP=group,
        W=W, BW=triton.next_power_of_2(W), VECTOR=g is not None and g.dim() == 3, RESIDUAL=residual, SILU=silu,
        UNIT=l2norm, SIGMOID=beta_sigmoid, num_warps=warps, maxnreg=255 if whole else 128,
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
