"""The gate as JUnit XML, in the dialect that Jenkins' schema accepts: a testsuite for each case, holding the case's
figures as properties and one testcase. A property inside a testcase, as some tools write it, is in no schema.

What fails the gate is a failure, an invalid comparison an error. QUARANTINED, INCONCLUSIVE where that is allowed, and
what is advice are skipped with their reason: a CI server then shows them, and counts none as passed.
"""

import math
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as Tree

from evalsuite.gate.decide import IMPROVED, INVALID, PASS
from evalsuite.gate.judge import Case, Report

FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in any XML 1.0 document


def render(report: Report, *, strict: bool = False) -> str:
    """The whole document; its failures and errors are those of the exit code."""
    root = Tree.Element("testsuites", name=clean(f"evalsuite gate: {report.policy.name}"))
    for problem in report.problems:
        _suite(root, "validity", problem.kind, {}, ("error", INVALID, problem.message))
    for case in report.cases:
        known = {"tier": case.tier, "verdict": case.verdict, **figures(case)}
        _suite(root, case.kind, case.name, known, _result(case, failed=report.fails(case, strict=strict)))
    for kind, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
        root.set(kind, str(len(root.findall(f".//{tag}"))))
    Tree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Tree.tostring(root, encoding="unicode") + "\n"


def figures(case: Case) -> dict[str, Any]:
    """A case's numbers by the names that gate.json and the JUnit properties share; NaN and infinity are None."""
    found: dict[str, Any] = {}
    if case.outcome is not None:
        outcome, difference = case.outcome, case.outcome.difference
        found = {
            "n": difference.n,
            "clusters": outcome.new.clusters,
            "score": outcome.new.value,
            "baseline_score": outcome.old.value,
            "difference": difference.value,
            "ci_low": difference.low,
            "ci_high": difference.high,
            "drop_bound": outcome.drop_bound,
            "test": outcome.test,
            "p": outcome.p_drop,
            "p_adj": case.p_adjusted,
            "b": difference.losses,
            "c": difference.wins,
            "psi": (difference.losses + difference.wins) / difference.n,
            "mde": case.detectable,
        }
    elif case.cost is not None:
        cost = case.cost
        found = {"value": cost.new, "baseline": cost.old, "ratio": cost.ratio, "ci_low": cost.low, "ci_high": cost.high}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}


def _result(case: Case, *, failed: bool) -> tuple[str, str, str]:
    """A testcase's element, "" where it passed; the verdict; and the reason."""
    if failed:
        return "failure", case.verdict, case.reason
    if case.verdict in (PASS, IMPROVED):
        return "", case.verdict, case.reason
    advice = "" if case.gates or case.kind == "quarantine" else "advice: "
    return "skipped", case.verdict, f"{advice}{case.verdict}: {case.reason}"


def _suite(root: Tree.Element, kind: str, name: str, known: Mapping[str, Any], result: tuple[str, str, str]) -> None:
    tag, verdict, reason = result
    counts = {
        "tests": "1",
        "failures": str(int(tag == "failure")),
        "errors": str(int(tag == "error")),
        "skipped": str(int(tag == "skipped")),
    }
    suite = Tree.SubElement(root, "testsuite", {"name": clean(f"{kind} {name}"), **counts})
    if known:
        properties = Tree.SubElement(suite, "properties")
        for key, value in known.items():
            Tree.SubElement(properties, "property", name=key, value=clean("" if value is None else str(value)))
    case = Tree.SubElement(suite, "testcase", classname=f"evalsuite.gate.{kind}", name=clean(name))
    if tag:
        found = Tree.SubElement(case, tag, message=clean(reason))
        if tag != "skipped":
            found.set("type", verdict)
    else:
        Tree.SubElement(case, "system-out").text = clean(reason)


def clean(text: str) -> str:
    """Text that every format and terminal takes: what no XML holds, escaped or not, as question marks."""
    return FORBIDDEN.sub("?", text)
