"""The delta rule by chunks (arXiv:2406.06484; Gated DeltaNet, arXiv:2412.06464; Kimi Linear, arXiv:2510.26692).

Inside a chunk, token i writes r_i = beta_i (v_i - S~_i^T k_i), where S~_i holds the decayed state and the chunk's
earlier writes: a unit lower triangular system. Its solution is linear in the state S before the chunk, R = U - W S,
and so are the outputs and the next state:

    A_ij = beta_i k_i . exp(G_i - G_j) k_j  (j < i),   [U W] = (I + A)^-1 [beta V, beta exp(G) K]
    O = scores U + (exp(G) Q - scores W) S,            S' = K'^T U + (exp(G_C) - K'^T W) S,   K' = exp(G_C - G) K

Everything but the chain of S is one large product over all chunks at once.
"""

import torch
from torch import Tensor

from evalsuite_kernels.decay import chunk_length, from_chunks, scalar_decays, to_chunks
from evalsuite_kernels.delta.reference import step
from evalsuite_kernels.vector import vector_products


def chunked(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes as in `reference.recurrence`."""
    T = q.shape[1]
    if T == 1:
        o, S = step(S, q[:, 0], k[:, 0], v[:, 0], None if g is None else g[:, 0], beta[:, 0])
        return o[:, None], S
    C = chunk_length(q)
    q, k, v, beta = (to_chunks(x, C) for x in (q, k, v, beta[..., None]))
    g = None if g is None else to_chunks(g, C)
    scores, overlap, q, k_in, k_out, decay = _inside(q, k, g)
    UW = _substitute(beta * overlap, torch.cat([beta * v, -beta * k_in], -1))  # [U -W]
    V = v.shape[-1]
    onward = k_out.mT @ UW  # what the chunk writes, and how it maps the state before it
    onward[..., V:].diagonal(dim1=-2, dim2=-1).add_(decay)
    states, S = _scan(onward[..., V:], onward[..., :V], S)
    read = scores @ UW
    return from_chunks(read[..., :V] + (q + read[..., V:]) @ states, T), S


def _substitute(A: Tensor, X: Tensor) -> Tensor:
    """(I + A)^-1 X by forward substitution, A's part below the diagonal alone.

    Transposed, because the solver works on columns: rows in memory are its columns, and nothing is copied.
    """
    return torch.linalg.solve_triangular(A.mT, X.mT, upper=True, left=False, unitriangular=True).mT


def _scan(keep: Tensor, write: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """S_n+1 = keep_n S_n + write_n for chunks [B, H, N, K, ...]: the state before each, and the last."""
    B, H = S.shape[:2]
    before, S = [], S.flatten(0, 1)
    for A, b in zip(keep.flatten(0, 1).unbind(1), write.flatten(0, 1).unbind(1), strict=True):
        before.append(S)
        S = torch.baddbmm(b, A, S)
    return torch.stack(before, 1).unflatten(0, (B, H)), S.unflatten(0, (B, H))


def _inside(q: Tensor, k: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of chunks [B, H, N, C, K]: q.k and k.k products with decay [..., C, C], q and k decayed from its start and k
    decayed to its end [..., C, K], and the decay of the whole chunk [..., K]. k.k counts below the diagonal alone.
    """
    if g is not None and g.dim() == 5:
        products, since, until = vector_products(torch.stack([q, k], -2), k, g)
        scores, overlap = products.unbind(-3)
        return scores, overlap, q * since, k * since, k * until, since[..., -1, :]
    products = torch.cat([q, k], -2) @ k.mT
    scores, overlap = products.unflatten(-2, (2, -1)).unbind(-3)
    if g is None:
        return scores.tril(), overlap, q, k, k, torch.ones_like(k[..., 0, :])
    between, since, until = scalar_decays(g)
    whole = since[..., -1, :].expand(*k.shape[:-2], k.shape[-1])
    return scores * between, overlap * between, q * since, k * since, k * until, whole
