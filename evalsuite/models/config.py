"""The configuration of the language model: a pattern string and a few widths."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

LETTERS: dict[str, str] = {
    "F": "full attention without positions (NoPE)",
    "R": "full attention with RoPE",
    "P": "full attention, RoPE on a quarter of each head",
    "S": "sliding-window attention with RoPE",
    "W": "sliding-window attention with RoPE, the window 8 times as wide",
    "K": "Kimi Delta Attention (vector gate)",
    "G": "Gated DeltaNet (scalar gate)",
    "N": "DeltaNet (no gate)",
    "L": "Lightning attention (fixed decay per head)",
    "A": "gated linear attention (vector gate)",
    "M": "Mamba-2 (scalar gate)",
    "C": "short convolution only (the control)",
    "D": "sparse attention over the tokens that an indexer chooses (DSA), NoPE",
    "B": "sparse attention over the blocks whose mean key is nearest (MoBA), NoPE",
    "T": "three branches: compressed blocks, chosen blocks, a window (NSA), NoPE",
    "X": "a mixer of your own, the one that `mixer` names",
}
ROPE_FRACTION = {"R": 1.0, "P": 0.25, "S": 1.0, "W": 1.0}  # of each head; elsewhere 0
WINDOWS = {"S": 1, "W": 8}  # in units of config.window
LAYER_TYPES = {  # words that every supported release of transformers knows
    "F": "full_attention",
    "R": "full_attention",
    "P": "full_attention",
    "S": "sliding_attention",
    "W": "sliding_attention",
    "D": "full_attention",
    "B": "full_attention",
    "T": "full_attention",
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
    mixer: str = ""  # of layers X, "module:Class": see models.mixers.own
    num_attention_heads: int = 4
    num_key_value_heads: int = 4  # of full and sliding attention; the linear mixers use num_attention_heads
    head_dim: int = 64
    intermediate_size: int = 704
    gate_rank: int = 0  # rank of output gate and of KDA's and GLA's decay; 0: head_dim
    window: int = 64
    index_heads: int = 2  # of the indexer (D)
    index_dim: int = 32
    index_topk: int = 0  # tokens that a query reads; 0: a sixteenth of max_position_embeddings
    index_rope: float = 0.0  # share of an indexer's head that is rotated
    index_phase: str = "sparse"  # "dense": attention is full and the indexer learns from all of it (warm-up)
    index_loss_coef: float = 1.0
    block_size: int = 32  # tokens of a block (B, T)
    block_topk: int = 4  # blocks that a query reads, its own included
    compressed_size: int = 16  # tokens that a compressed key stands for (T), one for every half of them
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
        if ("X" in self.pattern) != bool(self.mixer):
            raise ValueError(f"layers X and a mixer, 'module:Class', go together: {self.pattern!r}, {self.mixer!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        if self.index_phase not in {"dense", "sparse"}:
            raise ValueError(f"index_phase must be 'dense' or 'sparse', not {self.index_phase!r}")
        self._check_sparse()
        super().__post_init__(**kwargs)

    def _check_sparse(self) -> None:
        """What layers D, B and T need."""
        least = {
            "index_heads": 1,
            "index_dim": 1,
            "index_topk": 0,
            "index_loss_coef": 0,
            "block_size": 1,
            "block_topk": 1,
        }
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be at least {value}, not {getattr(self, name)}")
        if not 0 <= self.index_rope <= 1:
            raise ValueError(f"index_rope is a share of each head, 0 to 1, not {self.index_rope}")
        if self.compressed_size < 2 or self.compressed_size % 2:
            raise ValueError(f"compressed_size must be even and at least 2, not {self.compressed_size}")
        if "T" in self.pattern and self.block_topk < 3:
            raise ValueError("block_topk of NSA counts the first and the last two blocks, so it must be at least 3")

    @property
    def num_hidden_layers(self) -> int:
        """One letter is one layer."""
        return len(self.pattern)

    @property
    def topk(self) -> int:
        """Tokens that a query of a layer D reads."""
        return self.index_topk or max(1, self.max_position_embeddings // 16)

    @property
    def layer_types(self) -> list[str]:
        """The layers in transformers' words."""
        return [LAYER_TYPES.get(letter, "linear_attention") for letter in self.pattern]
