"""Tiles and warps of the kernels of softmax attention: by dtype and head dims alone."""

import torch
import triton

# (op, bytes of a number, larger head dim) -> BLOCK_M of queries, BLOCK_N of keys, num_warps, num_stages
SETTINGS = {
    ("forward", 2, 64): (128, 128, 8, 3),
    ("forward", 2, 128): (128, 128, 8, 2),
    ("forward", 2, 256): (128, 64, 8, 2),
    ("forward", 4, 64): (64, 32, 8, 2),
    ("forward", 4, 128): (32, 32, 8, 1),
    ("forward", 4, 256): (16, 32, 8, 1),
    ("keys", 2, 64): (64, 128, 8, 2),
    ("keys", 2, 128): (64, 128, 8, 2),
    ("keys", 2, 256): (32, 64, 8, 2),
    ("keys", 4, 64): (32, 32, 8, 1),
    ("keys", 4, 128): (16, 32, 8, 1),
    ("keys", 4, 256): (16, 16, 8, 1),
    ("queries", 2, 64): (128, 64, 8, 2),
    ("queries", 2, 128): (128, 64, 8, 2),
    ("queries", 2, 256): (64, 32, 8, 2),
    ("queries", 4, 64): (32, 32, 8, 1),
    ("queries", 4, 128): (32, 16, 8, 1),
    ("queries", 4, 256): (16, 16, 8, 1),
    ("decode", 2, 64): (16, 128, 4, 3),
    ("decode", 2, 128): (16, 64, 4, 3),
    ("decode", 2, 256): (16, 32, 4, 3),
    ("decode", 4, 64): (16, 64, 4, 2),
    ("decode", 4, 128): (16, 32, 4, 2),
    ("decode", 4, 256): (16, 16, 4, 2),
}


def settings(op: str, dtype: torch.dtype, K: int, V: int) -> tuple[int, int, int, int]:
    """BLOCK_M, BLOCK_N, num_warps, num_stages of "forward", "keys", "queries" or "decode"."""
    return SETTINGS[op, dtype.itemsize, max(64, triton.next_power_of_2(max(K, V)))]
