"""Rows of a run as Parquet: one typed, nullable column for each facet and detail, whatever mix of tasks has them.

Parquet's strings are UTF-8. Where an answer holds a lone surrogate, the column shows `?` and the exact value is kept as
JSON in the column `raw`.
"""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]
NESTED = ("facets", "detail")
STRINGS = pa.list_(pa.string())
FIXED: tuple[tuple[str, pa.DataType], ...] = (
    ("task", pa.string()),
    ("id", pa.string()),
    ("cluster", pa.string()),
    ("chance", pa.float64()),
    ("cell", STRINGS),
    ("prompt_hash", pa.string()),
    ("prompt", pa.string()),
    ("answer_prefix", pa.string()),
    ("choices", STRINGS),
    ("target", STRINGS),
    ("walk", STRINGS),
    ("text", pa.string()),
    ("answer", pa.string()),
    ("score", pa.float64()),
    ("choice_logprobs", pa.list_(pa.float64())),
    ("prompt_tokens", pa.int64()),
    ("completion_tokens", pa.int64()),
    ("finish", pa.string()),
    ("error", pa.string()),
    ("raw", pa.string()),
)


def encode(rows: list[Row]) -> bytes:
    """A Parquet file (zstd) of the rows, in their order; the same rows give the same bytes."""
    clean = [_clean(row) for row in rows]
    arrays = {name: pa.array([row.get(name) for row in clean], type=kind) for name, kind in FIXED}
    for nest in NESTED:
        for key in sorted({key for row in clean for key in row[nest]}):
            arrays[f"{nest.removesuffix('s')}.{key}"] = _column([row[nest].get(key) for row in clean])
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays), buffer, compression="zstd")
    return buffer.getvalue()


def read(path: Path, columns: list[str] | None = None, drop: tuple[str, ...] = ()) -> list[Row]:
    """The rows of a Parquet file, as they were logged."""
    file = pq.ParquetFile(path)
    wanted = columns or [name for name in file.schema_arrow.names if name not in drop]
    rows: list[Row] = file.read(columns=wanted).to_pylist()
    return rows if columns else [_nest(row, drop) for row in rows]


def _column(values: list[Any]) -> pa.Array:
    """Typed by what is there: bool, int64, double, else string."""
    kinds = {type(v) for v in values if v is not None}
    if kinds <= {bool}:
        return pa.array(values, type=pa.bool_())
    fits = all(abs(v) < 2**63 for v in values if isinstance(v, int))
    if kinds <= {bool, int} and fits:
        return pa.array([None if v is None else int(v) for v in values], type=pa.int64())
    if kinds <= {bool, int, float} and fits:
        return pa.array([None if v is None else float(v) for v in values], type=pa.float64())
    return pa.array([None if v is None else str(v) for v in values], type=pa.string())


def _clean(row: Row) -> Row:
    """The row in valid UTF-8, with the exact values of what had to change in `raw`."""
    dirty = {key: value for key, value in row.items() if not _encodable(value)}
    shown = {k: json.loads(json.dumps(v, ensure_ascii=False).encode(errors="replace")) for k, v in dirty.items()}
    return {**row, **shown, "raw": json.dumps(dirty, sort_keys=True) if dirty else None}


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _nest(row: Row, drop: tuple[str, ...]) -> Row:
    flat = {key: value for key, value in row.items() if "." not in key and key != "raw"}
    for nest in NESTED:
        prefix = nest.removesuffix("s") + "."
        flat[nest] = {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix) and v is not None}
    exact = json.loads(row["raw"]) if row.get("raw") else {}
    return {**flat, **{key: value for key, value in exact.items() if key not in drop}}
