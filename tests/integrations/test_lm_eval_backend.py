"""lm_eval's models inside ours: the native engine's tokens, nothing cut in silence, nothing computed lost."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from evalsuite import models, plan, runner, store
from evalsuite.errors import UserError
from evalsuite.integrations.lm_eval import opening
from evalsuite.models import ZOO
from evalsuite.models.base import Model
from evalsuite.models.own import OwnModel, open_checkpoint
from evalsuite.records import Sample

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed; lm_eval's backend hf needs it")
pytest.importorskip("tenacity", reason="tenacity is not installed; lm_eval's servers need it")

FOLDER = ZOO / "hybrid-kda"
HF = f"hf:pretrained={FOLDER},dtype=float32"


@pytest.fixture(scope="module")
def native() -> OwnModel:
    return open_checkpoint(FOLDER, "hybrid-kda", device="cpu")


@pytest.fixture(scope="module")
def hf() -> Any:
    return models.load(f"{HF},batch_size=4", device="cpu")


def planned(model: Model, limit: int, *names: str) -> plan.Plan:
    return plan.make(plan.select(names, lengths=(256,), limit=limit), model.wording)


def test_hf_on_a_zoo_checkpoint_is_the_native_engine_token_for_token(
    native: OwnModel, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy tokens, fp32, in padded batches of four against packed batches; log-likelihoods of choices beside them."""
    assert isinstance(hf, Model)
    assert hf.wording == "terse"
    assert hf.identity()["dtype"] == "float32"
    names = ("multihop.graph", "multihop.binding", "knowledge", "ruler.vt", "ruler.niah_multikey_2")
    seen: dict[str, list[int]] = {}
    made = hf.lm._model_generate

    def watched(context: torch.Tensor, **options: Any) -> torch.Tensor:
        out = made(context=context, **options)
        for row, written in zip(context.tolist(), out.tolist(), strict=True):
            seen[hf.lm.tokenizer.decode([t for t in row if t])] = [t for t in written[context.shape[1] :] if t]
        return out

    monkeypatch.setattr(hf.lm, "_model_generate", watched)
    theirs = runner.run(hf, planned(hf, 6, *names), tmp_path)
    native.tokens = {}
    ours = runner.run(native, planned(native, 6, *names), tmp_path)
    tokens, native.tokens = native.tokens, None
    assert [row["id"] for row in theirs.rows] == [row["id"] for row in ours.rows]
    compared = 0
    for his, own in zip(theirs.rows, ours.rows, strict=True):
        assert his["prompt_hash"] == own["prompt_hash"]
        assert his["prompt_tokens"] == own["prompt_tokens"]
        assert (his["text"], his["score"]) == (own["text"], own["score"]), own["id"]
        if own["choices"]:
            assert his["choice_logprobs"] == pytest.approx(own["choice_logprobs"], abs=2e-4)
        else:
            key = hf.lm.tokenizer.decode(native.encode(own["prompt"] + own["answer_prefix"]))
            assert seen[key][: len(tokens[own["id"]])] == tokens[own["id"]]
            compared += len(tokens[own["id"]])
    assert compared > 60
    assert {row["score"] for row in ours.rows} >= {0.0, 1.0}


def test_the_identity_is_of_the_weights_and_not_of_their_place(hf: Any, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(FOLDER, tmp_path / "copy")
    same = models.load(f"hf:pretrained={tmp_path / 'copy'},dtype=float32,batch_size=1,name=x", device="cpu")
    assert same.identity() == hf.identity()
    assert same.name == "x"
    other = models.load(f"hf:pretrained={ZOO / 'full'},dtype=float32", device="cpu")
    wide = models.load(f"hf:pretrained={FOLDER},dtype=bfloat16", device="cpu")
    cut = models.load(f"{HF},max_length=512", device="cpu")
    found = [json.dumps(model.identity(), sort_keys=True) for model in (hf, other, wide, cut)]
    assert len(set(found)) == 4
    assert cut.context == 512
    assert str(FOLDER) not in found[0]


@pytest.mark.parametrize("changed", ["generation_config.json", "adapter_config.json", "modeling_own.py", "template"])
def test_whatever_changes_answers_changes_the_identity(changed: str, tmp_path: Path) -> None:
    """A run that goes on would mix the answers of two models."""
    import shutil

    def opened(place: Path) -> Model:
        return models.load(f"hf:pretrained={place},dtype=float32,tokenizer={place},chat=true", device="cpu")

    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    for place in ("one", "same", "other"):
        shutil.copytree(FOLDER, tmp_path / place)
        text = template if (place, changed) != ("other", "template") else f"edge {template}"
        (tmp_path / place / "chat_template.jinja").write_text(text)
    if changed != "template":
        (tmp_path / "other" / changed).write_text('{"repetition_penalty": 1.5}')
    if changed == "adapter_config.json":  # beside weights, it is peft's to read
        found = [opening._weights(tmp_path / place) for place in ("one", "same", "other")]
    else:
        found = [json.dumps(opened(tmp_path / place).identity()) for place in ("one", "same", "other")]
    assert found[0] == found[1] != found[2]


def test_no_key_or_password_is_recorded() -> None:
    spec = f"local-completions:model=m,tokenizer={FOLDER},tokenizer_backend=huggingface,max_length=99,auth_token=SECRET"
    model = models.load(f"{spec},base_url=http://127.0.0.1:9/v1/completions", device="cpu")
    assert "SECRET" not in json.dumps(model.identity())
    assert model.context == 98  # lm_eval keeps one token of them


def test_what_does_not_fit_is_an_error_and_the_edge_still_fits(hf: Any) -> None:
    small: Any = models.load(f"{HF},max_length=64", device="cpu")
    word = "edge "
    for new, fits in ((64 - 50 - 1, True), (64 - 50, False)):
        sample = Sample("s", "t", (word * 50).strip(), (), max_new_tokens=new)
        (found,) = small.answer([sample])
        assert found.prompt_tokens == 51 == small.count(sample.text)
        assert (not found.error) == fits, found
    (long,) = hf.answer([Sample("s", "t", (word * (hf.context - 1)).strip(), (), choices=(" edge", " edge edge"))])
    assert f"> context {hf.context}" in long.error
    (empty,) = hf.answer([Sample("s", "t", "edge", (), choices=("", " edge"))])
    assert "adds no token" in empty.error


def test_choices_without_a_prompt_are_ranked_as_lm_eval_ranks_them(hf: Any) -> None:
    """Some of its tasks ask which of two sentences is likelier, after nothing."""
    from lm_eval.api.instance import Instance

    asked = Sample("s", "t", "", (), choices=("edge a b", "b edge", "fowa"))
    (found,) = hf.answer([asked])
    pairs = [Instance("loglikelihood", {}, ("", choice), 0) for choice in asked.choices]
    assert found.error == ""
    assert found.choice_logprobs == pytest.approx([value for value, _ in hf.lm.loglikelihood(pairs)], abs=1e-5)
    assert found.text == asked.choices[max(range(3), key=found.choice_logprobs.__getitem__)]


def test_answers_end_at_stops_and_limits(hf: Any, native: OwnModel) -> None:
    first = Sample("a", "t", "edge a b edge b c hop", (), max_new_tokens=8)
    (plain,) = hf.answer([first])
    assert (plain.finish, plain.completion_tokens) == ("length", 8)
    end = plain.text.split()[0][-2:]
    stopped = replace(first, stop=("??", "!!", "..", ",,", end))  # more than the four that some servers take
    (found,), (own,) = hf.answer([stopped]), native.answer([stopped])
    assert found.text == own.text == plain.text.split()[0][:-2]
    assert found.finish == own.finish == "stop"


def test_draws_depend_on_the_sample_alone(hf: Any) -> None:
    draws = [Sample(f"d{i}", "t", "edge a b hop", (), max_new_tokens=12, temperature=1.5) for i in range(4)]
    together = {c.sample_id: c.text for c in hf.answer(draws)}
    torch.rand(3)
    apart = {c.sample_id: c.text for sample in reversed(draws) for c in hf.answer([sample])}
    assert together == apart
    assert len(set(together.values())) > 1


def test_an_error_loses_nothing_that_was_computed(native: OwnModel, tmp_path: Path) -> None:
    model: Any = models.load(f"{HF},batch_size=2,slice=100", device="cpu")
    real, calls = model.lm._model_generate, []

    def dies(**options: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory\nand more")
        return real(**options)

    model.lm._model_generate = dies
    asked = planned(model, 6, "multihop.graph")
    with pytest.raises(UserError, match="RuntimeError: out of memory; what was answered is stored"):
        runner.run(model, asked, tmp_path)
    assert len(store.read(tmp_path / model.name).rows) == 6
    rows = runner.run(model, planned(model, 6, "multihop.graph"), tmp_path).rows
    whole = runner.run(native, planned(native, 6, "multihop.graph"), tmp_path).rows
    assert [row["text"] for row in rows] == [row["text"] for row in whole]


@pytest.mark.parametrize(
    ("spec", "kernels", "message"),
    [
        ("hff:pretrained=x", "auto", "unknown model 'hff:pretrained=x'"),
        ("hf:pretrained=a/b/c", "auto", "lm_eval cannot open hf"),
        ("vllm:pretrained=x", "auto", r"vllm needs a package that is not installed.*pip install 'lm-eval\[vllm\]'"),
        (HF, "triton", "hf alone takes --kernels evalsuite"),
        ("hf:pretrained=./no/folder", "auto", r"^hf: there is no \./no/folder$"),
        ("dummy:", "evalsuite", "hf alone takes --kernels evalsuite"),
        ("dummy:", "auto", "dummy counts no tokens"),
        ("dummy:tokenizer=bytes", "auto", "does not say how long"),
        (f"{HF},max_length=many", "auto", "max_length=many is no number"),
        (
            f"local-completions:model=m,tokenizer={FOLDER},tokenizer_backend=huggingface",
            "auto",
            "write local-completions",
        ),
        ("local-chat-completions:model=m,max_length=100", "auto", "counts no tokens"),
        (f"{HF},truncation=true", "auto", "no prompt is cut here"),
        ("local-completions:model=m,base_url=http://a:SECRET@h/v1", "auto", "base_url holds a password, which"),
        (f"{HF},slice=x", "auto", "slice=x is no number of samples"),
        (f"{HF},wording=terce", "auto", "did you mean 'terse'"),
        (f"{HF},chat=maybe", "auto", "chat=maybe is neither true nor false"),
        (f"{HF},chat=true", "auto", "it has no chat template .*leave chat out"),
        (
            f"local-completions:model=m,base_url=http://127.0.0.1:9/v1,tokenizer={FOLDER},max_length=99,chat=true,"
            "tokenizer_backend=huggingface,tokenized_requests=false",
            "auto",
            "its prompts are not made here",
        ),
        ("local-completions:model=m,max_length=100,tokenizer_backend=None", "auto", "counts no tokens"),
    ],
)
def test_what_cannot_be_opened_is_one_line(spec: str, kernels: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as found:
        models.load(spec, device="cpu", kernels=kernels)
    assert "\n" not in str(found.value)
    assert "SECRET" not in str(found.value)


def test_names_are_checked_before_anything_is_loaded() -> None:
    models.check("hf:pretrained=/nowhere")
    models.check("local-completions:x=1")
    with pytest.raises(UserError, match="unknown model 'hff:x'"):
        models.check("hff:x")


def test_a_length_that_only_lm_eval_assumes_is_none(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

    BloomForCausalLM(BloomConfig(vocab_size=1035, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"hf:\.\.\.,max_length=N"):
        models.load(f"hf:pretrained={tmp_path}", device="cpu")
    assert models.load(f"hf:pretrained={tmp_path},max_length=300", device="cpu").context == 300


class Swapped:
    """What `evalsuite.integrations.hf.use` gives: rows of layers, and calls as they are counted."""

    def __init__(self, calls: dict[tuple[int, str], int]) -> None:
        self.layers = [{"layer": i, "type": "full_attention", "operators": ["full_attention"]} for i in range(2)]
        self.layers.append({"layer": 2, "type": "none", "operators": []})
        self.calls = calls

    def as_record(self) -> dict[str, Any]:
        return {"kernels": "evalsuite", "layers": self.layers}


@pytest.mark.parametrize("idle", [False, True])
def test_kernels_of_ours_are_recorded_and_an_idle_layer_is_an_error(
    idle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = ModuleType("evalsuite.integrations.hf")
    swapped = Swapped({(0, "full_attention"): 3} | ({} if idle else {(1, "full_attention"): 3}))
    given: list[object] = []
    fake.use = lambda model: (given.append(model), swapped)[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "evalsuite.integrations.hf", fake)
    model: Any = models.load(HF, device="cpu", kernels="evalsuite")
    assert given == [model.lm.model]
    assert model.identity()["kernels"] == swapped.as_record()
    answers = model.answer([Sample("s", "t", "edge a", (), max_new_tokens=1)])
    assert next(answers).sample_id == "s"
    if idle:
        with pytest.raises(UserError, match="layers 1 of hf-hybrid-kda ran without our operators"):
            next(answers)
    else:
        assert list(answers) == []
        assert model.ran() == {"full_attention": ["evalsuite"]}


def test_a_backend_without_log_probabilities_ranks_nothing(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise NotImplementedError("no log probabilities here")

    monkeypatch.setattr(hf.lm, "loglikelihood", cannot)
    choices = [Sample(f"c{i}", "t", "edge", (), choices=(" a", " b")) for i in range(3)]
    found = list(hf.answer([*choices, Sample("w", "t", "edge", (), max_new_tokens=1)]))
    assert ["no log probabilities" in c.error for c in found] == [True] * 3 + [False]
