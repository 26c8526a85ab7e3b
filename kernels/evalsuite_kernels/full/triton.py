"""Softmax attention in Triton: tiles of queries over tiles of keys with an online softmax, forward and backward
(FlashAttention-2, arXiv:2307.08691), and decoding over a cache in splits that are merged (Flash-Decoding). On Hopper
plain calls - no window, sinks, packed sequences or lengths - take kernels of their own where those fit.

Tiles depend on dtype and head dims alone and start at fixed positions of a sequence, so a row's bits depend neither on
the batch nor on later tokens nor on a padded cache's capacity. Sums have one order: all runs give the same bits. Where
two kernels compute the same row (decoding and the whole sequence; on Hopper also packed or padded, and alone), they
agree up to rounding.
"""

import importlib
import math
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from evalsuite_kernels.arguments import GLUON, INTERPRETED, choose, expect, note
from evalsuite_kernels.full.backward import backward_keys, backward_queries
from evalsuite_kernels.full.decode import decode, merge
from evalsuite_kernels.full.descriptors import described, pad, rows
from evalsuite_kernels.full.forward import forward
from evalsuite_kernels.full.settings import settings
from evalsuite_kernels.launches import Rehearsal, compile_all

LOG2E = math.log2(math.e)
SPLIT = 512  # keys of a decoding split, at fixed positions
DECODE = 16  # queries up to here over a longer cache are decoding
REHEARSED: set[tuple[Any, ...]] = set()  # kinds of plain calls with gradients
L2_BYTES = 24 << 20  # keys and values of the heads that run at a time


def _fan(heads: int, S: int, K: int, V: int, itemsize: int, group: int) -> int:
    """Heads of all B * HQ that run at a time, so that their keys and values stay in the L2 cache."""
    return min(heads, max(1, L2_BYTES // max(1, S * (K + V) * itemsize)) * group)


def _common(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor | None, lengths: Tensor | None, window: int
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Constants of the kernels of a call, and the strides of q, k and v."""
    K, V = q.shape[-1], v.shape[-1]
    constants = {
        "K": K, "V": V, "BK": pad(K), "BV": pad(V), "PACKED": cu_q is not None, "PADDED": lengths is not None,
        "WINDOWED": window > 0, "WIDE": INTERPRETED,
    }  # fmt: skip
    return constants, (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])


def _plain(*options: Tensor | int | None) -> bool:
    """Whether a call has none of sinks, bounds, lengths and window."""
    return all(x is None or (isinstance(x, int) and x == 0) for x in options)


@cache
def _on_hopper(name: str) -> Any:
    """The module of Hopper's kernels "hopper" or "hopper_backward", None where Triton has not what they are written in:
    `fits` says which plain calls its `forward` or `backward` takes."""
    try:
        return importlib.import_module(f"evalsuite_kernels.full.{name}") if GLUON else None
    except ImportError:
        return None


def _rehearse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
    """Compile Hopper's kernels of both passes of a plain call at a time: each pass by itself would wait for its own."""
    kind = (q.device, q.dtype, q.shape[-1], q.shape[2] == k.shape[2])
    there, back = _on_hopper("hopper"), _on_hopper("hopper_backward")
    if kind in REHEARSED or there is None or back is None:
        return
    q, k, v = (x.detach()[:1, :DECODE] for x in (q, k, v))
    if there.fits(q, k, v, scale) and back.fits(q, q, k, v, scale):
        passes = Rehearsal(), Rehearsal()
        o, lse = there.forward(q, k, v, scale, passes[0])
        back.backward(o, q, k, v, o, lse, scale, passes[1])
        compile_all({each.kind: each for each in passes}, q.device)
    REHEARSED.add(kind)


OPTIONS = "Tensor? sinks, Tensor? cu_q, Tensor? cu_k, Tensor? lengths, float scale, int window"


def _new_outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    B, T, HQ, _ = q.shape
    o = torch.empty(B, T, HQ, v.shape[-1], dtype=q.dtype, device=q.device)
    return o, torch.empty(B, HQ, T, dtype=torch.float32, device=q.device)


@torch.library.custom_op(
    "evalsuite::full_forward",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {OPTIONS}) -> (Tensor, Tensor)",
)
def full_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    lengths: Tensor | None,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    """o [B, T, HQ, V] in q's dtype and the logits' log2-sum-exp2 [B, HQ, T] in fp32 (inf where no key is seen).

    q [B, T, HQ, K], k [B, S, H, K], v [B, S, H, V] of one dtype; sinks [HQ]; cu_q and cu_k integers [N + 1] (B is 1);
    lengths integers [B]; scale >= 0; window 0 for none.
    """
    q, k, v = rows(q), rows(k), rows(v)
    part = _on_hopper("hopper") if _plain(sinks, cu_q, cu_k, lengths, window) else None
    part = part if part is not None and part.fits(q, k, v, scale) else None
    note("full_attention", "triton" if part is None else "gluon")
    if part is not None:
        forwarded: tuple[Tensor, Tensor] = part.forward(q, k, v, scale)
        return forwarded
    B, T, HQ, K = q.shape
    S, H, V = v.shape[1:]
    o, lse = _new_outputs(q, v)
    if o.numel() == 0:
        return o, lse
    BLOCK_M, BLOCK_N, warps, stages = settings("forward", q.dtype, K, V)
    constants, strides = _common(q, k, v, cu_q, lengths, window)
    sequences = 0 if cu_q is None else len(cu_q) - 1
    blocks = triton.cdiv(T, BLOCK_M) if cu_q is None else T // BLOCK_M + sequences
    pair = described(k, v, BLOCK_N)
    forward[(blocks * B * HQ,)](
        q, k, v, *pair, sinks, o, lse, cu_q, cu_k, lengths, scale * LOG2E, window, T, S, HQ, HQ // H, sequences, blocks,
        B * HQ, _fan(B * HQ, S, K, V, q.itemsize, HQ // H), *strides, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
        SUNK=sinks is not None, TMA=pair[0] is not None, num_warps=warps, num_stages=stages, **constants,
    )  # fmt: skip
    return o, lse


@full_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _new_outputs(q, v)


@torch.library.custom_op(
    "evalsuite::full_backward",
    mutates_args=(),
    schema=f"(Tensor g, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, {OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def full_backward(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    sinks: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    lengths: Tensor | None,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv in the dtype of q, k, v and dsinks [HQ] in fp32 ([0] without sinks), from g = do [B, T, HQ, V]."""
    q, k, v, g, o = rows(q), rows(k), rows(v), rows(g), o.contiguous()
    part = _on_hopper("hopper_backward") if _plain(sinks, cu_q, cu_k, lengths, window) else None
    part = part if part is not None and part.fits(g, q, k, v, scale) else None
    note("full_attention backward", "triton" if part is None else "gluon")
    if part is not None:
        return *part.backward(g, q, k, v, o, lse, scale), g.new_empty(0, dtype=torch.float32)
    B, T, HQ, K = q.shape
    S, H, V = v.shape[1:]
    dq, dk, dv, dsinks = _new_gradients(q, k, v, sinks)
    delta = torch.empty_like(lse)
    constants, strides = _common(q, k, v, cu_q, lengths, window)
    strides = (*strides, *g.stride()[:3])
    sequences = 0 if cu_q is None else len(cu_q) - 1
    if q.numel():
        BLOCK_M, BLOCK_N, warps, stages = settings("queries", q.dtype, K, V)
        blocks = triton.cdiv(T, BLOCK_M) if cu_q is None else T // BLOCK_M + sequences
        pair = described(k, v, BLOCK_N)
        backward_queries[(blocks * B * HQ,)](
            q, k, v, *pair, o, g, lse, dq, delta, cu_q, cu_k, lengths, scale * LOG2E, scale, window, T, S, HQ, HQ // H,
            sequences, blocks, B * HQ, _fan(B * HQ, S, K, V, q.itemsize, HQ // H), *strides,
            BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, TMA=pair[0] is not None, num_warps=warps, num_stages=stages, **constants,
        )  # fmt: skip
    if k.numel():
        BLOCK_M, BLOCK_N, warps, stages = settings("keys", q.dtype, K, V)
        blocks = triton.cdiv(S, BLOCK_N) if cu_q is None else S // BLOCK_N + sequences
        pair = described(q, g, BLOCK_M)
        backward_keys[(blocks * B * H,)](
            q, k, v, g, *pair, lse, delta, dk, dv, cu_q, cu_k, lengths, scale * LOG2E, scale, window, T, S, HQ, HQ // H,
            sequences, blocks, B * H, _fan(B * H, T * HQ // H, K, V, q.itemsize, 1), *strides,
            BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, TMA=pair[0] is not None, num_warps=warps, num_stages=stages, **constants,
        )  # fmt: skip
    if sinks is not None:
        weight = torch.exp2(sinks.float()[None, :, None] * LOG2E - lse)
        dsinks = -(weight * delta).sum((0, 2))
    return dq, dk, dv, dsinks


def _new_gradients(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    return dq, dk, dv, torch.empty(0 if sinks is None else len(sinks), dtype=torch.float32, device=q.device)


@full_backward.register_fake
def _(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, sinks: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _new_gradients(q, k, v, sinks)


def _decoded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    lengths: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    note("full_attention", "triton")
    q, k, v = rows(q), rows(k), rows(v)
    B, T, HQ, K = q.shape
    page, H, V = v.shape[1:]
    S = page if table is None else page * table.shape[1]
    o, lse = _new_outputs(q, v)
    if o.numel() == 0:
        return o, lse
    BLOCK_M, BLOCK_N, warps, stages = settings("decode", q.dtype, K, V)
    splits, tiles, group = triton.cdiv(S, SPLIT), triton.cdiv(T * (HQ // H), BLOCK_M), HQ // H
    fp32: Any = {"dtype": torch.float32, "device": q.device}
    part = torch.empty(B, H, splits, T * group, V, **fp32)
    tops, totals = (torch.empty(B, H, splits, T * group, **fp32) for _ in range(2))
    constants, strides = _common(q, k, v, None, lengths, window)
    merged = {name: constants[name] for name in ("V", "BV", "PADDED", "WINDOWED")}
    del constants["PACKED"]
    if splits:
        decode[(B * H * tiles * splits,)](
            q, k, v, table, lengths, part, tops, totals, scale * LOG2E, window, T, S, H, group, splits, tiles,
            *strides, 0 if table is None else table.stride(0), BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, SPLIT=SPLIT,
            PAGE=0 if table is None else page, num_warps=warps, num_stages=stages, **constants,
        )  # fmt: skip
    merge[(B * T * HQ,)](
        part, tops, totals, sinks, lengths, o, lse, window, T, S, H, group, splits, TILE=16, SPLIT=SPLIT,
        BLOCK_N=BLOCK_N, SUNK=sinks is not None, EARLY=False, num_warps=4, **merged,
    )  # fmt: skip
    return o, lse


@torch.library.custom_op(
    "evalsuite::full_decode",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {OPTIONS}) -> (Tensor, Tensor)",
)
def full_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    lengths: Tensor | None,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    """`full_forward` for few queries over a long cache; cu_q and cu_k must be None."""
    return _decoded(q, k, v, None, lengths, sinks, scale, window)


@full_decode.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _new_outputs(q, v)


@torch.library.custom_op(
    "evalsuite::full_paged_decode",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor table, Tensor lengths, Tensor? sinks, float scale, int window)"
    " -> Tensor",
)
def full_paged_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    lengths: Tensor,
    sinks: Tensor | None,
    scale: float,
    window: int,
) -> Tensor:
    """`full_decode` over pages; no gradient."""
    return _decoded(q, k, v, table, lengths, sinks, scale, window)[0]


@full_paged_decode.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return _new_outputs(q, v)[0]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale, window = inputs
    ctx.save_for_backward(*tensors[:3], *output, *tensors[3:])
    ctx.options = scale, window
    ctx.set_materialize_grads(False)


def _pull(ctx: Any, g: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if g is None:
        return (None,) * 9
    sinks = ctx.saved_tensors[5]
    dq, dk, dv, dsinks = full_backward(g, *ctx.saved_tensors, *ctx.options)
    return dq, dk, dv, None if sinks is None else dsinks.to(sinks.dtype), None, None, None, None, None


full_forward.register_autograd(_pull, setup_context=_keep)
full_decode.register_autograd(_pull, setup_context=_keep)


def _positive(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """The kernels take the largest product before they scale it."""
    return (q, scale) if scale >= 0 else (-q, -scale)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int | None = None,
    sinks: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    key_lengths: Tensor | None = None,
) -> Tensor:
    """`full_attention` in one launch (two for decoding), differentiable once. Arguments fit: they are checked there.

    q [B, T, HQ, K], k [B, S, H, K], v [B, S, H, V] of one dtype: bf16 or fp16 (products on tensor cores, sums and
    softmax in fp32) or fp32 (all in fp32). No value of an index tensor is read on the host.
    """
    q, scale = _positive(q, scale)
    T, S = q.shape[1], k.shape[1]
    if cu_seqlens is not None and cu_seqlens_k is None:
        cu_seqlens_k = cu_seqlens
    run = full_decode if T <= DECODE and T < S and cu_seqlens is None else full_forward
    learned = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if learned and T == S and not torch.compiler.is_compiling() and _plain(sinks, cu_seqlens, key_lengths, window):
        _rehearse(rows(q), rows(k), rows(v), scale)
    options = (x if x is None else x.to(q.device).contiguous() for x in (cu_seqlens, cu_seqlens_k, key_lengths))
    return run(q, k, v, sinks, *options, scale, window or 0)[0]


def paged_decode(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    key_lengths: Tensor,
    *,
    window: int | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of the last T tokens over a paged cache; the bits are those of `full_attention` decoding over the same
    keys side by side. Nothing waits for the device, so that a CUDA graph can hold it. No gradient.

    Args:
        q: [B, T, HQ, K].
        k_pages: [P, page, H, K] in q's dtype; query head h reads key head h // (HQ // H).
        v_pages: [P, page, H, V].
        block_table: integers [B, pages]; key j of row b is slot j % page of page block_table[b, j // page]. Entries
            beyond a row's keys are not read.
        key_lengths: integers [B], each at most pages * page; row b's last query is key key_lengths[b] - 1. A query
            that would stand before its row's first key gives zeros.
        window, sinks, scale: as in `full_attention`.

    Returns:
        o [B, T, HQ, V] in q's dtype.

    Raises:
        ValueError: shapes or dtypes that do not fit, or tensors on no GPU.
    """
    expect("q", q, "B", "T", "HQ", "K")
    expect("k_pages", k_pages, "P", "page", "H", q.shape[-1])
    expect("v_pages", v_pages, *k_pages.shape[:3], "V")
    expect("block_table", block_table, q.shape[0], "pages")
    expect("key_lengths", key_lengths, q.shape[0])
    if not q.dtype == k_pages.dtype == v_pages.dtype:
        raise ValueError(f"q and the pages must be of one dtype, not {q.dtype}, {k_pages.dtype} and {v_pages.dtype}")
    choose("triton", q, k_pages, v_pages, sinks, widest=max(q.shape[-1], v_pages.shape[-1]))
    q, scale = _positive(q, q.shape[-1] ** -0.5 if scale is None else scale)
    if block_table.stride(-1) != 1:
        block_table = block_table.contiguous()
    return full_paged_decode(q, k_pages, v_pages, block_table, key_lengths.contiguous(), sinks, scale, window or 0)
