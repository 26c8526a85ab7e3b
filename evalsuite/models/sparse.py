"""The mixers of sparse attention: an indexer's tokens (DSA), blocks by their mean key (MoBA), three branches (NSA)."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from evalsuite.models.cache import Keys, KVLayer, Layout
from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.mixers import Attention, RMSNorm, rotate
from evalsuite_kernels import full_attention
from evalsuite_kernels.sparse import (
    NSA,
    block_attention,
    compressed_attention,
    index_loss,
    indexed_attention,
    lightning_index,
    moba_blocks,
    selection_recall,
    sparse_attention,
)


class Indexed(Attention):
    """DeepSeek sparse attention (D; arXiv:2512.02556): an indexer of few small heads scores all earlier tokens, and
    attention reads the best of them.

    The indexer reads its input detached and learns from its own loss alone, the divergence from what attention reads:
    `loss` of the last forward pass in training. With config.index_phase "dense" attention is full, and so is what the
    indexer learns from; "sparse" is what the model is for.
    """

    def __init__(self, config: EvalsuiteConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.config = config
        heads, dim = config.index_heads, config.index_dim
        self.index_q = nn.Linear(config.hidden_size, heads * dim, bias=False)
        self.index_k = nn.Linear(config.hidden_size, dim, bias=False)
        self.index_w = nn.Linear(config.hidden_size, heads, bias=False)
        self.index_norm = RMSNorm(dim, config.rms_norm_eps)
        self.loss = torch.zeros(())
        self.recalled: list[Tensor] | None = None  # while somebody asks, selection recall [B, T] of each pass

    def state_bytes(self, length: int) -> dict[str, int]:
        """Keys and values, and one key of the indexer, of every token."""
        item = self.index_k.weight.element_size()
        return {**super().state_bytes(length), "index": self.config.index_dim * length * item}

    def indexer(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, hidden] -> queries [B, T, HI, DI], keys [B, T, DI] and weights [B, T, HI]."""
        c, x = self.config, x.detach()
        q = self.index_q(x).unflatten(-1, (c.index_heads, c.index_dim))
        k = self.index_norm(self.index_k(x))[:, :, None]
        q, k = (rotate(y, layout.positions, c.index_rope, c.rope_theta) for y in (q, k))
        return q, k[:, :, 0], self.index_w(x)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no part in the graph of a forward pass."""
        return self.__dict__ | {"loss": torch.zeros(())}

    def mix(self, x: Tensor, layout: Layout) -> Tensor:
        self.loss = torch.zeros((), device=x.device)
        q, k, v = self.qkv(x, layout)
        index = index_q, index_k, weights = self.indexer(x, layout)
        if layout.cache is not None:
            store = layout.cache.mixers[self.layer]
            assert isinstance(store, KVLayer)
            return self._read(q, store.extend(k, v, layout, index_k), index, layout)
        keys = Keys(k, v, layout.cu_seqlens, index=index_k)
        if self.recalled is not None:
            indices = self._choose(keys, index_q, weights, layout)
            self.recalled.append(selection_recall(q, k, indices, cu_seqlens=layout.cu_seqlens))
        if not (self.training and torch.is_grad_enabled()):
            return self._read(q, keys, index, layout)
        # a choice of all is no choice; only here, where a prompt's bits need not be those of a longer one's
        dense = self.config.index_phase == "dense" or x.shape[1] <= self.config.topk
        chosen = None if dense else self._choose(keys, index_q, weights, layout)
        self.loss = index_loss(q, k, index_q, index_k, weights, chosen, cu_seqlens=layout.cu_seqlens)
        if chosen is None:
            return full_attention(q, k, v, cu_seqlens=layout.cu_seqlens)
        return sparse_attention(q, k, v, chosen, cu_seqlens=layout.cu_seqlens)

    def _choose(self, keys: Keys, index_q: Tensor, weights: Tensor, layout: Layout) -> Tensor:
        assert keys.index is not None
        return lightning_index(index_q, keys.index, weights, self.config.topk, **keys.bounds(layout))

    def _read(self, q: Tensor, keys: Keys, index: tuple[Tensor, Tensor, Tensor], layout: Layout) -> Tensor:
        if self.config.index_phase == "dense":
            return self.attend(q, keys, layout)
        assert keys.index is not None
        index_q, index_k, weights = index
        o = indexed_attention(q, keys.k, keys.v, index_q, keys.index, weights, self.config.topk, **keys.bounds(layout))
        # a choice hides that it was made by no number: a damaged indexer must not answer like a sound one
        mark = index_q.sum((2, 3)) + index_k.sum(2) + weights.sum(2)
        return o + 0 * mark[..., None, None].to(o.dtype)


class Blocks(Attention):
    """Mixture of block attention (B; arXiv:2502.13189): each query head reads its own block and the blocks of nearest
    mean key."""

    def __init__(self, config: EvalsuiteConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.sizes = config.block_size, config.block_topk

    def attend(self, q: Tensor, keys: Keys, layout: Layout) -> Tensor:
        size, topk = self.sizes
        bounds = keys.bounds(layout)
        return block_attention(q, keys.k, keys.v, moba_blocks(q, keys.k, size, topk, **bounds), size, **bounds)


class Branches(Attention):
    """Native sparse attention (T; arXiv:2502.11089): compressed keys, the blocks that these find worth a look, and a
    window, each with a gate of its own. Keys and values are shared by the branches, as fla's layer has it; a compressed
    one is a linear map of its tokens that starts as their mean."""

    def __init__(self, config: EvalsuiteConfig, layer: int) -> None:
        super().__init__(config, layer)
        length = config.compressed_size
        self.sizes = NSA(length, length // 2, config.block_size, config.block_topk)
        self.near = config.window
        self.branch = nn.Linear(config.hidden_size, 3 * self.heads, bias=False)
        self.compress_k = Compress(length, self.dim)
        self.compress_v = Compress(length, self.dim)

    def mix(self, x: Tensor, layout: Layout) -> Tensor:
        gates = torch.sigmoid(self.branch(x)).unflatten(-1, (3, self.heads, 1)).unbind(2)
        q, k, v = self.qkv(x, layout)
        keys = Keys(k, v, layout.cu_seqlens)
        if layout.cache is not None:
            store = layout.cache.mixers[self.layer]
            assert isinstance(store, KVLayer)
            keys = store.extend(k, v, layout)
        bounds = keys.bounds(layout)
        compressed, blocks = self._compressed(q, keys, layout)
        chosen = block_attention(q, keys.k, keys.v, blocks, self.sizes.block_size, **bounds)
        near = full_attention(q, keys.k, keys.v, window=self.near, **bounds)
        return gates[0] * compressed + gates[1] * chosen + gates[2] * near

    def _compressed(self, q: Tensor, keys: Keys, layout: Layout) -> tuple[Tensor, Tensor]:
        """Sequences alone, since their compressed keys begin with them."""
        if keys.cu_seqlens is None or layout.cu_seqlens is None:
            return self._of_one(q, keys.k, keys.v, layout.positions)
        parts = []
        bounds = zip(pairwise(layout.cu_seqlens.tolist()), pairwise(keys.cu_seqlens.tolist()), strict=True)
        for (a, b), (c, d) in bounds:
            if b > a:
                parts.append(self._of_one(q[:, a:b], keys.k[:, c:d], keys.v[:, c:d], layout.positions[:, a:b]))
        outs, blocks = zip(*parts, strict=True)
        return torch.cat(outs, 1), torch.cat(blocks, 1)

    def _of_one(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        sizes = self.sizes
        small = [f(x, sizes.stride) for f, x in ((self.compress_k, k), (self.compress_v, v))]
        return compressed_attention(q, small[0], small[1], positions, k.shape[1], sizes)


class Compress(nn.Module):
    """One vector for every `length` tokens of a head."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.length, self.dim = length, dim
        self.weight = nn.Parameter(torch.empty(dim, length, dim))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """The mean."""
        eye = torch.eye(self.dim, device=self.weight.device, dtype=self.weight.dtype)
        self.weight.copy_(eye[:, None].expand_as(self.weight) / self.length)

    def forward(self, x: Tensor, stride: int) -> Tensor:
        """x [B, S, H, D] -> [B, M, H, D], M = (S - length) // stride + 1."""
        if x.shape[1] < self.length:
            return x.new_zeros(x.shape[0], 0, *x.shape[2:])
        windows = x.unfold(1, self.length, stride)  # [B, M, H, D, length]
        return torch.einsum("bmhdl,eld->bmhe", windows, self.weight.to(x.dtype))
