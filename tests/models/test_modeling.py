"""The model: a cache that forgets, a pad token that leaks or a state that is off by one would each fail here."""

import pytest
import torch
from tiny_models import tiny
from transformers import AutoConfig, AutoModelForCausalLM

from evalsuite.models.cache import KVLayer
from evalsuite.models.config import LETTERS, EvalsuiteConfig
from evalsuite.models.modeling import EvalsuiteForCausalLM

DESIGNS = [*(letter * 2 for letter in LETTERS if letter != "X"), "KKKF", "LLLF", "SCSF", "KKKD"]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("pattern", DESIGNS)
def test_decode_equals_prefill(pattern: str) -> None:
    model = tiny(pattern)
    ids = torch.randint(0, 97, (2, 23))
    whole = model(ids, use_cache=False).logits
    cache, parts = None, []
    for piece in (ids[:, :9], ids[:, 9:10], ids[:, 10:16], *ids[:, 16:].split(1, dim=1)):
        out = model(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    assert relative(torch.cat(parts, 1), whole) < 1e-10
    assert cache is not None
    assert cache.get_seq_length() == 23


@pytest.mark.parametrize("pattern", DESIGNS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_enters_a_layer(pattern: str, side: str) -> None:
    model = tiny(pattern)
    lengths = (4, 11, 7)
    ids = torch.randint(1, 97, (3, 11))
    mask = torch.arange(11)[None] < torch.tensor(lengths)[:, None]
    mask = mask.flip(1) if side == "left" else mask
    padded = model(ids.where(mask, 0), attention_mask=mask.long(), use_cache=False).logits
    for row, keep in enumerate(mask):
        alone = model(ids[row, keep][None], use_cache=False).logits[0]
        assert relative(padded[row, keep], alone) < 1e-10


@pytest.mark.parametrize("pattern", ["FF", "SS", "KF", "LL", "KKKF"])
def test_generate_agrees_with_repeated_prefill(pattern: str) -> None:
    model = tiny(pattern)
    ids = torch.randint(1, 97, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    out = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None)
    for row in range(2):
        seen = ids[row, mask[row].bool()]
        for token in out[row, 9:]:
            assert model(seen[None], use_cache=False).logits[0, -1].argmax() == token
            seen = torch.cat([seen, token[None]])


def test_beam_search_reorders_every_state() -> None:
    model = tiny("KSF")
    ids = torch.randint(1, 97, (2, 6))
    options = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    cached = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=True, **options)
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("pattern", DESIGNS)
def test_no_layer_sees_the_future(pattern: str) -> None:
    model = tiny(pattern)
    ids = torch.randint(0, 97, (1, 40))
    edited = ids.clone()
    edited[0, 25:] = (edited[0, 25:] + 1) % 97
    with torch.no_grad():
        assert torch.equal(model(ids).logits[:, :25], model(edited).logits[:, :25])


def test_save_and_load_through_the_auto_classes(tmp_path) -> None:
    model = tiny("KSLF", num_experts=4)
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).pattern == "KSLF"
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    ids = torch.randint(0, 97, (1, 12))
    assert torch.equal(model(ids).logits, again(ids).logits)


def test_layer_types_use_transformers_words() -> None:
    assert EvalsuiteConfig(pattern="KF SC").layer_types == [
        "linear_attention", "full_attention", "sliding_attention", "linear_attention",
    ]  # fmt: skip


@pytest.mark.parametrize("pattern", ["", "KKQ", "kf"])
def test_unknown_letters_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="letters are"):
        EvalsuiteConfig(pattern=pattern)


@pytest.mark.parametrize("pattern", DESIGNS)
def test_state_bytes_equal_what_the_cache_holds(pattern: str) -> None:
    model = tiny(pattern)
    cache = model.model.new_cache(1)
    ids = torch.randint(0, 97, (1, 50))
    model.model(ids, cu_seqlens=torch.tensor([0, 50]), cache=cache)
    claimed = model.state_bytes(50)
    for layer, (mixer, tail) in enumerate(zip(cache.mixers, cache.tails, strict=True)):
        tensors = [*mixer.kept] if isinstance(mixer, KVLayer) else [mixer.state] if mixer.state is not None else []
        if claimed[layer]["kv"]:
            assert claimed[layer]["kv"] == sum(t.nbytes for t in tensors[:2])
            assert claimed[layer]["index"] == sum(t.nbytes for t in tensors[2:])
            assert claimed[layer]["state"] == tail.nbytes
        else:  # states are counted in fp32, as they are kept; this model is fp64
            assert claimed[layer]["state"] == sum(t.nbytes for t in tensors) // 2 + tail.nbytes


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny("FSKGNLAMCDBT", num_experts=3, num_experts_per_tok=3).train()
    ids = torch.randint(0, 97, (2, 20))
    model(ids, labels=ids).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_experts_equal_a_dense_sum_when_all_are_chosen() -> None:
    model = tiny("F", num_experts=3, num_experts_per_tok=3)
    layer = model.model.layers[0].ffn
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    weight = layer.router(x).softmax(-1)
    dense = layer.shared(x) + sum(weight[..., i : i + 1] * e(x) for i, e in enumerate(layer.experts))
    assert relative(layer(x), dense) < 1e-10


def test_fork_leaves_the_original_alone() -> None:
    model = tiny("KSF")
    ids = torch.randint(0, 97, (1, 10))
    cache = model.model.new_cache(1)
    model.model(ids, cu_seqlens=torch.tensor([0, 10]), cache=cache)
    step = torch.tensor([[3]])
    first = model.model(step, cache=cache.fork())
    model.model(torch.tensor([[5]]), cache=cache.fork())
    assert torch.equal(first, model.model(step, cache=cache))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_keys_start_as_queries_of_their_group(kv_heads: int) -> None:
    settings = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": kv_heads, "head_dim": 16}
    settings |= {"pattern": "FKLC", "vocab_size": 97, "intermediate_size": 48}
    model = EvalsuiteForCausalLM(EvalsuiteConfig(mimetic_init=True, **settings))
    for layer in model.model.layers[:3]:
        q = layer.mixer.q_proj.weight.view(4, 16, 64)
        k = layer.mixer.k_proj.weight.view(-1, 16, 64)
        assert q.any()
        for head in range(4):
            group = 4 // k.shape[0]
            if head % group == 0:
                assert torch.equal(k[head // group], q[head])
