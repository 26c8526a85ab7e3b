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
from torch.autograd.function import FunctionCtx, once_differentiable

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
    inverse = _solve(beta * overlap, beta)
    X, states, S = _scan(v, k_in, k_out.mT @ inverse, decay, S)
    return from_chunks(((scores @ inverse) @ X).add_(q @ states), T), S


def _solve(A: Tensor, beta: Tensor) -> Tensor:
    """(I + A)^-1 diag(beta) by forward substitution, A's part below the diagonal alone; beta [..., C, 1].

    The right side is transposed, which changes nothing but its layout: the solver works on columns.
    """
    right = torch.diag_embed(beta.squeeze(-1))
    return torch.linalg.solve_triangular(A.mT, right, upper=True, left=False, unitriangular=True).mT


class _Scan(torch.autograd.Function):
    """Chunk after chunk X_n = v_n - k_n S_n and S_n+1 = decay_n S_n + write_n X_n, for chunks [N, M, ...].

    Returns every X, every S but the last, and the last. Written out so that each is computed where it stays, and each
    gradient but the states' is one product over all chunks.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, v: Tensor, k: Tensor, write: Tensor, decay: Tensor, S: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        X, states = torch.empty_like(v), S.new_empty(len(v) + 1, *S.shape)
        states[0] = S
        each = (x.unbind() for x in (v, k, write, decay, X, states[:-1], states[1:]))
        for v_n, k_n, write_n, decay_n, X_n, S_n, after in zip(*each, strict=True):
            torch.baddbmm(v_n, k_n, S_n, alpha=-1, out=X_n)
            torch.mul(S_n, decay_n, out=after).baddbmm_(write_n, X_n)
        ctx.save_for_backward(k, write, decay, X, states)
        return X, states[:-1], states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_X: Tensor, d_states: Tensor, d_S: Tensor) -> tuple[Tensor, ...]:
        k, write, decay, X, states = ctx.saved_tensors  # type: ignore[attr-defined]
        d_v, d_after = torch.empty_like(d_X), torch.empty_like(d_states)
        for n in reversed(range(len(k))):
            d_after[n] = d_S
            torch.baddbmm(d_X[n], write[n].mT, d_S, out=d_v[n])
            d_S = torch.baddbmm(d_states[n], k[n].mT, d_v[n], alpha=-1).addcmul_(d_S, decay[n])
        before = states[:-1]
        return d_v, -d_v @ before.mT, d_after @ X.mT, (d_after * before).sum(-1, keepdim=True), d_S


def _scan(v: Tensor, k: Tensor, write: Tensor, decay: Tensor, S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`_Scan` for v [N, B, H, C, V], k [N, B, H, C, K], write [N, B, H, K, C], decay [N, B, H, K], S [B, H, K, V]."""
    X, states, last = _Scan.apply(*(x.flatten(1, 2) for x in (v, k, write, decay[..., None])), S.flatten(0, 1))
    return X.view_as(v), states.unflatten(1, S.shape[:2]), last.view_as(S)


def _inside(q: Tensor, k: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of chunks [N, B, H, C, K]: q.k and k.k products with decay [..., C, C], q and k decayed from its start and k
    decayed to its end [..., C, K], and the decay of the whole chunk [..., K]. k.k counts below the diagonal alone.
    """
    if g is not None and g.dim() == 5:
        products, rows, k_out, whole = vector_products(q, k, g, overlap=True)
        return *products.unbind(-3), *rows.unbind(-2), k_out, whole
    products = torch.cat([q, k], -2) @ k.mT
    scores, overlap = products.unflatten(-2, (2, -1)).unbind(-3)
    if g is None:
        return scores.tril(), overlap, q, k, k, torch.ones_like(k[..., 0, :])
    between, since, until = scalar_decays(g)
    whole = since[..., -1, :].expand(*k.shape[:-2], k.shape[-1])
    return scores * between, overlap * between, q * since, k * since, k * until, whole
