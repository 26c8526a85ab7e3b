"""Rows of a dataset from a file, a folder or the hub, with the columns that the hub gives them."""

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError

Row = Mapping[str, Any]
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".parquet")
SPLITS = ("train", "validation", "val", "dev", "test", "prompt")


class UnreachableError(UserError):
    """The hub has been asked for, and does not answer."""


def is_hub(source: str) -> bool:
    """Whether `--data NAME=SOURCE` means the hub: `hub`, or `hub:OWNER/DATASET` for another copy of the set."""
    return source == "hub" or source.startswith("hub:")


def hub(name: str, config: str | None, split: str, source: str, advice: str) -> Iterable[Row]:
    """Rows of the set `name`, or of the one that `source` names. Raises UnreachableError at once where the hub does not
    answer, with `advice` on what to give instead."""
    name = source.partition(":")[2] or name
    try:
        import datasets
        from huggingface_hub import HfApi

        if not os.environ.get("HF_HUB_OFFLINE"):  # set: the local cache answers or fails at once
            HfApi().dataset_info(name, timeout=5)
        found: Iterable[Row] = datasets.load_dataset(name, config, split=split)
    except ImportError as error:
        raise UnreachableError("--data ...=hub needs `pip install datasets`, or a path in place of `hub`") from error
    except Exception as error:  # the hub's clients raise errors of a dozen libraries
        why = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UnreachableError(f"{name} cannot be had from the hub ({why}); {advice}") from error
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
            for file in files:
                try:
                    for row in read(file):
                        if not isinstance(row, Mapping):
                            raise ValueError(f"a row is a {type(row).__name__}")
                        yield file, row
                except OSError as error:
                    raise UserError(f"cannot read {file}: {error.strerror or error}; {advice}") from error
                except (ValueError, EOFError, csv.Error, zlib.error) as error:
                    raise UserError(f"{file} is not laid out as its name says ({error}); {advice}") from error
            return
    raise UserError(f"{source} has no rows of {' or '.join(splits)}; {advice}")


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
