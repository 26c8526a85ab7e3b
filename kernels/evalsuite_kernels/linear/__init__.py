"""Linear attention: S_t = Diag(alpha_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t."""

from evalsuite_kernels.linear.api import lightning_slopes, linear_attention, retnet_slopes

__all__ = ["lightning_slopes", "linear_attention", "retnet_slopes"]
