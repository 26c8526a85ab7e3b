"""Words and numbers as the terminal's tables say them, and text that nobody trusts made visible."""

import math
import re
from typing import Any

from evalsuite.groups import Line
from evalsuite.notes import tokens
from evalsuite.stats import Difference, Estimate
from evalsuite.table import label, mean_of, named, size_of

__all__ = [
    "clean",
    "difference",
    "estimate",
    "label",
    "mean_of",
    "named",
    "short",
    "size_of",
    "task",
    "tokens",
    "visible",
]

# Controls but tab and newline, what turns the direction of writing, invisible characters, and halves of pairs.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff\ufffe\uffff]"
)


def visible(text: str) -> str:
    """The text with each character that a page would hide, obey or refuse written as its number: `⟨U+202E⟩`."""
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def clean(value: Any) -> Any:
    """A JSON value whose texts are all visible and whose numbers are all finite: others become None."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {visible(str(key)): clean(each) for key, each in value.items()}
    return [clean(each) for each in value] if isinstance(value, list | tuple) else value


def short(name: str, most: int = 22) -> str:
    """A run's name where there is little room: its end, which tells folders apart."""
    plain = " ".join(visible(name).split())
    return plain if len(plain) <= most else f"…{plain[-most + 1 :]}"


def task(line: Line) -> str:
    """The task or family of a group."""
    return str(line.get("task") or line.get("family"))


def estimate(found: Estimate | None) -> str:
    """`0.68 [0.63, 0.73]`, or a dash."""
    return "-" if found is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def difference(found: Difference | None) -> str:
    """`-0.32 [-0.34, -0.29]*`; the star where the interval excludes 0, a dash where no prompt is shared."""
    if found is None:
        return "-"
    star = "" if found.low <= 0 <= found.high else "*"
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]{star}"
