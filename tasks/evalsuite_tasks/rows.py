"""Rows of a dataset from a file, a folder or the hub, with the columns that the hub gives them."""

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from evalsuite.errors import UserError

Row = Mapping[str, Any]
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".parquet")
SETS = {  # --data's name -> the hub's set and the commit that is read; "": the newest, which the run's record names
    "mmlu": ("cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe"),
    "mmlu_redux": ("edinburgh-dawg/mmlu-redux", ""),
    "mmlu_pro": ("TIGER-Lab/MMLU-Pro", "b189ec765aa7ed75c8acfea42df31fdae71f97be"),
    "humaneval": ("openai/openai_humaneval", "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544"),
    "humaneval_plus": ("evalplus/humanevalplus", "d32357cf319e50e9c8d8dab5ea876c72b0fd321b"),
    "mbpp": ("google-research-datasets/mbpp", "4bb6404fdc6cacfda99d4ac4205087b89d32030c"),
    "mbpp_plus": ("evalplus/mbppplus", "b2d74c91837c3f2a20c1299ae98133cbe7cfa077"),
    "cruxeval": ("cruxeval-org/cruxeval", "b96af0450242eb4da433032b90998f25588a5d0f"),
    "essays": ("baber/paul_graham_essays", "792d672b77d1a67720f7e9820d646358fc18792e"),
    "squad": ("rajpurkar/squad_v2", "3ffb306f725f7d2ce8394bc1873b24868140c412"),
    "hotpotqa": ("hotpotqa/hotpot_qa", "1908d6afbbead072334abe2965f91bd2709910ab"),
}
COMMIT = re.compile(r"[0-9a-f]{40}")
SPLITS = ("train", "validation", "val", "dev", "test", "prompt")

_READ: dict[tuple[str, str], str] = {}  # name and source -> the set and revision that its rows came from


class UnreachableError(UserError):
    """The hub has been asked for, and does not answer."""


def is_hub(source: str) -> bool:
    """Whether `--data NAME=SOURCE` means the hub: `hub`, or `hub:OWNER/DATASET[@REVISION]` for another copy of the set
    or another state of it."""
    return source == "hub" or source.startswith("hub:")


def named(kind: str, source: str) -> tuple[str, str]:
    """The set that a source stands for and its revision, "" for the newest. Another set than ours has no revision of
    ours."""
    own, _, revision = source.partition(":")[2].partition("@")
    name, pinned = SETS[kind]
    return own or name, revision or (pinned if own in ("", name) else "")


def hub(kind: str, config: str | None, split: str, source: str, advice: str) -> Iterable[Row]:
    """Rows of the set that `--data KIND=SOURCE` means, of its pinned revision.

    Raises UnreachableError at once where the hub does not answer, with `advice` on what to give instead, and where what
    is there is of another revision: the hub's client takes any that it finds in its cache.
    """
    name, revision = named(kind, source)
    try:
        import datasets
        from huggingface_hub import HfApi

        if not os.environ.get("HF_HUB_OFFLINE"):  # set: the local cache answers or fails at once
            revision = str(HfApi().dataset_info(name, revision=revision or None, timeout=5).sha)
        found = datasets.load_dataset(name, config, split=split, revision=revision or None)
    except ImportError as error:
        raise UnreachableError("--data ...=hub needs `pip install datasets`, or a path in place of `hub`") from error
    except Exception as error:  # the hub's clients raise errors of a dozen libraries
        why = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UnreachableError(f"{name} cannot be had from the hub ({why}); {advice}") from error
    read = next(
        (hash_ for file in found.cache_files if COMMIT.fullmatch(hash_ := Path(file["filename"]).parent.name)), ""
    )
    if COMMIT.fullmatch(revision) and read != revision:
        raise UnreachableError(
            f"{name} cannot be had from the hub in revision {revision[:8]}, and the cache holds "
            f"{read[:8] or 'another'}; give --data {kind}=hub:{name}@{read or 'REVISION'} to take that, or {advice}"
        )
    _READ[kind, source] = f"{name}@{read or revision or 'unknown'}"
    return cast(Iterable[Row], found)


def revisions(data: Mapping[str, str]) -> dict[str, str]:
    """Name of `--data` -> `OWNER/DATASET@REVISION`, of those that the hub gives. Nothing else is ever read under a
    pinned one, so it is told where nothing has been read yet."""
    found: dict[str, str] = {}
    for kind, source in data.items():
        if is_hub(source) and kind in SETS:
            name, revision = named(kind, source)
            told = _READ.get((kind, source)) or (f"{name}@{revision}" if COMMIT.fullmatch(revision) else "")
            found |= {kind: told} if told else {}
    return found


def local(source: str, splits: Sequence[str], advice: str) -> Iterator[tuple[Path, Row]]:
    """Every row of the first of `splits` that a file or folder has, with the file that it is from.

    A folder's files have their split in their own or their folder's name, as the hub lays them out; so has a file, and
    another split is looked for beside it. A file without one is of whatever split is asked. Raises UserError, with
    `advice`, where there is nothing or it cannot be read.
    """
    for split in splits:
        files = sorted(_files(Path(source).expanduser(), split))
        if files:
            yield from ((file, row) for file in files for row in whole(file, advice))
            return
    raise UserError(f"{source} has no rows of {' or '.join(splits)}; {advice}")


def whole(file: Path, advice: str) -> Iterator[Row]:
    """Every row of one file. Raises UserError, with `advice`, where it cannot be read."""
    try:
        for row in read(file):
            if not isinstance(row, Mapping):
                raise ValueError(f"a row is a {type(row).__name__}")
            yield row
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}; {advice}") from error
    except (ValueError, EOFError, csv.Error, zlib.error) as error:
        raise UserError(f"{file} is not laid out as its name says ({error}); {advice}") from error


def _files(path: Path, split: str) -> Iterator[Path]:
    if path.is_file():
        own = _split(path.name) or split
        other = path.with_name(re.sub(rf"(?<![a-z]){own}(?![a-z])", split, path.name, flags=re.IGNORECASE))
        if own == split:
            yield path
        elif other.is_file():
            yield other
        return
    for file in path.rglob("*"):
        inside = file.relative_to(path).parts  # a folder that is called test may well hold dev rows, if it is outside
        if file.name.lower().endswith(SUFFIXES) and split == next(filter(None, map(_split, reversed(inside))), None):
            yield file


def _split(name: str) -> str | None:
    """The split that is a word of a name: `test-00000-of-00001.parquet`, `virology_test.csv`, not `contest.csv`."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((word for word in words if word in SPLITS), None)


def read(file: Path) -> Iterator[Row]:
    """Rows of one file; a CSV without a header has the columns "0", "1", ..."""
    name = file.name.lower()
    if name.endswith(".parquet"):
        import pyarrow.parquet

        yield from pyarrow.parquet.read_table(file).to_pylist()
    elif name.endswith(".csv"):
        with file.open(encoding="utf-8-sig", newline="") as lines:
            yield from _csv(list(csv.reader(lines)))
    else:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
        whole = name.endswith((".json", ".json.gz"))
        yield from json.loads(text) if whole else map(json.loads, filter(str.strip, text.split("\n")))


def _csv(lines: Sequence[Sequence[str]]) -> Iterator[Row]:
    """A first line with a column `question` is a header."""
    if lines and any(cell == "question" for cell in lines[0]):
        yield from (dict(zip(lines[0], line, strict=True)) for line in lines[1:])
    else:
        yield from ({str(i): cell for i, cell in enumerate(line)} for line in lines)
