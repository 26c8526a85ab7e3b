"""Probes: the same answers as asking each question alone, and no question that they cannot judge."""

import pytest
import torch

from evalsuite.errors import UserError
from evalsuite.lab.budget import TINY
from evalsuite.lab.probe import Probe, Questions, solved
from evalsuite.models.modeling import EvalsuiteForCausalLM
from evalsuite.models.own import OwnModel
from evalsuite.models.tokenizer import build_tokenizer

QUESTIONS = (
    Questions("multihop.graph", 20, (128,), ("multihop.hops=1,2,3", "multihop.facts=8")),
    Questions("knowledge", 10, (), ("knowledge.load=64",)),
)


def model(pattern: str = "KF") -> EvalsuiteForCausalLM:
    torch.manual_seed(0)
    made = EvalsuiteForCausalLM(TINY.config(pattern * 2))
    made.config.max_position_embeddings = 512
    return made


def test_a_probe_agrees_with_the_engine_question_by_question() -> None:
    net = model()
    probe = Probe(QUESTIONS)
    assert len(probe.rows) < len(probe.spots) == 80  # hops 1 and 2 are asked on the way to hop 3
    asked = OwnModel("x", net, build_tokenizer(512))
    right: dict[str, list[float]] = {}
    for each in QUESTIONS:
        made = each.plan()
        pairs = list(made.samples(asked.count))
        answers = {c.sample_id: c for c in asked.answer([sample for _, sample in pairs])}
        for item, sample in pairs:
            facets = ", ".join(f"{k}={v}" for k, v in sorted(item.cell.facets.items()))
            score = item.task.score(sample, answers[sample.id]).value
            right.setdefault(f"{item.cell.task} ({facets})", []).append(score)
    assert probe.measure(net) == pytest.approx({cell: sum(v) / len(v) for cell, v in right.items()})
    assert max(probe.measure(net).values()) > 0  # letters are right by chance: there is something to agree about


def test_a_probe_leaves_the_model_as_it_was() -> None:
    net = model("DF").train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    Probe(QUESTIONS).measure(net)
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_batches_hold_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, net = Probe(QUESTIONS), model()
    whole = probe.measure(net)
    monkeypatch.setattr("evalsuite.lab.probe.TOKENS", 200)
    batches = probe._batches()
    assert [i for batch in batches for i in batch] == list(range(len(probe.rows)))
    assert len(batches) > 10
    assert probe.measure(net) == whole


def test_an_answer_of_several_words_is_refused() -> None:
    with pytest.raises(UserError, match="more than one word"):
        Probe([Questions("ruler.vt", 1, (256,))])


def test_solved_means_reached_and_kept() -> None:
    def line(tokens: int, value: float) -> dict[str, object]:
        return {"tokens": tokens, "probe": {"a": value}}

    lines = [line(1, 0.95), line(2, 0.5), {"tokens": 3}, line(4, 0.92), line(5, 0.99)]
    assert solved(lines, "a") == 4
    assert solved(lines[:3], "a") is None
    assert solved(lines, "b") is None
