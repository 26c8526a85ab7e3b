"""The task family `trace`: cells, samples and scores of its six subtasks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from evalsuite.errors import UserError
from evalsuite.lexicon import NAMES
from evalsuite.records import Completion, Facet, Facets, Sample, Score
from evalsuite.task import Cell, Count, Document, Request, generator, sample_id
from evalsuite_tasks.multihop import answers
from evalsuite_tasks.multihop.content import Question
from evalsuite_tasks.multihop.family import Family
from evalsuite_tasks.multihop.fit import Filler, depth, largest, mix
from evalsuite_tasks.trace import documents
from evalsuite_tasks.trace.arrays import DEREF, INDEX
from evalsuite_tasks.trace.program import QUIET, Kind, Program
from evalsuite_tasks.trace.sequences import PALINDROME, STACK
from evalsuite_tasks.trace.variables import ASSIGN, SWAP

KINDS = {kind.name: kind for kind in (ASSIGN, SWAP, INDEX, DEREF, PALINDROME, STACK)}
_NAMES = frozenset(NAMES)


@dataclass(frozen=True, slots=True)
class _Item:
    """A program with comments between its lines, in one wording."""

    program: Program
    filler: Filler
    terse: bool

    def lines(self, amount: int) -> list[str]:
        """The program among `amount` comments."""
        comments = self.filler.take(amount)
        return mix(self.program.content, comments if self.terse else [f"# {c}" for c in comments], self.terse)

    def ask(self, question: Question, lines: Sequence[str]) -> tuple[str, str]:
        """Prompt and answer prefix."""
        if self.terse:
            return " ".join([*lines, question.terse]), ""
        return "\n".join([QUIET, "", *self.program.header, *lines, "", question.natural, ""]), question.prefix

    def new_tokens(self) -> int:
        """Room for the answer."""
        names = len(self.program.question.target)
        return names if self.terse else 16 + 8 * (names - 1)

    def tokens(self, question: Question, amount: int, count: Count) -> int:
        """What the text takes, answer included."""
        return count("".join(self.ask(question, self.lines(amount)))) + self.new_tokens()

    def widest(self, length: int, count: Count) -> Question:
        """The longest question asked on this text, unless room for it would leave more than 1/32 of it empty."""
        asked = self.program.question
        longest = max(self.program.siblings, key=lambda each: self.tokens(each, 0, count), default=asked)
        near = self.tokens(longest, 0, count) - self.tokens(asked, 0, count) <= length // 32
        return longest if near else asked


class Programs(Family):
    """A family of programs whose natural wording is Python; its subtasks are `kinds`."""

    version: int
    kinds: ClassVar[Mapping[str, Kind]]

    def _kind(self, cell: Cell) -> Kind:
        return self.kinds[cell.task.partition(".")[2]]

    def chance(self, cell: Cell, request: Request, count: Count) -> float:
        """Expected score of a guess. Raises UserError where the cell cannot be made."""
        self._item(cell, 0, request, count)
        return self._kind(cell).chance(cell.facets)

    def _item(self, cell: Cell, index: int, request: Request, count: Count) -> _Item:
        """Draw the program of a sample. UserError where there is none, or where it alone is longer than the length."""
        kind, facets = self._kind(cell), cell.facets
        if fault := kind.fault(facets):
            raise UserError(f"{cell.task}: {fault}")
        shared = _shared(kind, facets)
        program = kind.draw(generator(self.name, self.version, *shared, request.seed, index), facets)
        terse = request.wording == "terse"
        filler = Filler(generator("filler", self.name, self.version, *shared, request.seed, index), terse)
        item = _Item(program, filler, terse)
        if (need := item.tokens(program.question, 0, count)) > int(facets["length"]):
            raise UserError(
                f"{cell.task} with these knobs takes {need} of {facets['length']} tokens; ask for a smaller program or "
                "a longer text"
            )
        return item

    def sample(self, cell: Cell, index: int, request: Request, count: Count) -> Sample:
        """Question `index` of a cell. Raises UserError where its program alone is longer than the length."""
        kind, facets, length = self._kind(cell), cell.facets, int(cell.facets["length"])
        item = self._item(cell, index, request, count)
        terse, program, question = item.terse, item.program, item.program.question
        widest = item.widest(length, count)
        amount = max(0, largest(lambda amount: item.tokens(widest, amount, count), length))
        while item.tokens(question, amount, count) > length and amount:  # a tokenizer that joins words
            amount -= 1
        lines = item.lines(amount)
        prompt, prefix = item.ask(question, lines)
        gold = program.content.statements[question.gold]
        return Sample(
            id=sample_id(cell.task, facets, index),
            task=cell.task,
            prompt=prompt,
            answer_prefix=prefix,
            target=(" ".join(question.target),),
            cluster=f"{self.name}/{'/'.join(_shared(kind, facets))}/{index}",
            facets={**facets, "depth": depth(lines, gold.terse if terse else gold.natural)},
            max_new_tokens=item.new_tokens(),
            stop=() if terse else ("\n",),
            meta={"form": kind.form, "given": list(program.given), "walk": list(question.walk)},
        )

    def score(self, sample: Sample, completion: Completion) -> Score:
        """1 where the answer is the target and nothing more: a name, a digit, or all names of a list in their order.

        `detail["share"]` is the share of a list's names that are right, place by place; `detail["hops_done"]` is the
        number of look-ups after which `deref` is at the answer, -1 where it never is.
        """
        if completion.error:
            return Score(sample.id, 0.0)
        target = sample.target[0]
        if sample.meta["form"] == "list":
            line = next(iter(completion.text.strip().splitlines()), "").lower()
            found = [word for word in re.findall(r"[a-z]+", line) if word in _NAMES]
            wanted = target.split()
            right = sum(a == b for a, b in zip(found, wanted, strict=False))
            return Score(sample.id, float(found == wanted), " ".join(found), {"share": right / len(wanted)})
        if sample.meta["form"] == "digit":
            answer = answers.one_digit(completion.text)
            return Score(sample.id, float(answer == target), answer)
        answer = answers.one_name(completion.text, sample.meta["given"])
        walk = list(sample.meta["walk"])
        detail = {"hops_done": answers.hops_done(walk, answer, int(sample.facets["hops"]))} if walk else {}
        return Score(sample.id, float(answer == target), answer, detail)


class Trace(Programs):
    """Programs followed line by line, and what they hold at the end. A knob is a column of the subtasks it concerns.

    The program is fixed by its knobs alone and comments fill the length, so load and distance are two axes. `index` as
    digit or variable, and `deref` of 1 to 6 hops, are asked at the end of the same text; where the longest question
    would leave more than 1/32 of the length empty, the shorter ones get more comments around the same program.
    """

    name = "trace"
    version = 1
    licence = "Apache-2.0"
    source = "generated; after arXiv 2510.26692 section 5.1 (palindrome, stack) and arXiv 2512.17351 (hops)"
    needs = ""
    kinds = KINDS
    parts: ClassVar = {kind.name: kind.knobs for kind in KINDS.values()}
    defaults: ClassVar[Mapping[str, tuple[Facet, ...]]] = {
        "hops": (1, 2, 4),
        "lines": (64,),
        "variables": (16,),
        "steps": (16, 32, 64),
        "arrays": (2,),
        "size": (8,),
        "overwrites": (1,),
        "by": ("digit", "variable"),
        "facts": (32,),
        "items": (16,),
        "stacks": (4,),
        "operations": (64,),
    }
    words: ClassVar = {"by": ("digit", "variable")}
    least: ClassVar = {knob: int(knob not in ("hops", "overwrites")) for knob in defaults if knob != "by"}

    def document(self, subtask: str, seed: int, index: int, budget: int, **knobs: Facet) -> Document:
        """Training document number `index`, at most `budget` words; no set of names is shared with an evaluation."""
        return documents.document(subtask, seed, index, budget, knobs)


def _shared(kind: Kind, facets: Facets) -> tuple[str, ...]:
    """What a text depends on, beside seed and index: not on the wording, nor on knobs of the question alone."""
    return (kind.name, *(f"{knob}={value}" for knob, value in sorted(facets.items()) if knob not in kind.free))
