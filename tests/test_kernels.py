"""Same weights, other kernels: right ones show nothing, and each planted fault is found in the layers that have it."""

import json
import math
from dataclasses import replace

import pytest
import torch

from evalsuite import kernels, models, plan, verbs
from evalsuite.errors import UserError
from evalsuite.kernels import Agreement
from evalsuite.models import layerwise
from evalsuite.models.own import OwnModel
from evalsuite_kernels import delta, linear
from planted import FAULTS, LETTER, plant

NAME = "hybrid-kda-dsa"  # KKKD KKKD: recurrences, and layers that choose


def model(name: str = NAME, dtype: str = "auto") -> OwnModel:
    found = models.load(name, device="cpu", kernels="chunked", dtype=dtype)
    assert isinstance(found, OwnModel)
    return found


def asked(one: OwnModel, other: str, limit: int = 2, prompts: int = 1) -> Agreement:
    selection = plan.select(
        ["multihop.graph", "knowledge.letter"], lengths=[256], limit=limit, settings=["multihop.hops=2"]
    )
    return kernels.compare(one, other, plan.make(selection, "terse"), prompts=prompts)


def test_a_kernel_beside_itself_is_equal_to_the_bit_and_says_so() -> None:
    found = asked(model(), "chunked")
    assert found.equal
    assert found.begins is None
    assert kernels.says(found).endswith("equal to the bit, in every layer, gold answer, token and score")
    assert {s.tokens > 0 for s in found.samples} == {True}
    assert all(s.losses[0] > 0 for s in found.samples), "a gold answer was asked of every sample"


def test_a_right_kernel_differs_by_rounding_and_nothing_begins() -> None:
    found = asked(model(), "reference")
    assert not found.equal
    assert found.begins is None
    assert 0 < max(at.error.own for at in found.layers) < found.tolerance / 3
    assert all(abs(s.loss_gap) < 1e-3 and s.agreed == s.tokens for s in found.samples)
    assert "no layer differs by more than 1e-05, which rounding in float32 explains" in kernels.says(found)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_where_it_is(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, fault)
    found = asked(model(), "reference")
    assert found.begins is not None
    assert found.begins.error.letter == LETTER[fault]
    over = {at.error.letter for at in found.layers if at.error.own > found.tolerance}
    assert over == {LETTER[fault]}, "a layer that reads right states makes none of the difference"
    begun = found.begins
    here = [at.error for at in found.layers if at.length == begun.length and at.error.layer >= begun.error.layer]
    assert all(error.carried > found.tolerance for error in here), "what follows reads what went wrong"
    assert any(s.loss_gap for s in found.samples)
    text = "\n".join(str(section.rows) for section in kernels.sections(found))
    assert f"'layer {found.begins.error.layer}'" in text
    assert "nowhere" in text


def test_only_what_was_planted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted implementation without a fault passes: the tests above find faults, and not the planting."""
    plant(monkeypatch, "none")
    assert asked(model(), "reference").begins is None


def test_a_fault_of_decoding_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are right, and each step forgets a little: no pass over whole prompts would show it."""
    right = delta.api.FORMS["chunked"]

    def forgets(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        *inputs, S = tensors
        return right(*inputs, S * 0.99 if inputs[0].shape[1] == 1 else S)

    monkeypatch.setitem(delta.api.FORMS, "reference", forgets)
    found = asked(model(), "reference")
    assert found.begins is not None
    assert found.begins.error.letter == "K"


def test_states_that_are_no_numbers_are_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    right = delta.api.FORMS["chunked"]

    def broken(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        o, S = right(*tensors)
        return o * math.nan, S

    one = model()
    monkeypatch.setitem(delta.api.FORMS, "reference", broken)
    (first, *_) = layerwise.layer_errors(one, one.with_kernels("reference"), one.encode("a b c d e f g h i j k l"))
    assert first.own == first.largest == first.carried == math.inf


def test_lightning_has_its_own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    right = linear.api.FORMS["chunked"]

    def mixed(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        o, S = right(*tensors)
        return o + 0.01 * o.flip(-1), S  # a mere factor would be lost in each head's norm

    monkeypatch.setitem(linear.api.FORMS, "reference", mixed)
    found = asked(model("hybrid-lightning"), "reference", limit=1)
    assert found.begins is not None
    assert (found.begins.error.letter, found.begins.error.layer) == ("L", 0)
    assert "in layer 0 (L, Lightning attention)" in kernels.says(found)


def test_the_first_length_with_a_difference_is_named() -> None:
    found = asked(model(), "chunked", limit=1)
    at = found.layers[5]
    longer = replace(at, length=512, error=replace(at.error, own=0.1))
    later = replace(at, length=1024, error=replace(at.error, layer=0, own=0.9))
    assert replace(found, layers=(*found.layers, later, longer)).begins == longer


def test_answers_of_one_model_are_compared_token_by_token() -> None:
    found = asked(model(), "chunked", limit=1)
    (sample, *_) = [s for s in found.samples if s.task == "multihop.graph"]
    apart = replace(sample, agreed=0, scores=(1.0, 0.0), losses=(0.1, 0.4))
    assert not replace(found, samples=(apart,)).equal
    assert kernels.difference([apart] * 9).value == -1.0
    rows = kernels.sections(replace(found, samples=(apart,)))[1].rows
    assert rows[0][3:5] == ("+3.0e-01", "3.0e-01")
    assert (rows[0][5], rows[0][6], rows[0][8]) == ("0.0000", "1", "1")


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    one = verbs.Asked(["full"], ["multihop.graph"], "256", 1, settings=["multihop.hops=1"], kernels="reference")
    verbs.kernels(one, "chunked", "json", prompts=1, tolerance=None)
    value = json.loads(capsys.readouterr().out)
    assert value["kernels"] == ["chunked", "reference"]
    assert len(value["layers"]) == 8
    assert value["samples"][0]["losses"][0] > 0
    assert value["begins"] is None
    verbs.kernels(one, "chunked", "md", prompts=1, tolerance=1e-9)
    said = capsys.readouterr().out
    assert "| 256    | F, full attention without positions |      8 | layer 0 |" in said
    assert said.splitlines()[-1].startswith(
        "full, reference beside chunked: a difference begins at 256 tokens in layer 0"
    )
    with pytest.raises(UserError, match="kernels are compared for one model; leave out hybrid-kda"):
        verbs.kernels(replace(one, models=["full,hybrid-kda"]), "chunked", "", prompts=1, tolerance=None)
    with pytest.raises(UserError, match="unknown format 'csv'"):
        verbs.kernels(one, "chunked", "csv", prompts=1, tolerance=None)
