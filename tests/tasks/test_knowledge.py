"""Closed-book facts: the same for everyone, no option or letter easier to guess than another."""

import math
from collections import Counter

import pytest
from scipy.stats import binomtest, chisquare

from evalsuite.errors import UserError
from evalsuite.lexicon import NAMES, WORDS
from evalsuite.records import Completion
from evalsuite.task import Request, Task, Trainable
from evalsuite_tasks.knowledge import ATTRIBUTES, Knowledge, encyclopedia

TASK = Knowledge()
TRUTH = {fact[:3]: fact[3] for fact in encyclopedia(1024)}


def ask(subtask, n=400, wording="terse", **knobs):
    request = Request((subtask,), (4096,), {k: (v,) for k, v in knobs.items()}, wording=wording)
    (cell,) = TASK.cells(request)
    return cell, [TASK.sample(cell, i, request, len) for i in range(n)]


def value(sample, text):
    return TASK.score(sample, Completion(sample.id, text, 0)).value


@pytest.mark.parametrize("wording", ["natural", "terse"])
@pytest.mark.parametrize("subtask", ["cloze", "letter"])
def test_oracle_is_right_and_nothing_else_is(subtask, wording):
    for s in ask(subtask, 60, wording)[1]:
        assert value(s, s.target[0]) == 1
        assert value(s, "") == value(s, " ".join(NAMES)) == value(s, "A B C D") == value(s, s.prompt) == 0
        assert TASK.score(s, Completion(s.id, s.target[0], 0, error="cut")).value == 0
        if subtask == "letter":
            assert [value(s, choice) for choice in s.choices].count(1) == 1
            assert tuple(c.strip() for c in s.choices) == ("A", "B", "C", "D")


def test_answers_are_the_encyclopedias():
    for s in ask("cloze")[1]:
        assert TRUTH[tuple(s.prompt.split()[1:])] == s.target[0]
    for s in ask("letter")[1]:
        words = s.prompt.split()
        options = dict(zip(words[2:12:3], words[1:12:3], strict=True))
        assert len(set(options.values())) == 4
        assert options[s.target[0]] == TRUTH[tuple(words[13:16])]


def test_wrong_options_are_values_of_the_same_attribute():
    values = {kind: {v for (_, _, k), v in TRUTH.items() if k == kind} for kind in ATTRIBUTES}
    for s in ask("letter")[1]:
        words = s.prompt.split()
        assert set(words[1:12:3]) <= values[words[15]]


@pytest.mark.parametrize("shortcut", ["A", "B", "C", "D", "first by the alphabet", "most common value", "nearest name"])
def test_letters_cannot_be_guessed(shortcut):
    cell, samples = ask("letter")
    common = Counter(TRUTH.values())

    def guess(s):
        words = s.prompt.split()
        options = dict(zip(words[2:12:3], words[1:12:3], strict=True))
        if shortcut == "most common value":
            return max(options, key=lambda a: common[options[a]])
        if shortcut == "nearest name":
            return min(options, key=lambda a: abs(NAMES.index(options[a]) - NAMES.index(words[13])))
        return min(options, key=options.__getitem__) if len(shortcut) > 1 else shortcut

    hits = int(sum(value(s, guess(s)) for s in samples))
    assert binomtest(hits, len(samples), cell.chance, alternative="greater").pvalue > 1e-4


def test_values_are_spread_over_all_names():
    counts = Counter(fact[3] for fact in encyclopedia(20_000))
    assert chisquare([counts[name] for name in NAMES]).pvalue > 1e-4
    letters = Counter(s.target[0] for s in ask("letter")[1])
    assert chisquare([letters[a] for a in "ABCD"]).pvalue > 1e-4


def test_no_question_has_two_answers_and_bigger_holds_smaller():
    for load in (1024, 20_000):
        facts = encyclopedia(load)
        assert len({fact[:3] for fact in facts}) == load
        assert facts[:256] == encyclopedia(256)


def test_encyclopedia_is_this_one_for_ever():
    assert encyclopedia(64)[0] == ("noda", "taze", "color", "guni")
    assert encyclopedia(64)[63] == ("tisi", "geku", "teacher", "bapo")


def test_every_fact_is_asked_before_any_comes_again():
    _, samples = ask("cloze", 128, load=64)
    assert len({s.cluster for s in samples[:64]}) == 64
    assert [s.cluster for s in samples[:64]] == [s.cluster for s in samples[64:]]
    assert [s.cluster for s in ask("letter", 64, load=64)[1]] == [s.cluster for s in samples[:64]]


def test_lengths_do_not_apply_and_text_is_terse():
    cells = TASK.cells(Request(lengths=(512, 4096)))
    assert [(cell.task, dict(cell.facets), cell.chance) for cell in cells] == [
        ("knowledge.cloze", {"load": 1024}, 1 / 512),
        ("knowledge.letter", {"load": 1024}, 0.25),
    ]
    for subtask in TASK.subtasks():
        for s in ask(subtask, 50)[1]:
            assert set(s.text.split(" ")) | set(s.target) <= set(WORDS)
            assert s.max_new_tokens == 1


def test_both_wordings_ask_the_same():
    for subtask in TASK.subtasks():
        for a, b in zip(ask(subtask, 30)[1], ask(subtask, 30, "natural")[1], strict=True):
            assert (a.id, a.target, a.cluster) == (b.id, b.target, b.cluster)
            _, _, question = a.prompt.partition("fact ")
            assert all(word in b.text.lower() for word in question.split()[:3])


@pytest.mark.parametrize("load", [64, 1024, 20_000])
@pytest.mark.parametrize("subtask", ["cloze", "letter"])
def test_documents_label_answers_alone(load, subtask):
    truth = {fact[:3]: fact[3] for fact in encyclopedia(load)}
    for index in range(40):
        budget = (17, 40, 127, 300)[index % 4]
        document = TASK.document(subtask, 0, index, budget, load=load)
        words, labels = document.words, document.labels
        assert len(words) == len(labels) <= budget
        assert budget - len(words) < 17
        assert set(words) <= set(WORDS)
        options, i = {}, 0
        while i < len(words):
            if words[i] == "edge":
                options = {} if words[i + 2] == "A" else options
                options[words[i + 1]] = words[i + 2]
                assert labels[i : i + 3] == (None, None, None)
                i += 3
                continue
            answer = truth[words[i + 1 : i + 4]]
            assert (words[i], labels[i : i + 4]) == ("fact", (None, None, None, answer))
            i += 4
            if subtask == "letter":
                assert (words[i], labels[i]) == ("next", options[answer])
                assert {truth[key] for key in truth if key[2] == words[i - 1]} >= set(options)
                i += 1
        assert len(options) == 0 if subtask == "cloze" else 4 <= len(options) <= 10


def test_documents_hold_every_fact():
    seen = set()
    for index in range(100):
        words = TASK.document("cloze", 0, index, 512).words
        seen |= {words[i + 1 : i + 4] for i in range(0, len(words), 4)}
    assert len(seen) > 1024 * (1 - 2 * math.exp(-12.5))
    assert seen <= set(TRUTH)


def test_mistakes_are_named():
    for request, hint in (
        (Request(("close",)), r"knowledge\.cloze"),
        (Request(knobs={"loads": (1024,)}), r"knowledge\.load"),
        (Request(knobs={"load": (3,)}), "64 to"),
        (Request(knobs={"load": ("many",)}), "64 to"),
    ):
        with pytest.raises(UserError, match=hint):
            TASK.cells(request)
    with pytest.raises(UserError, match="at least 4"):
        TASK.document("cloze", 0, 0, 3)


def test_it_is_a_task_and_can_be_trained_on():
    assert isinstance(TASK, Task)
    assert isinstance(TASK, Trainable)
