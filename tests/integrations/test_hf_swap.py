"""What is swapped, what is left alone, and what is refused."""

import copy
import json
import sys
from types import MethodType
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from evalsuite.errors import UserError
from evalsuite.integrations.hf import Swapped, use
from evalsuite.integrations.hf.architectures import ARCHITECTURES
from evalsuite.integrations.hf.cases import SMALL, VOCABULARY, build
from evalsuite.integrations.hf.rebind import rebound
from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.modeling import EvalsuiteForCausalLM

TOKENS = torch.randint(2, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(3))


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def untouched(model: PreTrainedModel) -> bool:
    names = {name for module in model.modules() for name in vars(module)}
    return (
        "_evalsuite_tally" not in names and "forward" not in names and model.config._attn_implementation != "evalsuite"
    )


@pytest.mark.parametrize("name", sorted(SMALL))
def test_undo_gives_back_the_bits_and_the_objects(name: str) -> None:
    model = build(name)
    config, before = model.config, logits(model)
    swapped = use(model)
    assert model.config is not config
    logits(model)
    assert len(swapped.calls) == sum(len(row["operators"]) for row in swapped.layers)
    swapped.undo()
    swapped.undo()
    counted = swapped.calls.total()
    assert torch.equal(logits(model), before)
    assert swapped.calls.total() == counted
    assert model.config is config
    assert untouched(model)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_second_model_of_the_class_and_even_of_the_config_is_untouched(name: str) -> None:
    first, second = build(name), build(name, seed=1)
    for module in second.modules():  # models made of one config object share it
        if "config" in vars(module):
            vars(module)["config"] = first.config
    before = logits(second)
    swapped = use(first)
    logits(first)
    counted = swapped.calls.total()
    assert torch.equal(logits(second), before)
    assert swapped.calls.total() == counted
    assert untouched(second)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_what_transformers_would_call_is_not_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the torch path")

    model = build(name)
    swapped = use(model)
    module = sys.modules[type(model).__module__]
    replaced = [each for each in vars(module) if each.endswith(("delta_rule", "delta_attention", "attention_forward"))]
    for each in replaced:
        monkeypatch.setattr(module, each, never)
    for each in vars(module).values():
        if isinstance(each, type) and each.__name__.endswith(("Indexer", "LightningAttention")):
            monkeypatch.setattr(each, "forward", never)
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", never)
    with torch.no_grad():
        model.generate(TOKENS, max_new_tokens=3, do_sample=False)
    swapped.undo()
    with pytest.raises(AssertionError, match="the torch path"):
        logits(model)


def test_two_swapped_models_count_apart() -> None:
    first, second = build("qwen3_next"), build("qwen3_next", seed=1)
    one, two = use(first), use(second)
    logits(first)
    assert one.calls.total() == 4
    assert two.calls.total() == 0
    one.undo()
    logits(second)
    assert two.calls.total() == 4


def test_a_swapped_model_is_not_copied() -> None:
    """The copy would count for the first, and could not be undone."""
    model = build("kimi_linear")
    swapped = use(model)
    with pytest.raises(UserError, match="cannot be copied"):
        copy.deepcopy(model)
    swapped.undo()
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))


def rows(swapped: Swapped) -> list[tuple[str, list[str]]]:
    assert [row["layer"] for row in swapped.layers] == list(range(len(swapped.layers)))
    return [(row["type"], row["operators"]) for row in swapped.layers]


def test_the_report_names_each_layer_and_what_runs_it() -> None:
    kimi = use(build("kimi_linear"))
    linear, full = ("linear_attention", ["delta_rule"]), ("full_attention", ["full_attention"])
    assert rows(kimi) == [linear, linear, full, linear]
    assert kimi.layers[0]["module"] == "KimiLinearDeltaAttention"
    glm = rows(use(build("glm_moe_dsa")))
    assert [operators for _, operators in glm] == [
        ["lightning_index", "sparse_attention"],
        ["sparse_attention"],  # shares the choice of the layer before
        ["lightning_index", "sparse_attention"],
    ]
    sliding, full = ("sliding_attention", ["full_attention"]), ("full_attention", ["full_attention"])
    assert rows(use(build("gpt_oss"))) == [sliding, full, sliding, full]
    assert rows(use(build("mistral"))) == [sliding, sliding]  # its config gives a window and no types
    assert rows(use(build("qwen2"))) == [full, full]
    record = kimi.as_record()
    assert json.loads(json.dumps(record)) == record
    assert record["architecture"] == "kimi_linear"
    assert record["implementations"] == {"delta_rule": "chunked", "full_attention": "chunked"}
    logits(kimi.model)
    assert kimi.as_record() == record  # of the run's identity: counts are not in it


def test_unknown_architecture() -> None:
    config = AutoConfig.for_model("gemma3_text", vocab_size=32, hidden_size=32, num_hidden_layers=1)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=r"architecture 'gemma3_text'; known: deepseek_v32, glm_moe_dsa.*qwen3_next"):
        use(model)
    own = EvalsuiteForCausalLM(EvalsuiteConfig(pattern="F", vocab_size=32, hidden_size=32))
    with pytest.raises(UserError, match="models of evalsuite run on the kernels as they are"):
        use(own)
    with pytest.raises(UserError, match="not into Linear"):
        use(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_an_unknown_layer_type_swaps_nothing() -> None:
    model = build("qwen3_next")
    before = logits(model)
    types = [*model.config.layer_types[:3], "chunked_attention"]
    model.config.layer_types = types
    with pytest.raises(
        UserError, match=r"layer 3 of this qwen3_next.*'chunked_attention'.*known: full_attention, linear"
    ):
        use(model)
    model.config.layer_types = list(SMALL["qwen3_next"]["layer_types"])
    assert untouched(model)
    assert torch.equal(logits(model), before)


def test_a_layer_built_otherwise_swaps_nothing() -> None:
    model = build("kimi_linear")
    layer: Any = model.model.layers[3]
    layer.self_attn = torch.nn.Identity()
    with pytest.raises(UserError, match=r"layer 3 \(linear_attention\).* 0 modules KimiLinearDeltaAttention"):
        use(model)
    assert untouched(model)


def test_a_model_is_swapped_once() -> None:
    model = build("llama")
    swapped = use(model)
    with pytest.raises(UserError, match="already"):
        use(model)
    logits(model)
    assert swapped.calls.total() == 2
    swapped.undo()
    use(model)


def test_a_forward_of_somebody_elses_is_not_overwritten() -> None:
    model = build("qwen3_next")
    mixer: Any = model.model.layers[0].linear_attn
    mixer.forward = MethodType(type(mixer).forward, mixer)
    with pytest.raises(UserError, match="layer 0: the forward of Qwen3NextGatedDeltaNet was replaced before"):
        use(model)


def test_naming_the_attention_is_not_enough() -> None:
    use(build("llama")).undo()  # the name is registered for good
    model = build("llama")
    model.set_attn_implementation("evalsuite")
    with pytest.raises(UserError, match="without having been swapped"):
        logits(model)


def test_lightning_with_other_decays_is_refused() -> None:
    model = build("minimax")
    model.model.layers[0].self_attn.slope_rate.mul_(1.1)
    with pytest.raises(UserError, match="layer 0 decays otherwise"):
        use(model)
    assert untouched(model)


def hooked(module: torch.nn.Module, seen: list[str]) -> None:
    """As accelerate hooks a module of a model with a device_map: its own forward stays in `_old_forward`."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(type(self).__name__)
        return self._old_forward(*args, **kwargs)

    module._hf_hook, module._old_forward = object(), module.forward  # type: ignore[assignment]
    module.forward = MethodType(forward, module)


@pytest.mark.parametrize("name", ["kimi_linear", "minimax", "deepseek_v32"])
def test_hooks_of_a_device_map_go_on_around_the_kernels(name: str) -> None:
    model, seen = build(name), []
    mixer = model.model.layers[0].self_attn
    wanted = logits(model)
    for module in mixer.modules():
        if type(module).__name__ in {*(m.name for m in ARCHITECTURES[name].values()), "DeepseekV32Indexer"}:
            hooked(module, seen)
    swapped = use(model)
    found = logits(model)
    assert len(seen) == len(swapped.layers[0]["operators"])
    assert swapped.calls.total() == sum(len(row["operators"]) for row in swapped.layers)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    swapped.undo()
    assert torch.equal(logits(model), wanted)
    assert len(seen) == 2 * len(swapped.layers[0]["operators"])


@pytest.mark.parametrize("name", ["kimi_linear", "minimax", "deepseek_v32"])
def test_a_device_map_that_keeps_layers_on_disk(name: str, tmp_path: Any) -> None:
    pytest.importorskip("accelerate")
    model = build(name)
    model.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    wanted, last = logits(model), len(model.model.layers) - 1
    where = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu"}
    where |= {f"model.layers.{i}": "disk" if i in (0, last) else "cpu" for i in range(last + 1)}
    there = {
        key: value for key, value in where.items() if key != "model.rotary_emb" or hasattr(model.model, "rotary_emb")
    }
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", device_map=there, offload_folder=tmp_path / "off", dtype=torch.float32
    )
    assert any(parameter.is_meta for parameter in again.parameters())
    swapped = use(again)
    assert swapped.as_record()["layers"] == swapped.layers
    assert (logits(again) - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert swapped.calls.total() == sum(len(row["operators"]) for row in swapped.layers)


def test_saved_and_read_again_a_swapped_model_is_a_plain_one(tmp_path: Any) -> None:
    model = build("qwen3_next")
    wanted = logits(model)
    use(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert untouched(again)
    assert torch.equal(logits(again), wanted)


def test_rebound_refuses_a_function_that_would_not_change() -> None:
    def calls_nothing() -> int:
        return 1

    with pytest.raises(UserError, match=r"calls_nothing of transformers .* does not call chunk_kda"):
        rebound(calls_nothing, {"chunk_kda": calls_nothing})
