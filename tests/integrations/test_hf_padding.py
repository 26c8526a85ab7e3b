"""Padding is never attended, and what the operators cannot mask is refused rather than attended."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    sliding_window_causal_mask_function,
)

from evalsuite.errors import UserError
from evalsuite.integrations.hf import use
from evalsuite.integrations.hf.attention import valid_keys
from evalsuite.integrations.hf.cases import SMALL, VOCABULARY, build
from evalsuite.integrations.hf.packing import packing

NAMES = sorted(SMALL)
T, PAD = 40, 11


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def tokens(rows: int = 1) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (rows, T), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("rows", [1, 3])  # of one row some releases of transformers skip the mask: pull request 46773
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_no_bit_and_no_padding_the_same_logits(name: str, rows: int) -> None:
    model, x = build(name), tokens(rows)
    mask = torch.ones_like(x)
    mask[0, :PAD] = 0
    use(model)
    other = x.clone()
    other[0, :PAD] = VOCABULARY - 1 - x[0, :PAD]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found, again = (model(y, attention_mask=mask, position_ids=positions, use_cache=False).logits for y in (x, other))
    assert torch.equal(found[mask.bool()], again[mask.bool()])
    alone = model(x[:1, PAD:], use_cache=False).logits
    assert (found[0, PAD:] - alone[0]).abs().max() < 1e-4 * alone.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_padding_at_the_right_too(name: str) -> None:
    model, x = build(name), tokens(2)
    mask = torch.ones_like(x)
    mask[0, -PAD:] = 0
    use(model)
    found = model(x, attention_mask=mask, use_cache=False).logits
    alone = model(x[:1, :-PAD], use_cache=False).logits
    assert (found[0, :-PAD] - alone[0]).abs().max() < 1e-4 * alone.abs().max()


@pytest.mark.parametrize("name", ["llama", "qwen3", "deepseek_v32", "glm_moe_dsa"])
def test_padding_in_a_stretch_behind_a_cache(name: str) -> None:
    """Both stretches of a row begin with padding. (A short convolution or a window counts places, padding's too.)"""
    model, x = build(name, layer_types=None) if name == "qwen3" else build(name), tokens(2)
    mask = torch.ones_like(x)
    mask[1, :8], mask[1, 20:26] = 0, 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    swapped = use(model)
    cache, parts = {}, []
    for start, stop in ((0, 20), (20, T)):
        asked = {"attention_mask": mask[:, :stop], "position_ids": positions[:, start:stop], "use_cache": True}
        out = model(x[:, start:stop], **asked, **cache)
        cache = {"past_key_values": out.past_key_values}
        parts.append(out.logits)
    real = mask[1].bool()
    found = torch.cat(parts, 1)[1][real]
    alone = model(x[1][real][None], use_cache=False).logits[0]
    assert (found - alone).abs().max() < 1e-4 * alone.abs().max()
    assert set(swapped.calls.values()) == {3}


def test_a_row_that_is_all_padding_gives_numbers() -> None:
    model, x = build("qwen3_next"), tokens(2)
    mask = torch.ones_like(x)
    mask[1] = 0
    use(model)
    found = model(x, attention_mask=mask, use_cache=False).logits
    assert found.isfinite().all()


def test_what_is_not_causal_attention_over_one_row_is_refused() -> None:
    model, x = build("llama"), tokens()
    use(model)
    packed = torch.cat([torch.arange(25), torch.arange(15)])[None]
    with pytest.raises(UserError, match="not causal over one sequence a row"):
        model(x, position_ids=packed, use_cache=False)
    with pytest.raises(UserError, match=r"an attention mask \[1, 1, 40, 40\] of torch.float32"):
        model(x, attention_mask=torch.zeros(1, 1, T, T), use_cache=False)
    with pytest.raises(UserError, match="static one"):
        model(x, past_key_values=StaticCache(config=model.config, max_cache_len=64), use_cache=True)
    model.config.is_causal = False
    with pytest.raises(UserError, match="not causal"):
        model(x, attention_mask=torch.ones_like(x), use_cache=False)


SLIDING = sliding_window_causal_mask_function(5)


@pytest.mark.parametrize(
    ("mask", "window"),
    [
        (causal_mask_function, 5),
        (SLIDING, None),
        (SLIDING, 4),
        (SLIDING, 6),
        (bidirectional_mask_function, None),
        (chunked_causal_mask_function(16, torch.zeros(2, dtype=torch.long)), None),
        (or_masks(causal_mask_function, lambda _b, _h, _q, k: k < 20), None),  # a prefix that sees itself whole
        (and_masks(causal_mask_function, lambda _b, _h, q, k: (q < 30) | (k > 3)), None),
        (and_masks(causal_mask_function, lambda b, _h, q, k: (b == 0) | (q - k < 9)), None),
    ],
)
def test_masks_of_another_shape_are_refused(mask: Any, window: int | None) -> None:
    asked = {"batch_size": 2, "q_length": T, "kv_length": T, "local_size": window}
    with pytest.raises(UserError, match="not causal"):
        valid_keys(**asked, mask_function=mask)


def test_masks_of_the_operators_shape() -> None:
    asked: dict[str, Any] = {"batch_size": 2, "q_length": 3, "kv_length": 9, "q_offset": 16, "kv_offset": 10}
    assert valid_keys(**asked, mask_function=SLIDING, local_size=5) is None
    assert valid_keys(**asked, mask_function=causal_mask_function) is None
    made = valid_keys(**asked, mask_function=causal_mask_function, allow_is_causal_skip=False)
    assert made is not None
    assert made.shape == (2, 1, 1, 9)
    assert made.all()
    with pytest.raises(UserError, match="a mask of its own"):
        valid_keys(**asked, mask_function=causal_mask_function, use_vmap=True)


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "deepseek_v32"])
def test_the_scale_is_the_layers_own(name: str) -> None:
    model, x = build(name), tokens()
    usual = model(x, use_cache=False).logits
    for layer in model.model.layers:
        layer.self_attn.scaling *= 1.7
    wanted = model(x, use_cache=False).logits
    use(model)
    assert (wanted - usual).abs().max() > 0.1
    assert (model(x, use_cache=False).logits - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_packed_sequences_of_linear_layers_are_refused() -> None:
    model = build("qwen3_next")
    use(model)
    with pytest.raises(UserError, match="packed sequences"):
        model(tokens(), use_cache=False, cu_seq_lens_q=torch.tensor([0, 20, T]))


def test_a_mask_of_the_new_tokens_alone_is_refused() -> None:
    model, x = build("minimax"), tokens()
    use(model)
    out = model(x[:, :30], use_cache=True)
    short = torch.tensor([[0] + [1] * 9])
    with pytest.raises(UserError, match="covers 10 tokens and there are 40 keys"):
        model(x[:, 30:], attention_mask=short, past_key_values=out.past_key_values, use_cache=True)


def test_dropout_is_refused() -> None:
    model = build("llama", attention_dropout=0.5).train()
    use(model)
    with pytest.raises(UserError, match="dropout"):
        model(tokens(), use_cache=False)


def test_attention_weights_are_refused() -> None:
    model = build("qwen3_next")
    use(model)
    with pytest.raises(UserError, match="no attention weights"):
        model(tokens(), use_cache=False, output_attentions=True)


@pytest.mark.parametrize("name", ["gpt_oss", "kimi_linear", "minimax", "qwen3_next"])
def test_padding_between_tokens_is_refused_by_windows_and_states(name: str) -> None:
    """A prompt padded at its right and then continued: transformers decays the state over the padding."""
    model, x = build(name), tokens(2)
    mask = torch.ones_like(x)
    mask[0, 20:25] = 0
    use(model)
    with pytest.raises(UserError, match="padding between tokens"):
        model(x, attention_mask=mask, use_cache=False)
    out = model(x[:, :25], attention_mask=mask[:, :25], use_cache=True)
    with pytest.raises(UserError, match="padding between tokens"):
        model(x[:, 25:26], attention_mask=mask[:, :26], past_key_values=out.past_key_values, use_cache=True)


def test_tokens_that_stand_together() -> None:
    one_side = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]]).bool()
    assert packing(one_side, 4, 4, window=2) is not None
    for row in ([1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 1]):
        with pytest.raises(UserError, match="between"):
            packing(torch.tensor([[1, 1, 1, 1], row]).bool(), 4, 4, window=2)


def test_packing_takes_the_last_keys_of_a_longer_mask() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]).bool()
    assert packing(mask, 1, 3) is None
    packed: Any = packing(mask, 2, 4)
    assert packed.cu_keys.tolist() == [0, 3, 7]
    assert packed.cu_queries.tolist() == [0, 2, 4]
    x = torch.arange(8.0).view(2, 4, 1)
    assert packed.pack_keys(x)[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert packed.spread(packed.pack_queries(x[:, 2:])).equal(x[:, 2:])


def test_a_window_longer_and_shorter_than_the_cache() -> None:
    for window in (1, 2, T, 3 * T):
        model, x = build("qwen3", sliding_window=window), tokens()
        wanted = model(x, use_cache=False).logits
        use(model)
        cache = DynamicCache(config=model.config)
        parts = [model(part, past_key_values=cache, use_cache=True).logits for part in (x[:, :9], x[:, 9:])]
        assert (torch.cat(parts, 1) - wanted).abs().max() < 1e-4 * wanted.abs().max()
