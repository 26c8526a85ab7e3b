"""Small models of every architecture with weights at random: what tests and the bench compare on."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 96
HYBRID = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2}
GATED = {
    "num_hidden_layers": 4,
    "layer_types": HYBRID,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
}
LATENT = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
INDEXED = LATENT | {"index_n_heads": 16, "index_head_dim": 32, "index_topk": 12}
WINDOWS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

SMALL: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 2},
    "qwen3": {
        "num_hidden_layers": 4, "head_dim": 16, "layer_types": WINDOWS, "sliding_window": 7, "use_sliding_window": True
    },
    "gpt_oss": EXPERTS | {"num_hidden_layers": 4, "head_dim": 16, "layer_types": WINDOWS, "sliding_window": 7},
    "kimi_linear": EXPERTS | LATENT | {
        "num_hidden_layers": 4, "layer_types": HYBRID, "q_lora_rank": None, "linear_head_dim": 16, "linear_num_heads": 4
    },
    "qwen3_next": EXPERTS | GATED | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": GATED,
    "qwen3_5_moe_text": EXPERTS | GATED | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "qwen3_moe": EXPERTS | {"num_hidden_layers": 2, "head_dim": 16, "moe_intermediate_size": 32},
    "qwen2": {"num_hidden_layers": 2},
    "mistral": {"num_hidden_layers": 2, "sliding_window": 7},
    "olmo_hybrid": GATED | {"linear_num_key_heads": 4},
    "minimax": EXPERTS | {"num_hidden_layers": 4, "head_dim": 16, "layer_types": HYBRID, "block_size": 16},
    "deepseek_v32": EXPERTS | INDEXED,
    "glm_moe_dsa": EXPERTS | INDEXED | {"indexer_types": ["full", "shared", "full"]},
}  # fmt: skip


_HEADS = {"hidden_size": 512, "intermediate_size": 768, "head_dim": 128}
_GATED = _HEADS | {"linear_key_head_dim": 128, "linear_value_head_dim": 128}
_LATENT = {
    "hidden_size": 512,
    "q_lora_rank": 256,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
# what makes their heads as wide as those of published models; their like is not repeated
WIDE: dict[str, dict[str, Any]] = {
    "llama": _HEADS,
    "qwen3": _HEADS | {"sliding_window": 100},
    "gpt_oss": _HEADS | {"sliding_window": 128},
    "kimi_linear": _LATENT | {"q_lora_rank": None, "linear_head_dim": 128},
    "qwen3_next": _GATED,
    "qwen3_5_text": _GATED,
    "olmo_hybrid": _GATED,
    "minimax": _HEADS | {"block_size": 256},
    "deepseek_v32": _LATENT | {"index_head_dim": 128},
    "glm_moe_dsa": _LATENT | {"index_head_dim": 128},
}


def steady(name: str, tokens: int) -> dict[str, Any]:
    """What makes rounding turn no choice over, or little hang on it: all experts take part, and an index leaves out a
    third of the tokens."""
    given = {"num_experts_per_tok": EXPERTS["num_experts"], "index_topk": tokens * 2 // 3}
    return {key: value for key, value in given.items() if key in SMALL[name]}


def build(
    name: str, seed: int = 0, *, gain: float = 0.6, embedding: float = 0.0, device: str = "cpu", **changes: Any
) -> PreTrainedModel:
    """A model of `SMALL` in fp32, ready to be asked.

    Args:
        name: of an architecture.
        seed: of its weights.
        gain: matrices [N, K] are spread by gain K^-0.5; wider than at the start of a training, where layers write so
            little that no fault in them would be seen in the logits. At 1.2 fp32's own rounding grows to 2e-4 of them.
        embedding: spread of the embeddings where not as that of other matrices. At 1, layers add to what they are
            handed as in a trained model, instead of replacing it, and rounding does not grow from layer to layer.
        device: where it is made; other devices draw other weights.
        changes: over the configuration.
    """
    config = AutoConfig.for_model(name, **(COMMON | SMALL[name] | changes))
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for full_name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and parameter.shape[0] > 1:
                parameter.normal_(0.0, gain * parameter.shape[-1] ** -0.5, generator=generator)
            elif full_name.endswith("sinks"):  # left empty until a checkpoint is read
                parameter.normal_(0.0, 1.0, generator=generator)
        if embedding:
            model.get_input_embeddings().weight.normal_(0.0, embedding, generator=generator)
    return model
