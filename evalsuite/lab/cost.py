"""What a design costs by its arithmetic, whatever it runs on."""

import torch
from torch import nn

from evalsuite.lab.match import parameters
from evalsuite.models.config import WINDOWS, EvalsuiteConfig
from evalsuite.models.modeling import EvalsuiteForCausalLM


def kept(config: EvalsuiteConfig, length: int) -> int:
    """Bytes of the cache of one text of `length` tokens: keys and values in bf16, states in fp32."""
    with torch.device("meta"):
        model = EvalsuiteForCausalLM(config)
    nn.Module.to(model, torch.bfloat16)
    return sum(sum(row.values()) for row in model.state_bytes(length))


def flops(config: EvalsuiteConfig, length: int) -> float:
    """Floating-point operations of a forward pass for each token of a text of `length`, a product and its sum as two.

    Two for every parameter that multiplies (the input embedding does not), and what mixers do beside: attention reads
    on average half the text, or its window or choice; a recurrence reads and writes its state.
    """
    tied = 1 if config.tie_word_embeddings else 2
    matrices = parameters(config) - (tied - 1) * config.vocab_size * config.hidden_size
    return 2 * matrices + sum(_mixing(letter, config, length) for letter in config.pattern)


def _mixing(letter: str, config: EvalsuiteConfig, length: int) -> float:
    heads, dim = config.num_attention_heads, config.head_dim
    width, seen = heads * dim, (length + 1) / 2

    def attention(keys: float) -> float:
        return 4 * width * keys  # q k and p v

    if letter in "FRP":
        return attention(seen)
    if letter in WINDOWS:
        return attention(_mean(length, config.window * WINDOWS[letter]))
    if letter == "D":
        index = 2 * config.index_heads * config.index_dim * seen
        return attention(_mean(length, config.topk)) + index
    if letter == "B":
        return attention(_mean(length, config.block_size * config.block_topk)) + 2 * width * seen / config.block_size
    if letter == "T":
        chosen = _mean(length, config.block_size * config.block_topk) + _mean(length, config.window)
        return attention(chosen) + attention(2 * seen / config.compressed_size)
    if letter in "LAM":
        return 5 * width * dim  # decay the state, write k v, read q
    if letter in "NGK":
        return 9 * width * dim  # and before the write, read k and take it out
    return 0.0  # a convolution's taps are among the parameters; a mixer of the user's own is not known


def _mean(length: int, most: int) -> float:
    """Keys read on average by the tokens of a text, each its own and those before it but `most` in all."""
    most = min(most, length)
    return most - most * (most - 1) / 2 / length
