"""Training documents: right labels, the shape of the evaluation, and nothing of the evaluation in them."""

import re
import time

import pytest

from evalsuite.errors import UserError
from evalsuite.lexicon import NAMES, WORDS
from evalsuite.task import Request, generator
from evalsuite_tasks.multihop import Multihop
from evalsuite_tasks.multihop.names import draw, held_out

TASK = Multihop()
ALL = frozenset(NAMES)


def split(document):
    """(text of the facts, [(words, labels) of each query])."""
    words, labels = document.words, document.labels
    starts = [
        i
        for i, word in enumerate(words)
        if word in ("ask", "trace") or (word == "call" and words[i + 2] in ("answer", "next"))
    ]
    ends = [*starts[1:], len(words)]
    return " ".join(words[: starts[0]]), [(words[a:b], labels[a:b]) for a, b in zip(starts, ends, strict=True)]


def walk(text, start):
    """What each `next` after `start` leads to, by the facts read from the text."""
    edges = dict(re.findall(r"\bedge (\w+) (\w+)(?= edge| noise|$)", text))
    calls = dict(re.findall(r"def (\w+) call (\w+)", text))
    leaves = dict(re.findall(r"def (\w+) is (\w+)", text))
    adds = dict(re.findall(r"def (\w+) call \w+ \+ (\d)", text))
    added = 0
    while True:
        if start in calls:
            added += int(adds.get(start, 0))
            start = calls[start]
            yield start
        elif start in leaves:
            value = leaves[start]
            yield str((int(value) + added) % 10) if value.isdigit() else value
            return
        elif start in edges:
            start = edges[start]
            yield start
        else:
            return


def check(text, words, labels):
    assert labels[0] is None
    if words[0] == "trace":
        value, names = words[1], list(labels[2:-1])
        assert list(words[3:]) == names
        assert labels[1] is labels[-1] is None
        assert set(names) == {a for a in re.findall(r"edge (\w+)", text) if value in walk(text, a)}
    elif words[2] == "answer":
        *_, value = walk(text, words[1])
        assert labels == (None, None, value)
    elif set(words[2:]) == {"next"}:
        steps = walk(text, words[1])
        reached = [next(steps) for _ in words[2:]]
        if words[0] == "call":  # the value at the end is the leaf's own, before anything is added
            leaf = dict(re.findall(r"def (\w+) is (\w+)", text))
            reached[-1] = leaf[reached[-2] if len(reached) > 1 else words[1]]
        assert list(labels[2:]) == reached
    else:
        node, typed = words[1], {(a, r): b for a, r, b in re.findall(r"edge (\w+) (\w+) (\w+)", text)}
        for step, label in zip(words[2:], labels[2:], strict=True):
            node = typed[node, step]
            assert label == node


@pytest.mark.parametrize("subtask", TASK.subtasks())
@pytest.mark.parametrize("budget", [128, 512, 2048])
def test_labels_follow_from_the_facts(subtask, budget):
    queries = 0
    for index in range(40):
        document = TASK.document(subtask, 1, index, budget)
        assert len(document.words) == len(document.labels) <= budget
        assert set(document.words) | (set(document.labels) - {None}) <= set(WORDS)
        text, asked = split(document)
        assert 1 <= len(asked) <= 64
        assert not any(document.labels[: len(text.split())])
        for words, labels in asked:
            check(text, words, labels)
        queries += len(asked)
    assert queries > 40 * (3 if budget == 128 else 12)


@pytest.mark.parametrize("subtask", ["graph", "path", "binding", "chain"])
def test_answers_are_not_fed_back(subtask):
    for index in range(20):
        _, asked = split(TASK.document(subtask, 0, index, 512))
        for words, _labels in asked:
            if words[0] == "ask":
                assert len(ALL.intersection(words)) == 1


def test_same_number_is_the_same_document_and_no_other():
    for subtask in TASK.subtasks():
        documents = {TASK.document(subtask, seed, i, 256) for seed in (0, 1) for i in range(50)}
        assert len(documents) == 100
        assert TASK.document(subtask, 1, 7, 256) in documents


def test_sizes_reach_from_three_facts_to_sixty_four():
    sizes = [" ".join(TASK.document("graph", 0, i, 512).words).count("edge") for i in range(1500)]
    assert min(sizes) == 3
    assert max(sizes) == 64
    expected = sum(n / (8 + n) for n in range(3, 65)) / sum(1 / (8 + n) for n in range(3, 65))
    assert abs(sum(sizes) / len(sizes) - expected) < 2


def test_noise_reaches_from_none_to_a_full_budget():
    shares = []
    for i in range(300):
        text, _ = split(TASK.document("graph", 0, i, 512))
        shares.append(text.split().count("noise") * 3 / 512)
    assert min(shares) < 0.02
    assert max(shares) > 0.9


def test_no_training_graph_is_ever_an_evaluation_graph():
    """The split is a property of the set of names, so it holds for every seed that was not tried, too."""
    request = Request(("graph", "path", "chain", "binding", "callchain"), (512,), {"hops": (1,)}, wording="terse")
    for cell in TASK.cells(request):
        for i in range(30):
            s = TASK.sample(cell, i, request, lambda text: len(text.split()) + 1)
            assert held_out(sorted(ALL.intersection(s.prompt.split())))
    for subtask in TASK.subtasks():
        for i in range(100):
            text, _ = split(TASK.document(subtask, 0, i, 512))
            assert not held_out(sorted(ALL.intersection(text.split())))


def test_every_name_is_drawn_on_both_sides():
    for train in (True, False):
        rng = generator("test", train)
        drawn = {name for _ in range(400) for name in draw(rng, 16, train=train)}
        assert drawn == ALL


def test_small_budget_and_unknown_subtask_are_named():
    with pytest.raises(UserError, match="more words"):
        TASK.document("graph", 0, 0, 20)
    with pytest.raises(UserError, match=r"multihop\.graph"):
        TASK.document("grph", 0, 0, 512)


def test_documents_feed_a_trainer():
    """The measured rate is some 10 times this; the floor only catches an accident."""
    best = 0.0
    for _ in range(3):
        begin = time.process_time()
        made = sum(len(TASK.document("graph", 0, i, 512).words) for i in range(200))
        best = max(best, made / (time.process_time() - begin))
    assert best > 300_000


@pytest.mark.parametrize("subtask", ["graph", "path"])
def test_a_document_has_one_depth_and_all_depths_occur(subtask):
    depths = []
    for index in range(200):
        _, asked = split(TASK.document(subtask, 0, index, 256))
        (depth,) = {len(words) - 2 for words, _ in asked}
        depths.append(depth)
    assert set(depths) == set(range(1, 7))
    assert 90 < depths.count(6) < 150
