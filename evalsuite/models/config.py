"""The configuration of the language model: a pattern string and a few widths."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

LETTERS: dict[str, str] = {
    "F": "full attention without positions (NoPE)",
    "R": "full attention with RoPE",
    "P": "full attention, RoPE on a quarter of each head",
    "S": "sliding-window attention with RoPE",
    "K": "Kimi Delta Attention (vector gate)",
    "G": "Gated DeltaNet (scalar gate)",
    "N": "DeltaNet (no gate)",
    "L": "Lightning attention (fixed decay per head)",
    "A": "gated linear attention (vector gate)",
    "M": "Mamba-2 (scalar gate)",
    "C": "short convolution only (the control)",
}
ROPE_FRACTION = {"F": 0.0, "R": 1.0, "P": 0.25, "S": 1.0}
LAYER_TYPES = {
    "F": "full_attention",
    "R": "full_attention",
    "P": "full_attention",
    "S": "sliding_attention",
    "C": "conv",
}


@strict
class EvalsuiteConfig(PreTrainedConfig):
    """A stack of mixers, one letter a layer: `pattern="KKKF KKKF"` is Kimi Linear's 3:1 at eight layers.

    Every mixer reads `h + conv(h)` of the normed stream (a residual depthwise convolution of `conv_size` tokens), so
    that no design owns the previous-token operation; every mixer ends in the same low-rank sigmoid gate.
    """

    model_type = "evalsuite"

    vocab_size: int = 1100
    hidden_size: int = 256
    pattern: str = "FFFFFFFF"
    num_attention_heads: int = 4
    num_key_value_heads: int = 4  # of full and sliding attention; the linear mixers use num_attention_heads
    head_dim: int = 64
    intermediate_size: int = 704
    gate_rank: int = 0  # rank of output gate and of KDA's and GLA's decay; 0: head_dim
    window: int = 64
    conv_size: int = 4
    beta_max: float = 1.0  # 2.0 allows negative eigenvalues in the delta rule
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    mimetic_init: bool = False  # keys start equal to queries (Trockman & Kolter 2023, arXiv 2305.09828)
    num_experts: int = 0  # 0: one SwiGLU; otherwise fine-grained experts of moe_intermediate_size
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 128
    router_aux_loss_coef: float = 0.01
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = 0
    use_cache: bool = True

    def __post_init__(self, **kwargs: object) -> None:
        self.pattern = self.pattern.replace(" ", "")
        unknown = sorted(set(self.pattern) - set(LETTERS))
        if unknown or not self.pattern:
            raise ValueError(f"pattern {self.pattern!r} has unknown layers {unknown}; letters are {' '.join(LETTERS)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        super().__post_init__(**kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """One letter is one layer."""
        return len(self.pattern)

    @property
    def layer_types(self) -> list[str]:
        """The layers in transformers' words."""
        return [LAYER_TYPES.get(letter, "linear_attention") for letter in self.pattern]
