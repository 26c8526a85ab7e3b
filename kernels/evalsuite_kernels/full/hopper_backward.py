"""Backward pass of causal softmax attention on Hopper GPUs in five products (FlashAttention-3, arXiv:2407.08608), in
Gluon.

A program owns a block of keys and walks the tiles of queries that see it. Two warpgroups of 64 keys each compute, a
warp brings tiles into shared memory (TMA), and another adds the program's part of dQ to the sum in global memory. The
parts of a tile of dQ are added in one order, from the last block of keys down: a counter says whose turn it is. So all
runs give the same bits, and as programs start from the last block on, none waits for one that has not started.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton._C.libtriton import ir
from triton.experimental.gluon import jit
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language import constexpr

from evalsuite_kernels.arguments import INTERPRETED, hopper
from evalsuite_kernels.gluon import aligned, bring, describe, meet, take
from evalsuite_kernels.launches import Launches


@builtin
def add(tensor_desc: Any, coord: Any, src: Any, _semantic: Any = None) -> None:
    """Add a tile in shared memory to one in global memory (TMA); Gluon of Triton 3.6 has no name for it."""
    at = _semantic._convert_to_ir_values(coord, require_i64=False)
    _semantic.builder.create_async_tma_reduce(ir.DESCRIPTOR_REDUCE_KIND.ADD, tensor_desc.handle, at, src.handle)


LOG2E = math.log2(math.e)
ROWS = constexpr(64)  # queries of a tile
KEYS = constexpr(128)  # of a block
D = constexpr(128)  # head dim
WIDTH = constexpr(256)  # numbers of a row of a tile of dQ's sum


@triton.jit(do_not_specialize=["T", "HQ", "tiles"])
def _prepare(o, g, lse, rows, turns, T, HQ, tiles, sob, sot, soh, sgb, sgt, sgh, D: tl.constexpr, ROWS: tl.constexpr):
    """rows [B * HQ, tiles, 2, ROWS]: lse (inf beyond T) and delta = sum(do * o); turns [B * HQ * tiles + 1]: 0."""
    pid = tl.program_id(0)
    head = pid // tiles
    b = tl.cast(head // HQ, tl.int64)
    h = head - head // HQ * HQ
    row = (pid - head * tiles) * ROWS + tl.arange(0, ROWS)
    there = row < T
    col = tl.arange(0, D)
    x = tl.load(o + b * sob + h * soh + row.to(tl.int64)[:, None] * sot + col[None, :], mask=there[:, None], other=0.0)
    y = tl.load(g + b * sgb + h * sgh + row.to(tl.int64)[:, None] * sgt + col[None, :], mask=there[:, None], other=0.0)
    logs = tl.load(lse + tl.cast(head, tl.int64) * T + row, mask=there, other=float("inf"))
    at = rows + tl.cast(pid, tl.int64) * (2 * ROWS) + tl.arange(0, ROWS)
    tl.store(at, logs)
    tl.store(at + ROWS, tl.sum(x.to(tl.float32) * y.to(tl.float32), 1))
    tl.store(turns + pid, 0)
    if pid == 0:
        tl.store(turns + tl.num_programs(0), 0)


@triton.jit(do_not_specialize=["T", "HQ", "tiles"])
def _finish(total, dq, scale, T, HQ, tiles, D: tl.constexpr, ROWS: tl.constexpr):
    """dq from its sums, each tile of which is in the order of `_in_order`."""
    pid = tl.program_id(0)
    head = pid // tiles
    x = tl.load(total + tl.cast(pid, tl.int64) * (ROWS * D) + tl.arange(0, ROWS * D))
    x = tl.reshape(tl.permute(tl.reshape(x, [8, 2, 4, 8, 4, 2, 2]), [2, 5, 3, 1, 0, 4, 6]), [ROWS, D])
    row = (pid - head * tiles) * ROWS + tl.arange(0, ROWS)
    token = tl.cast(head // HQ, tl.int64) * T + row
    at = dq + (token * HQ + (head - head // HQ * HQ))[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(at, (x * scale).to(dq.dtype.element_ty), mask=(row < T)[:, None])


@jit
def _ptx(code: constexpr, x):
    """Run it in every thread, with $1 = x."""
    gl.inline_asm_elementwise(code, "=r,l", [x], dtype=gl.int32, is_pure=False, pack=1)


@jit
def _hide(x):
    """x, of which the compiler then knows nothing: what follows from it is not kept in registers across the loop."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1)


@jit
def _wide(x):
    """fp32, from the registers that hold pairs of 16-bit numbers for a product."""
    if x.dtype == gl.bfloat16:
        return gl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=r,=r,r", [x], dtype=gl.float32, is_pure=True, pack=2
        )
    else:
        return gl.inline_asm_elementwise(
            "{ .reg .b16 a, b; mov.b32 {a, b}, $2; cvt.f32.f16 $0, a; cvt.f32.f16 $1, b; }",
            "=r,=r,r", [x], dtype=gl.float32, is_pure=True, pack=2,
        )  # fmt: skip


@jit
def _in_order(x):
    """A tile of dQ with the numbers of a thread side by side, as they are in the registers of 2 x 4 warps."""
    x = gl.permute(gl.reshape(x, [4, 2, 8, 2, 8, 4, 2]), [4, 3, 0, 2, 5, 1, 6])
    return gl.reshape(x, [ROWS * D // WIDTH, WIDTH])


@jit
def _next(i, head, first, tiles):
    """The tile after tile i of a head's queries: all heads of a group are walked, each from tile `first` on."""
    end = i + 1 == tiles
    return gl.where(end, first, i + 1), gl.where(end, head + 1, head)


@jit
def _bring(in_q, in_k, in_v, in_g, qs, ks, vs, gs, ready, passed, place):
    """Keys and values; then for each step its dO, and Q of the step after it."""
    b, h, block, first, steps, tiles, group, _ = place
    i = first + 0  # a value of its own, which the compiler wants of a variable that the loop changes
    head = h * group
    mbarrier.expect(ready.index(2), (2 * KEYS + ROWS) * D * 2)
    bring(in_q, [b, head, i * ROWS, 0], ready.index(2), qs.index(0))
    bring(in_k, [b, h, block * KEYS, 0], ready.index(2), ks.index(0))
    bring(in_v, [b, h, block * KEYS, 0], ready.index(2), vs.index(0))
    for s in range(steps):
        after, head_after = _next(i, head, first, tiles)
        # all threads are in step s - 1: dO of step s - 2 and Q of step s - 3 have been read
        mbarrier.wait(passed.index((s - 1) & 1), ((s - 1) >> 1) & 1)
        mbarrier.expect(ready.index(s & 1), 2 * ROWS * D * 2)
        bring(in_g, [b, head, i * ROWS, 0], ready.index(s & 1), gs.index(s & 1))
        bring(in_q, [b, head_after, after * ROWS, 0], ready.index(s & 1), qs.index((s + 1) & 3))
        i = after
        head = head_after


@jit
def _add(out, turns, part, stored, drained, place):
    """The program's parts of dQ to the sums in `out`, each when it is its turn."""
    b, h, block, first, steps, tiles, group, HQ = place
    mbarrier.wait(stored, 0)  # step 0 has no part yet: each comes a step later
    mbarrier.arrive(drained, count=1)
    i = first + 0
    head = h * group
    for s in range(steps):
        tile = (b * HQ + head) * tiles + i
        turn = i // (KEYS // ROWS) - block
        mbarrier.wait(stored, (s & 1) ^ 1)
        gl.inline_asm_elementwise(
            """{
            .reg .pred p; .reg .b32 r;
            again: ld.acquire.gpu.global.b32 r, [$1];
            setp.lt.s32 p, r, $2;
            @p bra again;
            fence.proxy.async;
            mov.b32 $0, r;
            }""",
            "=r,l,r", [turns + tile, turn], dtype=gl.int32, is_pure=False, pack=1,
        )  # fmt: skip
        if turn == 0:
            take(out, [tile * (ROWS * D // WIDTH), 0], part)
        else:
            add(out, [tile * (ROWS * D // WIDTH), 0], part)
        _ptx("cp.async.bulk.wait_group.read 0; mov.b32 $0, 0;", turns)
        meet()
        mbarrier.arrive(drained, count=1)
        _ptx("cp.async.bulk.wait_group 0; fence.proxy.async; mov.b32 $0, 0;", turns)
        meet()
        _ptx(
            """{
            .reg .pred p;
            elect.sync _|p, 0xffffffff;
            @p red.release.gpu.global.add.s32 [$1], 1;
            mov.b32 $0, 0;
            }""",
            turns + tile,
        )
        i, head = _next(i, head, first, tiles)


@jit
def _consume(out_k, out_v, rows, qs, ks, vs, gs, dss, part, ready, passed, stored, drained, place, scale, slope):
    """dK and dV of the block, and dQ's parts.

    Step s computes P of its tile while the products dQ and dK of step s - 1 run, and dS while dV and the next step's
    logits do. Everything is transposed, so that P is an operand from registers.
    """
    S_T: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, 64, 16])
    D_KV: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, 128, 16])
    D_Q: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, 64, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, D_KV, 2)
    QUERY: gl.constexpr = gl.SliceLayout(0, S_T)
    dtype: gl.constexpr = ks.dtype
    b, h, block, first, steps, tiles, group, HQ = place
    dk = warpgroup_mma_init(gl.zeros([KEYS, D], gl.float32, layout=D_KV))
    dv = warpgroup_mma_init(gl.zeros([KEYS, D], gl.float32, layout=D_KV))
    zero = gl.zeros([KEYS, ROWS], gl.float32, layout=S_T)
    none = gl.zeros([ROWS, D], gl.float32, layout=D_Q)
    key = block * KEYS + gl.arange(0, KEYS, layout=gl.SliceLayout(1, S_T))
    dss.index(1).store(zero.to(dtype))  # of the step before the first
    fence_async_shared()
    mbarrier.wait(ready.index(2), 0)
    k = ks.index(0).reshape([KEYS, D])
    s_t = warpgroup_mma(k, qs.index(0).reshape([ROWS, D]).permute([1, 0]), zero, use_acc=False, is_async=True)
    s_t = warpgroup_mma_wait(0, deps=[s_t])
    i = first + 0
    head = h * group
    for s in range(steps):
        at = ((b * HQ + head) * tiles + i).to(gl.int64) * (2 * ROWS)
        row = rows + at + gl.arange(0, ROWS, layout=QUERY)
        logs = gl.load(row)
        at_0 = _hide(0)
        k = ks.index(at_0).reshape([KEYS, D])
        v = vs.index(at_0).reshape([KEYS, D])
        y = gs.index(s & 1).reshape([ROWS, D])
        ds = dss.index((s + 1) & 1)
        meet()
        mbarrier.wait(ready.index(s & 1), (s >> 1) & 1)
        q = qs.index(gl.maximum(s - 1, 0) & 3).reshape([ROWS, D])
        dq = warpgroup_mma(ds.permute([1, 0]), k, none, use_acc=False, is_async=True)
        dk = warpgroup_mma(ds, q, dk, is_async=True)
        mbarrier.arrive(passed.index(s & 1), count=1)
        s_t = s_t * scale - logs[None, :]
        if i < first + KEYS // ROWS:
            query = i * ROWS + _hide(gl.arange(0, ROWS, layout=QUERY))
            s_t = gl.where(query[None, :] >= key[:, None], s_t, float("-inf"))
        p = gl.exp2(s_t).to(dtype)
        dq = warpgroup_mma_wait(1, deps=[dq])
        if s > 0:
            mbarrier.wait(drained, (s & 1) ^ 1)
            part.store(_in_order(dq))
            fence_async_shared()
        dp = warpgroup_mma(v, y.permute([1, 0]), zero, use_acc=False, is_async=True)
        delta = gl.load(row + ROWS)
        dv = warpgroup_mma(gl.convert_layout(p, LEFT, assert_trivial=True), y, dv, is_async=True)
        q = qs.index((s + 1) & 3).reshape([ROWS, D])
        s_t = warpgroup_mma(k, q.permute([1, 0]), zero, use_acc=False, is_async=True)
        meet()
        mbarrier.arrive(stored, count=1)
        dp = warpgroup_mma_wait(2, deps=[dp])
        dss.index(s & 1).store((_wide(p) * (dp - delta[None, :])).to(dtype))
        fence_async_shared()
        s_t, dv = warpgroup_mma_wait(0, deps=[s_t, dv])
        dv = warpgroup_mma_init(dv)
        i, head = _next(i, head, first, tiles)
    meet()
    k = ks.index(0).reshape([KEYS, D])
    v = vs.index(0).reshape([KEYS, D])
    ds = dss.index((steps + 1) & 1)
    dq = warpgroup_mma(ds.permute([1, 0]), k, none, use_acc=False, is_async=True)
    dk = warpgroup_mma(ds, qs.index((steps - 1) & 3).reshape([ROWS, D]), dk, is_async=True)
    dq, dk = warpgroup_mma_wait(0, deps=[dq, dk])
    mbarrier.wait(drained, (steps & 1) ^ 1)
    part.store(_in_order(dq))
    fence_async_shared()
    meet()
    mbarrier.arrive(stored, count=1)
    k.store((dk * slope).to(dtype))
    v.store(warpgroup_mma_wait(0, deps=[dv]).to(dtype))
    fence_async_shared()
    meet()
    take(out_k, [b, h, block * KEYS, 0], ks.index(0))
    take(out_v, [b, h, block * KEYS, 0], vs.index(0))
    tma.store_wait(0)


@jit(do_not_specialize=["HQ", "group", "blocks", "tiles"])
def _gradients(
    in_q, in_k, in_v, in_g, out_k, out_v, out, rows, turns, ticket, scale, slope, HQ, group, blocks, tiles
):  # fmt: skip
    dtype: gl.constexpr = in_q.dtype
    # programs are numbered as they start, which no launch order needs to be trusted for
    pid = gl.atomic_add(ticket, 1, sem="relaxed", scope="gpu")
    block = blocks - 1 - pid % blocks
    b = pid // blocks // (HQ // group)
    h = pid // blocks - b * (HQ // group)
    first = block * (KEYS // ROWS)
    ks = gl.allocate_shared_memory(dtype, [1, 1, 1, KEYS, D], in_k.layout)
    vs = gl.allocate_shared_memory(dtype, [1, 1, 1, KEYS, D], in_v.layout)
    qs = gl.allocate_shared_memory(dtype, [4, 1, 1, ROWS, D], in_q.layout)
    gs = gl.allocate_shared_memory(dtype, [2, 1, 1, ROWS, D], in_g.layout)
    dss = gl.allocate_shared_memory(dtype, [2, KEYS, ROWS], gl.NVMMASharedLayout(128, 16, 2))
    part = gl.allocate_shared_memory(gl.float32, [ROWS * D // WIDTH, WIDTH], out.layout)
    ready = gl.allocate_shared_memory(gl.int64, [3, 1], mbarrier.MBarrierLayout())
    passed = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    stored = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    drained = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for n in gl.static_range(3):
        mbarrier.init(ready.index(n), count=1)
    for n in gl.static_range(2):
        mbarrier.init(passed.index(n), count=1)
    mbarrier.init(stored, count=1)
    mbarrier.init(drained, count=1)
    place = (b, h, block, first, (tiles - first) * group, tiles, group, HQ)
    gl.warp_specialize(
        [
            (_consume, (out_k, out_v, rows, qs, ks, vs, gs, dss, part, ready, passed, stored, drained, place, scale,
                        slope)),
            (_bring, (in_q, in_k, in_v, in_g, qs, ks, vs, gs, ready, passed, place)),
            (_add, (out, turns, part, stored, drained, place)),
        ],
        [1, 1],
        [24, 24],  # registers of a thread; those who compute get the rest, 240
    )  # fmt: skip


def fits(g: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> bool:
    """Whether `backward` takes the call: Hopper, bf16 or fp16, head dim 128, as many queries as keys, a head's numbers
    side by side, and addresses and strides of whole 16 bytes, none 0 (an expanded tensor); any scale."""
    return (
        not INTERPRETED
        and math.isfinite(scale)
        and hopper(q.device)
        and q.dtype in {torch.bfloat16, torch.float16}
        and g.dtype == q.dtype == k.dtype == v.dtype
        and g.shape == q.shape
        and k.shape == v.shape
        and q.shape[1] == k.shape[1]
        and q.shape[3] == k.shape[3] == D.value
        and q.numel() > 0
        and all(aligned(x) for x in (g, q, k, v))
    )


def backward(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    scale: float,
    launches: Launches | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of causal softmax attention, for calls that fit (`fits`).

    Source: FlashAttention-3, arXiv:2407.08608; dQ's order of sums is this module's.

    Args:
        g: [B, T, HQ, 128], the gradient of o, in q's dtype.
        q: [B, T, HQ, 128], bf16 or fp16; head h reads key head h // (HQ // H).
        k, v: [B, T, H, 128] in q's dtype.
        o: [B, T, HQ, 128] in q's dtype, a head's numbers side by side.
        lse: [B, HQ, T] in fp32, contiguous, the logits' log2-sum-exp2 as `full_forward` gives it.
        scale: factor of the logits.

    Returns:
        dq, dk, dv in q's dtype, contiguous; all runs give the same bits.

    Raises:
        AssertionError: strides or addresses that TMA cannot take.
    """
    B, T, HQ, _ = q.shape
    H = k.shape[2]
    rows, keys, d, width = ROWS.value, KEYS.value, D.value, WIDTH.value
    tiles, blocks = triton.cdiv(T, rows), triton.cdiv(T, keys)
    count = B * HQ * tiles
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    total = torch.empty(count * rows * d // width, width, dtype=torch.float32, device=q.device)
    sides = torch.empty(count, 2, rows, dtype=torch.float32, device=q.device)
    turns = torch.empty(count + 1, dtype=torch.int32, device=q.device)  # the last gives programs their numbers
    launches = Launches() if launches is None else launches
    launches.add(
        _prepare, (count,),
        o, g, lse, sides, turns, T, HQ, tiles, *o.stride()[:3], *g.stride()[:3], D=d, ROWS=rows, num_warps=4,
    )  # fmt: skip
    flat = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=2)
    launches.add(
        _gradients, (blocks * B * H,),
        describe(q, rows), describe(k, keys), describe(v, keys), describe(g, rows), describe(dk, keys),
        describe(dv, keys), TensorDescriptor(total, list(total.shape), [width, 1], [rows * d // width, width], flat),
        sides, turns, turns[count:], scale * LOG2E, scale, HQ, HQ // H, blocks, tiles, num_warps=8,
    )  # fmt: skip
    launches.add(_finish, (count,), total, dq, scale, T, HQ, tiles, D=d, ROWS=rows, num_warps=4)
    launches.run(("full backward", q.dtype, HQ == H), q.device)
    return dq, dk, dv
