"""The texts that RULER is made of: word lists, essays, SQuAD and HotpotQA, from a path or from the hub."""

import gzip
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError
from evalsuite.task import generator
from evalsuite_tasks.rows import SUFFIXES, hub, is_hub, local, whole

HUB = {"essays": (None, "train"), "squad": (None, "validation"), "hotpotqa": ("distractor", "validation")}
SPLITS = ("validation", "dev", "train")  # of questions in files, the first that is there
WHAT = {
    "essays": "Paul Graham's essays (text files, or files with the hub's column text)",
    "squad": "SQuAD's dev-v2.0.json, or files with the hub's columns (title, context, question, answers)",
    "hotpotqa": "HotpotQA's hotpot_dev_distractor_v1.json, or files with the hub's columns (question, answer, "
    "supporting_facts, context)",
}


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]  # documents that answer it
    block: tuple[int, ...]  # RULER's gold documents: for HotpotQA all ten paragraphs
    near: tuple[int, ...]  # the documents to be added first: SQuAD's other paragraphs of the article
    cluster: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Questions in the file's order, and the documents sorted."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Essays:
    sentences: tuple[str, ...]
    ends: tuple[int, ...]  # words up to and with each sentence


def advice(kind: str) -> str:
    """How to give the data, in one line."""
    return f"give {WHAT[kind]} with --data {kind}=PATH, or --data {kind}=hub"


@lru_cache(maxsize=8)
def essays(source: str, punkt: bool) -> Essays:
    """Essays as sentences, split by `sentences`, the same everywhere, or by NLTK's punkt where it is installed."""
    text = _column(source, _hub("essays", source)) if is_hub(source) else _essay_text(Path(source))
    text = re.sub(r"\s+", " ", text).strip()
    if not text:
        raise UserError(f"--data essays={source} holds no text; {advice('essays')}")
    parts = sentences(text, punkt)
    ends, total = [], 0
    for part in parts:
        total += part.count(" ") + 1
        ends.append(total)
    return Essays(tuple(parts), tuple(ends))


def _essay_text(path: Path) -> str:
    """Text files, else files of rows, else the JSON object that RULER's own script writes."""
    if path.name.endswith(".json"):
        raw = _json("essays", str(path))
        return _column(str(path), [raw] if isinstance(raw, dict) else raw)
    paths = sorted(path.glob("**/*.txt")) if path.is_dir() else [path]
    saved = [p for p in paths or sorted(path.glob("**/*")) if p.is_file() and p.name.lower().endswith(SUFFIXES)]
    if saved:
        return "\n".join(_column(str(p), whole(p, advice("essays"))) for p in saved)
    try:
        texts = [p.read_text(encoding="utf-8", errors="replace") for p in paths]
    except OSError as error:
        raise UserError(f"cannot read essays {path}: {error.strerror or error}; {advice('essays')}") from error
    return "\n".join(texts)


def _column(source: str, rows: Iterable[Mapping[str, Any]]) -> str:
    try:
        return "\n".join(str(row["text"]) for row in rows)
    except (KeyError, TypeError) as error:
        raise UserError(f"--data essays={source} lacks the column 'text'; {advice('essays')}") from error


_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:[A-Za-z]|[A-Za-z]\.[A-Za-z]|Mr|Mrs|Ms|Dr|St|Prof|vs|etc|Inc|Jr|Sr|No|cf)\.$"
)
_BREAK = re.compile(r"(?<=[.!?])[\"')\]]* (?=[\"'(\[]*[A-Z0-9])")


def sentences(text: str, punkt: bool = False) -> list[str]:
    """Sentences of a text with single spaces; joined by spaces they are the text again.

    A sentence ends at . ! or ? with its closing quotes, before a space and a capital or digit, except after an
    abbreviation or an initial.
    """
    if punkt:
        try:
            from nltk.tokenize import sent_tokenize

            return [str(sentence) for sentence in sent_tokenize(text)]
        except LookupError:  # NLTK is installed without its punkt data
            pass
    parts, start = [], 0
    for match in _BREAK.finditer(text):
        if not _ABBREVIATION.search(text[max(start, match.start() - 12) : match.start()]):
            parts.append(text[start : match.end() - 1])
            start = match.end()
    return [*parts, text[start:]]


@lru_cache(maxsize=8)
def corpus(kind: str, source: str) -> Corpus:
    """The questions and documents of "squad" or "hotpotqa"."""
    try:
        if not is_hub(source) and source.lower().endswith((".json", ".json.gz")):
            raw = _json(kind, source)
            made = _squad(_squad_articles(raw)) if kind == "squad" else _hotpotqa(raw)
        else:
            rows = _hub(kind, source) if is_hub(source) else (row for _, row in local(source, SPLITS, advice(kind)))
            made = _squad(_squad_rows(rows)) if kind == "squad" else _hotpotqa(_hotpotqa_rows(rows))
    except KeyError as error:
        raise UserError(f"--data {kind}={source} lacks the column {error}; {advice(kind)}") from error
    except (TypeError, IndexError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--data {kind}={source} is not laid out as the official file; {advice(kind)}") from error
    if not made.questions:
        raise UserError(f"--data {kind}={source} holds no questions; {advice(kind)}")
    if len({(each.text, each.gold) for each in made.questions}) < len(made.questions) // 2 + 1:
        raise UserError(
            f"--data {kind}={source} holds its questions twice; give one of its folders, such as `distractor`"
        )
    return made


def _json(kind: str, source: str) -> Any:
    try:
        raw = Path(source).read_bytes()
        return json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except OSError as error:
        raise UserError(f"cannot read --data {kind}={source}: {error.strerror or error}; {advice(kind)}") from error
    except (ValueError, EOFError) as error:
        raise UserError(f"--data {kind}={source} is not JSON; {advice(kind)}") from error


Answered = tuple[str, str, str, tuple[str, ...]]  # article, paragraph, question, answers


def _squad_articles(raw: Any) -> tuple[list[Answered], list[tuple[str, str]]]:
    found, paragraphs = [], []
    for article in raw["data"]:
        for paragraph in article["paragraphs"]:
            paragraphs.append((str(article["title"]), str(paragraph["context"])))
            found += [
                (article["title"], paragraph["context"], qa["question"], tuple(a["text"] for a in qa["answers"]))
                for qa in paragraph["qas"]
                if not qa.get("is_impossible", False)
            ]
    return found, paragraphs


def _squad_rows(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Answered], list[tuple[str, str]]]:
    found, paragraphs = [], []
    for row in rows:
        paragraphs.append((row["title"], row["context"]))
        if row["answers"]["text"]:
            found.append((row["title"], row["context"], row["question"], tuple(row["answers"]["text"])))
    return found, paragraphs


def _squad(parsed: tuple[list[Answered], list[tuple[str, str]]]) -> Corpus:
    found, paragraphs = parsed
    documents = sorted({text for _, text in paragraphs})
    number = {text: i for i, text in enumerate(documents)}
    article: dict[str, dict[int, None]] = {}
    for title, text in paragraphs:
        article.setdefault(title, {})[number[text]] = None
    questions = []
    for title, text, question, answers in found:
        gold = number[text]
        near = tuple(i for i in article[title] if i != gold)
        questions.append(Question(question, answers, (gold,), (gold,), near, f"squad/{title}/{gold}"))
    return Corpus(tuple(questions), tuple(documents))


def _hotpotqa_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The hub's columns as the official layout."""
    return [
        {
            "question": row["question"],
            "answer": row["answer"],
            "supporting_facts": [[title] for title in row["supporting_facts"]["title"]],
            "context": list(zip(row["context"]["title"], row["context"]["sentences"], strict=True)),
        }
        for row in rows
    ]


def _hotpotqa(rows: list[dict[str, Any]]) -> Corpus:
    texts = [[(title, f"{title}\n{''.join(lines)}") for title, lines in row["context"]] for row in rows]
    documents = sorted({text for block in texts for _, text in block})
    number = {text: i for i, text in enumerate(documents)}
    questions = []
    for row, block in zip(rows, texts, strict=True):
        titles = {fact[0] for fact in row["supporting_facts"]}
        every = tuple(dict.fromkeys(number[text] for _, text in block))
        gold = tuple(dict.fromkeys(number[text] for title, text in block if title in titles))
        near = tuple(i for i in every if i not in gold)
        questions.append(Question(row["question"], (row["answer"],), gold, every, near, f"hotpotqa/{row['question']}"))
    return Corpus(tuple(questions), tuple(documents))


def _hub(kind: str, source: str) -> Iterable[Mapping[str, Any]]:
    config, split = HUB[kind]
    return hub(kind, config, split, source, advice(kind))


@lru_cache(maxsize=1)
def wonderwords() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Adjectives, nouns, and the pool of all distinct nouns, adjectives and verbs of `wonderwords`, each sorted."""
    assets = files("wonderwords") / "assets"

    def read(name: str) -> list[str]:
        return [line.strip() for line in (assets / name).read_text(encoding="utf-8").splitlines() if line.strip()]

    adjectives, nouns, verbs = (read(f"{kind}list.txt") for kind in ("adjective", "noun", "verb"))
    return tuple(sorted(set(adjectives))), tuple(sorted(set(nouns))), tuple(sorted({*adjectives, *nouns, *verbs}))


@lru_cache(maxsize=16)
def question_order(kind: str, number: int, seed: int, version: int) -> tuple[int, ...]:
    """A permutation of the questions, so that the first few are not all about one article."""
    order = list(range(number))
    generator("ruler", version, kind, "questions", seed).shuffle(order)
    return tuple(order)
