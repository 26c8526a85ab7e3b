"""Causal softmax attention forward on Hopper GPUs (FlashAttention-3, arXiv:2407.08608), in Gluon.

One warp has tiles of queries, keys and values brought into shared memory (TMA); two warpgroups of 64 queries each work
on them. In a warpgroup a tile's softmax runs while the tensor cores multiply the previous weights with their values,
and the warpgroups take turns at the tensor cores.

Tiles start at fixed positions and are summed in one order, so that a row's bits depend on its past alone.
"""

import math

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import jit
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language import constexpr

from evalsuite_kernels.arguments import INTERPRETED, hopper
from evalsuite_kernels.gluon import aligned, bring, describe, take
from evalsuite_kernels.launches import Launches

LOG2E = math.log2(math.e)
L2_BYTES = 24 << 20  # keys and values of the heads that run at a time
ROWS = constexpr(64)  # queries of a warpgroup
GROUPS = constexpr(2)  # warpgroups
KEYS = constexpr(128)  # of a tile
STAGES = constexpr(3)  # tiles of keys, and as many of values, in shared memory


@jit
def _place(T, shift, HQ, blocks, heads, fan):
    """A program's block of queries, batch row and head, and the tiles of keys that the block sees.

    `fan` heads at a time share the cache; the longest blocks of each such wave come first.
    """
    pid = gl.program_id(0)
    wave = pid // (fan * blocks)
    rest = pid - wave * (fan * blocks)
    width = gl.minimum(fan, heads - wave * fan)
    block = blocks - 1 - rest // width
    head = wave * fan + rest % width
    b = head // HQ
    tiles = (gl.minimum((block + 1) * (GROUPS * ROWS), T) + shift + KEYS - 1) // KEYS
    return block, b, head - b * HQ, tiles


@jit
def _produce(in_q, in_k, in_v, qs, ks, vs, bars, place, group, D: constexpr):
    """Tiles to shared memory, in the order in which they are read and each as soon as there is room."""
    q_full, k_full, k_free, v_full, v_free, _ = bars
    block, b, h, tiles = place
    for g in gl.static_range(GROUPS):
        mbarrier.expect(q_full.index(g), ROWS * D * 2)
        bring(in_q, [b, h, (block * GROUPS + g) * ROWS, 0], q_full.index(g), qs.index(g))
    for j in range(tiles + 1):
        if j < tiles:
            now = j % STAGES
            mbarrier.wait(k_free.index(now), ((j // STAGES) & 1) ^ 1)
            mbarrier.expect(k_full.index(now), KEYS * D * 2)
            bring(in_k, [b, h // group, j * KEYS, 0], k_full.index(now), ks.index(now))
        if j > 0:
            last = (j - 1) % STAGES
            mbarrier.wait(v_free.index(last), (((j - 1) // STAGES) & 1) ^ 1)
            mbarrier.expect(v_full.index(last), KEYS * D * 2)
            bring(in_v, [b, h // group, (j - 1) * KEYS, 0], v_full.index(last), vs.index(last))


@jit
def _weigh(s, top, scale, position, at, MASKED: constexpr):
    """exp2 of the scaled products less their running maximum, and that maximum."""
    if MASKED:
        key = at + gl.arange(0, KEYS, gl.SliceLayout(0, s.type.layout))
        s = gl.where(key[None, :] <= position[:, None], s, float("-inf"))
    top = gl.maximum(top, gl.max(s, 1) * scale)
    return gl.exp2(gl.fma(s, scale, -top[:, None])), top


@jit
def _pack(w, dtype: constexpr):
    """w [M, N] as pairs of 16-bit numbers [M, N / 2]: 16-bit numbers that a loop carries are reshuffled in every round,
    32-bit ones stay where they are."""
    low, high = gl.split(w.reshape([w.shape[0], w.shape[1] // 2, 2]))
    if dtype == gl.bfloat16:
        return gl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [low, high], gl.int32, True, 1)
    else:
        return gl.inline_asm_elementwise("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [low, high], gl.int32, True, 1)


@jit
def _unpack(x, dtype: constexpr, LAYOUT: constexpr):
    low = x.to(gl.int16).to(dtype, bitcast=True)
    high = (x >> 16).to(gl.int16).to(dtype, bitcast=True)
    return gl.convert_layout(gl.join(low, high).reshape([x.shape[0], x.shape[1] * 2]), LAYOUT, assert_trivial=True)


@jit
def _products(q, ks, stage, D: constexpr):
    """Of queries with a tile of keys, still under way."""
    LAYOUT: constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    s = gl.zeros([ROWS, KEYS], gl.float32, LAYOUT)
    return warpgroup_mma(q, ks.index(stage).reshape([KEYS, D]).permute([1, 0]), s, use_acc=False, is_async=True)


@jit
def _step(
    q, ks, vs, bars, w, acc, top, total, scale, position, j, GROUP: constexpr, D: constexpr, MASKED: constexpr
):  # fmt: skip
    """The previous tile's weights into acc, and tile j's weights."""
    _, k_full, k_free, v_full, v_free, turns = bars
    now = j % STAGES
    last = (j - 1) % STAGES
    mbarrier.wait(k_full.index(now), (j // STAGES) & 1)
    mbarrier.wait(turns.index(GROUP), (j - GROUP) & 1)
    p = _unpack(w, vs.dtype, gl.DotOperandLayout(0, acc.type.layout, 2))
    s = _products(q, ks, now, D)
    acc = warpgroup_mma(p, vs.index(last).reshape([KEYS, D]), acc, is_async=True)
    mbarrier.arrive(turns.index((GROUP + 1) % GROUPS))
    s = warpgroup_mma_wait(1, deps=[s])
    mbarrier.arrive(k_free.index(now))
    w, higher = _weigh(s, top, scale, position, j * KEYS, MASKED)
    decay = gl.exp2(top - higher)
    total = total * decay + gl.sum(w, 1)
    # the next step's values: without a branch here the assembler would move the softmax behind the wait for acc
    mbarrier.wait(v_full.index(now), (j // STAGES) & 1)
    acc, p, total = warpgroup_mma_wait(0, deps=[acc, p, total])
    mbarrier.arrive(v_free.index(last))
    acc = acc * gl.convert_layout(decay, gl.SliceLayout(1, acc.type.layout))[:, None]
    return _pack(w, vs.dtype), acc, higher, total


@jit
def _consume(out, lse, qs, ks, vs, bars, place, scale, T, shift, HQ, GROUP: constexpr, D: constexpr):
    """Attention of a warpgroup's queries."""
    LAYOUT: constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    q_full, k_full, k_free, v_full, _, _ = bars
    block, b, h, tiles = place
    start = (block * GROUPS + GROUP) * ROWS
    whole = gl.minimum((start + shift + 1) // KEYS, tiles)  # tiles of which every query sees all keys
    q = qs.index(GROUP).reshape([ROWS, D])
    mbarrier.wait(q_full.index(GROUP), 0)
    mbarrier.wait(k_full.index(0), 0)
    s = warpgroup_mma_wait(0, deps=[_products(q, ks, 0, D)])
    mbarrier.arrive(k_free.index(0))
    rows = start + gl.arange(0, ROWS, gl.SliceLayout(1, s.type.layout))
    position = rows + shift
    top = gl.full([ROWS], float("-inf"), gl.float32, rows.type.layout)
    w, top = _weigh(s, top, scale, position, 0, True)  # every query sees the first key: top is finite from here on
    total = gl.sum(w, 1)
    w = _pack(w, vs.dtype)
    acc = gl.zeros([ROWS, D], gl.float32, LAYOUT)
    mbarrier.wait(v_full.index(0), 0)
    for j in range(1, whole):
        w, acc, top, total = _step(q, ks, vs, bars, w, acc, top, total, scale, position, j, GROUP, D, False)
    for j in range(gl.maximum(whole, 1), tiles):
        w, acc, top, total = _step(q, ks, vs, bars, w, acc, top, total, scale, position, j, GROUP, D, True)
    p = _unpack(w, vs.dtype, gl.DotOperandLayout(0, LAYOUT, 2))
    acc = warpgroup_mma(p, vs.index((tiles - 1) % STAGES).reshape([KEYS, D]), acc, is_async=True)
    gl.store(lse + (b * HQ + h).to(gl.int64) * T + rows, top + gl.log2(total), mask=rows < T)
    share = gl.convert_layout(1.0 / total, gl.SliceLayout(1, LAYOUT))
    acc, p = warpgroup_mma_wait(0, deps=[acc, p])
    q.store((acc * share[:, None]).to(out.dtype))  # the queries have been read: their place takes the output
    fence_async_shared()
    take(out, [b, h, start, 0], qs.index(GROUP))  # rows beyond T are left out
    tma.store_wait(0)


@jit(do_not_specialize=["T", "shift", "HQ", "group", "blocks", "heads", "fan"])
def _forward(in_q, in_k, in_v, out, lse, scale, T, shift, HQ, group, blocks, heads, fan, D: constexpr):
    qs = gl.allocate_shared_memory(in_q.dtype, [GROUPS, 1, 1, ROWS, D], in_q.layout)
    ks = gl.allocate_shared_memory(in_k.dtype, [STAGES, 1, 1, KEYS, D], in_k.layout)
    vs = gl.allocate_shared_memory(in_v.dtype, [STAGES, 1, 1, KEYS, D], in_v.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for g in gl.static_range(GROUPS):
        mbarrier.init(q_full.index(g), count=1)
        mbarrier.init(turns.index(g), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_free.index(stage), count=GROUPS)
        mbarrier.init(v_free.index(stage), count=GROUPS)
    fence_async_shared()
    bars = (q_full, k_full, k_free, v_full, v_free, turns)
    place = _place(T, shift, HQ, blocks, heads, fan)
    gl.warp_specialize(
        [
            (_consume, (out, lse, qs, ks, vs, bars, place, scale, T, shift, HQ, 0, D)),
            (_consume, (out, lse, qs, ks, vs, bars, place, scale, T, shift, HQ, 1, D)),
            (_produce, (in_q, in_k, in_v, qs, ks, vs, bars, place, group, D)),
        ],
        [4, 1],
        [240, 24],  # registers of a thread; the first warpgroup gets what is left, 240 too
    )


def fits(q: Tensor, k: Tensor, v: Tensor, scale: float) -> bool:
    """Whether `forward` takes the call: Hopper, bf16 or fp16, head dims 64 or 128, k and v of one shape, T <= S,
    scale > 0, a head's numbers side by side, and addresses and strides of whole 16 bytes, none 0 (an expanded tensor).

    Where T <= S it depends on neither batch nor lengths, so that rows alone take the way that they take in a batch.
    """
    D = q.shape[-1]
    return (
        not INTERPRETED
        and hopper(q.device)
        and q.dtype in {torch.bfloat16, torch.float16}
        and D in {64, 128}
        and k.shape == v.shape
        and k.shape[-1] == D
        and 0 < q.shape[1] <= k.shape[1]
        and q.numel() > 0
        and scale > 0
        and aligned(q)
        and aligned(k)
        and aligned(v)
    )


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, launches: Launches | None = None) -> tuple[Tensor, Tensor]:
    """Causal softmax attention of the last T of S positions, for calls that fit (`fits`).

    Source: FlashAttention-3, arXiv:2407.08608.

    Args:
        q: [B, T, HQ, D], bf16 or fp16; head h reads key head h // (HQ // H).
        k, v: [B, S, H, D] in q's dtype, S >= T.
        scale: factor of the logits, > 0.

    Returns:
        o [B, T, HQ, D] in q's dtype, and the logits' log2-sum-exp2 [B, HQ, T] in fp32: the logarithm to base 2 of
        sum_j exp(scale * q . k_j).

    Raises:
        AssertionError: strides or addresses that TMA cannot take.
    """
    B, T, HQ, D = q.shape
    S, H = k.shape[1:3]
    o = torch.empty(B, T, HQ, D, dtype=q.dtype, device=q.device)
    lse = torch.empty(B, HQ, T, dtype=torch.float32, device=q.device)
    rows, keys = ROWS.value, KEYS.value
    blocks = triton.cdiv(T, GROUPS.value * rows)
    heads = B * HQ
    fan = min(heads, max(1, L2_BYTES // (2 * S * D * q.itemsize)) * (HQ // H))
    launches = Launches() if launches is None else launches
    launches.add(
        _forward, (blocks * heads,),
        describe(q, rows), describe(k, keys), describe(v, keys), describe(o, rows), lse, scale * LOG2E,
        T, S - T, HQ, HQ // H, blocks, heads, fan, D=D, num_warps=4,
    )  # fmt: skip
    launches.run(("full forward", q.dtype, D, HQ == H), q.device)
    return o, lse
