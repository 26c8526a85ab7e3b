"""The delta rule: S_t = (I - beta_t k_t k_t^T) Diag(alpha_t) S_{t-1} + beta_t k_t v_t^T, o_t = S_t^T q_t."""

from evalsuite_kernels.delta.api import delta_rule

__all__ = ["delta_rule"]
