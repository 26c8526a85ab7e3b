"""A mixer of your own, in the table beside the others:

    cd examples
    evalsuite train --budget reference --model "XXXF XXXF" --mixer my_mixer:Forgetful --out lab
    evalsuite train --budget tiny --model XFXF,FFFF --mixer my_mixer:Forgetful --out tiny    # minutes on a CPU

A mixer gets a layer's input x [B, T, hidden], normed and with its short convolution added, and returns one vector a
head. `Recurrent` brings projections, the norm of each head, and the state's way through prefill and decoding;
`Attention` brings keys and values; `Mixer` only the output gate. The lab makes the feed-forward layers as wide as equal
parameters allow.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.mixers import Recurrent
from evalsuite_kernels import linear_attention


class Forgetful(Recurrent):
    """Linear attention whose every head forgets by one learned gate a token: g = log sigmoid(Wx + b) <= 0."""

    def __init__(self, config: EvalsuiteConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.gate = nn.Linear(config.hidden_size, self.heads)

    def recur(
        self, x: Tensor, state: Tensor | None, keep: bool, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, T, hidden], state [N, H, K, V] -> o [B, T, H, V] and, if `keep`, the state after."""
        q, k, v = self.qkv(x)
        q, k = F.silu(q), F.normalize(F.silu(k).float(), dim=-1).to(k.dtype)
        g = F.logsigmoid(self.gate(x).float() + 4)  # starts out remembering: 50 tokens and more
        return linear_attention(q, k, v, g, initial_state=state, output_final_state=keep, cu_seqlens=cu_seqlens)
