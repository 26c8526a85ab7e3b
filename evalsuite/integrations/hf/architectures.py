"""The architectures that are known: for each type of layer its module, and what of it is replaced by what."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from evalsuite.errors import UserError
from evalsuite.integrations.hf import mixers
from evalsuite.integrations.hf.rebind import rebound
from evalsuite.integrations.hf.tally import Tally

Change = tuple[nn.Module, Callable[..., Any] | None]  # a module that counts, and its new forward if it gets one


@dataclass(frozen=True, slots=True)
class Mixer:
    """A layer's token mixer: the class that transformers calls it, and how it gets onto the operators."""

    name: str
    changes: Callable[[nn.Module, Tally], Iterator[tuple[Change, str]]]  # each with the operator that it then runs


def _attention(module: nn.Module, _: Tally) -> Iterator[tuple[Change, str]]:
    """It asks transformers' attention interface, which the model's config sends to `attention.attend`."""
    yield (module, None), "full_attention"


def _recurrent(names: tuple[str, ...], module: nn.Module, tally: Tally) -> Iterator[tuple[Change, str]]:
    """Its forward calls module-level functions, for prompts and for single steps."""
    functions = dict.fromkeys(names, mixers.delta(tally)) | {"apply_mask_to_padding_states": mixers.without_padding}
    yield (module, rebound(type(module).forward, functions)), "delta_rule"


def _lightning(module: nn.Module, _: Tally) -> Iterator[tuple[Change, str]]:
    """Its recurrence is written out in its forward, which is replaced as a whole."""
    mixers.expect_slopes(module)
    yield (module, mixers.lightning), "linear_attention"


def _sparse(rotation: str, module: nn.Module, _: Tally) -> Iterator[tuple[Change, str]]:
    """The indexer's forward is replaced; attention is handed its choice. Layers that share a choice have no indexer."""
    chooser: Any = getattr(module, "indexer", None)
    if chooser is not None:
        rotate = inspect.unwrap(type(chooser).forward).__globals__[rotation]
        yield (chooser, mixers.indexer(rotate)), "lightning_index"
    yield (module, None), "sparse_attention"


GDN = partial(_recurrent, ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"))
KDA = partial(_recurrent, ("chunk_kimi_delta_attention", "recurrent_kimi_delta_attention"))
DENSE = ("full_attention", "sliding_attention")


def _known(prefix: str, *types: str, **others: Mixer) -> dict[str, Mixer]:
    return dict.fromkeys(types, Mixer(f"{prefix}Attention", _attention)) | others


def _indexed(prefix: str, rotation: str) -> dict[str, Mixer]:
    mixer = Mixer(f"{prefix}Attention", partial(_sparse, rotation))
    return {"indexed_attention": mixer, "deepseek_sparse_attention": mixer}  # the latter up to transformers 5.17


# model type -> layer type, as the configuration has it -> mixer; the first is that of layers without a type
ARCHITECTURES: Mapping[str, Mapping[str, Mixer]] = {
    "deepseek_v32": _indexed("DeepseekV32", "apply_rotary_pos_emb"),
    "glm_moe_dsa": _indexed("GlmMoeDsa", "apply_rotary_pos_emb_interleave"),
    "gpt_oss": _known("GptOss", *DENSE),
    "kimi_linear": _known("KimiLinear", "full_attention", linear_attention=Mixer("KimiLinearDeltaAttention", KDA)),
    "llama": _known("Llama", "full_attention"),
    "minimax": _known("MiniMax", "full_attention", linear_attention=Mixer("MiniMaxLightningAttention", _lightning)),
    "mistral": _known("Mistral", *DENSE),
    "olmo_hybrid": _known("OlmoHybrid", "full_attention", linear_attention=Mixer("OlmoHybridGatedDeltaNet", GDN)),
    "qwen2": _known("Qwen2", *DENSE),
    "qwen3": _known("Qwen3", *DENSE),
    "qwen3_5_moe_text": _known("Qwen3_5Moe", "full_attention", linear_attention=Mixer("Qwen3_5MoeGatedDeltaNet", GDN)),
    "qwen3_5_text": _known("Qwen3_5", "full_attention", linear_attention=Mixer("Qwen3_5GatedDeltaNet", GDN)),
    "qwen3_moe": _known("Qwen3Moe", *DENSE),
    "qwen3_next": _known("Qwen3Next", "full_attention", linear_attention=Mixer("Qwen3NextGatedDeltaNet", GDN)),
}


def mixers_of(model_type: str) -> Mapping[str, Mixer]:
    """The layer types of an architecture. Raises UserError for one that is not known."""
    if model_type == "evalsuite":
        raise UserError("models of evalsuite run on the kernels as they are; leave the kernels out")
    if model_type not in ARCHITECTURES:
        raise UserError(
            f"the kernels do not know the architecture {model_type!r}; known: {', '.join(sorted(ARCHITECTURES))}. "
            "Leave the kernels out to run it as transformers does"
        )
    return ARCHITECTURES[model_type]
