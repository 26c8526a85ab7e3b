"""Rows of data files, however they were saved."""

import gzip
from pathlib import Path

import pytest

from evalsuite_tasks import rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv"])
def test_a_mark_of_the_byte_order_is_no_part_of_a_row(name: str, encoding: str, tmp_path: Path) -> None:
    text = "question,x\nä,1\n" if name.endswith("csv") else '{"question": "ä", "x": "1"}\n'
    raw = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    assert list(rows.read(tmp_path / name)) == [{"question": "ä", "x": "1"}]
