"""RULER's scorers (github.com/NVIDIA/RULER, `scripts/eval/synthetic/constants.py`), and the exact set for chains."""

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")


def clean(text: str) -> str:
    """Upstream's post-processing: stripped, control characters as line breaks."""
    return _CONTROL.sub("\n", text.strip()).strip()


def match_all(answer: str, target: Sequence[str]) -> float:
    """Share of the accepted answers that are substrings of the answer in any case: upstream's string_match_all."""
    return sum(ref.lower() in answer.lower() for ref in target) / len(target)


def match_part(answer: str, target: Sequence[str]) -> float:
    """1.0 if any accepted answer is a substring of the answer: upstream's string_match_part."""
    return float(any(ref.lower() in answer.lower() for ref in target))


def match_words(answer: str, target: Sequence[str]) -> float:
    """Share of the accepted words among the first `len(target)` whole words of the answer, in any order."""
    given = set(answer.split()[: len(target)])
    return sum(ref in given for ref in target) / len(target)


def named(answer: str, names: Sequence[str]) -> set[str]:
    """The names of the text that the answer lists, as whole words."""
    words = set(re.findall(r"[\w-]+", answer.upper()))
    return {name for name in names if name.upper() in words}


def set_f1(given: set[str], target: Sequence[str]) -> float:
    """F1 of two sets; 0.0 where they are disjoint."""
    hit = len(given & set(target))
    return 2 * hit / (len(given) + len(target)) if hit else 0.0
