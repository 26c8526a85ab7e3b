"""Runs as a folder that `datasets.load_dataset` reads and the hub shows: Parquet files and a card."""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evalsuite import columnar, compare, table
from evalsuite.errors import UserError
from evalsuite.store import Run, folder_name

TAG = "evalsuite"  # in the card's header: a folder of ours may be written anew, another's never
SPLIT = "test"
HIDDEN = ("prompt", "answer_prefix", "choices", "target", "walk", "text", "answer", "raw")  # --no-prompts
MARKS = ("detail.choices",)  # details in words of ours; others may quote a question or an answer
KNOWN = {"Apache-2.0": "apache-2.0", "MIT": "mit", "CC0-1.0": "cc0-1.0"}  # a task's licence -> the hub's word


def write(paths: Sequence[str], folder: Path, *, prompts: bool = True) -> list[Path]:
    """Write runs as a dataset of one split, one row a sample with a column `model`; the files written, the card first.

    Without `prompts`, what a licence may keep from being passed on is left out: prompts, answers, texts, and
    errors and details that may quote them. Raises UserError where there is no sample, two runs are of one name,
    `datasets` is missing or `folder` is not ours.
    """
    runs = compare.load(paths, prompts=prompts)
    for row in [row for run in runs for row in run.rows if row["error"] and not prompts]:
        row["error"] = row["error"] if "> context" in row["error"] else "left out"
    result = compare.compare(runs)
    names = [column.name for column in result.columns]
    twice = sorted({run.name for run in runs if [r.name for r in runs].count(run.name) > 1})
    if twice:
        raise UserError(f"two of the runs are of {', '.join(twice)}: their rows would not be told apart; export one")
    files = [_file(name) for name in names]
    if len(set(files)) < len(files):
        raise UserError(f"{', '.join(names)} would be written to files of one name; export each to its own folder")
    place, folder = folder, folder.resolve()  # a link stays one, and the current folder can be replaced
    _check(folder)
    tables = _tables(runs, names, prompts=prompts)
    card = _card(runs, tables, table.as_markdown(result), prompts=prompts)
    beside = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        beside.chmod(0o755)
        (beside / "data").mkdir()
        (beside / "README.md").write_text(card, encoding="utf-8")
        for name, rows in tables.items():
            pq.write_table(rows, beside / "data" / _file(name), compression="zstd")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(beside, folder)
    except OSError as error:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
        raise UserError(f"cannot write to {place}: {error.strerror or error}; take another folder") from error
    return [place / "README.md", *(place / "data" / _file(name) for name in tables)]


def _file(name: str) -> str:
    return f"{folder_name(name)}.parquet"


def _check(folder: Path) -> None:
    """Raise UserError where a folder holds what is not an export of ours."""
    card = folder / "README.md"
    if folder.is_file() or (folder.exists() and any(folder.iterdir()) and not _ours(card)):
        raise UserError(f"{folder} holds something else than an export of evalsuite; take another folder")


def _ours(card: Path) -> bool:
    try:
        head = card.read_text(encoding="utf-8").partition("\n---\n")[0]
    except (OSError, ValueError):
        return False
    return f"\n- {TAG}\n" in f"{head}\n"


def _tables(runs: Sequence[Run], names: Sequence[str], *, prompts: bool) -> dict[str, pa.Table]:
    """Name -> its rows, all with the same columns: those of every facet and detail that any run has."""
    rows = [row if prompts else {**row, "prompt": "", "answer_prefix": ""} for run in runs for row in run.rows]
    whole = pq.read_table(io.BytesIO(columnar.encode(rows)))
    whole = whole.drop_columns(
        [name for name in whole.column_names if name == "raw" and not any(whole[name].to_pylist())]
    )
    if not prompts:
        quoting = [f.name for f in whole.schema if f.name.startswith("detail.") and f.type == pa.string()]
        hidden = {*HIDDEN, *quoting} - {*MARKS}
        whole = whole.drop_columns([name for name in whole.column_names if name in hidden])
    found, start = {}, 0
    for name, run in zip(names, runs, strict=True):
        part = whole.slice(start, len(run.rows))
        start += len(run.rows)
        found[name] = part.add_column(0, "model", pa.array([name] * len(run.rows), type=pa.string()))
    return found


def _card(runs: Sequence[Run], tables: Mapping[str, pa.Table], scores: str, *, prompts: bool) -> str:
    try:
        from datasets import DatasetInfo, Features
        from datasets.info import DatasetInfosDict
        from datasets.splits import SplitDict, SplitInfo
        from datasets.utils.metadata import MetadataConfigs
        from huggingface_hub import DatasetCardData
    except ImportError as error:
        raise UserError("evalsuite export hf needs datasets; pip install 'evalsuite[hub]'") from error
    first = next(iter(tables.values()))
    count = sum(rows.num_rows for rows in tables.values())
    size = sum(rows.nbytes for rows in tables.values())
    splits = SplitDict({SPLIT: SplitInfo(SPLIT, num_bytes=size, num_examples=count)})
    info = DatasetInfo(features=Features.from_arrow_schema(first.schema), splits=splits)
    licences = {str(about.get("licence", "")) for run in runs for about in run.meta["tasks"].values()}
    word = KNOWN.get(next(iter(licences)), "other") if len(licences) == 1 else "other"
    data = DatasetCardData(license=word, pretty_name=f"evalsuite: {', '.join(tables)}", tags=[TAG])
    if word == "other":
        data["license_name"], data["license_link"] = "per-task", "README.md#tasks"
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    files = [{"split": SPLIT, "path": [f"data/{_file(name)}" for name in tables]}]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    return (
        "\n".join(["---", data.to_yaml().rstrip("\n"), "---", "", *_body(runs, list(tables), scores, prompts)]) + "\n"
    )


def _body(runs: Sequence[Run], names: Sequence[str], scores: str, prompts: bool) -> Iterable[str]:
    yield f"# {', '.join(names)}: answers, sample by sample"
    yield f"\n{sum(len(run.rows) for run in runs):,} rows, one a sample of one model, of the split `{SPLIT}`."
    yield "`task`, `id` and `prompt_hash` pair one question over models; `facet.*` say what kind of question it is,"
    yield "`detail.*` what its scorer found beside `score`, which lies in [0, 1]."
    if not prompts:
        yield "Prompts, answers and generated texts are left out."
    yield f"\n## Scores\n\n{scores}"
    yield "\n## Runs\n"
    yield "| model | begun | evalsuite | revision | identity |\n|---|---|---|---|---|"
    for name, run in zip(names, runs, strict=True):
        last = run.meta["requests"][-1] if run.meta["requests"] else {}
        version = last.get("versions", {}).get("evalsuite", "")
        cells = (name, last.get("time", ""), version, last.get("revision", ""), json.dumps(run.meta["identity"]))
        yield f"| {' | '.join(map(_cell, cells))} |"
    yield "\n## Tasks\n"
    yield "| task | version | seed | wording | licence | source | data |\n|---|---|---|---|---|---|---|"
    told = (
        (name, about.get("version"), about.get("seed"), about.get("wording"), about.get("licence"), about.get("source"),
         ", ".join(f"{key}: {what}" for key, what in (about.get("data") or {}).items()))
        for run in runs
        for name, about in run.meta["tasks"].items()
    )  # fmt: skip
    yield from dict.fromkeys(f"| {' | '.join(map(_cell, cells))} |" for cells in told)


def _cell(value: Any) -> str:
    return str(value if value is not None else "").replace("|", "\\|").replace("\n", " ")
