"""What longcode asks is what Python says; and who skips the look-ups, the aliases or the operations knows nothing.

Two interpreters that know nothing of the generators judge them: Python runs the natural text, `terse` reads the other.
"""

import re
from functools import cache
from statistics import fmean

import pytest

from evalsuite import models
from evalsuite.errors import UserError
from evalsuite.lexicon import DIGITS, NAMES, WORDS
from evalsuite.records import Completion
from evalsuite.task import Request, Trainable, load, uses
from evalsuite_tasks.multihop.names import held_out
from evalsuite_tasks.multihop.preview import preview

TASK = load("longcode")
ALL = frozenset(NAMES)
CASES = {
    "crux_exploded": {"hops": 4, "form": "exploded"},
    "crux_exploded-one": {"hops": 1, "form": "exploded", "functions": 8},
    "crux_exploded-inlined": {"hops": 4, "form": "inlined"},
    "aliases": {"hops": 4},
    "aliases-none": {"hops": 0, "overwrites": 0},
    "aliases-more": {"hops": 2, "overwrites": 2},
    "latent_list": {"steps": 20},
    "latent_list-one": {"steps": 1},
    "latent_list-wide": {"steps": 5, "lists": 6, "size": 8},
}


def by_word(text):
    return len(text.split()) + 1


def by_piece(text):
    """Like a subword tokenizer: pieces of at most four letters, other signs one each."""
    return len(re.findall(r"[a-z]{1,4}|\d|[^\sa-z\d]|\n", text.lower()))


@cache
def ask(case, *, n=100, wording="terse", length=1024, seed=0, count=by_word, **knobs):
    given = {k: (v,) for k, v in {**CASES[case], **knobs}.items()}
    request = Request((case.partition("-")[0],), (length,), given, seed=seed, wording=wording)
    (cell,) = TASK.cells(request)
    return tuple(TASK.sample(cell, i, request, count) for i in range(n))


def value(case, answers, **asked):
    """Mean score of `answers(sample)`."""
    samples = ask(case, **asked)
    return fmean(TASK.score(s, Completion(s.id, answers(s), 1)).value for s in samples)


HEADS = {"noise", "def", "list", "push", "add", "pop", "next", "swap", "set", "get"}


def lines_of(words):
    """The lines of a terse text, noise too."""
    starts = [
        i
        for i, word in enumerate(words)
        if word in HEADS
        or (word == "call" and words[i + 2 : i + 3] == ["answer"])
        or (word in ALL and words[i + 1 : i + 2] == ["="])
    ]
    return [words[a:b] for a, b in zip(starts, [*starts[1:], len(words)], strict=True)]


def statements(sample):
    """The lines without noise, and the question."""
    return [line for line in lines_of(sample.text.split()) if line[0] != "noise"]


class Machine:
    """Runs terse lines one by one; each says what its words have determined, None where nothing."""

    def __init__(self):
        self.bound, self.objects, self.functions, self.lists = {}, [], {}, {}

    def run(self, line):
        quiet = [None] * (len(line) - 1)
        match line:
            case ["def", name, *body]:
                self.functions[name] = body
                return self.defined(body)
            case ["call", name, "answer"]:
                return [*quiet, str(called(self.functions, name) % 10)]
            case [name, "=", other] if other in DIGITS:
                self.objects.append(other)
                self.bound[name] = len(self.objects) - 1
            case [name, "=", other]:
                self.bound[name] = self.bound[other]
                return [*quiet, self.objects[self.bound[name]]]
            case ["set", name, digit]:
                self.objects[self.bound[name]] = digit
            case ["get", name]:
                return [*quiet, self.objects[self.bound[name]]]
            case ["get", name, "[", place, "]"]:
                return [*quiet, self.lists[name][int(place)]]
            case ["list", name, *items]:
                self.lists[name] = items
            case [operation, name, *item] if operation != "noise":
                return [*quiet, OPERATIONS[operation](self.lists[name], *item)]
        return [*quiet, None]

    @staticmethod
    def defined(body):
        """An inlined sum is known digit by digit."""
        if body[0] != "is" or len(body) == 2:
            return [None] * (len(body) + 2)
        sums = [
            None if word == "+" else str(sum(map(int, body[1 : i + 2 : 2])) % 10) for i, word in enumerate(body[1:])
        ]
        return [None, None, None, *sums]


def terse(sample):
    """What a terse program says of its question."""
    machine = Machine()
    return [machine.run(line) for line in statements(sample)][-1][-1]


def called(functions, name):
    body = functions[name]
    if body[0] == "is":
        return sum(int(word) for word in body[1:] if word != "+")
    assert body[-2] == "+"
    return int(body[-1]) + sum(called(functions, word) for word in body[:-2] if word != "call")


OPERATIONS = {
    "push": list.append,
    "add": lambda items, item: items.insert(0, item),
    "pop": list.pop,
    "next": lambda items: items.pop(0),
    "swap": list.reverse,
}  # what a pop gives is known at the list's name


@pytest.mark.parametrize("case", CASES)
def test_an_interpreter_of_the_terse_text_agrees(case):
    for sample in ask(case):
        assert set(sample.text.split()) <= set(WORDS)
        assert (terse(sample),) == sample.target


@pytest.mark.parametrize("case", CASES)
def test_python_agrees_with_the_natural_text(case):
    for sample in ask(case, n=60, wording="natural", length=4096, count=by_piece):
        program, _, question = sample.prompt.partition("comments and do nothing.\n")[2].rpartition("\n\n")
        space = {}
        exec(program, space)
        expression = re.search(r"value of (\S+) at the end", question)[1]
        assert sample.answer_prefix == f"The value of {expression} is"
        assert str(eval(expression, space)) == sample.target[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("wording", "count"), [("terse", by_word), ("natural", by_piece)])
def test_a_length_is_kept_and_filled(case, wording, count):
    for length in (1024, 4096):
        for sample in ask(case, n=8, wording=wording, length=length + 1024, count=count):
            used = count(sample.text) + sample.max_new_tokens
            assert 0.95 * (length + 1024) <= used <= length + 1024


@pytest.mark.parametrize("case", CASES)
def test_both_wordings_have_one_answer_and_right_ones_score(case):
    one, two = (ask(case, n=40, wording=w, length=4096) for w in ("terse", "natural"))
    assert [s.target for s in one] == [s.target for s in two]
    assert value(case, lambda s: s.target[0]) == 1.0
    assert value(case, lambda s: f" {s.target[0]}.", wording="natural", length=4096) == 1.0
    assert value(case, lambda s: "") == 0.0
    assert value(case, lambda s: " ".join(DIGITS) + " " + " ".join(NAMES)) == 0.0


def test_a_body_that_was_not_read_leaves_chance():
    """Adding up all of a caller's digits but one, or following no helper at all."""

    def partly(sample, known):
        functions = {line[1]: line[2:] for line in statements(sample) if line[0] == "def"}
        body = functions[statements(sample)[-1][1]]
        names = [word for word in body[:-2] if word != "call"][:known]
        return str((int(body[-1]) + sum(called(functions, name) for name in names)) % 10)

    for known in (0, 1, 3):
        assert value("crux_exploded", lambda s, k=known: partly(s, k), n=600) < 0.1 + 3 * 0.0123
    assert value("crux_exploded", lambda s: partly(s, 4), n=600) == 1.0


def test_the_control_is_the_same_module_with_the_bodies_in_its_callers():
    for one, two in zip(ask("crux_exploded", n=40), ask("crux_exploded-inlined", n=40), strict=True):
        assert one.target == two.target
        assert one.cluster == two.cluster
        a, b = statements(one), statements(two)
        assert len(a) == len(b) == 32 + 4 + 1
        different = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
        assert len(different) == 4
        assert all("call" in x and "call" not in y for x, y in different)
        assert a[-1] == b[-1]


def test_hops_are_asked_at_the_end_of_one_text():
    texts = [[s.prompt.rpartition(" get ")[0] for s in ask("aliases", n=30, hops=hops)] for hops in (0, 1, 2, 4)]
    assert texts[0] == texts[1] == texts[2] == texts[3]
    assert len({s.cluster for hops in (0, 4) for s in ask("aliases", n=30, hops=hops)}) == 30


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"hops": (5,), "functions": (9,)}, "at least functions=10"),
        ({"functions": (497,)}, "at most 496"),
        ({"hops": (17,)}, "give 0 to 16"),
        ({"hops": (0,)}, "at least one helper"),
        ({"size": (9,)}, "3 to 8 items"),
        ({"lists": (40,), "steps": (20,)}, "fewer of each"),
        ({"hops": (16,)}, "smaller program or a longer text"),
    ],
)
def test_what_cannot_be_made_is_one_line(knobs, said):
    reasons = TASK.missing(Request(lengths=(512,), knobs=knobs, wording="terse")).values()
    assert any(said in reason and "\n" not in reason for reason in reasons)


def test_what_does_not_exist_is_refused():
    for knobs in ({"form": ("exploted",)}, {"helpers": (3,)}, {"steps": (0,)}):
        with pytest.raises(UserError):
            TASK.cells(Request(knobs=knobs))
    assert not uses(TASK, "humaneval")


def test_the_preview_prints_a_sample(capsys):
    preview(TASK, ["latent_list", "--steps", "5", "--length", "700"])
    assert "# target:" in capsys.readouterr().out


def test_shipped_checkpoints_can_be_asked():
    model = models.load("full", device="cpu")
    request = Request(lengths=(512,), wording="terse")
    asked = [TASK.sample(cell, i, request, model.count) for cell in TASK.cells(request) for i in range(2)]
    assert {s.task for s in asked} == {f"longcode.{part}" for part in TASK.subtasks()}
    found = list(model.answer(asked))
    assert [c.error for c in found] == [""] * len(asked)
    assert all(c.prompt_tokens <= 512 for c in found)


@pytest.mark.parametrize("subtask", TASK.subtasks())
@pytest.mark.parametrize("budget", [64, 127, 511])
def test_labels_of_documents_are_what_running_them_gives(subtask, budget):
    asked = 0
    for index in range(60):
        document = TASK.document(subtask, 1, index, budget)
        assert len(document.words) == len(document.labels) <= budget
        assert set(document.words) | (set(document.labels) - {None}) <= set(WORDS)
        machine = Machine()
        expected = [label for line in lines_of(list(document.words)) for label in machine.run(line)]
        assert list(document.labels) == expected
        asked += sum(label is not None for label in document.labels)
    assert asked > 60 * budget / 30


def test_documents_differ_by_number_and_hold_no_evaluation():
    for subtask in TASK.subtasks():
        made = {TASK.document(subtask, seed, i, 200) for seed in (0, 1) for i in range(30)}
        assert len(made) == 60
        assert TASK.document(subtask, 1, 7, 200) in made
        for document in made:
            assert not held_out(tuple({word for word in document.words if word in ALL}))
    for case in CASES:
        assert all(held_out(tuple({w for w in s.text.split() if w in ALL})) for s in ask(case, n=20))


def test_knobs_of_documents_are_the_most_that_they_hold():
    for i in range(20):
        assert " ".join(TASK.document("crux_exploded", 0, i, 400, hops=1).words).count("call") > 0
        assert max(TASK.document("latent_list", 0, i, 400, size=4).words.count("list"), 1) <= 6
        assert TASK.document("latent_list", 0, i, 4000, lists=8, steps=32)
        assert TASK.document("crux_exploded", 0, i, 8000, functions=240, hops=16)
        assert TASK.document("aliases", 0, i, 4000, lines=400, names=240)
    with pytest.raises(UserError, match="hops"):
        TASK.document("crux_exploded", 0, 0, 400, hop=1)
    with pytest.raises(UserError, match="3 to 8"):
        TASK.document("latent_list", 0, 0, 400, size=9)
    with pytest.raises(UserError, match=r"longcode\.aliases"):
        TASK.document("alias", 0, 0, 400)
    assert isinstance(TASK, Trainable)
