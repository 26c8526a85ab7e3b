"""The public face of the delta rule."""

from torch import Tensor

from evalsuite_kernels.arguments import Raw
from evalsuite_kernels.delta.chunked import chunked
from evalsuite_kernels.delta.reference import recurrence
from evalsuite_kernels.recurrent import check, run

FORMS = {"reference": recurrence, "chunked": chunked}


def delta_rule(  # noqa: PLR0913 - the published operators take these, and no fewer say what is computed
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    l2norm: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    beta_sigmoid: bool = False,
    beta_max: float = 1.0,
    segment: int | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """S~ = exp(g_t) S_{t-1};  S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T;  o_t = scale S_t^T q_t.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K]; of length 1 in the published models: beyond beta |k|^2 = 2 the state grows without bound.
        v: [B, T, HV, V], HV a multiple of H; value head h reads key head h // (HV // H).
        beta: [B, T, HV], in [0, 1], or up to 2 where negative eigenvalues are wanted (arXiv:2411.12537).
        g: natural-log decay <= 0. None: DeltaNet (arXiv:2406.06484); [HV]: fixed; [B, T, HV]: Gated DeltaNet
            (arXiv:2412.06464); [B, T, HV, K]: KDA (Kimi Linear, arXiv:2510.26692).
        scale: of q, K^-0.5 if None.
        initial_state: [N, HV, K, V]; N is B, or the number of packed sequences.
        output_final_state: also return the state after the last token.
        cu_seqlens: integers [N + 1], bounds of sequences packed along T; B must be 1. Empty sequences are allowed.
        l2norm: q and k divided by their length (at least 1e-12).
        A_log: [HV]; g becomes -exp(A_log) softplus(g + dt_bias).
        dt_bias: [HV], or [HV K] where g has channels; 0 if None.
        beta_sigmoid: beta becomes beta_max sigmoid(beta). This and the three above happen inside the GPU's kernels.
        beta_max: 2 allows negative eigenvalues.
        segment: tokens, a multiple of 64. On a GPU, stretches of so many tokens from a sequence's start on are walked
            over all at once, the states between them found by their transition matrices: for long sequences with few
            heads of up to 128, which otherwise leave most of it idle. Exact, and the same for any batch, heads and
            length; but a sequence that is continued from its state keeps its bits only if it is split between two
            segments. Elsewhere, and for wider heads, it changes nothing.
        impl: "auto", "reference" (token by token), "chunked" or "triton".

    Returns:
        o [B, T, HV, V] in v's dtype, and the final state [N, HV, K, V] in fp32 (fp64 if any input is) or None.

    Raises:
        ValueError: shapes that do not fit, wrong bounds, or an unknown impl.
    """
    raw = Raw(l2norm, A_log, dt_bias, beta_sigmoid, float(beta_max))
    check(q, k, v, g, beta, raw, segment)
    o, state = run(
        FORMS,
        impl,
        (q, k, v, g, beta),
        scale=scale,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
        raw=raw,
        segment=segment,
    )
    return o, state if output_final_state else None
