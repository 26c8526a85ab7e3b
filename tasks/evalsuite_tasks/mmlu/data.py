"""Questions of MMLU and MMLU-Redux, from the hub's columns or the CSV files of their repositories."""

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from evalsuite.errors import UserError
from evalsuite.task import generator
from evalsuite_tasks import rows
from evalsuite_tasks.mmlu.subjects import CATEGORY

LETTERS = "ABCDEFGHIJ"
CONFIG = {"mmlu": "all", "mmlu_redux": None}  # of the hub's set
WHAT = {
    "mmlu": "MMLU's dev and test rows (question, subject, choices, answer; or the CSV files of its repository)",
    "mmlu_redux": "MMLU-Redux's rows (question, subject, choices, answer, error_type; or its CSV files)",
}


@dataclass(frozen=True, slots=True)
class Question:
    """One question; `number` is its place among its subject's rows, in the file's order."""

    subject: str
    number: int
    text: str
    choices: tuple[str, ...]
    answer: int

    @property
    def name(self) -> str:
        """`virology/17`."""
        return f"{self.subject}/{self.number}"


def advice(kind: str) -> str:
    """How to give the data, in one line."""
    return f"give {WHAT[kind]} with --data {kind}=PATH, or --data {kind}=hub"


@lru_cache(maxsize=8)
def questions(kind: str, source: str, split: str) -> tuple[Question, ...]:
    """Every question of a split, "test" or "dev", by subject in the file's order."""
    found = _from_hub(kind, source, split) if rows.is_hub(source) else rows.local(source, (split,), advice(kind))
    counts: dict[str, int] = {}
    made = []
    for file, row in found:
        if row.get("error_type", "ok") != "ok":  # MMLU-Redux: the question or its key is faulty
            continue
        subject = _subject(row, file)
        number = counts[subject] = counts.get(subject, -1) + 1
        try:
            made.append(_question(row, subject, number))
        except (KeyError, ValueError, TypeError, SyntaxError) as error:
            place = f"question {number} of {subject} in {file.name}"
            raise UserError(f"{place} is not laid out as the official rows ({error!r}); {advice(kind)}") from error
    if not made:
        raise UserError(f"--data {kind}={source} holds no questions; {advice(kind)}")
    if len({(each.subject, each.text, each.choices, each.answer) for each in made}) < len(made) // 2 + 1:
        raise UserError(f"--data {kind}={source} holds its questions twice; give one of its folders, such as `all`")
    return tuple(sorted(made, key=lambda question: question.subject))


def _from_hub(kind: str, source: str, split: str) -> Iterable[tuple[Path, rows.Row]]:
    config = CONFIG[kind]
    for each in [config] if config else sorted(CATEGORY):  # MMLU-Redux has a configuration a subject
        for row in rows.hub(kind, each, split, source, advice(kind)):
            yield Path(each), row


def _subject(row: rows.Row, file: Path) -> str:
    """The column, or the file's name (`virology_test.csv`), or its folder's (`virology/test-00000.parquet`)."""
    own = str(row.get("subject", "")).strip().replace(" ", "_")
    stem = re.sub(r"[_-](test|dev|val|validation)$", "", file.name.partition(".")[0])
    for name in (own, stem, file.parent.name):
        if name in CATEGORY:
            return name
    raise UserError(f"{file} does not tell its rows' subject; give them a column `subject`, one of MMLU's 57")


def _question(row: rows.Row, subject: str, number: int) -> Question:
    if "question" not in row:  # the repository's CSV files: question, four options, letter
        text, *choices, key = (str(row[str(i)]) for i in range(6))
    else:
        text, key = str(row["question"]), str(row["answer"]).strip()
        listed = row["choices"] if "choices" in row else [row[f"choice{i}"] for i in range(4)]
        choices = [str(each) for each in (ast.literal_eval(listed) if isinstance(listed, str) else listed)]
    answer = LETTERS.index(key) if key in tuple(LETTERS[:4]) else int(key)
    if len(choices) != 4 or not 0 <= answer < 4:
        raise ValueError(f"{len(choices)} options and the answer {key}")
    return Question(subject, number, text, tuple(choices), answer)


@lru_cache(maxsize=8)
def order(kind: str, source: str, chosen: tuple[str, ...], seed: int) -> tuple[Question, ...]:
    """The test questions of the chosen subjects in an order of the seed: the first few are of all subjects."""
    pool = [question for question in questions(kind, source, "test") if question.subject in chosen]
    generator(kind, "order", seed).shuffle(pool)
    return tuple(pool)


@lru_cache(maxsize=256)
def shots(source: str, subject: str, number: int) -> tuple[Question, ...]:
    """The first dev questions of a subject, in the file's order. Raises UserError where there are too few."""
    found = [question for question in questions("mmlu", source, "dev") if question.subject == subject][:number]
    if len(found) < number:
        raise UserError(f"{source} has {len(found)} dev questions of {subject}, not {number}; take --set mmlu.shots=0")
    return tuple(found)
