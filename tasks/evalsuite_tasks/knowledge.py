"""Closed-book knowledge: facts of a fixed generated encyclopedia, the control that asks for no look back at a text.

An entity is a pair of names with four attributes; each value is a name. All follow from the fact's number alone, the
same in every run. As in Capo (Physics of Language Models 3.3, arXiv 2404.05405) the knowledge can only come from
training: the score means something for models trained on this encyclopedia with `document`, and any other model is at
chance, which is a check of its own. `cloze` wants the value (chance 1 in 512); `letter` is the four-choice form of
MMLU (arXiv 2009.03300), the wrong options being values of other entities for the same attribute. There is no text to
search, so lengths do not apply.

Preview: `python -m evalsuite_tasks.knowledge cloze`.
"""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain

from evalsuite.errors import UserError, unknown
from evalsuite.lexicon import LETTERS, NAMES
from evalsuite.records import Completion, Facet, Sample, Score
from evalsuite.task import Cell, Count, Document, Request, generator, sample_id

Fact = tuple[str, str, str, str]  # two names, attribute, value

SUBTASKS = ("cloze", "letter")
ATTRIBUTES = ("color", "city", "owner", "teacher")
_LETTERS = LETTERS[:4]
_PAIRS = len(NAMES) ** 2
_STRIDE = 104_729  # odd, so that multiples run over all 2**18 pairs of names before one comes back
_SMALLEST, _LARGEST = 64, _PAIRS * len(ATTRIBUTES)


def fact(number: int) -> Fact:
    """Fact `number` of the encyclopedia; four in a row belong to one entity."""
    entity, attribute = divmod(number, len(ATTRIBUTES))
    first, second = divmod((entity * _STRIDE + 12_345) % _PAIRS, len(NAMES))
    value = generator("encyclopedia", number).choice(NAMES)
    return NAMES[first], NAMES[second], ATTRIBUTES[attribute], value


@cache
def encyclopedia(load: int) -> tuple[Fact, ...]:
    """The first `load` facts: a bigger encyclopedia holds every smaller one."""
    return tuple(map(fact, range(load)))


@cache
def _order(load: int, seed: int) -> tuple[int, ...]:
    """The order in which an evaluation asks the facts, every one before any comes again."""
    return tuple(generator("knowledge", "order", load, seed).sample(range(load), load))


def _checked(load: Facet) -> int:
    if not isinstance(load, int) or not _SMALLEST <= load <= _LARGEST:
        raise UserError(f"knowledge.load={load} is not possible; choose {_SMALLEST} to {_LARGEST} facts")
    return load


def _options(rng: random.Random, asked: Fact, load: int) -> tuple[tuple[str, ...], str]:
    """Four different values, and the letter of the right one, uniform over the four.

    Wrong ones are other entities' values of the attribute, so frequent values are as frequent among them.
    """
    facts, attribute = encyclopedia(load), ATTRIBUTES.index(asked[2])
    others = range(attribute, load, len(ATTRIBUTES))
    wrong: list[str] = []
    while len(wrong) < 3:
        value = facts[rng.choice(others)][3]
        if value != asked[3] and value not in wrong:
            wrong.append(value)
    place = rng.randrange(len(_LETTERS))
    return (*wrong[:place], asked[3], *wrong[place:]), _LETTERS[place]


def _which(asked: Fact, options: Sequence[str]) -> tuple[str, ...]:
    """Options as edges from value to letter, then a cloze question and one hop: the words of the other tasks."""
    edges = chain.from_iterable(("edge", *pair) for pair in zip(options, _LETTERS, strict=True))
    return (*edges, "fact", *asked[:3], "next")


class Knowledge:
    """The task family `knowledge`."""

    name = "knowledge"
    version = 1
    licence = "Apache-2.0"
    source = "generated; after arXiv 2404.05405 (closed-book facts) and arXiv 2009.03300 (letter form)"
    needs = ""

    def subtasks(self) -> tuple[str, ...]:
        """`cloze` and `letter`."""
        return SUBTASKS

    def knobs(self) -> Mapping[str, tuple[Facet, ...]]:
        """`load`: facts in the encyclopedia; the model must be trained on at least as many."""
        return {"load": (1024,)}

    def cells(self, request: Request) -> Sequence[Cell]:
        """One cell for every subtask and load. Raises UserError for what does not exist."""
        for knob in request.knobs:
            if knob not in self.knobs():
                raise unknown("knob", f"knowledge.{knob}", ("knowledge.load",))
        for subtask in request.subtasks:
            if subtask not in SUBTASKS:
                raise unknown("subtask", f"knowledge.{subtask}", (f"knowledge.{name}" for name in SUBTASKS))
        loads = [_checked(load) for load in request.knobs.get("load", (1024,))]
        wanted = request.subtasks or SUBTASKS
        chance = {"cloze": 1 / len(NAMES), "letter": 1 / len(_LETTERS)}
        return [Cell(f"knowledge.{s}", {"load": load}, chance[s]) for s in SUBTASKS if s in wanted for load in loads]

    def missing(self, request: Request) -> Mapping[str, str]:
        """Nothing: the encyclopedia is always there."""
        return {}

    def sample(self, cell: Cell, index: int, request: Request, count: Count) -> Sample:
        """Question `index`; cloze and letter ask the same fact under the same index. `count` does not matter."""
        subtask, load = cell.task.partition(".")[2], _checked(cell.facets["load"])
        number = _order(load, request.seed)[index % load]
        asked = encyclopedia(load)[number]
        first, second, kind, value = asked
        terse = request.wording == "terse"
        rng = generator(self.name, self.version, subtask, load, request.seed, index)
        options, letter = _options(rng, asked, load)
        who = f"{first.title()} {second.title()}"
        prefix, choices = "", tuple[str, ...]()
        if subtask == "letter":
            listed = "".join(f"\n{a}. {v}" for a, v in zip(_LETTERS, options, strict=True))
            prompt = " ".join(_which(asked, options)) if terse else f"What is the {kind} of {who}?{listed}\n"
            prefix = "" if terse else "Answer:"
            choices = tuple(f" {a}" for a in _LETTERS)  # the space is part of the word that follows
        else:
            prompt = " ".join(("fact", *asked[:3])) if terse else f"What is the {kind} of {who}? Reply with one word.\n"
            prefix = "" if terse else f"The {kind} of {who} is"
        return Sample(
            id=sample_id(cell.task, cell.facets, index),
            task=cell.task,
            prompt=prompt,
            answer_prefix=prefix,
            target=(letter,) if choices else (value,),
            choices=choices,
            cluster=f"knowledge/{number}",
            facets=dict(cell.facets),
            max_new_tokens=1 if terse or choices else 16,
            stop=() if terse or choices else ("\n",),
        )

    def score(self, sample: Sample, completion: Completion) -> Score:
        """1 where the answer is exactly the letter, or its words are the value and no other name."""
        if completion.error:
            return Score(sample.id, 0.0)
        if sample.choices:
            answer = completion.text.strip()
        else:
            line = next(iter(completion.text.strip().splitlines()), "").lower()
            named = {word for word in re.findall(r"[a-z]+", line) if word in _NAMES} - set(_asked(sample))
            named = named or {word for word in re.findall(r"[a-z]+", line) if word in _NAMES}
            answer = named.pop() if len(named) == 1 else ""
        return Score(sample.id, float(answer == sample.target[0]), answer)

    def document(self, subtask: str, seed: int, index: int, budget: int, **knobs: Facet) -> Document:
        """Facts in a row, at most `budget` words, labels on answers alone; the answers are not words of the text.

        Knob: `load`, facts in the encyclopedia (1024).
        """
        if subtask not in SUBTASKS:
            raise unknown("subtask", f"knowledge.{subtask}", (f"knowledge.{name}" for name in SUBTASKS))
        load = _checked(knobs.pop("load", 1024))
        for knob in knobs:
            raise unknown("training knob", f"knowledge.{subtask} {knob}", ("load",))
        size = 4 if subtask == "cloze" else 17
        if budget < size:
            raise UserError(f"a budget of {budget} words holds no knowledge.{subtask} question; give at least {size}")
        rng = generator("train", self.name, subtask, load, seed, index)
        words: list[str] = []
        labels: list[str | None] = []
        while budget - len(words) >= size:
            if subtask == "cloze":
                *question, value = rng.choice(encyclopedia(load))
                words += ("fact", *question)
                labels += (None, None, None, value)
            else:
                _add_choices(words, labels, rng, load, budget)
        return Document(tuple(words), tuple(labels))


def _add_choices(words: list[str], labels: list[str | None], rng: random.Random, load: int, budget: int) -> None:
    """Four to ten values of one attribute, and questions with one of them for an answer; what is recalled has a label
    too. More options and questions than an evaluation has, because one label in 17 words teaches next to nothing."""
    room = budget - len(words)
    count = min(rng.randint(4, len(LETTERS)), (room - 5) // 3)
    attribute = rng.randrange(len(ATTRIBUTES))
    facts: dict[str, Fact] = {}
    while len(facts) < count:
        each = encyclopedia(load)[rng.randrange(attribute, load, len(ATTRIBUTES))]
        facts.setdefault(each[3], each)
    letters = dict(zip(facts, LETTERS, strict=False))
    for value, letter in letters.items():
        words += ("edge", value, letter)
    labels += [None] * (3 * count)
    for value in rng.sample(list(facts), min(count, (room - 3 * count) // 5)):
        words += ("fact", *facts[value][:3], "next")
        labels += (None, None, None, value, letters[value])


_NAMES = frozenset(NAMES)


def _asked(sample: Sample) -> tuple[str, ...]:
    """Names that the question itself holds: an answer may repeat them."""
    return tuple(re.findall(r"[a-z]+", sample.text.lower()))


if __name__ == "__main__":
    from evalsuite_tasks.multihop.preview import preview

    preview(Knowledge())
