"""Equal parameters: every preset within a percent of full attention, at every width that the lab uses."""

import pytest

from evalsuite.errors import UserError
from evalsuite.lab.budget import REFERENCE, TINY
from evalsuite.lab.match import CLOSE, matched, parameters
from evalsuite.models.modeling import EvalsuiteForCausalLM
from evalsuite.models.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_as_large_as_full_attention(name: str) -> None:
    config = REFERENCE.config(name)
    size = REFERENCE.size(len(config.pattern))
    assert abs(parameters(config) - size) <= CLOSE * size


def test_the_count_is_that_of_the_model_itself() -> None:
    config = TINY.config("KFKD")
    assert parameters(config) == sum(p.numel() for p in EvalsuiteForCausalLM(config).parameters())


def test_depth_is_matched_within_itself() -> None:
    assert REFERENCE.size(16) > 1.8 * REFERENCE.size(8)
    assert abs(parameters(REFERENCE.config("KKKF" * 4)) / REFERENCE.size(16) - 1) <= CLOSE


def test_what_cannot_be_matched_says_so() -> None:
    settings = {"pattern": "TTTT", "hidden_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1}
    with pytest.raises(UserError, match="no width of them brings it to 20,000"):
        matched(settings, 20_000)
