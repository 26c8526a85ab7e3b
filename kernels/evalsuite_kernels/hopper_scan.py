"""The scan over chunks on Hopper's tensor cores, in Gluon.

Each program holds 64 columns of the state, transposed: S^T [64, K] in registers. As a left operand it never leaves
them, nor do X^T and O^T [64, C] (the names are those of `chunk_kernels.py`), so a chunk costs no exchange between
threads; tiles of chunks to come arrive through TMA meanwhile.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from evalsuite_kernels.gluon import bring, clear, meet

C = gl.constexpr(64)
BLOCK = gl.constexpr(64)  # columns of the state in a program


@gluon.jit
def _produce(
    q, k, v, P, Qs, Kd, Kg, tiles, bars, chunks, key, value, DELTA: gl.constexpr, GATE: gl.constexpr
):  # fmt: skip
    """Load the chunks' tiles as room for them is made."""
    qs, ks, kd, vs, ps = tiles
    full, free = bars
    starts, stops, first, end, row = chunks
    STAGES: gl.constexpr = qs.shape[0]
    K: gl.constexpr = qs.shape[2]
    columns: gl.constexpr = 2 * K + BLOCK + C + (K if DELTA else 0)
    for c in range(first, end):
        slot, bar = (c - first) % STAGES, full.index((c - first) % STAGES)
        start = gl.load(starts + c)
        mbarrier.wait(free.index(slot), (((c - first) // STAGES) & 1) ^ 1)
        mbarrier.expect(bar, 2 * C * columns)
        at = (row + c) * C
        if DELTA:
            if GATE == 2:
                bring(Kd, [at, 0], bar, kd.index(slot))
            else:
                bring(k, [start, key], bar, kd.index(slot))
        bring(Kg, [at, 0], bar, ks.index(slot))
        if GATE == 2:
            bring(Qs, [at, 0], bar, qs.index(slot))
        else:
            bring(q, [start, key], bar, qs.index(slot))
        bring(v, [start, value], bar, vs.index(slot))
        bring(P, [at, 0], bar, ps.index(slot))


@gluon.jit
def _write(o, y, start, stop, value, HV, V: gl.constexpr):
    """y [C, BLOCK] to the tokens start .. stop - 1 of o."""
    meet()
    L: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    i = gl.arange(0, C, gl.SliceLayout(1, L))
    e = gl.arange(0, BLOCK, gl.SliceLayout(0, L))
    to = o + start.to(gl.int64) * (HV * V) + value
    gl.store(to + i[:, None] * (HV * V) + e[None, :], y.load(L), mask=(start + i < stop)[:, None])


@gluon.jit
def _consume(
    o, S0, S1, G, rates, tiles, y, bars, chunks, value, at, scale, HV,
    K: gl.constexpr, V: gl.constexpr, DELTA: gl.constexpr, GATE: gl.constexpr,
):  # fmt: skip
    """Tensor cores are given work as early as it is ready; the chunk before is written out meanwhile."""
    STATE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, K, 16])
    TOKENS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, C, 16])
    OF_STATE: gl.constexpr = gl.DotOperandLayout(0, STATE, 2)
    OF_TOKENS: gl.constexpr = gl.DotOperandLayout(0, TOKENS, 2)
    qs, ks, kd, vs, ps = tiles
    full, free = bars
    starts, stops, first, end, row = chunks
    STAGES: gl.constexpr = qs.shape[0]
    e = gl.arange(0, BLOCK, gl.SliceLayout(1, STATE))[:, None]
    d = gl.arange(0, K, gl.SliceLayout(0, STATE))
    S = gl.load(S0 + at + d[None, :] * V + e)
    token = gl.arange(0, C, gl.SliceLayout(0, TOKENS))
    none = gl.zeros([BLOCK, C], gl.float32, TOKENS)
    # gates and bounds are loaded a chunk ahead
    there = first < end
    start, stop = gl.load(starts + first, mask=there, other=0), gl.load(stops + first, mask=there, other=0)
    if GATE == 2:
        whole = gl.load(G + (row + first).to(gl.int64) * K + d, mask=d < K * there.to(gl.int32), other=0.0)
    elif GATE == 1:
        gates = G + (row + first).to(gl.int64) * C
        here = gl.load(gates + token, mask=token < C * there.to(gl.int32), other=0.0)
        last = gl.load(gates + C - 1, mask=there, other=0.0)
    if rates is not None:
        lengths = rates + (row + first).to(gl.int64) * (2 * C)
        of_q = gl.load(lengths + token, mask=token < C * there.to(gl.int32), other=0.0)
        of_k = gl.load(lengths + C + token, mask=token < C * there.to(gl.int32), other=0.0)
    for c in range(first, end):
        slot = (c - first) % STAGES
        ahead = gl.minimum(c + 1, end - 1)
        start_, stop_ = gl.load(starts + ahead), gl.load(stops + ahead)
        q_, k_, v_ = qs.index(slot), ks.index(slot), vs.index(slot)
        before = gl.convert_layout(S.to(gl.bfloat16), OF_TOKENS)
        if GATE == 2:
            S = S * whole[None, :]
            whole = gl.load(G + (row + ahead).to(gl.int64) * K + d)
        elif GATE == 1:
            S = S * gl.exp2(last)
        mbarrier.wait(full.index(slot), ((c - first) // STAGES) & 1)
        if start + C > stop:
            clear(v_, stop - start)
            if DELTA and GATE < 2:
                clear(kd.index(slot), stop - start)
            hopper.fence_async_shared()
            meet()
        if DELTA:
            X = hopper.warpgroup_mma(before, kd.index(slot).permute((1, 0)), none, use_acc=False, is_async=True)
        Y = hopper.warpgroup_mma(before, q_.permute((1, 0)), none, use_acc=False, is_async=True)
        r = v_.permute((1, 0)).load(TOKENS)
        since = gl.full([C], 1.0, gl.float32, gl.SliceLayout(0, TOKENS))
        if GATE == 1:
            since = gl.exp2(here)
            gates = G + (row + ahead).to(gl.int64) * C
            here = gl.load(gates + token)
            last = gl.load(gates + C - 1)
        by_q, by_k = since * scale, since
        if rates is not None:
            by_q, by_k = by_q * of_q, by_k * of_k
            lengths = rates + (row + ahead).to(gl.int64) * (2 * C)
            of_q, of_k = gl.load(lengths + token), gl.load(lengths + C + token)
        if DELTA:
            X = hopper.warpgroup_mma_wait(1, [X])
            if GATE < 2:
                X = X * by_k[None, :]
            x = r.to(gl.float32) - X
            r = x.to(gl.bfloat16)
        S = hopper.warpgroup_mma(gl.convert_layout(r, OF_STATE), k_, S, is_async=True)
        if DELTA and GATE == 0:  # nothing damps what rounding adds to the state
            x -= r.to(gl.float32)
            S = hopper.warpgroup_mma(gl.convert_layout(x.to(gl.bfloat16), OF_STATE), k_, S, is_async=True)
        if GATE < 2:
            Y = hopper.warpgroup_mma_wait(2 if DELTA and GATE == 0 else 1, [Y])
            Y = Y * by_q[None, :]
        r = gl.convert_layout(r, OF_TOKENS)
        Y = hopper.warpgroup_mma(r, ps.index(slot).permute((1, 0)), Y, is_async=True)
        _write(o, y, start - C, gl.where(c > first, start, start - C), value, HV, V)  # all but a last chunk are whole
        S, Y = hopper.warpgroup_mma_wait(0, [S, Y])
        mbarrier.arrive(free.index(slot))
        y.permute((1, 0)).store(Y.to(gl.bfloat16))
        start, stop = start_, stop_
    _write(o, y, start, stop, value, HV, V)
    gl.store(S1 + at + d[None, :] * V + e, S)


@gluon.jit(do_not_specialize=["chunks", "H", "HV"])
def scan(
    q, k, v, P, Qs, Kd, Kg, G, rates, S0, starts, stops, firsts,
    o, S1,
    scale, chunks, H, HV,
    K: gl.constexpr, V: gl.constexpr, DELTA: gl.constexpr, GATE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Chunk after chunk of one sequence and value head, 64 columns of the state: o and the last state.

    Of the delta rule P and Kg are `fold`'s, times beta. G: [HV, chunks, K], the decay of whole chunks (GATE 2), or
    [HV, chunks, C]. Linear attention without a gate per channel has kernels of its own.
    """
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    vb, h, n = gl.program_id(0), gl.program_id(1), gl.program_id(2)
    first, end = gl.load(firsts + n), gl.load(firsts + n + 1)
    qs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, K], SHARED)
    ks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, K], SHARED)
    kd = gl.allocate_shared_memory(gl.bfloat16, [STAGES if DELTA else 1, C, K], SHARED)
    vs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, BLOCK], SHARED)
    ps = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, C], SHARED)
    y = gl.allocate_shared_memory(gl.bfloat16, [C, BLOCK], SHARED)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(free.index(slot), count=1)
    hopper.fence_async_shared()
    meet()  # before the other warps use them
    tiles = (qs, ks, kd, vs, ps)
    value = h * V + vb * BLOCK
    at = (n * HV + h).to(gl.int64) * (K * V) + vb * BLOCK
    key = h // (HV // H) * K
    bars = (full, free)
    chunks_ = (starts, stops, first, end, h * chunks)
    gl.warp_specialize(
        [
            (_consume, (o, S0, S1, G, rates, tiles, y, bars, chunks_, value, at, scale, HV, K, V, DELTA, GATE)),
            (_produce, (q, k, v, P, Qs, Kd, Kg, tiles, bars, chunks_, key, value, DELTA, GATE)),
        ],
        [1],
        [40],
    )
