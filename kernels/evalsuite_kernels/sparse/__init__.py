"""Sparse attention: what a query reads is chosen first, token by token (DSA) or block by block (MoBA, NSA, MSA)."""

from evalsuite_kernels.sparse.api import block_attention, indexed_attention, lightning_index, sparse_attention
from evalsuite_kernels.sparse.blocks import NSA, index_blocks, moba_blocks, nsa_blocks
from evalsuite_kernels.sparse.compressed import compressed_attention
from evalsuite_kernels.sparse.training import index_loss, selection_recall

__all__ = [
    "NSA",
    "block_attention",
    "compressed_attention",
    "index_blocks",
    "index_loss",
    "indexed_attention",
    "lightning_index",
    "moba_blocks",
    "nsa_blocks",
    "selection_recall",
    "sparse_attention",
]
