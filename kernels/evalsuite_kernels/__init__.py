"""Attention operators in plain torch and in Triton, exact and usable on their own.

Two recurrences make eight published models; the gate's shape is the architecture:

    gate g (natural-log decay <= 0)      `linear_attention`              `delta_rule`
    None                                 linear attention (2020)         DeltaNet
    [HV], fixed per head                 RetNet, Lightning
    [B, T, HV], per token                Mamba-2                         Gated DeltaNet
    [B, T, HV, K], per token, channel    GLA                             KDA

Lightning takes g=`lightning_slopes(...)` and scale=1.0, RetNet g=`retnet_slopes(...)`. Mamba-2's state-space layer is
`linear_attention(C, B, dt[..., None] * x, g=-exp(A_log) * dt, scale=1.0)` plus D x outside: q, k [B, T, groups, state
size] are its C and B, v [B, T, heads, head dim] its input times the step dt [B, T, heads]. GLA needs nothing beyond
its gate.

`full_attention` is softmax attention, `short_convolution` the few-token convolution in front of most recurrent layers.
`sparse_attention` reads the keys that a list names, as `lightning_index` makes it; `indexed_attention` does both (DSA),
and in decoding makes no list. `block_attention` reads whole blocks (MoBA, NSA, MSA; `sparse/blocks.py` chooses them).
Each family's `reference.py` is its definition, `chunked.py` the fast form in torch, "triton" that on a GPU (`fused.py`
for both recurrences, `full/triton.py`); `impl=` picks one.
"""

from contextlib import suppress
from importlib import import_module

import torch

from evalsuite_kernels.arguments import GLUON, INTERPRETED
from evalsuite_kernels.conv import short_convolution
from evalsuite_kernels.delta import delta_rule
from evalsuite_kernels.full import full_attention
from evalsuite_kernels.linear import lightning_slopes, linear_attention, retnet_slopes
from evalsuite_kernels.sparse import block_attention, indexed_attention, lightning_index, sparse_attention

__all__ = [
    "block_attention",
    "delta_rule",
    "full_attention",
    "indexed_attention",
    "lightning_index",
    "lightning_slopes",
    "linear_attention",
    "retnet_slopes",
    "short_convolution",
    "sparse_attention",
]

if GLUON and not INTERPRETED and torch.version.cuda is not None:
    # a first call compiles, and should not wait for imports too; what cannot be imported is told by the call
    for name in ("hopper_run", "fused", "full.hopper", "full.hopper_backward", "full.triton", "sparse.triton"):
        with suppress(ImportError):
            import_module(f"evalsuite_kernels.{name}")
