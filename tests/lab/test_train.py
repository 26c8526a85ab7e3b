"""The trainer: it learns, it is deterministic, and an interrupted run ends in the same weights."""

import json
from dataclasses import replace
from functools import partialmethod
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evalsuite.errors import UserError
from evalsuite.lab.data import IGNORE, Stream, build
from evalsuite.lab.run import Plan, config_of, locked, train
from evalsuite.lab.train import Recipe, Trainer, publish, repeatable
from evalsuite.models import load
from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.modeling import Block, EvalsuiteForCausalLM

STREAM = Stream((("knowledge.cloze", 1.0),), lengths=((64, 1.0),), steps=30, tokens_per_step=256)
RECIPE = Recipe(lr=5e-3, warmup=5, bf16=False)


def config(pattern: str = "KF") -> EvalsuiteConfig:
    return config_of(pattern, Plan((pattern,), Path(), width=32))


def quiet(_: dict[str, float]) -> None:
    pass


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_same_seed_same_weights_other_seed_other_weights(tmp_path: Path) -> None:
    data = build(STREAM, tmp_path / "data")
    runs = []
    for i, seed in enumerate((0, 0, 1)):
        trainer = Trainer(config(), Recipe(lr=5e-3, warmup=5, bf16=False, seed=seed))
        trainer.run(STREAM, data, tmp_path / str(i), quiet)
        runs.append(weights(trainer))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


class KilledError(Exception):
    pass


def test_a_killed_run_ends_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = build(STREAM, tmp_path / "data")
    whole = Trainer(config(), RECIPE)
    whole.run(STREAM, data, tmp_path / "whole", quiet)

    first = Trainer(config(), RECIPE)
    update, count = first.update, 0

    def dying(*args: object) -> object:
        nonlocal count
        count += 1
        if count == 14:
            raise KilledError
        if count == 11:
            first.save(tmp_path / "part")
        return update(*args)

    monkeypatch.setattr(first, "update", dying)
    with pytest.raises(KilledError):
        first.run(STREAM, data, tmp_path / "part", quiet)
    again = Trainer(config(), RECIPE)
    again.run(STREAM, data, tmp_path / "part", quiet)
    assert equal(weights(again), weights(whole))


def test_true_labels_are_learned_and_shuffled_ones_are_not(tmp_path: Path) -> None:
    stream = Stream((("knowledge.cloze", 1.0),), lengths=((256, 1.0),), steps=150, tokens_per_step=2048)
    losses = {}
    for kind in ("true", "shuffled"):
        data = build(stream, tmp_path / kind)
        if kind == "shuffled":
            labels = np.load(data / "labels.npy")
            asked = labels != IGNORE
            labels[asked] = np.random.default_rng(0).permutation(labels[asked])
            np.save(data / "labels.npy", labels)
        lines: list[dict[str, float]] = []
        trainer = Trainer(config_of("FF", Plan(("FF",), Path(), width=64)), Recipe(lr=1e-2, warmup=10, bf16=False))
        trainer.run(stream, data, tmp_path / f"{kind}-out", lines.append)
        losses[kind] = lines[-1]["loss"]
    assert losses["true"] < 4.0
    assert losses["shuffled"] > 5.0  # the values' frequencies are all that is left to learn


def test_train_ships_a_checkpoint_that_answers(tmp_path: Path) -> None:
    said: list[str] = []
    folders = train(Plan(("KF", "conv-only"), tmp_path, steps=2, tokens_per_step=512, width=32), said.append)
    assert [folder.name for folder in folders] == ["KF", "conv-only"]
    assert any("tokens/s" in line for line in said)
    for folder in folders:
        model = load(str(folder))
        assert model.wording == "terse"
        made = json.loads((folder / "training.json").read_text())
        assert made["tokens"] == 1024
        assert made["command"]
    streams = [json.loads((folder / "training.json").read_text())["stream"] for folder in folders]
    assert streams[0] == streams[1]
    operators = {"KF": {"delta_rule", "full_attention"}, "conv-only": set()}
    for _ in range(2):  # the second time nothing is left to train
        for folder in train(Plan(("KF", "conv-only"), tmp_path, steps=2, tokens_per_step=512, width=32), said.append):
            ran = json.loads((folder / "training.json").read_text())["ran"]
            assert ran == {name: ["chunked"] for name in (operators[folder.name] | {"short_convolution"})}


def test_publish_rounds_to_bf16_and_nothing_else(tmp_path: Path) -> None:
    trainer = Trainer(config(), RECIPE)
    publish(trainer, tmp_path, {"wording": "terse"})
    model = load(str(tmp_path))
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name].float(), value.bfloat16().float())


@pytest.mark.parametrize(("name", "message"), [("hybrid-kdaa", "hybrid-kda"), ("KKQ", "unknown model")])
def test_an_unknown_design_fails_before_any_work(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(Plan(("full", name), tmp_path / "out"), print)
    assert not (tmp_path / "out").exists()


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    recipe = Recipe(warmup=10, cooldown=0.4)
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:61] == [1.0] * 52
    assert rates[-1] == pytest.approx(1 / 40)
    assert all(a >= b for a, b in pairwise(rates[60:]))


def test_every_preset_has_the_same_size_within_a_quarter() -> None:
    """Patterns share one width here; parameter matching belongs to the equal-budget lab."""
    from evalsuite.models.modeling import EvalsuiteForCausalLM
    from evalsuite.models.presets import PRESETS

    sizes = {}
    for name in PRESETS:
        with torch.device("meta"):
            model = EvalsuiteForCausalLM(config_of(name, Plan((name,), Path())))
        sizes[name] = sum(p.numel() for p in model.parameters())
    assert all(0.75 < size / sizes["full"] < 1.25 for name, size in sizes.items() if name != "conv-only")


def test_another_recipe_or_width_never_goes_on_with_a_run(tmp_path: Path) -> None:
    plan = Plan(("conv-only",), tmp_path, steps=2, tokens_per_step=512, width=32)
    train(plan, quiet_text)
    for changes, message in (({"lr": 0.5}, "lr: 0.002 -> 0.5"), ({"width": 64}, "hidden_size: 32 -> 64")):
        with pytest.raises(UserError, match=message):
            train(replace(plan, **changes), quiet_text)


def test_two_processes_never_train_in_one_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="another process is training"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1"),
        ({"steps": -5}, "--steps must be at least 1"),
        ({"tokens_per_step": 100}, "multiple of 512"),
        ({"tokens_per_step": 768}, "multiple of 512"),
        ({"lr": float("nan")}, "--lr must be a positive number"),
        ({"lr": -1.0}, "--lr must be a positive number"),
        ({"device": "foo"}, "give auto, cpu, cuda"),
        ({"width": 33}, "multiple of 16"),
    ],
)
def test_impossible_numbers_are_refused_before_any_work(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(replace(Plan(("full",), tmp_path / "out"), **changes), quiet_text)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        train(Plan(("full",), tmp_path / "file" / "x"), quiet_text)


def quiet_text(_: str) -> None:
    pass


@pytest.mark.parametrize("mimetic", [False, True])
def test_keys_start_as_queries_only_where_asked(mimetic: bool) -> None:
    model = Trainer(config_of("KFL", Plan(("KFL",), Path(), width=64, mimetic=mimetic)), RECIPE).model
    for block in model.model.layers:
        assert torch.equal(block.mixer.q_proj.weight, block.mixer.k_proj.weight) == mimetic


def test_what_is_recalled_is_spelled_as_what_is_read() -> None:
    model = Trainer(config(), RECIPE).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_run_never_goes_on_with_another_stream(tmp_path: Path) -> None:
    data = build(STREAM, tmp_path / "a")
    Trainer(config(), RECIPE).run(STREAM, data, tmp_path / "out", quiet)
    longer = replace(STREAM, steps=40)
    with pytest.raises(UserError, match="stream steps: 30 -> 40"):
        Trainer(config(), RECIPE).run(longer, build(longer, tmp_path / "b"), tmp_path / "out", quiet)


def test_a_damaged_state_is_one_line(tmp_path: Path) -> None:
    trainer = Trainer(config(), RECIPE)
    trainer.save(tmp_path)
    whole = (tmp_path / "trainer.pt").read_bytes()
    (tmp_path / "trainer.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read; remove it"):
        Trainer(config(), RECIPE).resume(tmp_path)


def test_an_indexer_never_shortens_a_step_of_the_model(tmp_path: Path) -> None:
    """Its loss is huge here; the model learns to the bit what it learns without, and history keeps the two apart."""
    data = build(STREAM, tmp_path / "data")
    trainers, histories = [], []
    for coef in (0.0, 1e4):
        design = config("DD")
        design.index_loss_coef = coef
        trainers.append(Trainer(design, replace(RECIPE, dense=1.0)))  # else what it chooses is what the model reads
        histories.append([])
        trainers[-1].run(replace(STREAM, steps=5), data, tmp_path / str(coef), histories[-1].append)
    first, second = (weights(trainer) for trainer in trainers)
    others = {name for name in first if ".index_" not in name}
    assert equal({name: first[name] for name in others}, {name: second[name] for name in others})
    assert not equal(first, second)
    assert histories[0][-1]["loss"] == histories[1][-1]["loss"]
    assert histories[0][-1]["index_loss"] == 0 < histories[1][-1]["index_loss"]


@pytest.mark.filterwarnings("ignore")  # torch compiles with many words about itself
def test_compiled_layers_learn_what_written_ones_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the model is asked in the midst of it, by rows of a length that nothing was compiled for."""
    traced = partialmethod(torch.nn.Module.compile, backend="aot_eager")  # no C++: minutes of it
    monkeypatch.setattr(Block, "compile", traced)
    stream = replace(STREAM, lengths=((64, 0.5), (128, 0.5)), steps=4)
    data, losses, asked = build(stream, tmp_path / "data"), [], []

    def probe(model: EvalsuiteForCausalLM) -> dict[str, float]:
        with torch.no_grad():
            asked.append(model.model(torch.ones(1, 7, dtype=torch.long)))
        return {}

    for compiled in (False, True):
        lines: list[dict[str, Any]] = []
        trainer = Trainer(config("SF"), RECIPE, compiled=compiled)
        trainer.run(stream, data, tmp_path / str(compiled), lines.append, probe)
        losses.append(lines[-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.allclose(*asked, atol=1e-4)


def test_a_command_can_be_typed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["evalsuite", "train", "--model", "C F"])
    (folder,) = train(Plan(("CF",), tmp_path, steps=1, tokens_per_step=512, width=16), quiet_line)
    assert json.loads((folder / "training.json").read_text())["command"] == "evalsuite train --model 'C F'"


def quiet_line(_: str) -> None:
    pass


def test_torch_is_as_it_was_after_a_repeatable_step() -> None:
    def dying() -> None:
        with repeatable("cuda"):
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            raise KilledError

    with pytest.raises(KilledError):
        dying()
    assert not torch.are_deterministic_algorithms_enabled()
    with repeatable("cuda", strict=False):
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    with repeatable("cpu"):
        assert not torch.are_deterministic_algorithms_enabled()
