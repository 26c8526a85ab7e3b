"""A model of a few thousand parameters in fp64, every layer of which does something."""

import torch

from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.modeling import EvalsuiteForCausalLM


def tiny(pattern: str, **changes: object) -> EvalsuiteForCausalLM:
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "vocab_size": 97, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "intermediate_size": 48, "window": 5, "pattern": pattern, "max_position_embeddings": 128,
        "index_topk": 5, "index_dim": 8, "block_size": 4, "block_topk": 3, "compressed_size": 4,
    }  # fmt: skip
    model = EvalsuiteForCausalLM(EvalsuiteConfig(**{**settings, **changes})).double().eval()
    for name, p in model.named_parameters():  # zero-initialised projections would hide every fault
        if p.dim() >= 2 and "compress" not in name:
            torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5)
    return model
