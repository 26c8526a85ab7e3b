"""`sparse_attention` under a mask in Triton: when, which kernels on what tiles, and its gradient.

Numbers that are not named weigh exactly 0, so that they change no bit of a result, while they are finite: one that is
not makes NaN of all whose tiles meet it. A query's bits depend on its list, its keys and where in a batch row it
stands, but on no other row.
"""

import math
from typing import Any

import torch
import triton
from torch import Tensor

from evalsuite_kernels.arguments import INTERPRETED, note
from evalsuite_kernels.full.descriptors import pad, rows
from evalsuite_kernels.launches import Launches
from evalsuite_kernels.sparse.divergence import mark
from evalsuite_kernels.sparse.divergence_run import ENTRIES, WORDS
from evalsuite_kernels.sparse.masked import gather_words, masked_forward, masked_keys, masked_queries
from evalsuite_kernels.sparse.places import Places, dtype_of, names

LOG2E = math.log2(math.e)
DENSE = 16  # keys there are for each that a list names, at most: beyond, lists are followed key by key
UNIT = 64  # queries of which is known together what they name
# (pass, bytes of a number, larger head dim) -> queries in a tile, keys in a tile (32 or 64), num_warps, num_stages
SETTINGS = {
    ("forward", 2, 64): (64, 64, 4, 3),
    ("forward", 2, 128): (64, 64, 4, 2),
    ("forward", 2, 256): (64, 32, 8, 2),
    ("forward", 4, 64): (32, 32, 8, 1),
    ("forward", 4, 128): (16, 32, 4, 1),
    ("forward", 4, 256): (16, 32, 8, 1),
    ("queries", 2, 64): (64, 64, 4, 2),
    ("queries", 2, 128): (64, 64, 8, 2),
    ("queries", 2, 256): (32, 32, 8, 2),
    ("queries", 4, 64): (32, 32, 8, 1),
    ("queries", 4, 128): (16, 32, 8, 2),
    ("queries", 4, 256): (16, 32, 8, 2),
    ("keys", 2, 64): (32, 64, 4, 2),
    ("keys", 2, 128): (32, 64, 8, 2),
    ("keys", 2, 256): (32, 32, 8, 1),
    ("keys", 4, 64): (32, 32, 8, 1),
    ("keys", 4, 128): (16, 32, 8, 1),
    ("keys", 4, 256): (16, 32, 16, 1),
}


def fits(q: Tensor, k: Tensor, v: Tensor, lists: Tensor) -> bool:
    """Whether lists [B, T, G, N] are to become a mask: where somebody learns by the result, all heads read one list,
    keys are the queries' own (T = S), and lists name so many of them (S <= 16 N) that tensor cores are sooner done with
    all than a gathering with those. Elsewhere, and so wherever nobody learns, lists are followed key by key."""
    learned = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    S, (_, T, G, N) = k.shape[1], lists.shape
    return learned and G == 1 and T == S and S <= DENSE * N


def _tile(op: str, q: Tensor, v: Tensor) -> dict[str, Any]:
    """A pass' constants and options."""
    K, V = q.shape[-1], v.shape[-1]
    most = max(64, triton.next_power_of_2(max(K, V)))
    BLOCK_M, BLOCK_N, warps, stages = SETTINGS[op, q.itemsize, most]
    dims = {"K": K, "V": V, "BK": pad(K), "BV": pad(V), "WIDE": INTERPRETED, "UNIT": UNIT, "WORDS": WORDS}
    return {**dims, "BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "num_warps": warps, "num_stages": stages}


def _sizes(q: Tensor, k: Tensor) -> tuple[int, ...]:
    """What kernels are told of shapes: B, T, HQ, query heads of a key head, words of a set, units of queries."""
    B, T, HQ, _ = q.shape
    return B, T, HQ, HQ // k.shape[2], triton.cdiv(T, 64) * 2, triton.cdiv(T, UNIT)


def _new_outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, HQ, _ = q.shape
    o, lse = q.new_empty(B, T, HQ, v.shape[-1]), q.new_empty(B, HQ, T, dtype=torch.float32)
    words, units = -(-T // 64) * 2, -(-T // UNIT)
    bits: Any = {"dtype": torch.int32}
    return o, lse, q.new_empty(B, T, words, **bits), q.new_empty(B, units, words, **bits)


@torch.library.custom_op("evalsuite::sparse_masked_forward", mutates_args=())
def sparse_masked_forward(
    q: Tensor, k: Tensor, v: Tensor, lists: Tensor, first: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """o [B, T, HQ, V] in q's dtype; the logits' log2-sum-exp2 [B, HQ, T] in fp32, inf where no key is named; and for
    the gradient what lists name: in bits, int32 [B, T, words], and in which words at all, int32 [B, units, words].

    q [B, T, HQ, K], k [B, T, H, K] and v [B, T, H, V] of one dtype: bf16 or fp16 (products on tensor cores, sums in
    fp32) or fp32; lists int32 or int64 [B, T, N], contiguous; first int64 [B, T], the row of the first key of each
    query's sequence, contiguous, or None for 0. A query with an empty list gives zeros.
    """
    note("sparse_attention", "triton")
    q, k, v = rows(q), rows(k), rows(v)
    found = o, lse, named, met = _new_outputs(q, v)
    if o.numel() == 0:
        return found
    B, T, HQ, _, words, units = sizes = _sizes(q, k)
    launches, options = Launches(), _tile("forward", q, v)
    launches.add(
        mark, (B * T,), lists, first, named, T, lists.shape[-1], words, WORDS=WORDS, ENTRIES=ENTRIES, num_warps=1
    )
    launches.add(gather_words, (B * units,), named, met, T, words, units, UNIT=UNIT, WORDS=WORDS, num_warps=4)
    tiles = triton.cdiv(T, options["BLOCK_M"])
    launches.add(
        masked_forward, (B * tiles * HQ,), q, k, v, named, met, o, lse, scale * LOG2E, *sizes, tiles,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], **options,
    )  # fmt: skip
    launches.run(("masked", q.dtype, lists.dtype, dtype_of(first), q.shape[-1], v.shape[-1]), q.device)
    return found


@sparse_masked_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _new_outputs(q, v)


@torch.library.custom_op("evalsuite::sparse_masked_backward", mutates_args=())
def sparse_masked_backward(  # noqa: PLR0913, PLR0917 - what the forward pass took and gave
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    named: Tensor,
    met: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv in the dtype of q, k, v from g = do [B, T, HQ, V] and what `sparse_masked_forward` took and gave."""
    note("sparse_attention backward", "triton")
    q, k, v, g, o = rows(q), rows(k), rows(v), rows(g), o.contiguous()
    dq, dk, dv = owed = _owed(q, k, v)
    if o.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    B, T, HQ, group, *_ = sizes = _sizes(q, k)
    strides = *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *g.stride()[:3]
    launches, delta, options = Launches(), torch.empty_like(lse), _tile("queries", q, v)
    tiles = triton.cdiv(T, options["BLOCK_M"])
    launches.add(
        masked_queries, (B * tiles * HQ,), q, k, v, named, met, o, g, lse, dq, delta, scale * LOG2E, scale, *sizes,
        tiles, *strides, **options,
    )  # fmt: skip
    options = _tile("keys", q, v)
    tiles = triton.cdiv(T, options["BLOCK_N"])
    launches.add(
        masked_keys, (B * tiles * (HQ // group),), q, k, v, named, met, g, lse, delta, dk, dv, scale * LOG2E, scale,
        *sizes, *strides, **options,
    )  # fmt: skip
    launches.run(("masked backward", q.dtype, q.shape[-1], v.shape[-1]), q.device)
    return owed


def _owed(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in tensors)
    return dq, dk, dv


@sparse_masked_backward.register_fake
def _(g: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _owed(q, k, v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.scale = inputs[-1]
    ctx.set_materialize_grads(False)


def _pull(ctx: Any, g: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if g is None:
        return (None,) * 6
    return *sparse_masked_backward(g, *ctx.saved_tensors, ctx.scale), None, None, None


sparse_masked_forward.register_autograd(_pull, setup_context=_keep)


def attend_masked(q: Tensor, k: Tensor, v: Tensor, lists: Tensor, scale: float, where: Places | None) -> Tensor:
    """Shapes as in `sparse_attention`, of T = S and lists [B, T, 1, N], and dtypes as in `sparse_masked_forward`,
    whatever `fits` says."""
    return sparse_masked_forward(q, k, v, lists[:, :, 0].contiguous(), names(where)[0], scale)[0]
