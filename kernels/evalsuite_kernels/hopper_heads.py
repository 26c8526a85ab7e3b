"""A chunk of the delta rule without a gate per channel on Hopper's tensor cores, in Gluon: all that knows no state, in
one kernel. A gate per head stays outside the products, so that q and k enter them unrounded."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from evalsuite_kernels.gluon import copy, exp2, meet, softplus
from evalsuite_kernels.hopper_solve import PAIRS, SHARED, C, lines, put, rate, solved, strengths, times

LOG2E = gl.constexpr(1.4426950408889634)


@gluon.jit
def _gates(g, A_log, dt_bias, start, stop, h, gt, gh):
    """The running sums [C] of a gate per head, in units of log 2, by rows."""
    i = gl.arange(0, C, gl.SliceLayout(0, PAIRS))
    step = gl.load(g + (start + i).to(gl.int64) * gt + h * gh, mask=start + i < stop, other=0.0).to(gl.float32)
    if A_log is not None:
        if dt_bias is not None:
            step += gl.load(dt_bias + h).to(gl.float32)
        step = softplus(step) * -gl.exp(gl.load(A_log + h).to(gl.float32))
        step = gl.where(start + i < stop, step, 0.0)
    step = gl.maximum(step, -1000.0) * LOG2E  # decays to 0 already; the sums stay finite
    past = gl.arange(0, C, gl.SliceLayout(1, PAIRS))[:, None] >= i[None, :]
    return gl.sum(gl.where(past, step[None, :], 0.0), 1)


@gluon.jit(do_not_specialize=["keep", "chunks", "H", "HV", "gt", "gh"])
def head_blocks(
    q, k, g, beta, A_log, dt_bias, starts, stops,
    G, P, Kg, B, T, each, rest, rates,
    scale, beta_max, keep, gt, gh, chunks, H, HV,
    K: gl.constexpr, GATE: gl.constexpr, UNIT: gl.constexpr, SIGMOID: gl.constexpr,
):  # fmt: skip
    """What `head_products`, `solve` and `fold` give; `keep` as for `channel_blocks`."""
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // K, K // 8], [4, 1], [1, 0])
    KEYS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, K, 16])
    c, h = gl.program_id(0), gl.program_id(1)
    head = h // (HV // H)
    start, stop = gl.load(starts + c), gl.load(stops + c)
    block = (h * chunks + c).to(gl.int64)
    xs = gl.allocate_shared_memory(gl.bfloat16, [C, K], SHARED)
    ys = gl.allocate_shared_memory(gl.bfloat16, [C, K], SHARED)
    tiles = gl.allocate_shared_memory(gl.bfloat16, [4, C, C], SHARED)
    few = gl.allocate_shared_memory(gl.float32, [C, 16], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    i = gl.arange(0, C, gl.SliceLayout(1, ROWS))[:, None]
    at = (start.to(gl.int64) * H + head) * K + i * (H * K) + gl.arange(0, K, gl.SliceLayout(0, ROWS))[None, :]
    copy(xs, q + at, mask=start + i < stop)
    copy(ys, k + at, mask=start + i < stop)
    hopper.async_copy.commit_group()
    strength = strengths(beta, start, stop, h, HV, beta_max, SIGMOID)
    i = gl.arange(0, C, gl.SliceLayout(1, PAIRS))
    if keep > 0:
        gl.store(each + block * C + i, strength)
    n, m = i[:, None], gl.arange(0, C, gl.SliceLayout(0, PAIRS))[None, :]
    late = gl.full([C], 1.0, gl.float32, gl.SliceLayout(1, PAIRS))
    if GATE == 1:
        here = _gates(g, A_log, dt_bias, start, stop, h, gt, gh)
        gl.store(G + block * C + i, here)
        late = exp2(gl.sum(gl.where(i == C - 1, here, 0.0), 0) - here)
        between = here[:, None] - gl.convert_layout(here, gl.SliceLayout(0, PAIRS))[None, :]
        decay = exp2(gl.where(n >= m, between, float("-inf")))
    else:
        decay = gl.where(n >= m, 1.0, 0.0)
    hopper.async_copy.wait_group(0)
    hopper.fence_async_shared()
    meet()
    none = gl.zeros([C, C], gl.float32, PAIRS)
    b = hopper.warpgroup_mma(ys, ys.permute((1, 0)), none, use_acc=False, is_async=True)
    across = gl.full([C], 1.0, gl.float32, gl.SliceLayout(0, PAIRS))
    of_q = gl.full([C], scale, gl.float32, gl.SliceLayout(1, PAIRS))
    of_k = gl.full([C], 1.0, gl.float32, gl.SliceLayout(1, PAIRS))
    if UNIT:
        x, y = xs.load(KEYS).to(gl.float32), ys.load(KEYS).to(gl.float32)
        of_q = gl.convert_layout(rate(gl.sum(x * x, 1)), gl.SliceLayout(1, PAIRS))
        of_k = gl.convert_layout(rate(gl.sum(y * y, 1)), gl.SliceLayout(1, PAIRS))
        gl.store(rates + block * (2 * C) + i, of_q)
        gl.store(rates + block * (2 * C) + C + i, of_k)
        across = gl.convert_layout(of_k, gl.SliceLayout(0, PAIRS))
        of_q *= scale
        late *= of_k
    b = hopper.warpgroup_mma_wait(0, [b]) * decay * (of_k[:, None] * across[None, :])
    t = solved(b, strength, few, tiles, B, T, block, keep)
    p = hopper.warpgroup_mma(xs, ys.permute((1, 0)), none, use_acc=False, is_async=True)
    p = hopper.warpgroup_mma_wait(0, [p]) * decay * (of_q[:, None] * across[None, :])
    p = times(p, tiles, 0)
    put(t * late[:, None], tiles, 2)
    key = gl.zeros([C, K], gl.float32, KEYS)
    key = hopper.warpgroup_mma(tiles.index(3).permute((1, 0)), ys, key, use_acc=False, is_async=True)
    key = hopper.warpgroup_mma(tiles.index(2).permute((1, 0)), ys, key, is_async=True)
    key = hopper.warpgroup_mma_wait(0, [key])
    lines(p, P + block * (C * C), C, tiles.index(0))
    lines(key, Kg + block * (C * K), K, xs)
    if keep > 0:
        meet()  # Kg has left
        lines(key - key.to(gl.bfloat16).to(gl.float32), rest + block * (C * K), K, xs)
