"""Who leaves out of longcode's aliases and lists what they are about is right no more often than chance says."""

import re
from collections import Counter
from statistics import fmean

import pytest

from evalsuite.lexicon import DIGITS
from evalsuite.task import Request
from test_longcode import TASK, ask, by_word, statements


class Aliases:
    """A text of aliases as shortcuts see it."""

    def __init__(self, sample):
        *self.lines, (_, self.asked) = python(sample) if "\n" in sample.text else statements(sample)
        self.bound = {line[0]: line[2] for line in self.lines if line[1] == "="}
        self.writes = [(i, line[1], line[2]) for i, line in enumerate(self.lines) if line[0] == "set"]
        self.mentioned = max(i for i, line in enumerate(self.lines) if self.asked in line)
        newest = {name: i for i, name, _ in self.writes}
        self.kept = [write for write in self.writes if newest[write[1]] == write[0]]  # no later one through its name
        self.names = {name for name in self.bound if self.first(name) == self.first(self.asked)}
        near = (self.asked, self.bound[self.asked])
        self.near = {*near, *(name for name, other in self.bound.items() if other == self.asked)}

    def first(self, name):
        return name if self.bound[name] in DIGITS else self.first(self.bound[name])

    def through(self, names):
        return next((digit for _, name, digit in reversed(self.writes) if name in names), "")

    def after(self, writes, alias=(False, True)):
        """The first write after the last mention of the asked name, of those through an alias or a first name."""
        return next((d for i, name, d in writes if i > self.mentioned and (self.first(name) != name) in alias), "")

    def nearest(self, writes):
        return min((abs(i - self.mentioned), d) for i, name, d in writes if name != self.asked)[1]


def python(sample):
    """The lines of a natural text of aliases as terse ones, without comments."""
    found = [line for line in sample.prompt.splitlines() if re.match(r"[a-z]+(\[0\])? = ", line)]
    writes = re.compile(r"([a-z]+)\[0\] = (\d)")
    lines = [writes.sub(r"set \1 \2", line).replace("[", "").replace("]", "").split() for line in found]
    return [*lines, ["get", re.search(r"value of ([a-z]+)", sample.prompt.splitlines()[-1])[1]]]


SHORTCUTS = {
    "one binding": lambda text: text.through(text.near),
    "no binding": lambda text: text.through({text.asked}),
    "first name": lambda text: text.through({text.first(text.asked)}),
    "newest": lambda text: text.writes[-1][2],
    "nearest": lambda text: text.nearest(text.writes),
    "nearest kept": lambda text: text.nearest(text.kept),
    "next": lambda text: text.after(text.writes),
    "next of first names": lambda text: text.after(text.writes, alias=[False]),
    "next of aliases": lambda text: text.after(text.writes, alias=[True]),
    "next kept": lambda text: text.after(text.kept),
    "next kept of first names": lambda text: text.after(text.kept, alias=[False]),
    "next of the last ten": lambda text: text.after(text.writes[-10:]),
}


@pytest.mark.parametrize("hops", [1, 2, 4])
@pytest.mark.parametrize(
    ("overwrites", "length", "wording"),
    [(0, 512, "terse"), (1, 512, "terse"), (0, 2048, "natural"), (1, 2048, "natural"), (3, 2048, "terse")],
)
def test_who_does_not_follow_all_bindings_is_at_chance(hops, overwrites, length, wording):
    samples = ask("aliases", n=300, hops=hops, overwrites=overwrites, length=length, wording=wording)
    right = Counter()
    for sample in samples:
        text = Aliases(sample)
        assert text.through(text.names) == sample.target[0]
        right.update(name for name, shortcut in SHORTCUTS.items() if shortcut(text) == sample.target[0])
    assert right["one binding"] == (len(samples) if hops == 1 else 0)
    assert right["no binding"] == 0
    del right["one binding"]
    assert max(right.values()) < (0.1 + 0.06) * len(samples), right


def test_the_control_of_aliases_needs_no_binding():
    for sample in ask("aliases", hops=0, overwrites=1):
        text = Aliases(sample)
        assert text.through({text.asked}) == sample.target[0]


def test_who_skips_what_is_written_through_first_names_or_through_aliases_is_not_always_right():
    """One of the two is right whenever the other is not; to skip aliases would spare most of the work."""
    texts = [(Aliases(sample), sample.target[0]) for sample in ask("aliases", n=400)]
    first = fmean(text.through({text.first(text.asked)}) == target for text, target in texts)
    aliases = fmean(text.through(text.names - {text.first(text.asked)}) == target for text, target in texts)
    assert first + aliases == pytest.approx(1)
    assert 0.05 < first < 0.16


def test_a_binding_that_was_replaced_leads_to_another_object():
    for sample in ask("aliases", n=100):
        text = Aliases(sample)
        others = [line[2] for line in text.lines if line[:2] == [text.asked, "="]]
        if text.first(text.asked) != text.asked:
            assert len(others) == 2  # one stale binding, and the one that counts
            assert text.first(others[0]) != text.first(text.asked)
    assert max(Counter(s.target[0] for s in ask("aliases", n=400)).values()) < 0.17 * 400


def test_last_writes_come_last_in_any_order_and_stand_all_over_the_rest():
    samples = ask("aliases", n=400, length=2048)
    places = Counter()
    for sample in samples:
        text = Aliases(sample)
        newest = text.writes[-10:]
        assert len({text.first(name) for _, name, _ in newest}) == 10
        places[[name in text.names for _, name, _ in newest].index(True)] += 1
    assert all(20 < places[i] < 62 for i in range(10))  # 40 expected
    depths = sorted(float(sample.facets["depth"]) for sample in samples)
    assert depths[40] < 0.5
    assert depths[-40] > 0.9


LISTS = {
    "as it was": lambda items, place, newest: items[place],
    "mirror": lambda items, place, newest: items[-1 - place],
    "newest": lambda items, place, newest: newest,
    "newest or mirror": lambda items, place, newest: items[-1 - place] if 0 < place < len(items) else newest,
    "one up": lambda items, place, newest: items[(place + 1) % len(items)],
    "one down": lambda items, place, newest: items[place - 1],
    "one down or newest": lambda items, place, newest: items[place - 1] if place else newest,
    "two up": lambda items, place, newest: items[(place + 2) % len(items)],
    "two down": lambda items, place, newest: items[place - 2],
}


@pytest.mark.parametrize(("steps", "size", "chance"), [(1, 6, 5 / 12), (5, 6, 1 / 6), (20, 6, 1 / 6), (20, 8, 1 / 8)])
def test_who_skips_the_operations_is_at_chance(steps, size, chance):
    request = Request(("latent_list",), (1024,), {"steps": (steps,), "size": (size,)}, wording="terse")
    (cell,) = TASK.cells(request)
    assert chance <= TASK.chance(cell, request, by_word) + 1e-9 < chance + 0.01
    samples = ask("latent_list", n=400, steps=steps, size=size)
    right = Counter()
    for sample in samples:
        lines = statements(sample)
        name, place = lines[-1][1], int(lines[-1][3])
        items = next(line[2:] for line in lines if line[:2] == ["list", name])
        newest = next((line[2] for line in reversed(lines) if line[0] in ("push", "add") and line[1] == name), "")
        right.update(rule for rule, guess in LISTS.items() if guess(items, place, newest) == sample.target[0])
    assert right["as it was"] == 0
    assert max(right.values()) < (chance + 0.06) * len(samples), right
