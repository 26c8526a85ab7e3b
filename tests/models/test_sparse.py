"""Models with sparse attention: what they read, what teaches them what, and what they tell of it."""

import copy
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from tiny_models import tiny

from evalsuite.lab.data import IGNORE
from evalsuite.lab.train import Recipe, loss_of
from evalsuite.models.config import LETTERS, EvalsuiteConfig
from evalsuite.models.modeling import EvalsuiteForCausalLM
from evalsuite.models.presets import PRESETS, pattern_of
from evalsuite_kernels import record
from evalsuite_kernels.sparse import api


def full_twin(model: EvalsuiteForCausalLM) -> EvalsuiteForCausalLM:
    """The same weights under full attention."""
    twin = tiny(model.config.pattern.replace("D", "F"))
    missing, _ = twin.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    return twin


def close(a: torch.Tensor, b: torch.Tensor, relative: float = 1e-12) -> bool:
    return bool(((a - b).norm() / b.norm()) < relative)


IDS = torch.randint(0, 97, (2, 30), generator=torch.Generator().manual_seed(1))


def test_a_choice_of_everything_is_full_attention() -> None:
    model = tiny("KDD", index_topk=30)
    assert close(model(IDS).logits, full_twin(model)(IDS).logits)
    assert not close(tiny("KDD")(IDS).logits, full_twin(model)(IDS).logits)


def test_in_the_dense_phase_it_is_full_attention_with_a_cache_too() -> None:
    model = tiny("DD", index_phase="dense")
    twin = full_twin(model)
    assert close(model(IDS).logits, twin(IDS).logits)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(IDS, **options), twin.generate(IDS, **options))
    assert model.train()(IDS, labels=IDS).loss > twin.train()(IDS, labels=IDS).loss  # the indexer's own


def grads(model: EvalsuiteForCausalLM, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("phase", ["dense", "sparse"])
def test_labels_owe_the_indexer_nothing_and_it_owes_nothing_to_the_rest(phase: str) -> None:
    found = []
    for coefficient in (0.0, 5.0):
        model = tiny("DKD", index_phase=phase, index_loss_coef=coefficient).train()
        found.append(grads(model, model(IDS, labels=IDS).loss))
    for name, without in found[0].items():
        taught = found[1][name]
        assert taught is not None
        if "index_" in name:
            assert without is None or not without.any()
            assert taught.any()
        else:
            assert without is not None
            assert close(taught, without), name


@pytest.mark.parametrize("phase", ["dense", "sparse"])
def test_the_lab_and_a_plain_loop_learn_from_the_same_loss(phase: str) -> None:
    model = tiny("DK", index_phase=phase).train()
    plain = model(IDS, labels=IDS).loss
    shifted = torch.cat([IDS[:, 1:], torch.full((2, 1), IGNORE)], 1)
    lab, _ = loss_of(model, IDS, shifted)
    assert close(lab + model.own_losses(), plain, 1e-6)  # the lab's logits are fp32
    assert model.own_losses() > 0
    assert model.eval()(IDS, labels=IDS).loss < plain
    assert model.own_losses() == 0


def test_packed_rows_teach_what_padded_ones_do() -> None:
    model = tiny("DD").train()
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, :11] = 0
    labels = IDS.masked_fill(mask == 0, -100)
    loss = model(IDS, attention_mask=mask, labels=labels).loss
    model(IDS[:1])
    first = model.own_losses()
    model(IDS[1:, 11:])
    second = model.own_losses()
    model(IDS, attention_mask=mask)
    assert close(model.own_losses(), (30 * first + 19 * second) / 49)
    assert torch.isfinite(loss)


def test_recall_tells_what_full_attention_would_have_read() -> None:
    model = tiny("DKD").train()
    recall = model.selection_recall(IDS)
    assert recall.shape == (2, 2, 30)
    assert (recall[:, :, :5] > 1 - 1e-12).all()  # five keys are all that these see
    assert ((recall > 0) & (recall <= 1 + 1e-12)).all()
    assert (recall[:, :, 20:] < 0.9).any()
    assert model.training
    model.config.index_topk = 30
    assert (model.selection_recall(IDS) > 1 - 1e-12).all()
    assert tiny("DKD").selection_recall(IDS[:1]).shape == (2, 1, 30)


def test_asking_for_recall_changes_nothing() -> None:
    model = tiny("DKD").train()
    model(IDS)
    before = model.own_losses()
    model.model.layers[0].eval()
    model.selection_recall(IDS)
    assert torch.equal(model.own_losses(), before)
    assert not model.model.layers[0].training
    assert model.model.layers[1].training
    with pytest.raises(ValueError, match="no layer of FK has an indexer"):
        tiny("FK").selection_recall(IDS)


def test_a_pass_leaves_no_loss_for_the_next() -> None:
    model = tiny("DK").train()
    model(IDS, labels=IDS).loss.backward()
    model(IDS[:, :7], labels=IDS[:, :7], use_cache=True).loss.backward()
    assert model.own_losses() == 0  # with a cache nothing is learned by an indexer
    model(IDS)
    twin = copy.deepcopy(model)
    assert torch.equal(twin.eval()(IDS).logits, model.eval()(IDS).logits)


@pytest.mark.parametrize("part", ["index_q", "index_k", "index_w"])
def test_a_damaged_indexer_does_not_answer(part: str) -> None:
    model = tiny("DK")
    with torch.no_grad():
        getattr(model.model.layers[0].mixer, part).weight.fill_(torch.nan)
    assert model(IDS).logits.isnan().any()
    assert model(IDS[:, :5]).logits.isnan().any()  # all that it sees is chosen


def test_a_damaged_query_reads_its_own_block() -> None:
    model = tiny("B")
    with torch.no_grad():
        model.model.layers[0].mixer.q_proj.weight.fill_(torch.nan)
    assert model(IDS).logits.isnan().all()


def test_the_phase_is_saved_with_the_model(tmp_path: Path) -> None:
    model = tiny("DD", index_phase="dense")
    model.save_pretrained(tmp_path)
    again = EvalsuiteForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert again.config.index_phase == "dense"
    assert close(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("letter", "DBT")
def test_later_tokens_change_no_bit(letter: str) -> None:
    model, later = tiny(letter * 2), IDS.clone()
    later[:, 20:] = (later[:, 20:] + 13) % 97
    assert torch.equal(model(later).logits[:, :20], model(IDS).logits[:, :20])


def test_a_step_reads_index_keys_and_the_chosen_alone() -> None:
    """What stands elsewhere in the cache is not even looked at: it may be NaN."""
    model = tiny("D")
    cache = model(IDS[:1], use_cache=True).past_key_values
    layer = cache.mixers[0]
    untouched = model(IDS[:1, :1], past_key_values=cache.fork()).logits
    q_chosen = chosen_by(model, cache.fork())
    k, v, _ = layer.kept
    others = torch.tensor([s for s in range(30) if s not in q_chosen])
    k[:, others], v[:, others] = torch.nan, torch.nan
    assert torch.equal(model(IDS[:1, :1], past_key_values=cache).logits, untouched)


def chosen_by(model: EvalsuiteForCausalLM, cache: object) -> set[int]:
    """The keys that one more token reads."""
    found, choose = [], api.lightning_index
    with patch.object(api, "lightning_index", lambda *x, **named: found.append(choose(*x, **named)) or found[-1]):
        model(IDS[:1, :1], past_key_values=cache)
    return {int(i) for i in found[0].flatten() if i >= 0}


def test_what_ran_is_told() -> None:
    with record.listening() as heard:
        tiny("DBTK")(IDS)
    names = (
        "block_attention",
        "delta_rule",
        "full_attention",
        "lightning_index",
        "short_convolution",
        "sparse_attention",
    )
    assert record.told(heard) == {name: ["chunked"] for name in names}


def test_the_presets_are_there() -> None:
    want = {
        "sparse-dsa": "D" * 8, "hybrid-kda-dsa": "KKKDKKKD", "hybrid-gdn-dsa": "GGGDGGGD", "sparse-moba": "B" * 8,
        "sparse-nsa": "T" * 8,
    }  # fmt: skip
    assert {name: pattern_of(name) for name in want} == want
    assert set(want) <= set(PRESETS)
    assert pattern_of("".join(LETTERS)) == "".join(LETTERS)
    assert EvalsuiteConfig(pattern="DK").layer_types == ["full_attention", "linear_attention"]
    assert EvalsuiteConfig(pattern="D", max_position_embeddings=512).topk == 32


@pytest.mark.parametrize(("changes", "message"), [
    ({"index_phase": "warm"}, "index_phase must be"), ({"pattern": "T", "block_topk": 2}, "at least 3"),
    ({"index_topk": -5}, "index_topk must be at least 0"), ({"index_heads": 0}, "index_heads must be at least 1"),
    ({"index_loss_coef": -1.0}, "index_loss_coef must be"), ({"index_rope": 2.0}, "index_rope is a share"),
    ({"compressed_size": 3}, "compressed_size must be even"), ({"block_size": 0}, "block_size must be at least 1"),
])  # fmt: skip
def test_a_configuration_that_cannot_be(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalsuiteConfig(**changes)


def test_the_schedule_goes_from_dense_to_sparse_once() -> None:
    phases = [Recipe(dense=0.3).phase(step, 10) for step in range(10)]
    assert phases == ["dense"] * 3 + ["sparse"] * 7
    assert {Recipe(dense=0.0).phase(step, 10) for step in range(10)} == {"sparse"}
