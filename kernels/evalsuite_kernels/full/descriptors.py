"""Tensors of heads as Hopper's TMA reads them, tile by tile."""

from functools import cache

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from evalsuite_kernels.arguments import INTERPRETED

TMA = True  # full tiles come through tensor descriptors where strides allow


def pad(n: int) -> int:
    """The width of a tile for n numbers."""
    return max(16, triton.next_power_of_2(n))


def rows(x: Tensor) -> Tensor:
    """With a head's numbers side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _describe(x: Tensor, rows: int) -> TensorDescriptor | None:
    """x [B, T, H, D] as [B, T, columns], to be read by tiles [1, rows, D]; None if TMA cannot.

    Whether it can depends on layout alone, so that a batch takes the way of each of its rows.
    """
    B, T, H, D = x.shape
    sb, st, sh, _ = x.stride()
    columns = (H - 1) * sh + D
    sb = T * st if B == 1 else sb
    steps = (x.data_ptr(), sb * x.itemsize, st * x.itemsize, sh * x.itemsize)
    fits = pad(D) == D and T > 0 and columns <= st <= sb and not any(n % 16 for n in steps)
    if not TMA or not fits or not (INTERPRETED or (x.itemsize == 2 and _hopper(x.device))):
        return None
    return TensorDescriptor(x, [B, T, columns], [sb, st, 1], [1, rows, D])


def early(device: torch.device) -> dict[str, bool]:
    """Options of a kernel that begins by `tiles.overlap`: where the GPU can, it starts before its turn."""
    able = not INTERPRETED and _hopper(device)
    return {"EARLY": able, **({"launch_pdl": True} if able else {})}


@cache
def _hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] >= 9


def described(x: Tensor, y: Tensor, rows: int) -> tuple[TensorDescriptor | None, TensorDescriptor | None]:
    """Both, or none."""
    pair = _describe(x, rows), _describe(y, rows)
    return pair if pair[0] and pair[1] else (None, None)
