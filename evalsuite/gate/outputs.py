"""What a gate leaves behind: gate.json for programs, gate.xml for CI servers, gate.md for people, lines for GitHub.

gate.json, version 1: `verdict`, `reason`, `exit_code`; `run`, `baseline` and what else was given, each with its folder,
model and the sha256 of its samples; `problems` [{kind, message}], not empty exactly where the verdict is INVALID;
`cases`, one each for family, drift, metric, quarantined task and cell, with the numbers of `junit.figures`; `notes`;
`policy`. Shares are in [0, 1], rates tokens per second, sizes bytes; what has no value is null.
"""

import datetime
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError
from evalsuite.gate import junit, summary
from evalsuite.gate.judge import Case, Report
from evalsuite.gate.junit import figures
from evalsuite.gate.sides import Side, sha256

VERSION = 1
NAME = "gate.json"


def write(report: Report, folder: Path, *, strict: bool = False) -> list[Path]:
    """Write gate.json, gate.xml and gate.md, and keep the run's verdict beside the run. Raises UserError where the
    folder cannot be written: a verdict that nobody can read is none."""
    record = json.dumps(as_record(report, strict=strict), indent=1) + "\n"
    files = {
        folder / NAME: record,
        folder / "gate.xml": junit.render(report, strict=strict),
        folder / "gate.md": summary.markdown(report),
        report.sides[0].run.folder / NAME: record,  # `baseline promote` asks for it there
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {error.filename}: {error.strerror}; take another --out") from error
    return list(files)[:3]


def as_record(report: Report, *, strict: bool = False) -> dict[str, Any]:
    """gate.json as plain JSON values."""
    return {
        "version": VERSION,
        "verdict": report.verdict,
        "reason": report.reason,
        "exit_code": report.exit_code(strict=strict),
        "strict": strict,
        **{side.role.replace(" ", "_"): _side(side) for side in report.sides},
        "problems": [asdict(problem) for problem in report.problems],
        "cases": [_case(case) for case in report.cases],
        "notes": list(report.notes),
        "policy": json.loads(json.dumps(asdict(report.policy), default=_plain)),
    }


def _case(case: Case) -> dict[str, Any]:
    about = {"kind": case.kind, "name": case.name, "tier": case.tier, "verdict": case.verdict, "reason": case.reason}
    return {**about, "look": case.look, **figures(case)}


def _side(side: Side) -> dict[str, Any]:
    samples = side.run.folder / "samples.parquet"
    return {
        "folder": str(side.run.folder),
        "model": side.run.name,
        "samples": len(side.run.rows),
        "sha256": sha256(samples) if samples.exists() else None,
        "revision": side.run.meta["requests"][-1].get("revision", "") if side.run.meta["requests"] else "",
    }


def judged(folder: Path) -> dict[str, Any] | None:
    """The run's last gate.json, None where it was never gated or has other samples since."""
    try:
        record: dict[str, Any] = json.loads((folder / NAME).read_text())
        about = record["run"]["sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / NAME} cannot be read ({error}); gate the run again") from error
    samples = folder / "samples.parquet"
    return record if samples.exists() and about == sha256(samples) else None


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime.date) else str(value)
