"""MMLU-Pro (Wang et al. 2024, arXiv 2406.01574): up to ten options, 5-shot with a chain of thought, as lm-eval asks it.

The letter is read by upstream's three patterns, one after the other. Where none is found upstream draws one at random,
so that not answering is worth a tenth; here it is wrong. lm-eval knows the first pattern alone.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from evalsuite.errors import UserError, unknown
from evalsuite.records import Completion, Facet, Sample, Score
from evalsuite.task import Cell, Count, Request, generator, sample_id
from evalsuite_tasks import rows
from evalsuite_tasks.mmlu.data import LETTERS

CATEGORIES = (
    "biology", "business", "chemistry", "computer science", "economics", "engineering", "health", "history", "law",
    "math", "other", "philosophy", "physics", "psychology",
)  # fmt: skip
PARTS = {category.replace(" ", "_"): category for category in CATEGORIES}
ADVICE = (
    "give MMLU-Pro's test and validation rows (question, options, answer, cot_content, category) with "
    "--data mmlu_pro=PATH, or --data mmlu_pro=hub"
)
PATTERNS = (
    re.compile(r"answer is \(?([A-J])\)?"),
    re.compile(r"[aA]nswer:\s*([A-J])"),
    re.compile(r"\b[A-J]\b(?!.*\b[A-J]\b)", re.DOTALL),  # the last letter that stands alone
)
THOUGHT = "A: Let's think step by step."
Rows = tuple[rows.Row, ...]


@lru_cache(maxsize=8)
def questions(source: str, split: str) -> Mapping[str, Rows]:
    """Category -> its rows in the file's order, of "test" or "validation"."""
    if rows.is_hub(source):
        found = rows.hub("mmlu_pro", None, split, source, ADVICE)
    else:
        splits = (split, "val", "dev") if split == "validation" else (split,)
        found = (row for _, row in rows.local(source, splits, ADVICE))
    made: dict[str, list[rows.Row]] = {}
    for number, row in enumerate(found):
        own = ("question", "options", "answer", "category", *(["cot_content"] if split != "test" else []))
        lacking = [name for name in own if name not in row]
        if lacking or row["category"] not in CATEGORIES or not _possible(row):
            why = f"lacks {', '.join(lacking)}" if lacking else "has no such category, options or answer"
            raise UserError(f"row {number} of {source} {why}; {ADVICE}")
        made.setdefault(row["category"], []).append(row)
    if not made:
        raise UserError(f"--data mmlu_pro={source} holds no questions; {ADVICE}")
    return {category: tuple(each) for category, each in made.items()}


@lru_cache(maxsize=8)
def order(source: str, chosen: tuple[str, ...], seed: int) -> tuple[tuple[str, int], ...]:
    """Category and number of every test question of the chosen categories, in an order of the seed."""
    found = questions(source, "test")
    pool = [(category, number) for category in chosen for number in range(len(found.get(category, ())))]
    generator("mmlu_pro", "order", seed).shuffle(pool)
    return tuple(pool)


class Pro:
    """The task family `mmlu_pro`; a part is a category, and the whole is one task."""

    name = "mmlu_pro"
    version = 1
    licence = "Apache-2.0 (code), MIT (data); given by the user, never shipped"
    source = "Wang et al. 2024, arXiv 2406.01574; github.com/TIGER-AI-Lab/MMLU-Pro; prompts as lm-eval 0.4.13"
    needs = "mmlu_pro (--data mmlu_pro=PATH or hub)"
    revisions = staticmethod(rows.revisions)

    def subtasks(self) -> tuple[str, ...]:
        """The fourteen categories."""
        return tuple(PARTS)

    def knobs(self) -> Mapping[str, tuple[Facet, ...]]:
        """`shots`: worked examples before the question."""
        return {"shots": (5,)}

    def cells(self, request: Request) -> Sequence[Cell]:
        """One cell for every part and number of shots. Raises UserError for what does not exist."""
        for part in request.subtasks:
            if part not in PARTS:
                raise unknown("subtask", f"mmlu_pro.{part}", (f"mmlu_pro.{name}" for name in PARTS))
        for knob in request.knobs:
            if knob != "shots":
                raise unknown("knob", f"mmlu_pro.{knob}", ("mmlu_pro.shots",))
        for shots in request.knobs.get("shots", ()):
            if not isinstance(shots, int) or not 0 <= shots <= 5:
                raise UserError(f"mmlu_pro.shots={shots} is not possible; choose 0 to 5")
        if self.missing(request):
            return []
        return [
            Cell(f"mmlu_pro.{part}" if part else "mmlu_pro", {"shots": shots}, 1 / 10)
            for part in request.subtasks or ("",)
            for shots in request.knobs.get("shots", (5,))
        ]

    def missing(self, request: Request) -> Mapping[str, str]:
        """All of it, without data or in a wording that has no such questions."""
        if request.wording != "natural":
            return {"mmlu_pro": "its questions are in English, which a model of the closed lexicon does not read"}
        if "mmlu_pro" not in request.data:
            return {"mmlu_pro": f"no mmlu_pro given; {ADVICE}"}
        try:
            questions(request.data["mmlu_pro"], "test")
        except rows.UnreachableError as error:
            return {"mmlu_pro": str(error)}
        return {}

    def sample(self, cell: Cell, index: int, request: Request, count: Count) -> Sample:
        """Question `index` of a shuffled order. `count` does not matter."""
        source, shots = request.data["mmlu_pro"], int(cell.facets["shots"])
        part = cell.task.partition(".")[2]
        category, number = order(source, (PARTS[part],) if part else CATEGORIES, request.seed)[index]
        row = questions(source, "test")[category][number]
        examples = questions(source, "validation").get(category, ())[:shots] if shots else ()
        if len(examples) < shots:
            raise UserError(
                f"{source} has {len(examples)} validation rows of {category}, not {shots}; take --set mmlu_pro.shots=0"
            )
        title = (
            f"The following are multiple choice questions (with answers) about {category}. Think step by step and then "
            'finish your answer with "the answer is (X)" where X is the correct letter choice.\n'
        )
        return Sample(
            id=sample_id(cell.task, cell.facets, index),
            task=cell.task,
            prompt=title + "".join(map(_worked, examples)) + _asked(row),
            answer_prefix="Answer: Let's think step by step.",
            target=(str(row["answer"]),),
            cluster=f"mmlu_pro/{category}/{number}",
            facets={**cell.facets, "category": category, "options": len(row["options"])},
            max_new_tokens=2048,
            stop=("Question:",),
        )

    def score(self, sample: Sample, completion: Completion) -> Score:
        """1 where the letter is the right one."""
        answer = "" if completion.error else letter(completion.text)
        return Score(sample.id, float(answer == sample.target[0]), answer)


def _possible(row: rows.Row) -> bool:
    """Whether the options are a list, and the answer is one of them."""
    return isinstance(row["options"], list) and str(row["answer"]) in tuple(LETTERS[: len(row["options"])])


def letter(text: str) -> str:
    """The letter that an answer gives, "" where it gives none."""
    for pattern in PATTERNS:
        match = pattern.search(text)
        if match:
            return match[match.lastindex or 0]
    return ""


def _asked(row: rows.Row) -> str:
    options = "".join(f"{x}. {text.strip()}\n" for x, text in zip(LETTERS, row["options"], strict=False))
    return f"Question:\n{row['question']}\nOptions:\n{options}"


def _worked(row: rows.Row) -> str:
    thought = str(row["cot_content"]).replace(f"{THOUGHT} ", "")
    return f"{_asked(row)}Answer: Let's think step by step. {thought}\n\n"
