"""The short convolution as one pass over all tokens a tap."""

from torch import Tensor


def shifted(x: Tensor, weight: Tensor) -> Tensor:
    """Shapes as in `reference.recurrence`. Shifted sums keep channels last: no transposes, as conv1d would need."""
    W = weight.shape[1]
    T = x.shape[1] - W + 1
    y = x[:, :T] * weight[:, 0]
    for w in range(1, W):
        y = y.addcmul(x[:, w : w + T], weight[:, w])
    return y
