"""Every architecture on our operators beside transformers' own torch path: the same logits and the same tokens."""

from collections import Counter

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from evalsuite.integrations.hf import use
from evalsuite.integrations.hf.cases import SMALL, VOCABULARY, build
from evalsuite_kernels import record

LIMIT = 1e-4
T, PAD = 90, 23  # more than a chunk of 64 tokens, an index's 12 keys and a window's 7
NAMES = sorted(SMALL)
STRETCHES = [(0, 30), (30, 31), (31, 80), *((t, t + 1) for t in range(80, T))]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


def prompts() -> tuple[Tensor, Tensor]:
    """Two rows of tokens, the first with padding at its left, and their mask."""
    tokens = torch.randint(2, VOCABULARY, (2, T), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[0, :PAD] = 0
    return tokens.masked_fill(mask == 0, 0), mask


def in_stretches(model: PreTrainedModel, tokens: Tensor, mask: Tensor) -> Tensor:
    """Logits of tokens read a stretch at a time, each behind the cache of those before it."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits, cache = [], {}
    for start, stop in STRETCHES:
        out = model(
            tokens[:, start:stop],
            attention_mask=mask[:, :stop],
            position_ids=positions[:, start:stop],
            use_cache=True,
            **cache,
        )
        cache = {"past_key_values": out.past_key_values}
        logits.append(out.logits)
    return torch.cat(logits, 1)


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def test_prefill(model: PreTrainedModel) -> None:
    tokens, _ = prompts()
    wanted = model(tokens, use_cache=False).logits
    swapped = use(model)
    try:
        found = model(tokens, use_cache=False).logits
    finally:
        swapped.undo()
    assert apart(found, wanted) < LIMIT
    assert found.std() > 0.3  # of noise about zero anything would be near
    assert swapped.calls == Counter((row["layer"], name) for row in swapped.layers for name in row["operators"])


def test_padded_batch(model: PreTrainedModel) -> None:
    tokens, mask = prompts()
    wanted = model(tokens, attention_mask=mask, use_cache=False).logits
    swapped = use(model)
    try:
        found = model(tokens, attention_mask=mask, use_cache=False).logits
    finally:
        swapped.undo()
    assert apart(found[mask.bool()], wanted[mask.bool()]) < LIMIT


@pytest.mark.parametrize("padded", [False, True])
def test_stretches_and_steps(model: PreTrainedModel, padded: bool) -> None:
    tokens, mask = prompts()
    mask = mask if padded else torch.ones_like(mask)
    real = mask.bool()
    wanted = [model(tokens, attention_mask=mask, use_cache=False).logits]
    # MiniMax's cache tells of its first layer, here a linear one, that nothing is past: behind a cache transformers
    # raises where there is padding, and else aligns a stretch of queries with the first keys instead of the last
    if model.config.model_type != "minimax":
        wanted.append(in_stretches(model, tokens, mask))
    swapped = use(model)
    try:
        found = in_stretches(model, tokens, mask)
    finally:
        swapped.undo()
    for each in wanted:
        assert apart(found[real], each[real]) < LIMIT
    assert set(swapped.calls.values()) == {len(STRETCHES)}


@pytest.mark.parametrize("padded", [False, True])
def test_stretches_of_a_minimax_whose_first_layer_is_full(padded: bool) -> None:
    model = build("minimax", layer_types=["full_attention", "linear_attention"] * 2)
    tokens, mask = prompts()
    mask = mask if padded else torch.ones_like(mask)
    real = mask.bool()
    wanted = in_stretches(model, tokens, mask)
    use(model)
    assert apart(in_stretches(model, tokens, mask)[real], wanted[real]) < LIMIT


def test_greedy_tokens(model: PreTrainedModel) -> None:
    """64 tokens of a padded batch, row by row those of transformers without padding: its own batch of MiniMax is wrong
    (the layer that its cache measures by is linear and holds no keys)."""
    tokens, mask = prompts()
    wanted = [
        model.generate(row[real.bool()][None], do_sample=False, max_new_tokens=64)[0, -64:]
        for row, real in zip(tokens, mask, strict=True)
    ]
    swapped = use(model)
    try:
        found = model.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=64)[:, -64:]
        alone = model.generate(tokens[1:], do_sample=False, max_new_tokens=64)[0, -64:]
    finally:
        swapped.undo()
    assert found.tolist() == torch.stack(wanted).tolist()
    assert alone.tolist() == wanted[1].tolist()
    assert len(set(alone.tolist())) > 4  # a model that repeats itself would agree with any
    assert set(swapped.calls.values()) == {128}


@pytest.mark.parametrize("name", ["kimi_linear", "olmo_hybrid"])
def test_keys_as_short_as_the_norms_epsilon(name: str) -> None:
    model, (tokens, _) = build(name), prompts()
    for path, parameter in model.named_parameters():
        if path.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight", "linear_attn.k_proj.weight")):
            parameter.mul_(1e-3)
    wanted = model(tokens, use_cache=False).logits
    swapped = use(model)
    assert apart(model(tokens, use_cache=False).logits, wanted) < LIMIT
    swapped.undo()


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("glm_moe_dsa", {"indexer_types": ["full", "shared"]}),
        ("gpt_oss", {"layer_types": ["sliding_attention", "full_attention"]}),
        ("kimi_linear", {"layer_types": ["linear_attention", "full_attention"]}),
        ("minimax", {"layer_types": ["linear_attention", "full_attention"]}),
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"]}),
    ],
)
def test_the_kernels_of_gpus_in_the_interpreter(name: str, layers: dict[str, list[str]]) -> None:
    model = build(name, num_hidden_layers=2, **layers)
    tokens, mask = (x[:, PAD - 5 : PAD + 11] for x in prompts())
    wanted = model(tokens, attention_mask=mask, use_cache=False).logits
    swapped, real = use(model), mask.bool()
    cache, found = {}, []
    with record.meaning("triton"), record.listening() as heard:
        for start, stop in ((0, 10), (10, 15), (15, 16)):
            asked = {"attention_mask": mask[:, :stop], "position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, start:stop]}
            out = model(tokens[:, start:stop], use_cache=True, **asked, **cache)
            cache = {"past_key_values": out.past_key_values}
            found.append(out.logits)
    assert apart(torch.cat(found, 1)[real], wanted[real]) < LIMIT
    assert record.told(heard) == {name: ["triton"] for row in swapped.layers for name in row["operators"]}


def test_gradients_reach_the_weights_as_in_transformers() -> None:
    model = build("kimi_linear")
    tokens, _ = prompts()
    grads = []
    with torch.enable_grad():
        for ours in (False, True):
            swapped = use(model) if ours else None
            model.zero_grad()
            model(tokens[:, :40], labels=tokens[:, :40], use_cache=False).loss.backward()
            grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
            if swapped:
                swapped.undo()
    assert grads[0].keys() == grads[1].keys()
    for name, wanted in grads[0].items():
        assert (grads[1][name] - wanted).abs().max() <= 1e-3 * wanted.abs().max() + 1e-7, name
