"""A comparison for machines: JSON, and one CSV whose column `table` says what a line is."""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from evalsuite import notes
from evalsuite.compare import Comparison, paired_record, records
from evalsuite.verdict import Finding


def as_json(result: Comparison) -> str:
    """Models, verdicts, every table and every cell; NaN and infinity become null."""
    value = {
        "models": [
            {
                "name": c.name,
                "samples": c.n,
                "finished": c.finished,
                "errors": dict(c.errors),
                "truncated": dict(c.truncated),
                "missing": dict(c.missing),
                "cost": {str(k): dict(v) for k, v in c.cost.items()},
                "prefill_tokens_per_second": c.prefill_rate,
                "decode_tokens_per_second": c.decode_rate,
                "weakest": c.weakest,
                "summaries": {family: dict(figures) for family, figures in c.summaries.items()},
            }
            for c in result.columns
        ],
        "warnings": notes.warnings(result),
        "footnotes": notes.footnotes(result),
        "unlike": dict(result.unlike),
        "unequal": _unequal(result),
        "margin": result.margin,
        "verdicts": [
            {
                "model": c.name,
                "line": verdict.line,
                "families": [_finding(finding) for finding in verdict.families],
                "worst": _finding(verdict.worst) if verdict.worst else None,
            }
            for c, verdict in zip(result.columns[1:], result.verdicts, strict=False)
        ],
        "families": records(result, result.families),
        "tasks": records(result, result.scores),
        **({"by": list(result.by), "broken_down": records(result, result.broken)} if result.by else {}),
        "cells": records(result),
        **({} if result.flips is None else {"flips": [asdict(flip) for flip in result.flips]}),
    }
    return json.dumps(finite(value), indent=1)


def as_csv(result: Comparison) -> str:
    """One line a model and cell, family, task, group, verdict, cost, flip, or a warning."""
    rows = [{"table": name, **row} for name, table in _tables(result).items() for row in table]
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(finite(rows))
    return buffer.getvalue().rstrip("\n")


def _tables(result: Comparison) -> Mapping[str, list[dict[str, Any]]]:
    said = [{"model": c.name, "says": v.line} for c, v in zip(result.columns[1:], result.verdicts, strict=False)]
    costs = [{"model": c.name, "length": n, **cost} for c in result.columns for n, cost in c.cost.items()]
    speeds = [
        {
            "model": c.name,
            "prefill_tokens_per_second": c.prefill_rate,
            "decode_tokens_per_second": c.decode_rate,
        }
        for c in result.columns
    ]
    findings = [
        {"model": c.name, **_finding(finding)}
        for c, verdict in zip(result.columns[1:], result.verdicts, strict=False)
        for finding in (*verdict.families, *([verdict.worst] if verdict.worst else []))
    ]
    flips = [
        {
            "model": c.name,
            "task": flip.task,
            "id": flip.id,
            "score": flip.scores[i],
            "first_score": flip.scores[0],
            "prompt": flip.prompt,
            "target": json.dumps(flip.target),
            "completion": flip.texts[i] if flip.texts else "",
            "first_completion": flip.texts[0] if flip.texts else "",
        }
        for flip in result.flips or ()
        for i, c in enumerate(result.columns)
        if i and flip.scores[i] is not None and flip.scores[i] != flip.scores[0]
    ]
    return {
        "cell": records(result),
        "task": records(result, result.scores),
        "family": records(result, result.families),
        "by": records(result, result.broken),
        "finding": findings,
        "verdict": said,
        "cost": costs,
        "speed": speeds,
        "unequal": [{**row, "ids": json.dumps(row["ids"])} for row in _unequal(result)],
        "flip": flips,
        "note": [{"says": line} for line in (*notes.warnings(result), *notes.footnotes(result))],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "verdict": finding.verdict,
        "family": finding.family,
        "where": finding.where,
        **paired_record(finding.difference),
    }


def _unequal(result: Comparison) -> list[dict[str, Any]]:
    return [
        {"model": result.columns[u.model].name, "task": u.task, "samples": len(u.ids), "of": u.of, "ids": list(u.ids)}
        for u in result.unequal
    ]


def finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
