"""Loading a checkpoint: every way it can be broken gives one line, and no weight is made up in silence."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import evalsuite.models
from evalsuite.errors import UserError
from evalsuite.models import load, names
from evalsuite.models.base import Model
from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.modeling import EvalsuiteForCausalLM
from evalsuite.models.presets import PRESETS
from evalsuite.models.tokenizer import build_tokenizer
from evalsuite.records import Sample

TOKENIZER = build_tokenizer(64)


def write(folder: Path, *, dtype: torch.dtype = torch.bfloat16, shards: str = "5GB", **changes: object) -> Path:
    torch.manual_seed(1)
    settings: dict[str, object] = {
        "vocab_size": len(TOKENIZER), "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 16, "intermediate_size": 48, "pattern": "KSF", "max_position_embeddings": 64,
    }  # fmt: skip
    model = EvalsuiteForCausalLM(EvalsuiteConfig(**{**settings, **changes}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


def refusal(spec: object, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        load(str(spec), device="cpu", **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_checkpoint_answers_with_exactly_its_weights(pristine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = torch.random.get_rng_state()
    model = load(str(pristine), device="cpu")
    assert torch.equal(state, torch.random.get_rng_state()), "loading moved the caller's random generator"
    assert isinstance(model, Model)
    assert (model.name, model.context) == ("tiny", 64)
    assert model.identity()["dtype"] == "float32"
    stored = load_file(pristine / "model.safetensors")
    loaded = model.model.state_dict()  # type: ignore[attr-defined]
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], value.float()) for name, value in stored.items())
    (completion,) = model.answer([Sample("a", "t", "grass sky", ("x",), max_new_tokens=3)])
    assert completion.error == ""
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_other_dtypes_and_devices(pristine: Path) -> None:
    assert load(str(pristine), device="cpu", dtype="bfloat16").identity()["dtype"] == "bfloat16"
    assert "unknown dtype 'int3'; give auto" in refusal(pristine, dtype="int3")
    with pytest.raises(UserError, match="unknown device 'toaster'"):
        load(str(pristine), device="toaster")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch finds none; use --device cpu"):
            load(str(pristine), device="cuda")


def test_bf16_picks_the_same_tokens_from_an_fp32_head(pristine: Path) -> None:
    model = load(str(pristine), device="cpu", dtype="bfloat16")
    hidden = torch.zeros(1, 32, dtype=torch.bfloat16)
    assert model.engine.head(hidden).dtype == torch.float32  # type: ignore[attr-defined]


def test_shards_and_tied_weights(tmp_path: Path, pristine: Path) -> None:
    sharded = write(tmp_path / "sharded", shards="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    one, many = load(str(pristine), device="cpu"), load(str(sharded), device="cpu")
    ours, theirs = one.model.state_dict(), many.model.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    tied = load(str(write(tmp_path / "tied", tie_word_embeddings=True)), device="cpu").model  # type: ignore[attr-defined]
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    next(sharded.glob("*-00001-*.safetensors")).unlink()
    assert "is missing, though model.safetensors.index.json names it" in refusal(sharded)


@pytest.mark.parametrize(
    ("training", "config", "wording"),
    [
        (None, {}, "natural"),
        ({}, {}, "terse"),
        ({"wording": "natural"}, {}, "natural"),
        (None, {"wording": "terse"}, "terse"),
    ],
)
def test_wording(checkpoint: Path, training: object, config: dict[str, str], wording: str) -> None:
    if training is not None:
        (checkpoint / "training.json").write_text(json.dumps(training))
    edit(checkpoint / "config.json", **config)
    assert load(str(checkpoint), device="cpu").wording == wording


def test_a_wording_that_does_not_exist(checkpoint: Path) -> None:
    (checkpoint / "training.json").write_text('{"wording": "florid"}')
    assert "wording 'florid'; it must be 'terse' or 'natural'" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("file", "fix"),
    [
        ("config.json", "no config.json in"),
        ("model.safetensors", "no model.safetensors in"),
        ("tokenizer.json", "no tokenizer.json in"),
    ],
)
def test_a_missing_file_is_named(checkpoint: Path, file: str, fix: str) -> None:
    (checkpoint / file).unlink()
    message = refusal(checkpoint)
    assert message.startswith(f"{fix} {checkpoint}; ")
    assert "save" in message


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"{", b"", b"[1, 2]", b"\xff\xfe"])
def test_json_that_is_none(checkpoint: Path, file: str, content: bytes) -> None:
    (checkpoint / file).write_bytes(content)
    assert refusal(checkpoint).startswith(str(checkpoint / file))


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer(checkpoint: Path, content: str) -> None:
    (checkpoint / "tokenizer.json").write_text(content)
    assert refusal(checkpoint).startswith(f"{checkpoint / 'tokenizer.json'} is no valid tokenizer: ")


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_truncated_weights(checkpoint: Path, keep: int) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert refusal(checkpoint).startswith(f"{file} is damaged or truncated (")


def test_weights_that_are_no_safetensors(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(b"\xff" * 4096)
    assert refusal(checkpoint).startswith(f"{file} is damaged or truncated (")


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    file = folder / "model.safetensors"
    tensors = {**load_file(file), **change}
    save_file({name: value for name, value in tensors.items() if value is not None}, file, metadata={"format": "pt"})


def test_weights_are_neither_made_up_nor_ignored(checkpoint: Path) -> None:
    rewrite(checkpoint, {"model.norm.weight": None})
    message = refusal(checkpoint)
    assert "lacks model.norm.weight; config.json and weights do not belong together" in message
    rewrite(checkpoint, {"model.norm.weight": torch.ones(32), "model.extra": torch.ones(1), "a": torch.ones(1)})
    assert "config.json does not know: a and 1 more" in refusal(checkpoint)


@pytest.mark.parametrize("value", [torch.ones(31), torch.ones(1, 32), torch.ones(32, dtype=torch.int8)])
def test_a_weight_of_another_shape_or_kind(checkpoint: Path, value: torch.Tensor) -> None:
    rewrite(checkpoint, {"model.norm.weight": value})
    message = refusal(checkpoint)
    assert message.startswith(f"{checkpoint / 'model.safetensors'}: model.norm.weight has ")
    assert ("int8" if value.dtype == torch.int8 else "config.json asks for [32]") in message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "llama"}, "has model_type 'llama', and only 'evalsuite' is read"),
        ({"model_type": None}, "has model_type None"),
        ({"pattern": "KQF"}, "is no valid configuration: pattern 'KQF' has unknown layers"),
        ({"hidden_size": "wide"}, "is no valid configuration: "),
        ({"num_key_value_heads": 0}, "is no valid configuration: "),
        ({"pattern": 3}, "pattern must be a string"),
        ({"pattern": None}, "pattern must be a string"),
        ({"conv_size": 0}, "conv_size is 0, and must be at least 1"),
        ({"num_experts": -1}, "num_experts is -1, and must be at least 0"),
        ({"eos_token_id": "two"}, "is no valid configuration: "),
        ({"rope_theta": None}, "is no valid configuration: "),
        ({"hidden_size": -1}, "is no valid configuration: "),
        ({"pattern": "FSK"}, "do not belong together"),
        ({"pattern": "KS"}, "do not belong together"),
        ({"head_dim": 8}, "config.json asks for"),
        ({"vocab_size": 900}, f"has token {len(TOKENIZER) - 1}, but config.json has a vocab_size of 900"),
    ],
)
def test_a_config_that_does_not_fit(checkpoint: Path, changes: dict[str, object], says: str) -> None:
    edit(checkpoint / "config.json", **changes)
    assert says in refusal(checkpoint)


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    assert "unknown model 'hybrid-kdq'; did you mean 'hybrid-kda'?" in refusal("hybrid-kdq")
    assert "unknown model 'hff:pretrained=x'" in refusal("hff:pretrained=x")
    assert "unknown model ''" in refusal("")
    (tmp_path / "weights.bin").write_text("")
    assert "is a file; give the checkpoint folder" in refusal(tmp_path / "weights.bin")
    assert "no config.json in" in refusal(tmp_path)


def test_a_preset_is_its_checkpoint_in_the_zoo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pristine: Path) -> None:
    monkeypatch.setattr(evalsuite.models, "ZOO", tmp_path)
    message = refusal("full")
    assert message == (
        "preset 'full' has no shipped checkpoint; train it with `evalsuite train --model full` "
        "or give a checkpoint folder"
    )
    assert not any(listed.shipped for listed in names())
    shutil.copytree(pristine, tmp_path / "full")
    (tmp_path / "full" / "training.json").write_text("{}")
    model = load("full", device="cpu")
    assert (model.name, model.wording) == ("full", "terse")
    assert [listed.name for listed in names() if listed.shipped] == ["full"]


@dataclass
class Parrot:
    """A plugin: a class that satisfies the protocol by its shape alone."""

    args: str

    def __post_init__(self) -> None:
        self.name, self.context, self.wording, self.speed = "parrot", 8, "natural", None

    def identity(self) -> dict[str, str]:
        return {}

    count = cost = answer = identity


def not_a_model(args: str) -> str:
    return args


def test_plugins_come_before_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    here = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "a_plugin", here)
    group = "evalsuite.models"
    found = [EntryPoint("parrot", "a_plugin:Parrot", group), EntryPoint("full", "a_plugin:Parrot", group),
             EntryPoint("broken", "a_plugin:not_a_model", group)]  # fmt: skip
    monkeypatch.setattr(evalsuite.models, "entry_points", lambda group: found)
    assert load("parrot:x=1,url=http://a:2").args == "x=1,url=http://a:2"  # type: ignore[attr-defined]
    assert load("full").args == ""  # type: ignore[attr-defined]
    assert "plugin 'broken' (a_plugin:not_a_model) returns no" in refusal("broken:1")
    assert "did you mean 'parrot'?" in refusal("parott")
    assert {listed.name for listed in names()} == {*PRESETS, "parrot", "broken"}


def test_identity_follows_the_bytes_of_the_checkpoint(checkpoint: Path) -> None:
    before = load(str(checkpoint), device="cpu").identity()
    assert json.loads(json.dumps(before)) == before
    assert load(str(checkpoint), device="cpu").identity() == before
    edit(checkpoint / "config.json", window=7)
    assert load(str(checkpoint), device="cpu").identity()["config"] != before["config"]
    rewrite(checkpoint, {"model.norm.weight": torch.full((32,), 2.0)})
    assert load(str(checkpoint), device="cpu").identity()["weights"] != before["weights"]


def test_the_list_of_models_imports_no_torch() -> None:
    code = (
        "import sys, evalsuite.models as m; assert m.names(); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_head_beside_tied_embeddings_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "tied", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros_like(tensors["model.embed_tokens.weight"])
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head\.weight is another than the embeddings"):
        load(str(folder), device="cpu")
