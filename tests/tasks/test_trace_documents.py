"""Training documents of `trace`: every label is what running the text gives, and none is an evaluation's program."""

import re
import time

import pytest

from evalsuite.errors import UserError
from evalsuite.lexicon import WORDS
from evalsuite.task import Request
from evalsuite_tasks.multihop.names import held_out
from evalsuite_tasks.trace import Trace
from trace_machine import labels, programs

TASK = Trace()


@pytest.mark.parametrize("subtask", TASK.subtasks())
@pytest.mark.parametrize("budget", [64, 127, 511])
def test_labels_of_documents_are_what_running_them_gives(subtask, budget):
    asked = traced = 0
    for index in range(60):
        document = TASK.document(subtask, 1, index, budget)
        assert len(document.words) == len(document.labels) <= budget
        assert set(document.words) | (set(document.labels) - {None}) <= set(WORDS)
        expected = labels(document.words)
        for i, (label, known) in enumerate(zip(document.labels, expected, strict=True)):
            assert label == known, (index, i, document.words[max(0, i - 6) : i + 1])
        asked += sum(label is not None for label in document.labels)
        words = " ".join(document.words)
        traced += bool(re.search(r"get .* noise", words))
    assert asked > 60 * budget / 30
    if budget == 511 and subtask in ("assign", "swap", "index"):
        assert 10 < traced < 50, "questions between the lines in half of the documents"


def test_documents_are_the_same_for_ever_and_differ_by_number():
    for subtask in TASK.subtasks():
        made = {TASK.document(subtask, seed, i, 200) for seed in (0, 1) for i in range(40)}
        assert len(made) == 80
        assert TASK.document(subtask, 1, 7, 200) in made


def test_knobs_of_documents_are_the_most_that_they_hold():
    for i in range(40):
        assert len(set(re.findall(r"\w+ \[", " ".join(TASK.document("deref", 0, i, 500, arrays=2).words)))) <= 2
        words = TASK.document("deref", 0, i, 500, hops=1).words
        assert " ] ]" not in " ".join(words)
        assert " ".join(TASK.document("swap", 0, i, 500, steps=7).words).count("swap") <= 7
        assert TASK.document("palindrome", 0, i, 1001, items=500)
        assert TASK.document("stack", 0, i, 2000, operations=360, stacks=64)
        assert TASK.document("index", 0, i, 3000, lines=400, arrays=64)
        assert TASK.document("swap", 0, i, 3000, variables=240, steps=4096)
    longest = max(" ".join(TASK.document("stack", 0, i, 2000, operations=300).words).count(" p") for i in range(200))
    assert longest > 200
    with pytest.raises(UserError, match="hops"):
        TASK.document("deref", 0, 0, 500, hop=1)
    with pytest.raises(UserError, match="2 to 10"):
        TASK.document("index", 0, 0, 500, size=11)
    with pytest.raises(UserError, match=r"trace\.swap"):
        TASK.document("swop", 0, 0, 500)
    for subtask in TASK.subtasks():
        with pytest.raises(UserError, match="more words"):
            TASK.document(subtask, 0, 0, 4)


def test_no_training_program_is_ever_an_evaluation_program():
    """The split is a property of the set of names, so it holds for every seed that was not tried, too."""
    for request in (
        Request(lengths=(512,), wording="terse"),
        Request(
            ("assign", "deref"), (1024,), {"hops": (0, 6), "arrays": (1,), "lines": (80,)}, seed=3, wording="terse"
        ),
    ):
        for cell in TASK.cells(request):
            for i in range(30):
                words = TASK.sample(cell, i, request, lambda text: len(text.split()) + 1).prompt.split()
                assert all(map(held_out, programs(words)))
    for subtask in TASK.subtasks():
        for i in range(60):
            assert not any(map(held_out, programs(TASK.document(subtask, 0, i, 511).words)))


def test_sizes_reach_from_the_smallest_to_the_largest():
    sizes = [len(programs(TASK.document("palindrome", 0, i, 511).words)[0]) for i in range(1500)]
    assert min(sizes) == 2
    assert max(sizes) == 64
    expected = sum(n / (8 + n) for n in range(2, 65)) / sum(1 / (8 + n) for n in range(2, 65))
    assert abs(sum(sizes) / len(sizes) - expected) < 3


@pytest.mark.parametrize("subtask", TASK.subtasks())
def test_documents_feed_a_trainer(subtask):
    """The measured rate is some 10 times this; the floor only catches an accident."""
    best = 0.0
    for _ in range(3):
        begin = time.process_time()
        made = sum(len(TASK.document(subtask, 0, i, 511).words) for i in range(100))
        best = max(best, made / (time.process_time() - begin))
    assert best > 200_000
