"""Two groups of warps that share nothing: what a tool finds here, it finds in Triton's own way to start them."""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from evalsuite_kernels.gluon import meet


@gluon.jit
def _write(to, value, MEET: gl.constexpr):
    i = gl.arange(0, 128, gl.BlockedLayout([1], [32], [4], [0]))
    if MEET:
        meet()
    gl.store(to + i, gl.zeros_like(i) + value)


@gluon.jit
def _alone(to, MEET: gl.constexpr):
    gl.warp_specialize([(_write, (to, 1, MEET)), (_write, (to + 128, 2, False))], [4], [24])


def run(meeting: bool) -> None:
    """With `meeting` the first group's threads wait for each other once.

    Raises:
        AssertionError: a group wrote anything else than its own half.
    """
    to = torch.zeros(256, dtype=torch.int32, device="cuda")
    _alone[(2,)](to, meeting, num_warps=4)
    assert to.tolist() == [1] * 128 + [2] * 128
