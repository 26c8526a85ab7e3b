"""Text as GitHub's Markdown shows it: what a name holds is never taken for markup, and reads well unrendered too."""

import re
from collections.abc import Sequence

SPACE = "\u00a0"  # a renderer drops plain spaces at the beginning of a cell
# What could begin markup within a line. Brackets around figures, and stars and tildes behind them, cannot, and stay.
MARKUP = re.compile(
    r"""[\\`<$]
    | \[(?![+-]?\d) | (?<=\])[(:]
    | &(?=\#?\w+;)
    | [*~](?=\S) | (?<=\s)\#+$
    | (?<![A-Za-z0-9])_ | _(?![A-Za-z0-9])""",
    re.VERBOSE,
)
# a quote, a heading, an item, an underline
START = re.compile(r"^(?:>|(?:\#{1,6}|[+*-]|\d+(?=[.)]))(?=[.)\s]|$)|=+$|-+$)")


def plain(text: str) -> str:
    """One line that renders as the text itself, runs of white space and control characters as one space."""
    return START.sub(lambda found: found[0] + "\\" if found[0].isdigit() else "\\" + found[0], _inline(text))


def _inline(text: str) -> str:
    line = re.sub(r"[\s\x00-\x1f\x7f]+", " ", text).strip()
    return MARKUP.sub(lambda found: "\\" + found[0], line)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A padded table, the first column to the left and its indentation kept, all others to the right."""
    lines = [tuple(_cell(cell) for cell in row) for row in (header, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    padded = ([c.rjust(widths[i]) if i else c.ljust(widths[i]) for i, c in enumerate(line)] for line in lines)
    written = [f"| {' | '.join(line)} |" for line in padded]
    rule = "|" + "|".join("-" * (w + 1) + ":" if i else "-" * (w + 2) for i, w in enumerate(widths)) + "|"
    return "\n".join([written[0], rule, *written[1:]])


def block(text: str) -> str:
    """Text of several lines as it is, in a fence longer than any that it holds."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{fence}text\n{text.replace(chr(13), '')}\n{fence}"


def _cell(text: str) -> str:
    indent = len(text) - len(text.lstrip(" "))
    tail = " " if text.endswith(" ") else ""  # what aligns a figure with marked ones
    return SPACE * indent + _inline(text).replace("|", "\\|") + tail
