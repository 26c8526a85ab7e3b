"""Training documents of a chosen extent, and the chain of thought that small models learn: one hop at a time."""

import re
from itertools import pairwise

import pytest

from evalsuite.errors import UserError
from evalsuite.records import Completion
from evalsuite.task import Request
from evalsuite_tasks.multihop import Multihop

TASK = Multihop()


def queries(document, word):
    starts = [i for i, each in enumerate(document.words) if each == word]
    bounds = pairwise([*starts, len(document.words)])
    return [(document.words[a:b], document.labels[a:b]) for a, b in bounds]


def edges(words):
    text = " ".join(words)
    plain = dict(re.findall(r"\bedge (\w+) (\w+)(?= edge| noise| ask| trace)", text))
    typed = {(a, r): b for a, r, b in re.findall(r"edge (\w+) (\w+) (\w+)(?= edge| noise| ask| trace)", text)}
    return plain, typed


@pytest.mark.parametrize("subtask", TASK.subtasks())
def test_knobs_bound_facts_and_hops(subtask):
    depths, loads = [], []
    for index in range(100):
        document = TASK.document(subtask, 0, index, 512, facts=24, hops=3)
        facts = re.findall(r"\b(?:edge|def) ", " ".join(document.words))
        loads.append(len(facts))
        asked = [labels for words, labels in queries(document, "ask") if "trace" not in words]
        depths += [sum(label is not None for label in labels) for labels in asked]
    assert max(loads) in range(20, 25)
    assert max(depths, default=3) == (4 if subtask == "binding" else 3)


@pytest.mark.parametrize("subtask", ["graph", "path"])
def test_a_thought_writes_every_node_before_the_next_is_asked(subtask):
    for index in range(40):
        document = TASK.document(subtask, 0, index, 256, answer="cot")
        assert len(document.words) <= 256
        plain, typed = edges(document.words)
        found = queries(document, "trace")
        assert found
        assert "ask" not in document.words
        for words, labels in found:
            cut = words.index("are")
            steps, walk = words[2:cut], words[cut + 1 :]
            node = words[1]
            for step, reached in zip(steps, walk, strict=True):
                node = plain[node] if step == "next" else typed[node, step]
                assert node == reached
            assert labels == (*[None] * cut, *walk, None)


@pytest.mark.parametrize(
    ("subtask", "knobs", "message"),
    [
        ("graph", {"fact": 3}, "did you mean.*facts|facts"),
        ("chain", {"answer": "cot"}, "answer"),
        ("graph", {"facts": "many"}, "not possible"),
        ("graph", {"hops": 0}, "not possible"),
    ],
)
def test_unknown_knobs_are_refused(subtask, knobs, message):
    with pytest.raises(UserError, match=message):
        TASK.document(subtask, 0, 0, 256, **knobs)


@pytest.mark.parametrize("subtask", ["graph", "path"])
def test_a_terse_thought_is_scored_by_its_last_name(subtask):
    request = Request(
        (subtask,), (256,), {"hops": (1, 3), "answer": ("direct", "cot"), "facts": (16,)}, wording="terse"
    )
    cells = {(cell.facets["hops"], cell.facets["answer"]): cell for cell in TASK.cells(request)}
    assert len(cells) == 4
    count = lambda text: len(text.split()) + 1  # noqa: E731
    direct, cot = (TASK.sample(cells[3, answer], 5, request, count) for answer in ("direct", "cot"))
    assert cot.target == direct.target
    assert cot.max_new_tokens == 3
    assert count(cot.text) + 3 <= 256
    asked = direct.prompt.partition(" ask ")[2]
    assert cot.prompt.endswith(f"trace {asked} are")
    walk = list(cot.meta["walk"][1:4])
    answers = {" ".join(walk): 1.0, walk[-1]: 0.0, " ".join(walk[:2]): 0.0, " ".join([*walk, walk[-1]]): 0.0}
    answers[" ".join([*walk[:2], "bade"])] = float(walk[-1] == "bade")
    for text, value in answers.items():
        assert TASK.score(cot, Completion(cot.id, text, 1)).value == value
