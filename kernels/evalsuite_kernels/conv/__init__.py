"""Short convolution: each channel mixes its own last few tokens."""

from evalsuite_kernels.conv.api import short_convolution

__all__ = ["short_convolution"]
