"""Which parts of a prompt the answer rests on, as far as a run's row tells: pure functions on texts.

Rows keep no places. Highlighted are the accepted answers where they stand as whole words, and, for rows that keep the
walk to the answer, the statements that join one name of it to the next.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise

from evalsuite.store import Row

ANSWER, STEP = 0, 1
Span = tuple[int, int, int]  # begin, end, kind
MOST = 100  # spans of one prompt
BETWEEN = 8  # words that may stand between two names of one statement

NOTE = (
    "Highlighted are the accepted answers where they stand in the prompt as whole words, and the statements that join "
    "two successive names of the walk to the answer, where the run keeps the walk. Runs do not keep the places of the "
    "facts: a word may also stand elsewhere by chance. Answers of one letter are not highlighted."
)


def spans(prompt: str, targets: Iterable[str], names: Sequence[str] = ()) -> list[Span]:
    """The places to highlight, in order, never overlapping; a statement that joins two `names` of the walk wins over an
    answer in it."""
    found: list[Span] = []
    for one, two in pairwise(names):
        first, gap = _word(one), r"[^\w\n.]+"  # within one sentence, from the nearest name on
        pattern = rf"{first}(?:{gap}(?!{first})\w+){{0,{BETWEEN}}}?{gap}{_word(two)}"
        found += [(*hit.span(), STEP) for hit in re.finditer(pattern, prompt)][:MOST]
    for word in {part for target in targets for part in _parts(target)}:
        found += [(at, at + len(word), ANSWER) for at in islice(_whole(prompt, word), MOST)]
    return _apart(found)


def walk(row: Row) -> Sequence[str]:
    """The names on the way to a row's answer; rows keep the walk further, to tell where a wrong answer lies."""
    names, targets, hops = row.get("walk") or (), row["target"], row["facets"].get("hops")
    if isinstance(hops, int) and 0 < hops < len(names) and names[hops] in targets:
        return names[: hops + 1]
    ends = [names.index(target) for target in targets if target in names]
    return names[: max(ends) + 1] if ends else ()


def _parts(target: str) -> list[str]:
    whole = target.strip()
    return [whole] if len(whole) > 1 or whole.isdigit() else []


def _whole(prompt: str, word: str) -> Iterator[int]:
    """Where a word stands and no letter, digit or underscore before or after continues it."""
    at = prompt.find(word)
    while at >= 0:
        before, after = prompt[at - 1 : at] + word[0], word[-1] + prompt[at + len(word) : at + len(word) + 1]
        if not (re.fullmatch(r"\w\w", before) or re.fullmatch(r"\w\w", after)):
            yield at
        at = prompt.find(word, at + 1)


def _word(text: str) -> str:
    before = r"(?<!\w)" if text[:1].isalnum() else ""
    after = r"(?!\w)" if text[-1:].isalnum() else ""
    return f"{before}{re.escape(text)}{after}"


def _apart(found: Iterable[Span]) -> list[Span]:
    kept: list[Span] = []
    for span in sorted(found, key=lambda each: (-each[2], each[0], -each[1])):
        if all(span[1] <= other[0] or span[0] >= other[1] for other in kept):
            kept.append(span)
    return sorted(kept)[:MOST]
