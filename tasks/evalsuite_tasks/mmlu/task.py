"""MMLU (Hendrycks et al. 2021, arXiv 2009.03300): 57 subjects of four-choice questions, 5-shot, as lm-eval asks them.

Prompts are those of lm-eval's `mmlu`, byte for byte; the original repository has two spaces before the subject. Knobs:
`form` is "letters" (the log-likelihoods of " A" .. " D"), "permuted" (the same with every question's options in another
order: what changes is position bias) or "cloze" (the options' own text, the likeliest by letter of its length, as
acc_norm). `filler` puts so many tokens of text that says nothing before the prompt: what is known should not depend on
what was read. `shots` are the first of a subject's dev questions.

MMLU-Redux (Gema et al. 2024, arXiv 2406.04127) asks 100 questions a subject that were checked by hand, those without a
fault, with MMLU's shots where MMLU is given too.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import cycle, islice
from statistics import fmean

from evalsuite.errors import UserError, unknown
from evalsuite.records import Completion, Facet, Facets, Sample, Score
from evalsuite.task import Cell, Count, Judged, Request, generator, sample_id
from evalsuite_tasks.mmlu import data
from evalsuite_tasks.mmlu.data import LETTERS, Question
from evalsuite_tasks.mmlu.subjects import CATEGORIES, CATEGORY, SUBJECTS
from evalsuite_tasks.rows import UnreachableError, revisions

FORMS = ("letters", "permuted", "cloze")
KNOBS: Mapping[str, tuple[Facet, ...]] = {"form": ("letters",), "shots": (5,), "filler": (0,)}
NOISE = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")


class Mmlu:
    """The task family `mmlu`; a part is a category or a subject, and the whole is one task."""

    name = "mmlu"
    version = 1
    licence = "MIT; given by the user, never shipped"
    source = "Hendrycks et al. 2021, arXiv 2009.03300; github.com/hendrycks/test; prompts as lm-eval 0.4.13"
    needs = "mmlu (--data mmlu=PATH or hub)"
    revisions = staticmethod(revisions)

    def subtasks(self) -> tuple[str, ...]:
        """Four categories and 57 subjects."""
        return (*CATEGORIES, *SUBJECTS)

    def knobs(self) -> Mapping[str, tuple[Facet, ...]]:
        """`form`, `shots` and `filler`, tokens before the prompt."""
        return KNOBS

    def cells(self, request: Request) -> Sequence[Cell]:
        """One cell for every part, form, number of shots and filler. Raises UserError for what does not exist."""
        for part in request.subtasks:
            if part not in self.subtasks():
                raise unknown("subtask", f"{self.name}.{part}", (f"{self.name}.{name}" for name in self.subtasks()))
        values = {knob: request.knobs.get(knob, default) for knob, default in KNOBS.items()}
        for knob in request.knobs:
            if knob not in KNOBS:
                raise unknown("knob", f"{self.name}.{knob}", (f"{self.name}.{name}" for name in KNOBS))
        for form in values["form"]:
            if form not in FORMS:
                raise unknown("form", str(form), FORMS)
        for knob, most in (("shots", 5), ("filler", 2**24)):
            for value in values[knob]:
                if not isinstance(value, int) or not 0 <= value <= most:
                    raise UserError(f"{self.name}.{knob}={value} is not possible; choose 0 to {most}")
        if self._lack(request):
            return []
        return [
            Cell(f"{self.name}.{part}" if part else self.name, {"form": form, "shots": shots, "filler": filler}, 1 / 4)
            for part in request.subtasks or ("",)
            for filler in values["filler"]
            for shots in values["shots"]
            for form in values["form"]
        ]

    def missing(self, request: Request) -> Mapping[str, str]:
        """All of it, without data or in a wording that has no such questions."""
        lack = self._lack(request)
        return {self.name: lack} if lack else {}

    def sample(self, cell: Cell, index: int, request: Request, count: Count) -> Sample:
        """Question `index` of a shuffled order, the same question in every form."""
        part = cell.task.partition(".")[2]
        chosen = CATEGORIES.get(part, (part,)) if part else SUBJECTS
        question = data.order(self.name, request.data[self.name], tuple(chosen), request.seed)[index]
        form, shots, filler = str(cell.facets["form"]), int(cell.facets["shots"]), int(cell.facets["filler"])
        asked = self._permuted(question, request.seed) if form == "permuted" else question
        examples = self._shots(request, question.subject, shots)
        body = "".join(_example(each, form) + "\n\n" for each in examples) + _asked(asked, form)
        title = f"The following are multiple choice questions (with answers) about {_spoken(question.subject)}.\n\n"
        letters = tuple(f" {letter}" for letter in LETTERS[:4])
        return Sample(
            id=sample_id(cell.task, cell.facets, index),
            task=cell.task,
            prompt=_filler(filler, count) + (title if form != "cloze" else "") + body,
            answer_prefix="Answer:",
            target=(asked.choices[asked.answer].strip(),) if form == "cloze" else (LETTERS[asked.answer],),
            choices=tuple(f" {choice.strip()}" for choice in asked.choices) if form == "cloze" else letters,
            cluster=f"{self.name}/{question.name}",
            facets={**cell.facets, "subject": question.subject, "category": CATEGORY[question.subject]},
            max_new_tokens=1,
            meta={"question": question.name, "answer": asked.answer},
        )

    def score(self, sample: Sample, completion: Completion) -> Score:
        """1 for the right letter; in cloze form for the option whose log-likelihood by its characters is highest, and
        `acc` beside it for the one that is likeliest as a whole."""
        if completion.error:
            return Score(sample.id, 0.0)
        if sample.facets["form"] != "cloze" or not completion.choice_logprobs:
            answer = completion.text.strip()
            return Score(sample.id, float(answer == sample.target[0]), answer)
        options = [choice.removeprefix(" ") for choice in sample.choices]
        each = [p / max(1, len(text)) for p, text in zip(completion.choice_logprobs, options, strict=True)]
        best, whole = each.index(max(each)), completion.choice_logprobs.index(max(completion.choice_logprobs))
        right = sample.meta["answer"]
        return Score(sample.id, float(best == right), options[best], {"acc": float(whole == right)})

    def averages(self, judged: Sequence[Judged]) -> Mapping[str, str]:
        """Micro and macro averages, by category, and how often each letter was answered: in percent, form by form."""
        found: dict[str, str] = {}
        for setting in dict.fromkeys(_setting(each.facets) for each in judged):
            rows = [each for each in judged if _setting(each.facets) == setting]
            found |= {f"{name}{setting}": text for name, text in _averages(rows).items()}
        return found

    def _lack(self, request: Request) -> str:
        if request.wording != "natural":
            return "its questions are in English, which a model of the closed lexicon does not read"
        if self.name not in request.data:
            return f"no {self.name} given; {data.advice(self.name)}"
        try:
            data.questions(self.name, request.data[self.name], "test")
        except UnreachableError as error:
            return str(error)
        return ""

    def _shots(self, request: Request, subject: str, number: int) -> Sequence[Question]:
        return data.shots(request.data["mmlu"], subject, number) if number else ()

    def _permuted(self, question: Question, seed: int) -> Question:
        """The options in another order than the file's."""
        rng = generator(self.name, self.version, "permuted", question.name, seed)
        places = list(range(4))
        while places == sorted(places):
            rng.shuffle(places)
        choices = tuple(question.choices[place] for place in places)
        return Question(question.subject, question.number, question.text, choices, places.index(question.answer))


class Redux(Mmlu):
    """The task family `mmlu_redux`: MMLU's questions that were found to be without a fault."""

    name = "mmlu_redux"
    licence = "CC BY 4.0; given by the user, never shipped"
    source = "Gema et al. 2024, arXiv 2406.04127; github.com/aryopg/mmlu-redux"
    needs = "mmlu_redux, and mmlu for its examples (--data NAME=PATH or hub)"

    def _lack(self, request: Request) -> str:
        shots = request.knobs.get("shots", KNOBS["shots"])
        if request.wording == "natural" and any(shots) and "mmlu" not in request.data:
            return f"no mmlu given for its examples; {data.advice('mmlu')}, or --set mmlu_redux.shots=0"
        return super()._lack(request)


def _spoken(subject: str) -> str:
    return subject.replace("_", " ")


def _asked(question: Question, form: str) -> str:
    """A question up to "Answer:"."""
    if form == "cloze":
        return f"Question: {question.text.strip()}\n"
    options = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, question.choices, strict=False))
    return f"{question.text.strip()}\n{options}"


def _example(question: Question, form: str) -> str:
    answer = question.choices[question.answer].strip() if form == "cloze" else LETTERS[question.answer]
    return f"{_asked(question, form)}Answer: {answer}"


@lru_cache(maxsize=64)
def _filler(tokens: int, count: Count) -> str:
    """Sentences that say nothing, of so many tokens or the rest of a sentence more."""
    number = bisect_left(range(tokens + 1), tokens, key=lambda n: count(_noise(n)))
    return f"{_noise(number)}\n\n" if number else ""


def _noise(sentences: int) -> str:
    return " ".join(islice(cycle(NOISE), sentences))


def _setting(facets: Facets) -> str:
    """What is not the default: "", or ` (cloze, filler 4096)`."""
    parts = [str(facets["form"])] if facets["form"] != "letters" else []
    parts += [f"{name} {facets[name]}" for name in ("shots", "filler") if facets[name] != KNOBS[name][0]]
    return f" ({', '.join(parts)})" if parts else ""


def _averages(rows: Sequence[Judged]) -> dict[str, str]:
    subjects: dict[str, list[float]] = {}
    categories: dict[str, list[float]] = {}
    for row in rows:
        subjects.setdefault(str(row.facets["subject"]), []).append(row.score)
        categories.setdefault(str(row.facets["category"]), []).append(row.score)
    macro = f"{100 * fmean(map(fmean, subjects.values())):.1f}"
    found = {
        "micro": f"{100 * fmean(row.score for row in rows):.1f}",
        "macro": macro if len(subjects) == len(SUBJECTS) else f"{macro} ({len(subjects)} subjects)",
    }
    found |= {_spoken(name): f"{100 * fmean(categories[name]):.1f}" for name in CATEGORIES if name in categories}
    answered = Counter(row.answer for row in rows if row.answer in tuple(LETTERS[:4]))
    if answered:
        found["answers A/B/C/D"] = "/".join(f"{100 * answered[x] / len(rows):.0f}" for x in LETTERS[:4])
    return found
