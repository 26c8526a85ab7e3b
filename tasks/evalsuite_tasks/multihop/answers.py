"""Reading an answer: one name, one digit or a set of names; a list of candidates is no answer."""

import re
from collections.abc import Collection, Sequence

from evalsuite.lexicon import NAMES

_ALL = frozenset(NAMES)
_MARKER = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*[:=])", re.IGNORECASE)
_DENIAL = re.compile(r"\b(?:not|cannot|never|neither)\b|n't\b", re.IGNORECASE)


def _line(text: str, cot: bool) -> str:
    """The part that counts: the first line, or after reasoning the line behind the last `Answer:`; else nothing."""
    if cot:
        ends = [match.end() for match in _MARKER.finditer(text)]
        if not ends:
            return ""
        text = text[ends[-1] :]
    return next(iter(text.strip().splitlines()), "")


def _names(text: str, given: Collection[str] = ()) -> list[str]:
    """The different names of a line, sorted, without those that the question gave."""
    found = set(re.findall(r"[a-z]+", text.lower())) & _ALL
    return sorted(found - set(given) or found)


def one_name(text: str, given: Collection[str] = (), *, cot: bool = False) -> str:
    """The name that is the answer; "" where there is none, more than one beside the given, or where it is denied."""
    line = _line(text, cot)
    found = _names(line, given)
    return found[0] if len(found) == 1 and not _DENIAL.search(line) else ""


def one_digit(text: str, *, cot: bool = False) -> str:
    """The whole number that is the answer; "" where there is none or more than one."""
    found = {number.lstrip("0") or "0" for number in re.findall(r"-?\d+", _line(text, cot))}
    return found.pop() if len(found) == 1 else ""


def name_set(text: str, given: Collection[str] = (), *, cot: bool = False) -> str:
    """All names of the answer, sorted and joined by spaces."""
    return " ".join(_names(_line(text, cot), given))


def hops_done(walk: Sequence[str], answer: str, asked: int) -> int:
    """The number of hops after which the walk is at `answer`, the hops asked first; -1 where it never is."""
    if asked < len(walk) and walk[asked] == answer:
        return asked
    return walk.index(answer) if answer in walk else -1
