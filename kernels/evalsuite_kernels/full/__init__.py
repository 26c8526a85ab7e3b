"""Softmax attention: causal, with a sliding window, sinks, grouped heads, packed and cached keys."""

from evalsuite_kernels.full.api import full_attention

__all__ = ["full_attention"]
