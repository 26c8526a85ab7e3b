"""Linear attention by chunks: dense products inside a chunk, one state between chunks (arXiv:2312.06635)."""

import torch
from torch import Tensor

from evalsuite_kernels.decay import chunk_length, from_chunks, scalar_decays, to_chunks
from evalsuite_kernels.linear.reference import step
from evalsuite_kernels.vector import vector_products


def chunked(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, S: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes as in `reference.recurrence`."""
    T = q.shape[1]
    if T == 1:
        o, S = step(S, q[:, 0], k[:, 0], v[:, 0], None if g is None else g[:, 0])
        return o[:, None], S
    C = chunk_length(q)
    q, k, v = (to_chunks(x, C) for x in (q, k, v))
    g = None if g is None else to_chunks(g, C)
    if g is None:
        scores, decay = (q @ k.mT).tril(), None
    elif g.dim() == 5:
        scores, q, k, decay = vector_products(q, k, g, overlap=False)
        scores, q, decay = scores.squeeze(-3), q.squeeze(-2), decay[..., None]
    else:
        between, since, until = scalar_decays(g)
        scores, q, k, decay = (q @ k.mT) * between, q * since, k * until, since[..., -1:, :]
    writes = k.mT @ v
    states, S = _scan(writes, decay, S)
    return from_chunks(scores @ v + q @ states, T), S


def _scan(writes: Tensor, decay: Tensor | None, S: Tensor) -> tuple[Tensor, Tensor]:
    """The state before every chunk [N, B, H, K, V] and the last one, from what each chunk writes and how it decays."""
    before = []
    decays = None if decay is None else decay.unbind()
    for n, write in enumerate(writes.unbind()):
        before.append(S)
        S = S + write if decays is None else torch.addcmul(write, S, decays[n])
    return torch.stack(before), S
