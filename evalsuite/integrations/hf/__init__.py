"""Checkpoints of transformers on the operators of `evalsuite_kernels`."""

from evalsuite.integrations.hf.swap import Swapped, use

__all__ = ["Swapped", "use"]
