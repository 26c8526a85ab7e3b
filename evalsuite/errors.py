"""Errors that a user can mend: one line that names the cause and the fix."""

from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 40  # names in one line


class UserError(ValueError):
    """A mistake of the user's, or a lack of the machine's. The command line prints it as one line and exits with 2."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error for a name that does not exist, with the nearest that does, or the first of those that do."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.4)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names[:SHOWN])}{more}"
    return UserError(f"unknown {kind} {name!r}; {hint}")
