"""A mixer of the user's own: trained, decoded and counted like those of the package."""

import sys
from pathlib import Path

import pytest
import torch

from evalsuite.errors import UserError
from evalsuite.lab.budget import TINY
from evalsuite.lab.match import CLOSE, parameters
from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.mixers import own
from evalsuite.models.modeling import EvalsuiteForCausalLM
from evalsuite.verbs import with_mixer

EXAMPLES = Path(__file__).parents[2] / "examples"
NAME = "XFXF@my_mixer:Forgetful"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_the_example_is_short_and_decodes_as_it_prefills(tmp_path: Path) -> None:
    assert len((EXAMPLES / "my_mixer.py").read_text().splitlines()) < 60
    torch.manual_seed(0)
    config = TINY.config(NAME)
    assert abs(parameters(config) / TINY.size(4) - 1) <= CLOSE
    model = EvalsuiteForCausalLM(config).eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.mixer.o_proj.weight, std=0.1)
    ids = torch.randint(3, 1000, (2, 12))
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        step = model(ids[:, :11], use_cache=True)
        last = model(ids[:, 11:], past_key_values=step.past_key_values, use_cache=True).logits
    torch.testing.assert_close(last[:, 0], whole[:, -1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(step.logits, whole[:, :11], atol=1e-4, rtol=1e-4)
    changed = ids.clone()
    changed[:, 6:] = 5
    with torch.no_grad():
        assert torch.equal(model(changed, use_cache=False).logits[:, :6], whole[:, :6])  # blind to the future
    assert [row["state"] > 1000 for row in model.state_bytes(64)] == [True, False, True, False]
    model.save_pretrained(tmp_path)
    again = EvalsuiteForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids, use_cache=False).logits, whole)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:A", "No module named"),
        ("my_mixer:Nobody", "write module:Class"),
        ("my_mixer:linear_attention", "no subclass"),
        ("", "write module:Class|mixer ''"),
    ],
)
def test_a_mixer_that_is_none_is_one_line(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        own(spec)


def test_layers_and_mixer_go_together() -> None:
    with pytest.raises(UserError, match="go together"):
        TINY.config("XF")
    with pytest.raises(UserError, match="go together"):
        TINY.config("KF@my_mixer:Forgetful")
    with pytest.raises(ValueError, match="go together"):
        EvalsuiteConfig(pattern="XF")
    with pytest.raises(UserError, match="for layers X"):
        with_mixer(["full"], "my_mixer:Forgetful")
    before = list(sys.path)
    assert with_mixer(["XXXF,full"], "a:B") == ["XXXF@a:B", "full"]
    sys.path[:] = before
