"""How multihop could be solved without hopping, or scored without solving: every such shortcut stays at its floor."""

import re
from collections import Counter
from functools import cache

import pytest
from scipy.stats import binomtest, chisquare, kstest

from evalsuite.errors import UserError
from evalsuite.lexicon import NAMES, WORDS
from evalsuite.records import Completion, Sample
from evalsuite.task import Request, Task, Trainable
from evalsuite_tasks.multihop import Multihop

TASK = Multihop()
N = 300
ALL = frozenset(NAMES)


def words(text):
    return len(text.split()) + 1


@cache
def ask(subtask, *, n=N, wording="terse", length=512, seed=0, **knobs):
    request = Request((subtask,), (length,), {k: (v,) for k, v in knobs.items()}, seed=seed, wording=wording)
    (cell,) = TASK.cells(request)
    return cell, [TASK.sample(cell, i, request, words) for i in range(n)]


def value(sample: Sample, text: str) -> float:
    return TASK.score(sample, Completion(sample.id, text, 0)).value


def share(samples, answer):
    return [value(sample, answer(sample)) for sample in samples]


def at(hits, floor, alpha=1e-4):
    """Whether the hits agree with the floor, from both sides."""
    return binomtest(int(sum(hits)), len(hits), floor).pvalue > alpha


def under(hits, floor, alpha=1e-4):
    return binomtest(int(sum(hits)), len(hits), floor, alternative="greater").pvalue > alpha


CASES = {
    "graph": {"hops": 4},
    "path": {"hops": 4},
    "chain": {"hops": 4},
    "chain-set": {"hops": 4, "question": "set"},
    "binding": {"hops": 4},
    "binding-overwrites": {"hops": 2, "overwrites": 3, "facts": 64},
    "callchain": {"hops": 4},
    "callchain-arith": {"hops": 4, "variant": "arith"},
}


@pytest.mark.parametrize("wording", ["natural", "terse"])
@pytest.mark.parametrize("case", CASES)
def test_oracle_is_right_and_nothing_else_is(case, wording):
    cell, samples = ask(case.partition("-")[0], n=40, wording=wording, length=1024, **CASES[case])
    assert all(share(samples, lambda s: s.target[0]))
    assert not any(share(samples, lambda s: ""))
    assert not any(share(samples, lambda s: " ".join(NAMES)))
    assert not any(share(samples, lambda s: s.prompt)), "everything in the text"
    assert not any(share(samples, lambda s: f"{s.target[0]} or {NAMES[0]} or {NAMES[1]} or 11 or 12"))
    assert not any(TASK.score(s, Completion(s.id, s.target[0], 0, error="cut")).value for s in samples)
    if cell.facets.get("question") == "set":
        assert all(share(samples, lambda s: ", ".join(reversed(s.target[0].split()))))
        assert not any(share(samples, lambda s: s.target[0].rpartition(" ")[0]))
    elif wording == "natural":
        assert all(share(samples, lambda s: f" The answer is {s.target[0].upper()}.\nBut {NAMES[0]} came first"))
        if cell.facets.get("variant") != "arith":
            assert all(share(samples, lambda s: f"From {s.meta['given']} one comes to **{s.target[0]}**"))


def test_reasoning_counts_by_its_last_line():
    _, samples = ask("graph", n=5, wording="natural", length=1024, hops=2, answer="cot")
    for s in samples:
        start, middle, end = s.meta["walk"][:3]
        assert s.max_new_tokens >= 256
        assert value(s, f"{start} -> {middle}, {middle} -> {end}.\nAnswer: {end}") == 1
        assert value(s, f"{start} -> {middle}, {middle} -> {end}.") == 0, "no marker"
        assert value(s, f"Answer: {end}\nNo: Answer: {middle}") == 0
        assert value(s, f"Answer: {middle}, {end}") == 0


def test_hops_done_names_the_hops():
    _, samples = ask("graph", n=20, hops=4)
    for s in samples:
        edges = dict(re.findall(r"edge (\w+) (\w+)", s.prompt))
        node = s.prompt.split(" ask ")[1].split()[0]
        for done in range(17):
            score = TASK.score(s, Completion(s.id, node, 0))
            assert score.detail["hops_done"] == done
            assert score.value == (done == 4)
            node = edges[node]
        stranger = next(name for name in NAMES if name not in edges)
        assert TASK.score(s, Completion(s.id, stranger, 0)).detail["hops_done"] == -1


def solve(sample):
    """Answers a terse prompt by reading it, independently of how it was made."""
    facts, _, question = re.sub(r"noise \w+ \w+ ?", "", sample.prompt).partition(" ask ")
    node, *steps = question.split()
    if "next" in steps:
        edges = dict(re.findall(r"edge (\w+) (\w+)", facts))  # a later one replaces an earlier
        for _ in steps:
            node = edges[node]
    else:
        typed = {(a, r): b for a, r, b in re.findall(r"edge (\w+) (\w+) (\w+)", facts)}
        for step in steps:
            node = typed[node, step]
    return node


def run_code(sample):
    """Runs the natural text's functions as Python."""
    space: dict = {}
    code = "\n".join(line for line in sample.prompt.splitlines() if re.match(r"def |    return", line))
    exec(code, space)
    return str(eval(re.search(r"What does (\w+\(\)) return", sample.prompt)[1], space))


@pytest.mark.parametrize("subtask", ["graph", "path", "chain", "binding"])
@pytest.mark.parametrize("hops", [1, 2, 4])
def test_text_holds_the_answer(subtask, hops):
    _, samples = ask(subtask, n=60, hops=hops)
    assert all(share(samples, solve))


@pytest.mark.parametrize("variant", ["alias", "arith"])
def test_code_runs_to_the_answer(variant):
    for hops in (0, 1, 4):
        _, samples = ask("callchain", n=30, wording="natural", length=1024, hops=hops, variant=variant)
        assert all(share(samples, run_code))


def nearest(sample, pick):
    """The name nearest to a mention of the query's name, other than itself, before or after."""
    text = [w for w in re.findall(r"\w+", sample.prompt) if w in ALL]
    given = text[-1]
    spot = text.index(given)
    others = text[spot - 1 :: -1] if pick == "before" and spot else text[spot + 1 :]
    return next((w for w in others if w != given), "")


def body_names(sample):
    text = sample.prompt.rpartition(" ask ")[0] or sample.prompt.rpartition(" call ")[0]
    return [w for w in text.split() if w in ALL]


SHORTCUTS = {
    "last": lambda s: body_names(s)[-1],
    "first": lambda s: body_names(s)[0],
    "most frequent": lambda s: Counter(body_names(s)).most_common(1)[0][0],
    "echo": lambda s: s.meta["given"],
    "after": lambda s: nearest(s, "after"),
    "before": lambda s: nearest(s, "before"),
    "one hop": lambda s: re.search(rf"(?:edge|def) {s.meta['given']}(?: call| is)?(?: [a-z]+)?? (\w+)", s.prompt)[1],
}


@pytest.mark.parametrize("subtask", ["graph", "path", "chain", "binding", "callchain"])
@pytest.mark.parametrize("hops", [2, 4])
def test_shortcuts_stay_at_chance(subtask, hops):
    cell, samples = ask(subtask, hops=hops)
    for name, shortcut in SHORTCUTS.items():
        assert under(share(samples, shortcut), cell.chance), name


@pytest.mark.parametrize(
    ("subtask", "knobs"),
    [
        ("graph", {"hops": 1}),
        ("path", {"hops": 1}),
        ("chain", {"hops": 0}),
        ("callchain", {"hops": 0}),
        ("binding", {"hops": 1, "overwrites": 0}),
    ],
)
def test_one_hop_is_enough_where_one_is_asked(subtask, knobs):
    _, samples = ask(subtask, n=50, **knobs)

    def one_hop(sample):
        start, *rest = sample.prompt.rpartition(" ask " if subtask != "callchain" else " call ")[2].split()
        relation = f" {rest[0]}" if subtask == "path" else " is" if subtask == "callchain" else ""
        return re.search(rf"(?:edge|def) {start}{relation} (\w+)", sample.prompt)[1]

    assert all(share(samples, one_hop))


def chain_text(sample):
    """[(variable, source, whether the source is a value)] in order of the text, and the variable asked."""
    found = re.findall(r'^VAR (\w+) = (?:VAR (\w+)|"(\w+)")$', sample.prompt, re.MULTILINE)
    return [(a, b or v, bool(v)) for a, b, v in found], sample.meta["given"]


def chain_shortcut(sample, name):
    lines, asked = chain_text(sample)
    values = [(i, b) for i, (_, b, is_value) in enumerate(lines) if is_value]
    here = next(i for i, line in enumerate(lines) if line[0] == asked)
    if name == "last":
        return values[-1][1]
    if name == "first":
        return values[0][1]
    if name == "nearest":
        return min(values, key=lambda v: abs(v[0] - here))[1]
    before = [v for i, v in values if i < here]
    return before[-1] if before else values[0][1]


def one_pass(sample):
    """Reads once from left to right and passes resolved values on; guesses where that leads nowhere."""
    lines, asked = chain_text(sample)
    known: dict[str, str] = {}
    for name, source, is_value in lines:
        if is_value or source in known:
            known[name] = source if is_value else known[source]
    values = [b for _, b, is_value in lines if is_value]
    return known.get(asked, values[sum(map(ord, asked)) % len(values)])


def chains(chains, hops, order, n=N):
    facts = chains * (hops + 1)
    cell, samples = ask(
        "chain", n=n, wording="natural", length=300 + 6 * facts, hops=hops, chains=chains, facts=facts, order=order
    )
    assert cell.chance == 1 / chains
    return samples


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
@pytest.mark.parametrize("number", [4, 16])
def test_chain_value_shortcuts_are_at_one_in_c(number, order):
    samples = chains(number, 4, order)
    for name in ("last", "first", "nearest", "nearest before"):
        assert at(share(samples, lambda s, name=name: chain_shortcut(s, name)), 1 / number), name


def test_forward_order_of_one_hop_leaks_proximity():
    for number, leak in ((4, 0.408), (16, 0.137)):
        assert at(share(chains(number, 1, "forward"), lambda s: chain_shortcut(s, "nearest before")), leak)


ONE_PASS = {  # an independent simulation of 1,500 samples a cell
    ("forward", 4): {1: 1.0, 2: 1.0, 4: 1.0},
    ("forward", 16): {1: 1.0, 4: 1.0},
    ("shuffled", 4): {1: 0.60, 2: 0.38, 4: 0.27},
    ("shuffled", 16): {1: 0.52, 2: 0.21, 4: 0.07},
    ("reverse", 4): {1: 0.24, 2: 0.26, 4: 0.25},
    ("reverse", 16): {1: 0.06, 2: 0.06, 4: 0.06},
    ("reverse", 64): {2: 0.02},
}


@pytest.mark.parametrize(("order", "number"), ONE_PASS)
def test_one_pass_solves_forward_order_alone(order, number):
    for hops, expected in ONE_PASS[order, number].items():
        hits = share(chains(number, hops, order, n=200 if number < 64 else 100), one_pass)
        assert at(hits, expected), (hops, sum(hits) / len(hits))


@pytest.mark.parametrize("subtask", ["graph", "path", "chain", "binding"])
def test_answer_cannot_be_told_from_the_question(subtask):
    _, samples = ask(subtask, n=480, length=256, facts=16, hops=2, **({"chains": 4} if subtask == "chain" else {}))
    number = {name: i for i, name in enumerate(NAMES)}
    gaps = [(number[s.target[0]] - number[s.meta["given"]]) % 512 for s in samples]
    counts = Counter(gap // 32 for gap in gaps if gap)
    assert chisquare([counts[b] for b in range(16)]).pvalue > 1e-4
    assert chisquare([Counter(number[s.target[0]] // 32 for s in samples)[b] for b in range(16)]).pvalue > 1e-4


@pytest.mark.parametrize("subtask", ["graph", "path", "chain", "binding", "callchain"])
@pytest.mark.parametrize("length", [512, 1024])
def test_gold_depth_is_uniform_at_every_length(subtask, length):
    _, samples = ask(subtask, n=300, length=length, hops=2)
    depths = [s.facets["depth"] for s in samples]
    assert kstest(depths, "uniform").pvalue > 1e-4
    for s in samples[:20]:  # and it is where it says
        given = f"call {s.meta['given']} answer" if subtask == "callchain" else f"ask {s.meta['given']} "
        body = s.prompt.rpartition(given)[0]
        place = body.rindex(f"{'def' if subtask == 'callchain' else 'edge'} {s.meta['given']} ")
        if subtask != "path":
            assert abs(place / len(body) - s.facets["depth"]) < 20 / len(body)


def test_terse_words_are_the_lexicons_and_one_space_apart():
    for case, knobs in CASES.items():
        for s in ask(case.partition("-")[0], n=10, length=1024, **knobs)[1]:
            assert set(s.text.split(" ")) <= set(WORDS)
            assert set(s.target[0].split(" ")) <= set(WORDS)
            assert s.max_new_tokens == len(s.target[0].split())


def test_both_wordings_come_from_the_same_facts():
    for case, knobs in CASES.items():
        _, terse = ask(case.partition("-")[0], n=10, length=1024, **knobs)
        _, natural = ask(case.partition("-")[0], n=10, wording="natural", length=1024, **knobs)
        for a, b in zip(terse, natural, strict=True):
            assert a.target == b.target
            assert a.id == b.id
            named = [[w for w in re.findall(r"\w+", s.prompt) if w in ALL] for s in (a, b)]
            assert Counter(named[0][:-1]) == Counter(named[1][: len(named[0]) - 1])


def test_choices_hold_the_answer_at_no_preferred_place():
    _, samples = ask("chain", wording="natural", length=1024, hops=2)
    places = Counter(s.choices.index(f" {s.target[0]}") for s in samples)
    assert all(len(set(s.choices)) == 6 for s in samples)
    assert chisquare([places[i] for i in range(6)]).pvalue > 1e-4


def test_unknown_things_are_named():
    for request, hint in (
        (Request(knobs={"hop": (1,)}), "multihop.hops"),
        (Request(("graf",)), "multihop.graph"),
        (Request(knobs={"order": ("backward",)}), "order"),
        (Request(knobs={"facts": (2,)}), "at least 3"),
    ):
        with pytest.raises(UserError, match=hint):
            TASK.cells(request)


def test_missing_says_what_and_why():
    request = Request(("graph", "binding"), (512,), {"hops": (1, 8, 31)}, wording="terse")
    made = [(c.task, c.facets["hops"]) for c in TASK.cells(request)]
    assert made == [("multihop.graph", 1), ("multihop.graph", 8), ("multihop.binding", 1)]
    missing = TASK.missing(request)
    assert len(missing) == 3
    assert "at most 30 hops" in missing["multihop/graph/512/answer=direct,facts=32,hops=31,order=shuffled"]
    small = Request(("graph",), (64,), {"hops": (1,)}, wording="terse")
    assert not TASK.cells(small)
    assert "of 64 tokens" in next(iter(TASK.missing(small).values()))


def test_it_is_a_task_and_can_be_trained_on():
    assert isinstance(TASK, Task)
    assert isinstance(TASK, Trainable)
