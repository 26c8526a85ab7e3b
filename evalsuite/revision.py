"""Which source ran: a commit, and where it was edited, what the edited source says."""

import hashlib
import os
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("evalsuite", "evalsuite_kernels", "evalsuite_tasks")


def revision() -> str:
    """Git revision of the packages that run; where one of their files was edited or added, `+` and a hash of all their
    source, so that two edits of one commit are two revisions. "" for an installed package.

    A tree copied without its history takes it from the variable EVALSUITE_REVISION.
    """
    return os.environ.get("EVALSUITE_REVISION") or of(folders())


def folders() -> list[Path]:
    """Where the packages lie; the first is this one's."""
    specs = [find_spec(name) for name in PACKAGES]
    return [Path(place) for spec in specs if spec for place in spec.submodule_search_locations or ()]


def of(places: Sequence[Path]) -> str:
    """The revision of source in these folders; the first one's repository tells it."""
    try:
        head, root = _git(places[0], "rev-parse", "HEAD"), Path(_git(places[0], "rev-parse", "--show-toplevel"))
        inside = [str(place) for place in places if place.resolve().is_relative_to(root.resolve())]
        edits = _git(places[0], "status", "--porcelain", "--untracked-files=all", "--", *inside)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{head}+{_digest(places)}" if edits else head


def _git(place: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(place), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _digest(places: Sequence[Path]) -> str:
    """8 hex digits of every Python file's name and content."""
    state = hashlib.blake2b(digest_size=4)
    for place in places:
        for file in sorted(place.rglob("*.py")):
            content = file.read_bytes()
            state.update(f"{file.relative_to(place)}\0{len(content)}\0".encode())
            state.update(content)
    return state.hexdigest()
