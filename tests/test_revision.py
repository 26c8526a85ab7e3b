"""The revision in a run's record: two sources are two revisions, whatever git would call them."""

import subprocess
from pathlib import Path

import pytest

from evalsuite import revision


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    """Two packages of one repository, committed."""
    both = [tmp_path / "one", tmp_path / "kernels" / "two"]
    for place in both:
        place.mkdir(parents=True)
        (place / "code.py").write_text("x = 1\n")
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("*.txt\n")
    commit(tmp_path)
    return both


def git(place: Path, *words: str) -> None:
    author = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "-C", str(place), *author, *words], check=True, capture_output=True)


def commit(place: Path) -> None:
    git(place, "add", "-A")
    git(place, "commit", "-q", "-m", "c")


def test_a_commit_is_its_own_name(places: list[Path]) -> None:
    head = revision.of(places)
    assert len(head) == 40
    assert "+" not in head
    (places[0] / "notes.txt").write_text("ignored")
    (places[0].parent / "README").write_text("of another folder")
    assert revision.of(places) == head


@pytest.mark.parametrize("package", [0, 1])
def test_two_edits_of_one_commit_are_two_revisions(places: list[Path], package: int) -> None:
    """A kernel is not in the package that asks; and a file that git does not know yet runs as well."""
    head = revision.of(places)
    found = {head}
    for name, text in (("code.py", "x = 2\n"), ("code.py", "x = 3\n"), ("new.py", "y = 1\n")):
        (places[package] / name).write_text(text)
        found.add(revision.of(places))
    assert len(found) == 4
    assert all(each.startswith(f"{head}+") for each in found - {head})
    commit(places[0].parent)
    assert "+" not in revision.of(places)


def test_without_a_repository_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert revision.of([tmp_path]) == ""
    monkeypatch.setenv("EVALSUITE_REVISION", "told")
    assert revision.revision() == "told"


def test_all_packages_count() -> None:
    names = [place.name for place in revision.folders()]
    assert names == list(revision.PACKAGES)
