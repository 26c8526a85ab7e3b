"""The public face of linear attention."""

import math

import torch
from torch import Tensor

from evalsuite_kernels.arguments import Raw
from evalsuite_kernels.linear.chunked import chunked
from evalsuite_kernels.linear.reference import recurrence
from evalsuite_kernels.recurrent import check, run

FORMS = {"reference": recurrence, "chunked": chunked}


def linear_attention(  # noqa: PLR0913 - the published operators take these, and no fewer say what is computed
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    segment: int | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """S_t = exp(g_t) S_{t-1} + k_t v_t^T;  o_t = scale S_t^T q_t.

    Args:
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, HV, V], HV a multiple of H; value head h reads key head h // (HV // H).
        g: natural-log decay <= 0. None: linear attention (arXiv:2006.16236); [HV]: RetNet (arXiv:2307.08621) or
            Lightning (arXiv:2401.04658); [B, T, HV]: Mamba-2 (arXiv:2405.21060); [B, T, HV, K]: GLA (arXiv:2312.06635).
        scale: of q, K^-0.5 if None. Lightning and Mamba-2 use 1.0.
        initial_state: [N, HV, K, V]; N is B, or the number of packed sequences.
        output_final_state: also return the state after the last token.
        cu_seqlens: integers [N + 1], bounds of sequences packed along T; B must be 1. Empty sequences are allowed.
        A_log: [HV]; g becomes -exp(A_log) softplus(g + dt_bias), inside the GPU's kernels.
        dt_bias: [HV], or [HV K] where g has channels; 0 if None.
        segment: as of `delta_rule`; without a gate per channel Hopper GPUs have groups of chunks instead.
        impl: "auto", "reference" (token by token), "chunked" or "triton".

    Returns:
        o [B, T, HV, V] in v's dtype, and the final state [N, HV, K, V] in fp32 (fp64 if any input is) or None.

    Raises:
        ValueError: shapes that do not fit, wrong bounds, or an unknown impl.
    """
    raw = Raw(A_log=A_log, dt_bias=dt_bias)
    check(q, k, v, g, None, raw, segment)
    o, state = run(
        FORMS,
        impl,
        (q, k, v, g),
        scale=scale,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
        raw=raw,
        segment=segment,
    )
    return o, state if output_final_state else None


def lightning_slopes(heads: int, layer: int, layers: int, device: torch.device | None = None) -> Tensor:
    """Log decays [heads] of Lightning attention as in MiniMax-01 (arXiv:2501.08313): ALiBi's slopes, fading with depth.

    g_h = -2^(-8 (h + 1) / heads) (1 - layer / (layers - 1 + 1e-5) + 1e-5), layer counted from 0. Use with scale=1.0.
    """
    if not 0 <= layer < layers:
        raise ValueError(f"layer {layer} is not one of {layers} layers, counted from 0")
    depth = 1 - layer / (layers - 1 + 1e-5) + 1e-5
    head = torch.arange(1, heads + 1, dtype=torch.float64, device=device)  # made there: a copy would stop a CUDA graph
    return (-depth * torch.exp2(-8 * head / heads)).float()


def retnet_slopes(heads: int) -> Tensor:
    """Log decays [heads] of RetNet (arXiv:2307.08621): g_h = log(1 - 2^(-5 - h))."""
    return torch.tensor([math.log1p(-(2.0 ** (-5 - h))) for h in range(heads)])
