"""Linear attention without a gate per channel on Hopper's tensor cores, in Gluon.

What follows from k and v alone walks over the chunks of a sequence first, and leaves the state at the start of every
group of chunks; then all groups at once give their outputs, and the last one of a sequence its last state. Both hold
columns of the state, transposed: S^T [64, K] in registers, and both make

    S' = fma(D, S, (until V)^T K)

by the same instructions in the same order: a state knows neither groups nor where a sequence was split. The names are
those of `chunk_kernels.py`; `since` and `until` are the decays from the chunk's start to a token and from there to its
end.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from evalsuite_kernels.activations import softplus
from evalsuite_kernels.chunk_tiles import LOG2E
from evalsuite_kernels.gluon import bring, clear, exp2, meet

C = gl.constexpr(64)
BLOCK = gl.constexpr(64)  # columns of the state in a program
GATES = gl.constexpr(4 * 64)  # numbers of a chunk's gates


def describe_gates(G: Tensor | None) -> TensorDescriptor | None:
    """What `gates` gives, to be read by chunks."""
    return None if G is None else TensorDescriptor.from_tensor(G.view(-1), [256], gl.NVMMASharedLayout(0, 32, 1))


@triton.jit(do_not_specialize=["chunks", "HV", "gt", "gh"])
def gates(g, A_log, dt_bias, G, starts, stops, chunks, HV, gt, gh, HEADS: tl.constexpr):
    """G [HV, chunks, 4, C]: a gate's running sums in units of log 2, since, until, and a row to fill."""
    c, h = tl.program_id(0), tl.program_id(1) * HEADS + tl.arange(0, HEADS)[None, :]
    i = tl.arange(0, 64)[:, None]
    tokens, there = tl.load(starts + c) + i, h < HV
    valid = there & (tokens < tl.load(stops + c))
    x = tl.load(g + tokens.to(tl.int64) * gt + h * gh, mask=valid, other=0.0)
    if A_log is not None:
        x = x.to(tl.float32)
        if dt_bias is not None:
            x += tl.load(dt_bias + h, mask=there, other=0.0).to(tl.float32)
        rate = tl.exp(tl.load(A_log + h, mask=there, other=0.0).to(tl.float32))
        x = tl.where(valid, -rate * softplus(x), 0.0)
    here = tl.cumsum(tl.maximum(x.to(tl.float32), -1000.0) * LOG2E, 0)  # decays to 0 already; the sums stay finite
    last = tl.sum(tl.where(i == 63, here, 0.0), 0)[None, :]
    to = G + (h * chunks + c).to(tl.int64) * 256 + i
    tl.store(to, here, mask=there)
    tl.store(to + 64, tl.exp2(here), mask=there)
    tl.store(to + 128, tl.exp2(last - here), mask=there)


@gluon.jit
def _until(v, gates, A: gl.constexpr, GATE: gl.constexpr):
    """(until V)^T as a left operand, and the decay of the whole chunk."""
    if GATE == 1:
        until = gates.slice(2 * C, C).load(gl.SliceLayout(0, A))
        v = (v.to(gl.float32) * until[None, :]).to(gl.bfloat16)
        whole = gates.slice(2 * C - 1, 1).load(gl.SliceLayout(0, A))
    else:
        whole = gl.full([1], 1.0, gl.float32, gl.SliceLayout(0, A))
    return v, whole


@gluon.jit
def _step(S, whole, U, GATE: gl.constexpr):
    """The state after a chunk."""
    if GATE == 1:
        D = gl.convert_layout(whole, gl.SliceLayout(0, S.type.layout))
        S = gl.fma(S, gl.zeros_like(S) + D[None, :], U)
    else:
        S += U
    return S


@gluon.jit
def _fetch(q, k, v, G, tiles, full, c, at, Q: gl.constexpr, GATE: gl.constexpr):
    """Load the tiles of a chunk, `at` the places of the first one."""
    qs, ks, vs, gs = tiles
    token, gate, key, value = at
    STAGES: gl.constexpr = ks.shape[0]
    BYTES: gl.constexpr = 2 * C * (ks.shape[2] + BLOCK + (qs.shape[2] if Q else 0)) + (4 * GATES if GATE == 1 else 0)
    slot, start = c % STAGES, token + c * C
    bar = full.index(slot)
    mbarrier.expect(bar, BYTES)
    bring(k, [start, key], bar, ks.index(slot))
    if Q:
        bring(q, [start, key], bar, qs.index(slot))
    bring(v, [start, value], bar, vs.index(slot))
    if GATE == 1:
        bring(G, [gate + c * GATES], bar, gs.index(slot))


@gluon.jit
def _produce(k, v, G, tiles, bars, count, at, GATE: gl.constexpr):
    """Load the tiles of chunks as room for them is made."""
    full, free = bars
    STAGES: gl.constexpr = tiles[1].shape[0]
    for c in range(count):
        mbarrier.wait(free.index(c % STAGES), ((c // STAGES) & 1) ^ 1)
        _fetch(k, k, v, G, tiles, full, c, at, False, GATE)


@gluon.jit
def _walk(S0, between, tiles, bars, first, count, size, K: gl.constexpr, V: gl.constexpr, GATE: gl.constexpr):
    """The states before chunks that are groups' first."""
    qs, ks, vs, gs = tiles
    full, free = bars
    STAGES: gl.constexpr = ks.shape[0]
    KEYS: gl.constexpr = ks.shape[2]
    STATE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    A: gl.constexpr = gl.DotOperandLayout(0, STATE, 2)
    e = gl.arange(0, BLOCK, gl.SliceLayout(1, STATE))[:, None]
    d = gl.arange(0, KEYS, gl.SliceLayout(0, STATE))[None, :]
    S = gl.load(S0 + (d * V + e))
    none = gl.zeros([BLOCK, KEYS], gl.float32, STATE)
    mbarrier.wait(full.index(0), 0, pred=count > 0)
    late, whole = _until(vs.index(0).permute((1, 0)).load(A), gs.index(0), A, GATE)
    end = size
    for c in range(count):
        slot = c % STAGES
        U = hopper.warpgroup_mma(late, ks.index(slot), none, use_acc=False, is_async=True)
        # the next chunk's left operand meanwhile; after the last chunk its own once more
        D = whole
        ahead = gl.minimum(c + 1, count - 1)
        mbarrier.wait(full.index(ahead % STAGES), (ahead // STAGES) & 1)
        x, whole = _until(vs.index(ahead % STAGES).permute((1, 0)).load(A), gs.index(ahead % STAGES), A, GATE)
        U, late = hopper.warpgroup_mma_wait(0, [U, x])  # both: else x is made after it
        mbarrier.arrive(free.index(slot))
        S = _step(S, D, U, GATE)
        if c + 1 == end:
            gl.store(between + ((first + end) // size).to(gl.int64) * (K * V) + (e * K + d), S)
            end += size


@gluon.jit(do_not_specialize=["chunks", "H", "HV", "size"])
def states(
    k, v, G, S0, starts, firsts,
    between,
    chunks, H, HV, size,
    K: gl.constexpr, V: gl.constexpr, KEYS: gl.constexpr, GATE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """`between` [HV, chunks / size, V, K]: S^T before each group of a sequence but its first, at c / size of the
    group's first chunk c. A program has KEYS rows of S, and meets whole chunks alone."""
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    ks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, KEYS], SHARED)
    vs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, BLOCK], SHARED)
    gs = gl.allocate_shared_memory(gl.float32, [STAGES, GATES], gl.NVMMASharedLayout(0, 32, 1))
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES):
        mbarrier.init(full.index(s), count=1)
        mbarrier.init(free.index(s), count=1)
    hopper.fence_async_shared()
    meet()  # before the other warps use them
    part, h, n = gl.program_id(0), gl.program_id(1), gl.program_id(2)
    d0, e0 = part % (K // KEYS) * KEYS, part // (K // KEYS) * BLOCK
    key, value = h // (HV // H) * K + d0, h * V + e0
    first = gl.load(firsts + n)
    count = gl.maximum(gl.load(firsts + n + 1) - first - 1, 0) // size * size
    token, gate = gl.load(starts + first, mask=count > 0, other=0), (h * chunks + first) * GATES
    S0 += (n * HV + h).to(gl.int64) * (K * V) + d0 * V + e0
    between += (h * ((chunks + size - 1) // size)).to(gl.int64) * (K * V) + e0 * K + d0
    tiles = (ks, ks, vs, gs)
    bars = (full, free)
    at = (token, gate, key, value)
    gl.warp_specialize(
        [
            (_walk, (S0, between, tiles, bars, first, count, size, K, V, GATE)),
            (_produce, (k, v, G, tiles, bars, count, at, GATE)),
        ],
        [1],
        [24],
    )


@gluon.jit(do_not_specialize=["chunks", "H", "HV", "size"])
def outputs(
    q, k, v, G, S0, between, starts, stops, firsts, begins, owners,
    o, S1,
    scale, chunks, H, HV, size,
    K: gl.constexpr, V: gl.constexpr, GATE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """o of a group of chunks, 64 columns of a value head; of a sequence's last group also the last state. Two programs
    share a multiprocessor: one computes while the other waits."""
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    STATE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, K, 16])
    TOKENS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, C, 16])
    OF_STATE: gl.constexpr = gl.DotOperandLayout(0, STATE, 2)
    A: gl.constexpr = gl.DotOperandLayout(0, TOKENS, 2)
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    qs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, K], SHARED)
    ks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, K], SHARED)
    vs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, BLOCK], SHARED)
    gs = gl.allocate_shared_memory(gl.float32, [STAGES, GATES], gl.NVMMASharedLayout(0, 32, 1))
    ps = gl.allocate_shared_memory(gl.bfloat16, [C, C], SHARED)
    y = gl.allocate_shared_memory(gl.bfloat16, [C, BLOCK], SHARED)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES):
        mbarrier.init(full.index(s), count=1)
    hopper.fence_async_shared()
    e0, h = gl.program_id(0) * BLOCK, gl.program_id(1)
    group = gl.num_programs(2) - 1 - gl.program_id(2)  # what `states` has read last may still be in the cache
    begin, n = gl.load(begins + group), gl.load(owners + group)
    count = gl.load(begins + group + 1) - begin
    token = gl.load(starts + begin, mask=count > 0, other=0)
    stop = gl.load(stops + begin, mask=count > 0, other=0)
    tiles = (qs, ks, vs, gs)
    at = (token, (h * chunks + begin) * GATES, h // (HV // H) * K, h * V + e0)
    for s in gl.static_range(STAGES):
        if s < count:
            _fetch(q, k, v, G, tiles, full, s, at, True, GATE)
    e = gl.arange(0, BLOCK, gl.SliceLayout(1, STATE))[:, None]
    d = gl.arange(0, K, gl.SliceLayout(0, STATE))[None, :]
    state = (n * HV + h).to(gl.int64) * (K * V) + e0
    before_, across, down = S0 + state, V, 1
    if begin > gl.load(firsts + n):
        before_ = between + (h * ((chunks + size - 1) // size) + begin // size).to(gl.int64) * (K * V) + e0 * K
        across, down = 1, K
    S = gl.load(before_ + (d * across + e * down))
    past = gl.arange(0, C, gl.SliceLayout(1, TOKENS))[:, None] <= gl.arange(0, C, gl.SliceLayout(0, TOKENS))[None, :]
    row = gl.arange(0, C, gl.SliceLayout(1, ROWS))[:, None]
    to = row * (HV * V) + gl.arange(0, BLOCK, gl.SliceLayout(0, ROWS))[None, :]
    o += h * V + e0
    none = gl.zeros([BLOCK, C], gl.float32, TOKENS)
    for c in range(count):
        slot, start = c % STAGES, token + c * C
        q_, k_, v_, gates = qs.index(slot), ks.index(slot), vs.index(slot), gs.index(slot)
        mbarrier.wait(full.index(slot), (c // STAGES) & 1)
        if start + C > stop:
            clear(k_, stop - start)
            clear(v_, stop - start)
            hopper.fence_async_shared()
            meet()
        P = hopper.warpgroup_mma(k_, q_.permute((1, 0)), none, use_acc=False, is_async=True)
        before = gl.convert_layout(S.to(gl.bfloat16), A)
        Y = hopper.warpgroup_mma(before, q_.permute((1, 0)), none, use_acc=False, is_async=True)
        x = v_.permute((1, 0)).load(A)
        if GATE == 1:
            here = gates.slice(0, C)
            i, j = here.load(gl.SliceLayout(0, TOKENS)), here.load(gl.SliceLayout(1, TOKENS))
            decay = exp2(gl.where(past, i[None, :] - j[:, None], float("-inf")))
            since = gates.slice(C, C).load(gl.SliceLayout(0, TOKENS))
            P, Y, decay = hopper.warpgroup_mma_wait(0, [P, Y, decay])  # all: else the decays are made after it
            P = P * decay
            Y = Y * since[None, :]
        else:
            P, Y = hopper.warpgroup_mma_wait(0, [P, Y])
            P = gl.where(past, P, 0.0)
        ps.store(P.to(gl.bfloat16))
        hopper.fence_async_shared()
        meet()
        Y = hopper.warpgroup_mma(x, ps, Y, is_async=True)
        late, whole = _until(x, gates, A, GATE)
        late = gl.convert_layout(late, OF_STATE)
        nothing = gl.zeros([BLOCK, K], gl.float32, STATE)
        U = hopper.warpgroup_mma(late, k_, nothing, use_acc=False, is_async=True)
        Y, U = hopper.warpgroup_mma_wait(0, [Y, U])
        y.permute((1, 0)).store((Y * scale).to(gl.bfloat16))
        meet()
        if c + STAGES < count:
            _fetch(q, k, v, G, tiles, full, c + STAGES, at, True, GATE)
        S = _step(S, whole, U, GATE)
        gl.store(o + start.to(gl.int64) * (HV * V) + to, y.load(ROWS), mask=start + row < stop)
    if begin + count == gl.load(firsts + n + 1):
        gl.store(S1 + state + (d * V + e), S)
