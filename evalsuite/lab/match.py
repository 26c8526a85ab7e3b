"""Designs of equal size: the feed-forward width is what gives way."""

from typing import Any

import torch

from evalsuite.errors import UserError
from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.modeling import EvalsuiteForCausalLM

CLOSE = 0.01  # of the parameters; the lab's gate
_MULTIPLES = (16, 8, 4, 2, 1)  # of the feed-forward width: the roundest that comes within half of CLOSE


def parameters(config: EvalsuiteConfig) -> int:
    """Parameters of a model of this configuration, without making one; a tied head counts once."""
    with torch.device("meta"):
        model = EvalsuiteForCausalLM(config)
    return sum(p.numel() for p in model.parameters())


def matched(settings: dict[str, Any], size: int) -> EvalsuiteConfig:
    """The configuration of these settings whose feed-forward width brings it to `size` parameters.

    Raises UserError where no width comes within CLOSE.
    """
    low, high = (parameters(EvalsuiteConfig(**{**settings, "intermediate_size": width})) for width in (1, 2))
    exact = 1 + (size - low) / (high - low)
    for multiple in _MULTIPLES:
        width = max(multiple, round(exact / multiple) * multiple)
        off = abs(low + (width - 1) * (high - low) - size) / size
        if off <= CLOSE / 2:
            return EvalsuiteConfig(**{**settings, "intermediate_size": width})
    raise UserError(
        f"{settings['pattern']} has {low:,} parameters with the thinnest feed-forward layers, and no width of them "
        f"brings it to {size:,}; give more --width, or fewer layers"
    )
