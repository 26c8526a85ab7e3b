"""Every sample of several runs in a few megabytes: an index that filters, and texts that are unpacked when looked at.

Blocks are JSON, deflated, in base64; the page unpacks them with DecompressionStream. Questions that several runs were
asked in the same words are kept once. Where the texts do not fit, prompts keep their beginning, their end and what
stands around the highlighted places; what is left out is counted in its place.
"""

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evalsuite.compare import Comparison
from evalsuite.records import Facet
from evalsuite.report import gold
from evalsuite.report.gold import Span
from evalsuite.report.words import clean, visible
from evalsuite.store import Row, Run

SIZE = 4_900_000  # bytes of the page
LIMITS = (
    1 << 20,
    1 << 16,
    1 << 14,
    8000,
    4000,
    2500,
    2000,
    1600,
    1300,
    1000,
    700,
    500,
    350,
    250,
    160,
    80,
)  # of a prompt
ANSWERS = 4000  # characters of a completion, at most
LEAST = 300  # and where prompts are cut to fewer
RAW = 96 << 20  # characters of texts before they are packed: what a browser holds with ease
CHUNK = 500_000  # characters of a block of texts
Entry = dict[int, Row]  # run -> its row of one question


@dataclass(frozen=True, slots=True)
class Packed:
    """What the page holds. `limit` is the length over which prompts are cut, 0 where none is; `answers` that of
    completions."""

    index: str
    texts: tuple[str, ...]
    count: int
    limit: int
    cut: int  # prompts that are
    answers: int


NONE = Packed("", (), 0, 0, 0, 0)


def pack(runs: Sequence[Run], result: Comparison, budget: int = SIZE) -> Packed:
    """All samples of the runs, as much of their texts as `budget` characters of blocks hold."""
    entries = _merged(runs)
    longest = max((len(_prompt(entry)) for entry in entries), default=0)
    tried = [longest, *(limit for limit in LIMITS if limit < longest)]
    for limit in tried:
        if limit != tried[-1] and not _may_fit(entries, len(runs), limit, budget):
            continue
        texts, places = _texts(entries, len(runs), (limit, _most(limit, longest)))
        index = _pressed(_json(_index(entries, places, result)))
        if len(index) + sum(map(len, texts)) <= budget:
            break
    cut = sum(len(_prompt(entry)) > limit for entry in entries)
    return Packed(index, tuple(texts), len(entries), limit if cut else 0, cut, _most(limit, longest))


def _most(limit: int, longest: int) -> int:
    return ANSWERS if limit == longest else min(ANSWERS, max(limit, LEAST))


def _may_fit(entries: Sequence[Entry], runs: int, limit: int, budget: int) -> bool:
    """Whether packing everything at this limit is worth the time, by some stretches of it."""
    raw = sum(min(len(_prompt(entry)), limit) for entry in entries)
    if len(entries) < 2000 or raw > RAW:
        return raw <= RAW
    stretches = [entries[i * len(entries) // 10 :][:60] for i in range(10)]
    size = sum(len(text) for stretch in stretches for text in _texts(stretch, runs, (limit, min(limit, ANSWERS)))[0])
    return size * len(entries) / 600 < 1.1 * budget


def pieces(text: str, spans: Sequence[Span], limit: int) -> list[Any]:
    """The text as what is kept and what is not: `[text, [[begin, end, kind], ...]]`, or a number of characters.

    Over `limit` characters a third of it goes to the end, where the question stands, a sixth to the beginning, and
    the rest around the first places to highlight.
    """
    windows = [(0, len(text))]
    if len(text) > limit:
        head, tail = limit // 6, limit // 3
        room = limit - head - tail
        chosen = [span for span in spans if head < span[1] and span[0] < len(text) - tail][:4]
        around = max(0, room // len(chosen) - 20) // 2 if chosen else 0
        middle = [(begin - around, end + around) for begin, end, _ in chosen] or [(0, head + room)]
        windows = _joined([(0, head), *middle, (len(text) - tail, len(text))])
    kept: list[Any] = []
    at = 0
    for begin, end in windows:
        if begin > at:
            kept.append(begin - at)
        inside = [(a - begin, b - begin, kind) for a, b, kind in spans if begin <= a and b <= end]
        kept.append(_marked(text[begin:end], inside))
        at = end
    return kept


def _marked(text: str, inside: Sequence[Span]) -> list[Any]:
    """A piece made visible, its places moved along: writing a character as its number makes the text longer."""
    shown, moved, at = "", [], 0
    for begin, end, kind in inside:
        shown += visible(text[at:begin])
        word = visible(text[begin:end])
        moved.append([len(shown), len(shown) + len(word), kind])
        shown += word
        at = end
    return [shown + visible(text[at:]), _units(shown, moved)]


def _units(shown: str, moved: Iterable[Sequence[int]]) -> list[list[int]]:
    """Places in JavaScript's units, of which a character beyond U+FFFF has two."""
    if shown.isascii() or max(shown) <= "\uffff":
        return [list(place) for place in moved]
    return [[a + _high(shown[:a]), b + _high(shown[:b]), kind] for a, b, kind in moved]


def _high(text: str) -> int:
    return sum(character > "\uffff" for character in text)


def _joined(windows: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for begin, end in sorted((max(0, begin), end) for begin, end in windows):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _merged(runs: Sequence[Run]) -> list[Entry]:
    """Each question with what every run made of it, in the runs' order; one asked in two wordings is two."""
    found: dict[tuple[str, str, str], Entry] = {}
    for i, run in enumerate(runs):
        for row in run.rows:
            found.setdefault((row["task"], row["id"], row["prompt_hash"]), {})[i] = row
    return list(found.values())


def _any(entry: Entry) -> Row:
    return next(iter(entry.values()))


def _prompt(entry: Entry) -> str:
    return str(_any(entry).get("prompt") or "")


def _index(entries: Sequence[Entry], places: Sequence[tuple[int, int]], result: Comparison) -> dict[str, Any]:
    """Columns by which the page filters: codes of tasks and facets, scores, and what went wrong."""
    tasks: dict[str, int] = {}
    cells: dict[tuple[tuple[str, Facet], ...], int] = {}
    rows = [_any(entry) for entry in entries]
    value: dict[str, Any] = {
        "runs": [column.name for column in result.columns],
        "task": [tasks.setdefault(row["task"], len(tasks)) for row in rows],
        "cell": [cells.setdefault(_cell(row), len(cells)) for row in rows],
        "id": [row["id"] for row in rows],
        "block": [block for block, _ in places],
        "place": [place for _, place in places],
        "score": [
            [_score(entry.get(i)) for entry in entries] for i in range(len(result.columns))
        ],  # null: not asked this; -1: no number
        "error": [
            [j for j, entry in enumerate(entries) if i in entry and _failed(entry[i])]
            for i in range(len(result.columns))
        ],
    }
    return {**value, "tasks": list(tasks), "cells": [dict(cell) for cell in cells]}


def _cell(row: Row) -> tuple[tuple[str, Facet], ...]:
    return tuple((name, row["facets"][name]) for name in row["cell"] if name in row["facets"])


def _score(row: Row | None) -> float | None:
    if row is None:
        return None
    value = row["score"]
    return round(value, 4) if isinstance(value, int | float) and 0 <= value <= 1 else -1


def _failed(row: Row) -> bool:
    return row["finish"] == "error" or bool(row["error"])


def _texts(entries: Sequence[Entry], runs: int, limits: tuple[int, int]) -> tuple[list[str], list[tuple[int, int]]]:
    """Blocks of texts, and each sample's block and place in it; `limits` are those of prompts and of completions.

    Questions on one text are neighbours, which packs well.
    """
    blocks: list[str] = []
    places = [(0, 0)] * len(entries)
    waiting: list[str] = []
    size = 0
    rows = [_any(entry) for entry in entries]
    for i in sorted(range(len(entries)), key=lambda i: (rows[i]["task"], rows[i]["cluster"], i)):
        record = _json(list(_record(entries[i], runs, limits)))
        if waiting and size + len(record) > CHUNK:
            blocks.append(_pressed(f"[{','.join(waiting)}]"))
            waiting, size = [], 0
        places[i] = (len(blocks), len(waiting))
        waiting.append(record)
        size += len(record)
    return [*blocks, _pressed(f"[{','.join(waiting)}]")], places


def _record(entry: Entry, runs: int, limits: tuple[int, int]) -> Iterator[Any]:
    """A sample's texts: prompt, answer's prefix, targets, choices, own facets, and what each run answered."""
    row = _any(entry)
    limit, most = limits
    prompt = _prompt(entry)
    choices = list(row.get("choices") or ())
    targets = list(row.get("target") or ())
    marked = () if choices and all(len(choice.strip()) == 1 for choice in choices) else targets
    yield pieces(prompt, gold.spans(prompt, marked, gold.walk(row)), max(limit, 1))
    yield _short(str(row.get("answer_prefix") or ""), most)
    yield [_short(target, most) for target in targets]
    yield [_short(choice, most) for choice in choices]
    yield {name: value for name, value in row["facets"].items() if name not in row["cell"]}
    yield row["cluster"]
    yield [_answer(entry[i], most) if i in entry else 0 for i in range(runs)]


def _answer(row: Row, most: int) -> list[Any]:
    text, answer = str(row.get("text") or ""), str(row.get("answer") or "")
    return [
        _short(text, most),
        0 if answer == text.strip() else _short(answer, most),
        row["finish"],
        _short(str(row["error"] or ""), most),
        row.get("prompt_tokens"),
        row.get("completion_tokens"),
        row.get("detail") or 0,
    ]


def _short(text: str, most: int) -> str | list[Any]:
    """The text, or its beginning, how many characters are left out, and its end."""
    if len(text) <= most + 40:
        return text
    head = most * 2 // 3
    return [text[:head], len(text) - most, text[len(text) - (most - head) :]]


def _json(value: Any) -> str:
    return json.dumps(clean(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _pressed(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode(errors="replace"), 9)).decode()
