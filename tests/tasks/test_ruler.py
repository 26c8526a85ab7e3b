"""RULER's samples: fitted, deterministic, without shortcuts; and upstream's defects where they are asked for."""

import json
import os
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.stats import kstest

from evalsuite.errors import UserError
from evalsuite.records import Completion
from evalsuite.task import Request, Task, Trainable
from evalsuite_tasks.ruler import Ruler, data
from evalsuite_tasks.ruler.specs import NIAH, TASKS

DATA = os.environ.get("EVALSUITE_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="EVALSUITE_DATA is not set: no SQuAD and HotpotQA")
SYNTHETIC = tuple(task for task in TASKS if not task.startswith("qa_"))
BPE = re.compile(r"\w{1,4}|[^\w\s]")
COUNTS = {
    "characters": lambda text: len(text) + 1,
    "words": lambda text: len(text.split()),
    "weird": lambda text: 2 + 3 * text.count("e") + 7 * text.count("\n") + len(text) // 5 + sum(map(str.isdigit, text)),
}


def words(text):
    return len(text.split())


def pieces(text):
    return len(BPE.findall(text)) + 1


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """Essays made up of random words, and the real questions where they are."""
    folder = tmp_path_factory.mktemp("essays")
    rng = random.Random(0)
    pool = data.wonderwords()[2]
    for name in "ab":
        lines = (" ".join(rng.choices(pool, k=rng.randint(4, 25))).capitalize() + "." for _ in range(1000))
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    given = {"essays": str(folder)}
    if DATA:
        given |= {"squad": f"{DATA}/squad-dev-half.json.gz", "hotpotqa": f"{DATA}/hotpotqa-100.json.gz"}
    return given


def ask(sources, subtasks, length, variant="default", **rest):
    knobs = {"variant": (variant,), "haystack": (rest.pop("haystack", "paper"),)}
    return Request(tuple(subtasks), (length,), knobs, sources, **rest)


def samples(request, indices, count=words):
    task = Ruler()
    return [task.sample(cell, i, request, count) for cell in task.cells(request) for i in indices]


def value(sample, answer):
    return Ruler().score(sample, Completion(sample.id, answer, 1)).value


def test_protocols():
    assert isinstance(Ruler(), Task)
    assert isinstance(Ruler(), Trainable)


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("haystack", ["paper", "lexicon"])
def test_length_within_three_percent_and_never_over(sources, count, haystack):
    made = 0
    for length in (4096, 8192, 65536):
        request = ask(sources, (), length, haystack=haystack)
        for sample in samples(request, (0,) if length > 8192 else (0, 1), count):
            used = count(sample.text) + sample.max_new_tokens
            assert 0.97 * length <= used <= length, (sample.id, used)
            made += 1
    subtasks = 11 + 2 * (bool(DATA) and haystack == "paper")
    assert made == subtasks * 5


@pytest.mark.parametrize("length", [700, 1024, 2048])
def test_short_lengths_fit_too(sources, length):
    """A whole noise text or needle is more than 3 % here."""
    for sample in samples(ask(sources, (), length), (0, 1, 2), words):
        used = words(sample.text) + sample.max_new_tokens
        assert 0.97 * length <= used <= length, (sample.id, used)


def test_nvidia_is_never_over(sources):
    for sample in samples(ask(sources, (), 4096, "nvidia"), range(4), pieces):
        assert pieces(sample.text) + sample.max_new_tokens <= 4096, sample.id


@pytest.mark.parametrize("variant", ["default", "nvidia"])
@pytest.mark.parametrize("length", [1, 40, 200])
def test_a_length_too_short_is_one_clear_line(sources, variant, length):
    task, request = Ruler(), ask(sources, (), length, variant)
    for cell in task.cells(request):
        with pytest.raises(UserError, match=rf"{cell.task} does not fit into {length} tokens: .*--lengths") as caught:
            task.sample(cell, 0, request, pieces)
        assert "\n" not in str(caught.value)


def test_a_tokenizer_that_never_grows_ends(sources):
    with pytest.raises(UserError, match="no size of it comes near"):
        samples(ask(sources, ("niah_single_1",), 4096), [0], lambda text: 7)


@pytest.mark.parametrize("variant", ["default", "nvidia"])
def test_oracle_and_empty(sources, variant):
    made = samples(ask(sources, (), 4096, variant), (0, 1), words)
    assert {s.task for s in made} >= {f"ruler.{t}" for t in SYNTHETIC}
    for sample in made:
        if sample.task.startswith("ruler.qa"):
            assert all(value(sample, ref) == 1.0 for ref in sample.target)
        else:
            assert value(sample, ", ".join(sample.target)) == 1.0
            assert all(ref in sample.prompt for ref in sample.target)
        assert value(sample, "") == 0.0
        assert not any(ref in sample.answer_prefix for ref in sample.target)


def test_listing_every_name_solves_upstreams_tracking_but_not_ours(sources):
    for variant, expected in (("nvidia", 1.0), ("default", 0.0)):
        for sample in samples(ask(sources, ("vt",), 4096, variant), range(10)):
            question = sample.prompt.rpartition("Memorize and track")[2]
            listed = dict.fromkeys(re.findall(r"VAR (\w+)", question))
            assert len(listed) == (5 if variant == "nvidia" else 20)
            assert value(sample, " ".join(listed)) == expected


def _assignments(sample):
    question = sample.prompt.rpartition("Memorize and track")[2]
    return re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)", question, re.M), re.search(r"the value (\d+)", question)[1]


@pytest.mark.parametrize("variant", ["default", "nvidia"])
def test_tracking_answer_is_the_closure(sources, variant):
    forward = []
    for sample in samples(ask(sources, ("vt",), 4096, variant), range(20)):
        pairs, asked = _assignments(sample)
        held = {asked}
        for _ in pairs:
            held |= {name for name, source in pairs if source in held}
        assert held - {asked} == set(sample.target)
        assert sample.prompt.count(asked) == 2  # the root and the question; not in the example
        order = [name for name, _ in pairs if name in sample.target]
        forward.append(order == list(sample.target))
    assert all(forward) if variant == "nvidia" else sum(forward) < 5


@pytest.mark.parametrize("subtask", ["niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multikey_2"])
@pytest.mark.parametrize("length", [4096, 16384])
def test_gold_depth_is_uniform(sources, subtask, length):
    request = ask(sources, (subtask,), length)
    depths = [s.facets["depth"] for s in samples(request, range(500), lambda text: len(text) // 5)]
    assert kstest(depths, "uniform").pvalue > 0.001
    assert 0 <= min(depths) <= max(depths) <= 1


def test_depth_is_where_the_needle_is(sources):
    for sample in samples(ask(sources, ("niah_single_1", "niah_single_2", "niah_multikey_2"), 8192), range(5)):
        where = sample.prompt.index(sample.target[0]) / len(sample.prompt)
        assert abs(where - sample.facets["depth"]) < 0.05


def _slots(made):
    """Gold position within its slot drawn uniformly: a continuous uniform where the slots are equally likely."""
    rng = np.random.default_rng(0)
    return [(s.meta["gold"][0] + rng.random()) / s.meta["documents"] for s in made]


@needs_data
@pytest.mark.parametrize("length", [4096, 8192])
def test_gold_document_is_uniform_here_and_frozen_upstream(sources, length):
    assert kstest(_slots(samples(ask(sources, ("qa_1",), length), range(500))), "uniform").pvalue > 0.001
    frozen = samples(ask(sources, ("qa_1",), length, "nvidia"), range(60))
    assert kstest(_slots(frozen), "uniform").pvalue < 1e-6
    assert len({(s.facets["depth"], s.meta["documents"]) for s in frozen}) <= 4


@needs_data
@pytest.mark.parametrize(("documents", "depth"), [(20, 0.947), (40, 0.744), (80, 0.633), (120, 0.706), (160, 0.101)])
def test_upstreams_frozen_depth(sources, documents, depth):
    from evalsuite_tasks.ruler.item import Item
    from evalsuite_tasks.ruler.qa import qa_nvidia

    for index in (0, 700, 1500):
        item = Item("qa_1", 4096, "nvidia", "paper", 0, index, 1, source=sources["squad"])
        draft = qa_nvidia(item, documents)
        assert draft.depth == pytest.approx(depth, abs=5e-4)
        order = list(range(documents))
        random.Random(42).shuffle(order)
        assert draft.meta["gold"] == [order.index(0)]


def _common_positions(sample):
    listed = re.findall(r"\d+\. (\S+)", sample.prompt.rpartition("Below is")[2])
    return [i for i, word in enumerate(listed) if word in sample.target]


def test_counting_order_is_frozen_upstream_only(sources):
    for variant, distinct in (("nvidia", 1), ("default", 6)):
        made = samples(ask(sources, ("cwe",), 4096, variant), range(6))
        assert len({tuple(_common_positions(s)) for s in made}) == distinct
        made = samples(ask(sources, ("fwe",), 4096, variant), range(6))
        dots = {tuple(i for i, w in enumerate(s.prompt.split()) if w == "...") for s in made}
        assert len(dots) == distinct


def test_counts_are_upstreams(sources):
    for sample in samples(ask(sources, ("cwe",), 8192), range(3)):
        listed = re.findall(r"\d+\. (\S+)", sample.prompt.rpartition("Below is")[2].partition("\nQuestion")[0])
        tally = {word: listed.count(word) for word in set(listed)}
        assert {tally[word] for word in sample.target} == {30}
        assert {n for word, n in tally.items() if word not in sample.target} == {3}
        assert len(sample.target) == 10
    for sample in samples(ask(sources, ("fwe",), 8192), range(3)):
        text = sample.prompt.partition("coded words. ")[2].partition("\nQuestion")[0].split()
        tally = sorted(((text.count(w), w) for w in set(text)), reverse=True)
        assert tally[0][1] == "..."
        assert tuple(w for _, w in tally[1:4]) == sample.target
        assert tally[3][0] > tally[4][0]


def test_needles_are_unambiguous(sources):
    for sample in samples(ask(sources, tuple(NIAH), 4096), range(3)):
        found = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", sample.prompt)
        config = NIAH[sample.task.partition(".")[2]]
        asked = sample.answer_prefix.partition(" for ")[2].partition(" mentioned")[0]
        keys = [k for k in re.split(r", and |, ", asked) if k]
        held = {key: {v for k, v in found if k == key} for key in keys}
        assert set().union(*held.values()) == set(sample.target)
        assert all(len(v) == config.values for v in held.values())
        assert len({v for _, v in found}) == len(found)
        if config.haystack == "needle":
            assert len(found) > 100
        else:
            assert len(found) == config.keys * config.values


def test_lexicon_haystack_is_readable_by_a_closed_vocabulary(sources):
    from evalsuite.lexicon import WORDS

    known = set(WORDS) | {"..."} | set(prompts_words())
    for sample in samples(ask({}, SYNTHETIC, 4096, haystack="lexicon"), range(2)):
        for word in re.findall(r"[A-Za-z-]+", sample.text):
            parts = word.lower().split("-")
            if sample.task.endswith("_3"):  # uuids
                continue
            assert all(p in known or word in known for p in parts), (sample.id, word)


def prompts_words():
    from evalsuite_tasks.ruler import prompts

    texts = [prompts.NEEDLE, *prompts.NIAH, *prompts.VT, *prompts.CWE, *prompts.FWE, "A is number uuid VAR numbers"]
    found = re.findall(r"[A-Za-z]+", " ".join(texts))
    return {*found, *(word.lower() for word in found)}


def test_content_does_not_depend_on_order_limit_or_globals(sources):
    request = ask(sources, (), 4096)
    whole = {s.id: s.prompt_hash for s in samples(request, range(4))}
    assert len(set(whole.values())) == len(whole)
    state, numpy_state = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    random.seed(1)
    again = {s.id: s.prompt_hash for s in samples(request, (3, 0))}
    task = Ruler()
    with ThreadPoolExecutor(4) as pool:
        jobs = [(cell, i) for cell in reversed(task.cells(request)) for i in (2, 1)]
        threads = list(pool.map(lambda job: task.sample(*job, request, words), jobs))
    assert again | {s.id: s.prompt_hash for s in threads} == whole
    random.seed(1)
    before = random.getstate()
    samples(request, (0,))
    assert random.getstate() == before
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    random.setstate(state)
    other = samples(ask(sources, ("vt",), 4096, seed=1), (0,))[0]
    assert other.prompt_hash not in whole.values()


SCRIPT = """
import sys, json
from evalsuite.task import Request
from evalsuite_tasks.ruler import Ruler
task, hashes = Ruler(), {}
for wording, length in (("natural", 4096), ("terse", 512)):
    request = Request(lengths=(length,), data=json.loads(sys.argv[1]), wording=wording)
    for cell in task.cells(request):
        sample = task.sample(cell, 5, request, lambda text: len(text.split()) + 1)
        hashes[sample.id] = [sample.prompt_hash, sample.target, sample.cluster]
document = task.document("vt", 0, 0, 256)
print(json.dumps([hashes, document.words], sort_keys=True))
"""


def test_same_bytes_under_any_hash_seed(sources):
    def run(seed):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(sources)], capture_output=True, env=env, check=True
        )
        return done.stdout

    first = run("0")
    assert first == run("4321")
    assert len(json.loads(first)[0]) == len(SYNTHETIC) * 2 + 2 * bool(DATA)


@needs_data
def test_questions(sources):
    for subtask in ("qa_1", "qa_2"):
        made = samples(ask(sources, (subtask,), 4096), range(40))
        for sample in made:
            documents = re.split(r"\n\nDocument \d+:\n|\n\nAnswer the question", sample.prompt)
            assert sample.prompt.endswith("Question: " + sample.meta["question"])
            gold = [documents[1 + place] for place in sample.meta["gold"]]
            if subtask == "qa_1":
                assert all(ref in gold[0].removeprefix("Document 1:\n") for ref in sample.target)
                assert sample.cluster.startswith("squad/")
            elif sample.target[0] not in ("yes", "no"):
                assert any(sample.target[0] in text for text in gold)
        assert len({s.cluster for s in made}) > 30  # not forty questions about the first article
    upstream = samples(ask(sources, ("qa_1",), 8192, "nvidia"), (0,))[0]
    assert upstream.meta["question"] == "In what country is Normandy located?"


def test_facets_and_ids(sources):
    sample = samples(ask(sources, ("niah_single_1",), 4096), (7,))[0]
    assert sample.id == "ruler/niah_single_1/4096/haystack=paper,variant=default,wording=natural/7"
    assert set(sample.facets) == {"length", "variant", "haystack", "wording", "depth"}
    assert sample.cluster == sample.id
    json.dumps(dict(sample.meta))
