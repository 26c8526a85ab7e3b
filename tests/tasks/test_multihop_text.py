"""The text around the facts: one for every number of hops, of the length asked, and silent about the answer."""

import re
import subprocess
import sys
from functools import cache

import pytest

from evalsuite.errors import UserError
from evalsuite.lexicon import FILLER, NAMES, WORDS
from evalsuite.task import Request, load
from evalsuite_tasks.multihop import Multihop
from evalsuite_tasks.multihop.fit import largest

TASK = Multihop()
SUBTASKS = TASK.subtasks()


def by_word(text):
    return len(text.split()) + 1


def by_piece(text):
    """Like a subword tokenizer: pieces of at most four letters, other signs one each."""
    return len(re.findall(r"[a-z]{1,4}|\d|[^\sa-z\d]|\n", text.lower()))


def by_chunk(text):
    """Seven bytes a token across words and lines, and two tokens to begin with."""
    return len(text.encode()) // 7 + 2


COUNTS = {"word": by_word, "character": len, "piece": by_piece, "chunk": by_chunk}


@cache
def samples(subtask, length, wording, count, index, hops=(1, 2, 4), **knobs):
    request = Request((subtask,), (length,), {"hops": hops, **{k: (v,) for k, v in knobs.items()}}, wording=wording)
    cells = TASK.cells(request)
    return [TASK.sample(cell, index, request, count) for cell in cells]


@pytest.mark.parametrize("subtask", SUBTASKS)
@pytest.mark.parametrize(
    ("wording", "name", "length"),
    [
        ("terse", "word", 512),
        ("terse", "word", 1000),
        ("natural", "word", 1024),
        ("natural", "word", 4096),
        ("natural", "character", 4096),
        ("natural", "piece", 2048),
        ("natural", "chunk", 1024),
    ],
)
@pytest.mark.parametrize("answer", ["direct", "cot"])
def test_length_is_met_within_three_percent_and_never_passed(subtask, wording, name, length, answer):
    for index in range(4):
        for s in samples(subtask, length, wording, COUNTS[name], index, answer=answer):
            used = COUNTS[name](s.text) + s.max_new_tokens
            assert 0.97 * length <= used <= length


@pytest.mark.parametrize("facts", [8, 16])
def test_length_256_is_met_in_terse_words(facts):
    for index in range(10):
        for s in samples("graph", 256, "terse", by_word, index, facts=facts):
            assert 0.97 * 256 <= by_word(s.text) + 1 <= 256


@pytest.mark.parametrize("subtask", SUBTASKS)
@pytest.mark.parametrize("wording", ["terse", "natural"])
def test_dense_text_is_facts_to_the_brim(subtask, wording):
    for length in (512, 1024):
        for s in samples(subtask, length, wording, by_word, 3, facts="dense"):
            assert 0.97 * length <= by_word(s.text) + s.max_new_tokens <= length
            facts = s.meta["facts"]
            filler = (
                s.prompt.count("noise ") if wording == "terse" else len(re.findall(r"^The \w+ \w+ is", s.prompt, re.M))
            )
            assert facts > 32
            assert filler < 12 or facts > 440, "the lexicon has no more names"


@pytest.mark.parametrize("wording", ["terse", "natural"])
def test_dense_never_asks_for_more_names_than_there_are(wording):
    for subtask in SUBTASKS:
        (s,) = samples(subtask, 8192, wording, by_word, 0, hops=(2,), facts="dense")
        assert 0.97 * 8192 <= by_word(s.text) + s.max_new_tokens <= 8192


def body(s):
    """The prompt without its question."""
    if "\n" in s.prompt:
        return s.prompt.rstrip("\n").rpartition("\n\n")[0]
    return re.split(r" (?:ask|call \w+ answer|trace)\b", s.prompt)[0]


@pytest.mark.parametrize("subtask", SUBTASKS)
@pytest.mark.parametrize(("wording", "length"), [("terse", 512), ("terse", 1024), ("natural", 1024), ("natural", 4096)])
def test_all_hops_share_text_start_and_cluster(subtask, wording, length):
    for index in range(3):
        each = samples(subtask, length, wording, by_word, index)
        assert len(each) == 3
        assert len({body(s) for s in each}) == 1
        assert len({s.cluster for s in each}) == 1
        assert len({s.id for s in each}) == len({s.prompt_hash for s in each}) == 3
        if subtask in ("graph", "path", "binding"):
            assert len({(s.meta["given"], s.facets["depth"]) for s in each}) == 1
        other = samples(subtask, length, wording, by_word, index + 1)
        assert other[0].cluster != each[0].cluster
        assert body(other[0]) != body(each[0])


def test_hops_to_sixteen_share_a_long_text_and_the_facts_of_a_short_one():
    hops = (1, 3, 8, 9, 16)
    assert len({body(s) for s in samples("path", 2048, "terse", by_word, 0, hops=hops)}) == 1
    short = samples("path", 512, "terse", by_word, 0, hops=hops)
    assert len({body(s) for s in short[:3]}) == 1
    assert len({re.sub(r"noise \w+ \w+ ?", "", body(s)).strip() for s in short}) == 1


def test_direct_and_reasoned_answers_are_asked_of_the_same_facts():
    (direct,) = samples("graph", 1024, "natural", by_word, 0, hops=(2,))
    (cot,) = samples("graph", 1024, "natural", by_word, 0, hops=(2,), answer="cot")
    assert direct.target == cot.target
    assert re.findall(r"\w+ -> \w+", direct.prompt) == re.findall(r"\w+ -> \w+", cot.prompt)


def test_columns_are_those_of_the_subtask():
    for subtask, own in (("graph", "order"), ("path", "relations"), ("binding", "overwrites")):
        (s,) = samples(subtask, 1024, "terse", by_word, 0, hops=(2,))
        assert set(s.facets) == {"length", "hops", "facts", "answer", "depth", own}


def test_filler_says_nothing_about_any_name():
    assert not set(FILLER) & set(NAMES)
    for s in samples("graph", 1024, "natural", by_word, 0):
        filler = [line for line in body(s).splitlines()[2:] if "->" not in line]
        assert len(filler) > 50
        assert not set(re.findall(r"\w+", " ".join(filler))) & set(NAMES)
    for s in samples("chain", 1024, "terse", by_word, 0):
        assert set(re.findall(r"noise (\w+) (\w+)", s.prompt)) <= {(a, b) for a in FILLER for b in FILLER}


def test_names_are_no_words_of_the_natural_text():
    """An answer in words must not be read as naming candidates."""
    for subtask in SUBTASKS:
        for s in samples(subtask, 1024, "natural", by_word, 0):
            assert not set(re.findall(r"\w+", s.prompt.splitlines()[0])) & set(NAMES)
            question = s.prompt.rpartition("\n\n")[2] + s.answer_prefix
            assert set(re.findall(r"\w+", question)) & set(NAMES) == {s.meta["given"]}


def test_facts_longer_than_the_tokenizer_allows_are_one_clear_line():
    request = Request(("graph",), (1024,), {"hops": (1,)})
    (cell,) = TASK.cells(request)
    with pytest.raises(UserError, match=r"32 facts takes \d+ of 1024 tokens"):
        TASK.sample(cell, 0, request, lambda text: 2 * len(text))


def test_largest_finds_the_edge_of_uneven_costs():
    for costs in ([3] * 500, [1, 40] * 200, [50] * 20 + [1] * 400, [1] * 200 + [60] * 200):
        total = [sum(costs[:n]) for n in range(len(costs) + 1)]
        for budget in (0, 1, 99, 700):
            found = largest(lambda n, total=total: 10 + (total[n] if n < len(total) else 10**6), 10 + budget)
            assert total[found] <= budget
            assert total[found + 1] > budget or budget - total[found] < max(0.002 * budget, 60)
    assert largest(lambda n: 11, 10) == -1


@pytest.mark.parametrize(
    ("module", "arguments", "seen"),
    [
        ("multihop", "graph --hops 4 --facts 8 --length 256 --wording terse", "next next next next"),
        ("multihop", "callchain --hops 2 --length 1024 --variant arith", "% 10"),
        ("knowledge", "cloze", "knowledge/cloze/load=1024/0"),
        ("knowledge", "letter --wording terse", "# choices: ' A', ' B', ' C', ' D'"),
    ],
)
def test_preview_prints_one_sample(module, arguments, seen):
    command = [sys.executable, "-m", f"evalsuite_tasks.{module}", *arguments.split()]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert seen in out
    assert "# target: " in out


@pytest.mark.parametrize(("arguments", "message"), [("--hops 0", "at least 1 hop,"), ("--hops 31", "at most 30 hops")])
def test_what_cannot_be_made_is_said_once_and_why(arguments, message):
    command = [sys.executable, "-m", "evalsuite_tasks.multihop", "graph", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.count(message) == 1, done.stderr


def test_preview_of_what_cannot_be_made_is_one_line():
    command = [sys.executable, "-m", "evalsuite_tasks.multihop", "graph", "--hops", "40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "at most 30 hops" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_entry_points_find_the_families():
    assert load("multihop").name == "multihop"
    assert load("knowledge").name == "knowledge"
    assert len(WORDS) == len(set(WORDS))
