"""How traced programs could be answered without following them; and that running them gives what they ask for.

Two interpreters that know nothing of the generators judge them: Python itself runs the natural text, and `labels` reads
the terse one word by word.
"""

import contextlib
import io
import re
from collections import Counter
from functools import cache

import pytest
from scipy.stats import binomtest, chisquare, kstest

from evalsuite.errors import UserError
from evalsuite.lexicon import DIGITS, NAMES, WORDS
from evalsuite.plan import make, select
from evalsuite.records import Completion, Sample
from evalsuite.task import Request, Task, Trainable, load
from evalsuite_tasks.multihop.preview import preview
from evalsuite_tasks.trace import Trace
from trace_machine import ALL, labels

TASK = Trace()
VALUES = ALL | frozenset(DIGITS)
CASES = {
    "assign": {"hops": 4},
    "assign-none": {"hops": 0},
    "swap": {"steps": 32},
    "swap-few": {"steps": 5, "variables": 5},
    "index": {"by": "digit"},
    "index-variable": {"by": "variable", "overwrites": 3, "size": 6},
    "deref": {"hops": 4},
    "deref-one": {"hops": 6, "arrays": 1},
    "palindrome": {"items": 9},
    "stack": {"operations": 64},
    "stack-many": {"stacks": 8, "operations": 80},
}


def by_word(text):
    return len(text.split()) + 1


def by_piece(text):
    """Like a subword tokenizer: pieces of at most four letters, other signs one each."""
    return len(re.findall(r"[a-z]{1,4}|\d|[^\sa-z\d]|\n", text.lower()))


@cache
def ask(case, *, n=300, wording="terse", length=512, seed=0, count=by_word, **knobs):
    request = Request(
        (case.partition("-")[0],),
        (length,),
        {k: (v,) for k, v in {**CASES[case], **knobs}.items()},
        seed=seed,
        wording=wording,
    )
    (cell,) = TASK.cells(request)
    return cell, [TASK.sample(cell, i, request, count) for i in range(n)]


def value(sample: Sample, text: str) -> float:
    return TASK.score(sample, Completion(sample.id, text, 0)).value


def share(samples, answer):
    hits = [value(sample, answer(sample)) for sample in samples]
    return sum(hits) / len(hits)


def at(rate, n, floor):
    """Whether a rate agrees with the floor, from both sides."""
    return binomtest(round(rate * n), n, floor).pvalue > 1e-4


def under(rate, n, floor):
    return binomtest(round(rate * n), n, floor, alternative="greater").pvalue > 1e-4


def run_terse(sample):
    *_, answer = labels(sample.prompt.split())
    if sample.meta["form"] != "list":
        return answer
    return " ".join(reversed(re.search(r"list ((?:[a-z]+ )+?)(?:noise|\?)", sample.prompt)[1].split()))


def run_natural(sample):
    """Lets Python run the program, comments and all, and the question's own expression after it."""
    _, code, question = sample.prompt.split("\n\n")
    space: dict = {}
    exec(code, space)
    asked = re.search(r"What (?:is the value of|would|does) (\S+) ", question)[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = eval(asked, space)
    return printed.getvalue().strip() or str(result)


@pytest.mark.parametrize("case", CASES)
def test_running_the_text_gives_the_answer_in_both_wordings(case):
    _, terse = ask(case, n=60)
    _, natural = ask(case, n=60, wording="natural", length=1500)
    assert share(terse, run_terse) == share(natural, run_natural) == 1
    _, same = ask(case, n=20, length=1500)
    for a, b in zip(same, natural, strict=False):
        assert (a.id, a.target, a.cluster) == (b.id, b.target, b.cluster)


@pytest.mark.parametrize("wording", ["natural", "terse"])
@pytest.mark.parametrize("case", CASES)
def test_oracle_is_right_and_nothing_else_is(case, wording):
    _, samples = ask(case, n=20, wording=wording, length=1500)
    assert share(samples, lambda s: s.target[0]) == 1
    for wrong in (
        lambda s: "",
        lambda s: " ".join(NAMES),
        lambda s: " ".join(DIGITS),
        lambda s: s.prompt,
        lambda s: f"{s.target[0]} or {NAMES[0]} or {NAMES[1]} or 11 or 12",
        lambda s: next(v for v in NAMES if v not in s.prompt),
        lambda s: " ".join(dict.fromkeys(w for w in re.findall(r"\w+", s.prompt) if w in VALUES)),
    ):
        assert share(samples, wrong) == 0
    assert not any(TASK.score(s, Completion(s.id, s.target[0], 0, error="cut")).value for s in samples)
    if wording == "natural" and case != "palindrome":
        assert (
            share(samples, lambda s: f" `{' = '.join([*s.meta['given'][:1], s.target[0].upper()])}`\nand {NAMES[0]}")
            == 1
        )


def test_a_palindrome_counts_whole_and_says_how_much_was_right():
    for s in ask("palindrome", n=10)[1]:
        names = s.target[0].split()
        for wrong, right in (
            (names[::-1], 1 / 9),
            (names[:-1], 8 / 9),
            ([*names, names[0]], 1),
            ([*names[:4], *names[5:], names[4]], 4 / 9),
            ([], 0),
        ):
            score = TASK.score(s, Completion(s.id, " ".join(wrong), 0))
            assert (score.value, score.detail["share"]) == (0, pytest.approx(right))
        assert value(s, ", ".join(f'"{name}"' for name in names)) == 1


def test_hops_done_names_the_look_ups():
    for s in ask("deref-one", n=10)[1]:
        asked = s.prompt.split("get ")[1].split()
        arrays, start = asked[: asked.index("]") - 1 : 2], asked[asked.index("]") - 1]
        elements = {(a, i): v for a, i, v in re.findall(r"(\w+) \[ (\w+) \] = (\w+)", s.prompt)}
        for done in range(7):
            score = TASK.score(s, Completion(s.id, start, 0))
            assert (score.value, score.detail["hops_done"]) == (done == 6, done)
            start = elements[arrays[0], start]


def lines(sample):
    """The lines of a terse program, noise and question left out."""
    body = re.sub(r"noise \w+ \w+ ?", "", sample.prompt)
    body = body[: body.rindex("pop " if sample.task == "trace.stack" else "get ")]
    return re.findall(r"swap \w+ \w+|push \w+ \w+|pop \w+|\w+ \[ \w+ \] = \w+|\w+ = \w+", body)


def values(sample, beginning=""):
    """What is written, line by line; of lines that begin so."""
    possible = set(DIGITS) if sample.meta["form"] == "digit" else ALL - {a for a, *_ in map(str.split, lines(sample))}
    found = [line.split()[-1] for line in lines(sample) if line.startswith(beginning) and not line.startswith("pop ")]
    return [value for value in found if value in possible]


def pushes(sample, back):
    found = values(sample, f"push {sample.meta['given'][0]} ")
    return found[-1 - back] if back < len(found) else found[0]


def before(sample):
    """The value written nearest before the last line of the asked variable."""
    found = lines(sample)
    last = max(i for i, line in enumerate(found) if sample.meta["given"][0] in line.split()[:3])
    known = set(values(sample))
    return next((line.split()[-1] for line in found[last::-1] if line.split()[-1] in known), "")


def first_of_asked(sample):
    return next(iter(values(sample, f"{sample.meta['given'][0]} =")), "")


def random_value(sample):
    found = values(sample)
    return found[sum(map(ord, sample.id)) % len(found)]


SHORTCUTS = {
    "last": lambda s: values(s)[-1],
    "first": lambda s: values(s)[0],
    "most frequent": lambda s: Counter(values(s)).most_common(1)[0][0],
    "least frequent": lambda s: Counter(values(s)).most_common()[-1][0],
    "any": random_value,
}
OWN = {
    "assign": {"before": before, "own constant": first_of_asked},
    "swap": {"before": before, "own constant": first_of_asked},
    "index": {
        "last of the array": lambda s: values(s, s.meta["given"][0])[-1],
        "first of the array": lambda s: values(s, s.meta["given"][0])[0],
        "last at the digit": lambda s: re.findall(r"\[ 3 \] = (\w+)", s.prompt)[-1],
    },
    "deref": {"one hop": lambda s: labels(f"{s.prompt.rpartition(' get ')[0]} {innermost(s)}".split())[-1]},
    "stack": {f"push {back} back": lambda s, back=back: pushes(s, back) for back in range(9)},
}


def innermost(sample):
    return "get " + re.search(r"\w+ \[ \w+ \]", sample.prompt.rpartition(" get ")[2])[0]


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("palindrome", "assign-none", "stack-many")])
def test_shortcuts_stay_at_chance(case):
    cell, samples = ask(case)
    for name, shortcut in {**SHORTCUTS, **OWN[case.partition("-")[0]]}.items():
        assert under(share(samples, shortcut), len(samples), cell.chance), name


@pytest.mark.parametrize(("steps", "variables"), [(8, 4), (16, 16), (64, 16)])
def test_a_swapped_value_is_elsewhere_and_more_than_one_swap_away(steps, variables):
    cell, samples = ask("swap", steps=steps, variables=variables)

    def undo(sample, most):
        """Goes back along the swaps, at most so many."""
        here, done = sample.meta["given"][0], 0
        for _, a, b in reversed([line.split() for line in lines(sample) if line.startswith("swap")]):
            if here in (a, b) and done < most:
                here, done = b if here == a else a, done + 1
        return values(sample, f"{here} =")[0], done

    assert share(samples, lambda s: undo(s, 999)[0]) == 1
    assert {undo(s, 999)[1] for s in samples} == {max(2, 2 * steps // variables)}
    assert under(share(samples, lambda s: undo(s, 0)[0]), len(samples), cell.chance)
    assert under(share(samples, lambda s: undo(s, 1)[0]), len(samples), cell.chance)


def test_a_copy_holds_what_its_source_was_at_that_time():
    """Whoever follows the latest assignment of every variable back is seldom right."""

    def latest(sample):
        final = dict(line.split(" = ") for line in lines(sample))
        node, seen = sample.meta["given"][0], set()
        while node in final and node not in seen:
            seen.add(node)
            node = final[node]
        return node

    for hops in (1, 4):
        assert share(ask("assign", hops=hops)[1], latest) < 0.25
    assert share(ask("assign-none", n=50)[1], latest) == 1


@pytest.mark.parametrize("hops", [0, 1, 4])
def test_assign_takes_the_hops_it_says_and_all_digits_alike(hops):
    _, samples = ask("assign", hops=hops)
    for s in samples[:100]:
        depth: dict[str, int] = {}
        for line in lines(s):
            target, source = line.split(" = ")
            depth[target] = 0 if source in DIGITS else depth[source] + 1
        assert depth[s.meta["given"][0]] == hops
        assert len(lines(s)) == 64
    assert chisquare([Counter(s.target[0] for s in samples)[d] for d in DIGITS]).pvalue > 1e-4


def test_the_popped_item_was_covered_by_any_number_of_pushes():
    cell, samples = ask("stack")
    covers = []
    for s in samples:
        assert len(lines(s)) == 64
        mine = values(s, f"push {s.meta['given'][0]} ")
        covers.append(len(mine) - 1 - mine.index(s.target[0]))
    assert cell.chance == 1 / 7
    assert chisquare([Counter(covers)[c] for c in range(1, 8)]).pvalue > 1e-4
    _, many = ask("stack-many")
    assert all(len(values(s, f"push {s.meta['given'][0]} ")) >= 1 for s in many)


@pytest.mark.parametrize("length", [512, 1024])
@pytest.mark.parametrize("case", ["assign", "assign-none", "index", "index-variable", "deref", "palindrome"])
def test_gold_depth_is_uniform_at_every_length(case, length):
    depths = [s.facets["depth"] for s in ask(case, length=length, **({"size": 4} if "var" in case else {}))[1]]
    assert kstest(depths, "uniform").pvalue > 1e-4


def test_questions_of_one_text_share_all_but_the_question():
    for subtask, knob, wanted in (("deref", "hops", (1, 2, 4, 6)), ("index", "by", ("digit", "variable"))):
        for wording, length in (("terse", 512), ("natural", 2048)):
            request = Request((subtask,), (length,), {knob: wanted}, wording=wording)
            for i in range(5):
                each = [TASK.sample(cell, i, request, by_word) for cell in TASK.cells(request)]
                cut = " get " if wording == "terse" else "What is"
                assert len({s.prompt.rpartition(cut)[0] for s in each}) == len({s.cluster for s in each}) == 1
                assert len({s.id for s in each}) == len({s.prompt_hash for s in each}) == len(wanted)
    request = Request(("deref",), (256,), {"hops": (1, 4)}, wording="terse")
    short = [TASK.sample(cell, 0, request, by_word) for cell in TASK.cells(request)]
    programs = {tuple(re.findall(r"\w+ \[ \w+ \] = \w+", s.prompt)) for s in short}
    assert len(programs) == 1


@pytest.mark.parametrize(
    ("wording", "length", "count"),
    [("terse", 256, by_word), ("terse", 1000, by_word), ("natural", 2048, by_word), ("natural", 4096, by_piece)],
)
def test_every_cell_fits_its_length(wording, length, count):
    request = Request(lengths=(length,), wording=wording)
    cells = TASK.cells(request)
    if length > 256:
        assert not TASK.missing(request)
        assert len(cells) == 13
    assert {cell.task.partition(".")[2] for cell in cells} == set(TASK.subtasks())
    for cell in cells:
        for i in range(2):
            s = TASK.sample(cell, i, request, count)
            used = count(s.text) + s.max_new_tokens
            assert 0.96 * length <= used <= length, cell
            if wording == "terse":
                assert set(s.text.split(" ")) | set(s.target[0].split(" ")) <= set(WORDS)
                assert s.max_new_tokens == len(s.target[0].split())


def test_a_length_too_short_is_one_clear_line():
    request = Request(("swap",), (96,), wording="terse")
    assert not TASK.cells(request)
    assert "of 96 tokens" in TASK.missing(request)["trace/swap/96/steps=16,variables=16"]
    (cell,) = TASK.cells(Request(("swap",), (1024,), {"steps": (64,)}))
    with pytest.raises(UserError, match=r"takes \d+ of 1024 tokens"):
        TASK.sample(cell, 0, Request(("swap",), (1024,)), lambda text: 2 * len(text))
    for index in (0, 5):  # and never a text that is cut
        (cell,) = TASK.cells(Request(("palindrome",), (1024,), wording="terse"))
        s = TASK.sample(cell, index, Request(wording="terse"), by_word)
        assert len(re.search(r"list ((?:[a-z]+ )+?)(?:noise|\?)", s.prompt)[1].split()) == 16


def test_mistakes_are_named():
    for request, hint in (
        (Request(knobs={"step": (1,)}), r"trace\.steps"),
        (Request(("asign",)), r"trace\.assign"),
        (Request(knobs={"by": ("name",)}), "by"),
        (Request(knobs={"facts": (0,)}), "at least 1"),
        (Request(knobs={"facts": ("dense",)}), "a whole number"),
    ):
        with pytest.raises(UserError, match=hint):
            TASK.cells(request)
    for subtask, knobs, reason in (
        ("assign", {"variables": 5}, "variables=12"),
        ("assign", {"hops": 9}, "lines=100"),
        ("swap", {"variables": 2}, "variables=3"),
        ("swap", {"steps": 1}, "steps=2"),
        ("index", {"size": 11}, "2 to 10"),
        ("deref", {"hops": 0}, "1 to 16"),
        ("deref", {"hops": 7, "facts": 8, "arrays": 1}, "1 to 6"),
        ("deref", {"facts": 4}, "at least 3"),
        ("palindrome", {"items": 1}, "items=2"),
        ("palindrome", {"items": 501}, "501 names"),
        ("stack", {"operations": 16}, "at least 20"),
    ):
        request = Request((subtask,), (8192,), {k: (v,) for k, v in knobs.items()}, wording="terse")
        assert reason in " ".join(TASK.missing(request).values()), (subtask, knobs)


def test_samples_are_the_same_whatever_the_limit():
    few, many = (
        {
            s.id: (s.prompt, s.target, s.cluster)
            for _, s in make(select(["trace"], lengths=(512,), limit=limit), "terse").samples(by_word)
        }
        for limit in (2, 5)
    )
    assert len(few) == 2 * 13
    assert len(many) == 5 * 13
    assert few.items() <= many.items()
    assert "trace/deref/512/arrays=2,facts=32,hops=4/1" in few


def test_preview_prints_one_sample(capsys):
    preview(TASK, ["swap", "--steps", "16", "--variables", "8", "--length", "256", "--wording", "terse"])
    assert "# id: trace/swap/256/steps=16,variables=8/0" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="at least steps=2"):
        preview(TASK, ["swap", "--steps", "1"])


def test_it_is_a_task_and_can_be_trained_on():
    assert isinstance(load("trace"), Task)
    assert isinstance(load("trace"), Trainable)
