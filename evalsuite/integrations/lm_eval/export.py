"""A run in the layout of lm_eval's results: `results_*.json`, and a `samples_*.jsonl` for each task."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from evalsuite.errors import UserError
from evalsuite.integrations.lm_eval.folder import name_of
from evalsuite.integrations.lm_eval.parts import NOT_ASKED
from evalsuite.store import Row, Run

Metrics = dict[str, dict[str, float]]  # filter -> metric -> value
UNKNOWN = "None"  # whether a choice is what greedy decoding writes: runs do not keep it


def write(run: Run, folder: Path) -> list[Path]:
    """Write a run's files to `folder`/<model>, named by when the run was begun, and return them, the results first.

    Our own tasks have the one metric `score`; tasks of lm_eval have their own metrics and names. A question that could
    not be asked counts as wrong in both, and its line says why under `error`; of a run that is not finished the results
    say so (`evalsuite_finished`). Raises UserError for a run without an
    answer and where the folder cannot be written.
    """
    if not run.rows:
        raise UserError(f"{run.folder} holds no answer yet; run it first")
    by_task: dict[str, list[Row]] = {}
    for row in run.rows:
        by_task.setdefault(str(row["task"]), []).append(row)
    moment = datetime.fromtimestamp(float(run.meta["created"]), UTC).replace(tzinfo=None)
    stamp = moment.isoformat(timespec="microseconds").replace(":", "-")
    place = folder / re.sub(r"[\"<>:/|\\?*\[\]]+", "__", run.name)
    names = _names(by_task)
    samples = {names[task]: list(_lines(rows)) for task, rows in by_task.items()}
    results = _results(run, by_task, names, samples)
    try:
        place.mkdir(parents=True, exist_ok=True)
        files = [place / f"results_{stamp}.json"]
        files[0].write_text(json.dumps(results, indent=2, ensure_ascii=False, default=str), encoding="utf-8")
        for name, lines in samples.items():
            files.append(place / f"samples_{name}_{stamp}.jsonl")
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            files[-1].write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot write to {place}: {error.strerror}; take another folder") from error
    return files


def _names(tasks: Iterable[str]) -> dict[str, str]:
    """Names inside lm_eval of tasks and families: its own for a task of lm_eval, `evalsuite_...` for ours. Where groups
    of one run share a task, it has its group's name before its own: their samples may differ."""
    found: dict[str, str] = {}
    whole: dict[str, str] = {}
    for name in dict.fromkeys(each for task in tasks for each in (task, _family(task))):
        source, colon, rest = name.partition(":")
        own = bool(colon) and source == "lm_eval"
        found[name] = (rest.partition(".")[2] or rest) if own else name_of(name)
        whole[name] = rest.replace(".", "_") if own else name_of(name)
    several = {name for name, count in Counter(found.values()).items() if count > 1}
    return {task: whole[task] if name in several else name for task, name in found.items()}


def _family(task: str) -> str:
    return task.partition(".")[0]


def _directions(run: Run, by_task: Mapping[str, list[Row]], names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Task or group -> metric -> whether more of it is better, as far as the run's record knows; None where the parts
    of a group disagree, which is lm_eval's word for it. More of our own score is better by its definition."""
    found: dict[str, dict[str, Any]] = {}
    groups: dict[str, list[dict[str, Any]]] = {}
    for task, rows in by_task.items():
        family = _family(task)
        told = run.meta["tasks"].get(family, {}).get("higher_is_better", {}).get(task, {})
        metrics = {metric for row in _metrics(rows) for values in row.values() for metric in values}
        found[names[task]] = {"score": True} if not _measured(rows) else {m: told[m] for m in told if m in metrics}
        groups.setdefault(family, []).append(found[names[task]])
    for family, parts in groups.items():
        if len(parts) > 1:
            merged: dict[str, Any] = {}
            for metric, better in (pair for part in parts for pair in part.items()):
                merged[metric] = better if merged.get(metric, better) is better else None
            found[names[family]] = merged
    return found


def _measured(rows: Sequence[Row]) -> bool:
    """Whether lm_eval's own metrics are among the details."""
    return any(map(_own, rows))


def _own(row: Row) -> Metrics:
    found: Metrics = {}
    for key, value in row.get("detail", {}).items():
        metric, comma, chain = key.rpartition(",")
        if comma and str(row["task"]).startswith("lm_eval:"):
            found.setdefault(chain, {})[metric] = float(value)
    return found


def _metrics(rows: Sequence[Row]) -> list[Metrics]:
    """Each row's metrics by filter. Where a row lacks those of its task, it could not be asked: 0."""
    found = [_own(row) for row in rows]
    whole = max(found, key=len)
    if not whole:
        return [{"none": {"score": float(row["score"])}} for row in rows]
    return [own or {chain: dict.fromkeys(metrics, 0.0) for chain, metrics in whole.items()} for own in found]


def _lines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line for every document and filter, with lm_eval's hashes of document, prompt and target."""
    lines = []
    for at, (row, metrics) in enumerate(zip(rows, _metrics(rows), strict=True)):
        context = row["prompt"] + row["answer_prefix"]
        target = list(row["target"])
        seconds: list[Any] = list(row["choices"]) or [{}]
        doc = {name: row[name] for name in ("id", "task", "cluster", "facets", "prompt_hash", "choices", "target")}
        answers: list[Any] = [[row["text"]]]
        if row["choices"]:
            answers = [[[str(value), UNKNOWN]] for value in row["choice_logprobs"]]
        for chain, values in metrics.items():
            lines.append(
                {
                    "doc_id": at,
                    "doc": doc,
                    "target": str(target),
                    "arguments": {f"gen_args_{i}": {"arg_0": context, "arg_1": s} for i, s in enumerate(seconds)},
                    "resps": answers,
                    "filtered_resps": [answer[0] for answer in answers],
                    "filter": chain,
                    "metrics": list(values),
                    "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
                    "prompt_hash": _hash(context),
                    "target_hash": _hash(str(target)),
                    **values,
                    **({"error": row["error"]} if row["error"] else {}),
                }
            )
    return lines


def _results(
    run: Run,
    by_task: Mapping[str, list[Row]],
    names: Mapping[str, str],
    samples: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    request = run.meta["requests"][-1]
    scores = {names[task]: _aggregate(names[task], rows) for task, rows in by_task.items()}
    families: dict[str, list[str]] = {}
    for task in by_task:
        families.setdefault(_family(task), []).append(names[task])
    groups = {names[f]: _group(names[f], [scores[p] for p in parts]) for f, parts in families.items() if len(parts) > 1}
    told = {names[task]: run.meta["tasks"].get(_family(task), {}) for task in by_task}
    shots = {names[task]: int(rows[0]["facets"].get("shots", 0)) for task, rows in by_task.items()}
    hashes = {
        name: _hash("".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines))
        for name, lines in samples.items()
    }
    return {
        "results": {**scores, **groups},
        **({"groups": groups} if groups else {}),
        "group_subtasks": {names[f]: parts if len(parts) > 1 else [] for f, parts in families.items()},
        "configs": {name: {"task": name, "metadata": about} for name, about in told.items()},
        "versions": {name: about.get("version") for name, about in told.items()},
        "n-shot": shots,
        "higher_is_better": _directions(run, by_task, names),
        "n-samples": {names[task]: {"original": len(r), "effective": len(r)} for task, r in by_task.items()},
        "config": {
            "model": "evalsuite",
            "model_args": {"pretrained": run.name},
            "evalsuite_identity": run.meta["identity"],
            "evalsuite_missing": run.meta["missing"],
            "evalsuite_finished": run.finished,
            "batch_size": None,
            "batch_sizes": [],
            "device": None,
            "use_cache": None,
            "limit": request.get("limit"),
            "bootstrap_iters": 0,
            "gen_kwargs": None,
            "random_seed": request.get("seed"),
            "numpy_seed": None,
            "torch_seed": None,
            "fewshot_seed": None,
        },
        "git_hash": request.get("revision") or None,
        "date": float(run.meta["created"]),
        "pretty_env_info": request.get("versions", {}),
        "transformers_version": request.get("versions", {}).get("transformers"),
        "lm_eval_version": _installed("lm_eval"),
        "upper_git_hash": None,
        "max_length": run.meta.get("context"),
        "task_hashes": hashes,
        "model_source": "evalsuite",
        "model_name": run.name,
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", run.name),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": None,
        "chat_template": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": str(sum(timing.get("seconds", 0.0) for timing in run.timings)),
    }


def _aggregate(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Mean and standard error of each metric, over samples as if they were independent: that is lm_eval's."""
    found: dict[str, Any] = {"name": name, "alias": name, "sample_len": len(rows)}
    columns: dict[tuple[str, str], list[float]] = {}
    for metrics in _metrics(rows):
        for chain, values in metrics.items():
            for metric, value in values.items():
                columns.setdefault((metric, chain), []).append(value)
    for (metric, _), column in columns.items():
        if metric.isdigit():  # a length of ruler, whose other lengths say -1 and are in no mean
            column[:] = [value for value in column if value != NOT_ASKED] or [NOT_ASKED]
    for (metric, chain), column in columns.items():
        found[f"{metric},{chain}"] = fmean(column)
        found[f"{metric}_stderr,{chain}"] = stdev(column) / math.sqrt(len(column)) if len(column) > 1 else "N/A"
    return found


def _group(name: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of the parts' means, for the metrics that all of them have."""
    found: dict[str, Any] = {"name": name, "alias": name, "sample_len": sum(part["sample_len"] for part in parts)}
    shared = [key for key in _keys(parts[0]) if all(key in part for part in parts)]
    for key in shared:
        metric, _, chain = key.rpartition(",")
        errors = [part[f"{metric}_stderr,{chain}"] for part in parts]
        known = all(isinstance(error, float) for error in errors)
        found[key] = fmean(part[key] for part in parts)
        found[f"{metric}_stderr,{chain}"] = math.hypot(*errors) / len(parts) if known else "N/A"
    found["sample_count"] = dict.fromkeys(shared, found["sample_len"])
    return found


def _keys(scores: Mapping[str, Any]) -> list[str]:
    return [key for key in scores if "," in key and not key.rpartition(",")[0].endswith("_stderr")]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
