"""The task family `multihop`: cells, samples and scores of its five subtasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from evalsuite.errors import UserError
from evalsuite.records import Completion, Facet, Facets, Sample, Score
from evalsuite.task import Cell, Count, Document, Request, generator, sample_id
from evalsuite_tasks.multihop import answers, documents
from evalsuite_tasks.multihop.binding import BINDING
from evalsuite_tasks.multihop.chains import CALLCHAIN, CHAIN
from evalsuite_tasks.multihop.content import Content, Kind, Question
from evalsuite_tasks.multihop.family import Family
from evalsuite_tasks.multihop.fit import Filler, depth, largest, largest_size, mix
from evalsuite_tasks.multihop.graph import GRAPH, PATH
from evalsuite_tasks.multihop.names import MOST

KINDS = {kind.name: kind for kind in (GRAPH, PATH, CHAIN, BINDING, CALLCHAIN)}
_TIERS = (16, 8, 4)  # hop counts up to the tier share their text
_COT = "Think step by step, naming every step, and end with a line `Answer: ` and the answer alone."


@dataclass(frozen=True, slots=True)
class _Item:
    """A content whose facts fit, and the amount of room that its questions leave."""

    kind: Kind
    content: Content
    hops: int
    widest: Question  # the longest question of those that share the text
    terse: bool
    cot: bool

    def ask(self, question: Question, lines: Sequence[str]) -> tuple[str, str]:
        """Prompt and answer prefix."""
        if self.terse:
            asked = f"trace {question.terse.partition(' ')[2]} are" if self.cot else question.terse
            return " ".join([*lines, asked]), ""
        body = "\n".join([self.kind.intro, "", *lines, "", question.natural])
        return (f"{body}\n{_COT}\n", "") if self.cot else (f"{body}\n", question.prefix)

    def new_tokens(self) -> int:
        """Room for the answer: the same for all hop counts that share the text."""
        names = len(self.widest.target)
        if self.terse:
            return len(self.widest.terse.split()) - 2 if self.cot else names
        return max(256, 16 * self.hops) if self.cot else 16 + 8 * (names - 1)


class Multihop(Family):
    """Walks of k look-ups over facts in the prompt. A knob is a column of the subtasks that it concerns.

    Questions that differ in `hops` alone share facts, filler and start, and the question comes last: hops=1 is the
    control of hops=4 on the same text. That holds for hop counts within 16, or within 8 or 4 where the length is so
    short that the longer question would take more than 1.5 % of it (512 and 256 words in the terse wording); others
    get fewer filler statements around the same facts. `chain` with question=set is the exception: its asked chain has
    hops + 1 statements.
    """

    name = "multihop"
    version = 1
    licence = "Apache-2.0"
    source = (
        "generated; after arXiv 2512.17351 (Depo), 2404.06654 (RULER), 2402.13718 (InfiniteBench), 1502.05698 (bAbI)"
    )
    needs = ""
    parts: ClassVar = {kind.name: ("hops", "facts", "answer", *kind.knobs) for kind in KINDS.values()}
    defaults: ClassVar[Mapping[str, tuple[Facet, ...]]] = {
        "hops": (1, 2, 4),
        "facts": (32,),  # or "dense": as many as the length holds
        "answer": ("direct",),
        "order": ("shuffled",),
        "relations": (2,),
        "chains": (6,),
        "overwrites": (1,),
        "variant": ("alias",),
        "question": ("value",),
    }
    words: ClassVar = {
        "facts": ("dense",),
        "answer": ("direct", "cot"),
        "order": ("forward", "reverse", "shuffled"),
        "variant": ("alias", "arith"),
        "question": ("value", "set"),
    }
    least: ClassVar = {"hops": 0, "facts": 3, "relations": 1, "chains": 2, "overwrites": 0}

    def chance(self, cell: Cell, request: Request, count: Count) -> float:
        """Expected score of a guess among the possible answers. Raises UserError where the cell cannot be made."""
        item = self._item(cell, 0, request, count)
        return item.kind.chance(cell.facets, len(item.content.statements))

    def _item(self, cell: Cell, index: int, request: Request, count: Count) -> _Item:
        """Draw the content of a sample, as many facts as asked or, dense, as fit. UserError where they do not fit."""
        kind, facets = KINDS[cell.task.partition(".")[2]], cell.facets
        hops, facts, length = int(facets["hops"]), facets["facts"], int(facets["length"])
        terse, cot = request.wording == "terse", facets["answer"] == "cot"
        if terse and cot and kind.name not in ("graph", "path"):
            raise UserError(
                f"{cell.task} has no chain of thought in the terse wording; use --set multihop.answer=direct"
            )

        def made(size: int) -> _Item:
            rng = generator(self.name, self.version, *_shared(kind, facets), size, request.seed, index)
            content = kind.draw(rng, facets, size)
            return _Item(
                kind,
                content,
                hops,
                _widest(content, facets, range(kind.least, kind.reach(facets, size) + 1), terse, count),
                terse,
                cot,
            )

        def fits(size: int) -> bool:
            if kind.reach(facets, size) < hops:
                return True  # too few facts to ask: look among more
            try:
                return _tokens(made(size), [], count) <= length
            except UserError:  # more names than the lexicon has
                return False

        size = largest_size(fits, 4 * MOST) if facts == "dense" else int(facts)
        reach = kind.reach(facets, size)
        if not kind.least <= hops <= reach:
            if reach < kind.least:
                most = "too few facts for a question"
            else:
                most = f"at most {reach} hops" if hops > reach else f"at least {kind.least} hop{'s' * (kind.least > 1)}"
            raise UserError(
                f"{cell.task} with {size} facts has {most}, not hops={hops}; change multihop.facts or .hops"
            )
        item = made(size)
        if (need := _tokens(item, [], count)) > length:
            raise UserError(
                f"{cell.task} with {size} facts takes {need} of {length} tokens; ask for fewer or a longer text"
            )
        return item

    def sample(self, cell: Cell, index: int, request: Request, count: Count) -> Sample:
        """Question `index` of a cell. Raises UserError where its facts alone are longer than the length."""
        facets, length = cell.facets, int(cell.facets["length"])
        item = self._item(cell, index, request, count)
        terse = item.terse
        kind, question = item.kind, item.content.ask(item.hops)
        filler = Filler(generator("filler", self.version, *_shared(kind, facets), request.seed, index), terse)
        amount = largest(lambda amount: _tokens(item, filler.take(amount), count), length)
        lines = mix(item.content, filler.take(amount), terse)
        prompt, prefix = item.ask(question, lines)
        while count(prompt + prefix) + item.new_tokens() > length and amount:  # a tokenizer that joins words
            amount -= 1
            lines = mix(item.content, filler.take(amount), terse)
            prompt, prefix = item.ask(question, lines)
        gold = item.content.statements[question.gold]
        several, digit = facets.get("question") == "set", facets.get("variant") == "arith"
        form = "set" if several else "digit" if digit else "walk" if terse and item.cot else "name"
        ranked = bool(question.choices) and not (terse or item.cot)
        return Sample(
            id=sample_id(cell.task, facets, index),
            task=cell.task,
            prompt=prompt,
            answer_prefix=prefix,
            target=(" ".join(question.target),),
            choices=tuple(f" {choice}" for choice in question.choices) if ranked else (),
            cluster=f"{'/'.join(map(str, _shared(kind, facets)))}/{index}",
            facets={**facets, "depth": depth(lines, gold.terse if terse else gold.natural)},
            max_new_tokens=item.hops if terse and item.cot else item.new_tokens(),
            stop=() if terse or item.cot else ("\n",),
            meta={
                "form": form,
                "given": question.given,
                "walk": list(question.walk),
                "facts": len(item.content.statements),
            },
        )

    def score(self, sample: Sample, completion: Completion) -> Score:
        """1 where the answer is the target and nothing more: a name, a digit or, in any order, a set of names.

        `detail["hops_done"]` is the number of hops after which the walk is at the answer, -1 where it is nowhere on
        it.
        """
        if completion.error:
            return Score(sample.id, 0.0)
        given, cot = (str(sample.meta["given"]),), sample.facets["answer"] == "cot"
        if sample.meta["form"] == "set":
            answer = answers.name_set(completion.text, given, cot=cot)
            return Score(sample.id, float(answer == " ".join(sorted(sample.target[0].split()))), answer)
        digit = sample.meta["form"] == "digit"
        if sample.meta["form"] == "walk":  # every node on the way; the last one is the answer
            names = completion.text.split()
            answer = names[-1] if len(names) == int(sample.facets["hops"]) else ""
            return self._walked(sample, answer)
        answer = (
            answers.one_digit(completion.text, cot=cot) if digit else answers.one_name(completion.text, given, cot=cot)
        )
        return self._walked(sample, answer)

    def _walked(self, sample: Sample, answer: str) -> Score:
        walk = list(sample.meta["walk"])
        detail = {"hops_done": answers.hops_done(walk, answer, int(sample.facets["hops"]))} if walk else {}
        return Score(sample.id, float(answer == sample.target[0]), answer, detail)

    def document(self, subtask: str, seed: int, index: int, budget: int, **knobs: Facet) -> Document:
        """Training document number `index`, at most `budget` words; no set of names is shared with an evaluation."""
        return documents.document(subtask, seed, index, budget, knobs)


def _shared(kind: Kind, facets: Facets) -> tuple[str, ...]:
    """What a text depends on, beside seed and index: not on the hops, the answer's form or the wording."""
    several = facets.get("question") == "set"  # its chain is as long as the hops say
    free = {"answer"} if several else {"answer", "hops", "question"}
    return (kind.name, *(f"{knob}={value}" for knob, value in sorted(facets.items()) if knob not in free))


def _widest(content: Content, facets: Facets, possible: range, terse: bool, count: Count) -> Question:
    """The longest question of those that share a text with the asked one: see `Multihop`."""
    hops, length = int(facets["hops"]), int(facets["length"])
    alone = facets.get("question") == "set"
    written = terse and facets["answer"] == "cot"  # a name for every hop
    for tier in () if alone else _TIERS:
        if hops <= tier:
            depths = [k for k in possible if k <= tier]
            asked = [content.ask(k) for k in depths]
            costs = [count(each.terse if terse else f"{each.natural}\n{each.prefix}") for each in asked]
            if written:
                costs = [cost + k for cost, k in zip(costs, depths, strict=True)]
            if max(costs) - min(costs) <= length // 64:  # four tokens of 256
                return asked[costs.index(max(costs))]
    return content.ask(hops)


def _tokens(item: _Item, filler: Sequence[str], count: Count) -> int:
    """What a text with this filler and its longest question takes, answer included."""
    prompt, prefix = item.ask(item.widest, mix(item.content, filler, item.terse))
    return count(prompt + prefix) + item.new_tokens()
