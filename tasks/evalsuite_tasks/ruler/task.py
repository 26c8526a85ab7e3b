"""RULER as a task of evalsuite."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from evalsuite.errors import UserError, unknown
from evalsuite.records import Completion, Facet, Sample, Score
from evalsuite.task import Cell, Count, Document, Request, sample_id
from evalsuite_tasks.rows import UnreachableError, revisions
from evalsuite_tasks.ruler import data, natural, scoring, summary, terse, training
from evalsuite_tasks.ruler.fit import Draft, fit
from evalsuite_tasks.ruler.item import Item
from evalsuite_tasks.ruler.specs import DATA, HAYSTACKS, MAX_NEW, TASKS, VARIANTS

LENGTHS = {"natural": (4096, 8192, 16384, 32768, 65536, 131072), "terse": (512,)}
Kind = tuple[str, str]  # subtask and haystack


class Ruler:
    """Thirteen synthetic long-context tasks: retrieval, tracing, aggregation and question answering."""

    name = "ruler"
    version = 1
    licence = "Apache-2.0; SQuAD and HotpotQA CC BY-SA 4.0, essays (c) Paul Graham: given by the user, never shipped"
    source = "Hsieh et al. 2024, arXiv 2404.06654; github.com/NVIDIA/RULER c3f5e3b"
    needs = "essays, squad, hotpotqa (--data NAME=PATH or hub) for 7 of the 13 tasks"
    revisions = staticmethod(revisions)

    def subtasks(self) -> tuple[str, ...]:
        return TASKS

    def knobs(self) -> Mapping[str, tuple[Facet, ...]]:
        return {"variant": ("default",), "haystack": ("paper",)}

    def cells(self, request: Request) -> Sequence[Cell]:
        """Every subtask x variant x haystack x length that can be made from the data given."""
        variants = self._knob(request, "variant", VARIANTS)
        kinds = list(self._kinds(request))
        lengths = request.lengths or LENGTHS[request.wording]
        return [
            Cell(
                f"ruler.{subtask}",
                {"length": length, "variant": variant, "haystack": haystack, "wording": request.wording},
                terse.chance(subtask, length, str(variant)) if request.wording == "terse" else 0.0,
            )
            for (subtask, haystack), lack in kinds
            if not lack
            for variant in variants
            for length in lengths
        ]

    def missing(self, request: Request) -> Mapping[str, str]:
        """Subtasks left out, each with the reason and the fix."""
        return {f"ruler.{subtask}": lack for (subtask, _), lack in self._kinds(request) if lack}

    def sample(self, cell: Cell, index: int, request: Request, count: Count) -> Sample:
        """Sample `index`, of at most `length` tokens with its answer. Raises UserError where that is too few."""
        subtask = cell.task.partition(".")[2]
        length, variant = int(cell.facets["length"]), str(cell.facets["variant"])
        short = cell.facets["wording"] == "terse"
        new = terse.answers(subtask) if short else MAX_NEW[subtask]
        item = Item(
            *(subtask, length, variant, str(cell.facets["haystack"]), request.seed, index, self.version),
            source=request.data.get(DATA.get(subtask, ""), ""),
        )
        try:
            make = _terse if short else natural.make
            draft = make(item, replace(item, index=0), length - new, count)
        except UserError as error:
            fix = "ask for a longer --lengths or leave the task out"
            raise UserError(f"{cell.task} does not fit into {length} tokens: {error}; {fix}") from error
        identity = sample_id(cell.task, cell.facets, index)
        depth = {} if draft.depth is None else {"depth": round(draft.depth, 4)}
        return Sample(
            identity,
            cell.task,
            draft.prompt,
            draft.target,
            answer_prefix=draft.prefix,
            cluster=draft.cluster or identity,
            facets={**cell.facets, **depth},
            max_new_tokens=new,
            meta={**draft.meta, "metric": _metric(subtask, variant, short)},
        )

    def score(self, sample: Sample, completion: Completion) -> Score:
        """The value of upstream's scorer, or of the metric named in the sample's meta."""
        answer, detail = scoring.clean(completion.text), {}
        if sample.meta["metric"] == "exact":
            given = scoring.named(answer, sample.meta["names"])
            value = float(given == set(sample.target))
            detail = {"f1": scoring.set_f1(given, sample.target), "recall": scoring.match_all(answer, sample.target)}
        else:
            metrics = {"all": scoring.match_all, "part": scoring.match_part, "words": scoring.match_words}
            value = metrics[sample.meta["metric"]](answer, sample.target)
        return Score(sample.id, value, answer, detail)

    def summary(self, scores: Mapping[int, Mapping[str, float]]) -> Mapping[str, str]:
        """RULER's own table in percent: effective length, and averages over lengths of the mean over tasks."""
        return summary.table(scores)

    def document(self, subtask: str, seed: int, index: int, budget: int, **knobs: Facet) -> Document:
        """Training document number `index` in the terse wording, of at most `budget` words, all of the lexicon.

        Drawn in the namespace "train", so that it equals no evaluation item. Raises UserError for a task without a
        terse wording (qa_1, qa_2) and for a budget that is too small.
        """
        if subtask not in terse.TASKS:
            raise unknown("trainable ruler task", subtask, terse.TASKS)
        for knob in knobs:
            raise UserError(f"training documents of ruler have no knob {knob!r}")
        return training.document(subtask, seed, index, budget, self.version)

    def _kinds(self, request: Request) -> Iterator[tuple[Kind, str]]:
        """Every subtask and haystack asked for, and what it lacks ("" for nothing)."""
        for subtask in request.subtasks or TASKS:
            if subtask not in TASKS:
                raise unknown("ruler task", subtask, TASKS)
        if request.wording not in LENGTHS:
            raise unknown("wording", request.wording, LENGTHS)
        haystacks = self._knob(request, "haystack", HAYSTACKS) if request.wording == "natural" else ("lexicon",)
        for subtask in request.subtasks or TASKS:
            for haystack in haystacks:
                yield (subtask, haystack), self._lack(subtask, haystack, request)

    def _lack(self, subtask: str, haystack: str, request: Request) -> str:
        if subtask.startswith("qa_") and haystack == "lexicon":
            what = "terse wording" if request.wording == "terse" else "haystack=lexicon"
            return f"it asks about real documents, which have no {what}; use natural wording with haystack=paper"
        if subtask not in DATA or haystack == "lexicon":
            return ""
        kind = DATA[subtask]
        if kind not in request.data:
            return f"no {kind} given; {data.advice(kind)}" + (
                "" if kind != "essays" else ", or --set ruler.haystack=lexicon"
            )
        try:
            data.essays(request.data[kind], False) if kind == "essays" else data.corpus(kind, request.data[kind])
        except UnreachableError as error:
            return str(error)
        return ""

    def _knob(self, request: Request, name: str, known: Sequence[str]) -> tuple[str, ...]:
        values = tuple(str(value) for value in request.knobs.get(name, self.knobs()[name]))
        for value in values:
            if value not in known:
                raise unknown(f"ruler {name}", value, known)
        return values


def _metric(subtask: str, variant: str, short: bool) -> str:
    if short:
        return "words"
    if subtask == "vt" and variant == "default":
        return "exact"
    return "part" if subtask.startswith("qa_") else "all"


def _terse(item: Item, first: Item, budget: int, count: Count) -> Draft:
    """The terse form of an item in at most `budget` tokens."""

    def build(size: int) -> Draft:
        made = terse.question(item.rng("terse"), item.subtask, size, item.variant)
        return Draft(" ".join(made.words), "", made.answer, made.depth)

    return fit(build, terse.least(item.subtask, item.variant), budget, count, start=budget - 1)[1]
