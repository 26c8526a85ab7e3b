"""Same weights under two kernels, as gated cases: hidden states, right answers and greedy tokens.

Scores hide small faults: a recurrent state that was rounded to bf16 moved one score of 648. So a policy may demand what
`evalsuite kernels MODEL --kernels NEW --against TRUSTED --json` writes, of the very model that is gated.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from evalsuite.gate.costs import Cost
from evalsuite.gate.decide import PASS, REGRESSED
from evalsuite.gate.policy import Kernels
from evalsuite.gate.sides import Problem, Side, failed, some

VERSION = 1
FREE = ("kernels", "prefill")  # what two kernels of one model differ in
GAP = 10  # times a layer's tolerance: what rounding may move -log p of a right answer, in nats


def read(path: str, rules: Kernels, run: Side) -> tuple[list[Problem], dict[str, Cost]]:
    """What makes the comparison invalid, and if nothing does each measure with its verdict."""
    if not path:
        return [Problem("no-agreement", "the policy demands [kernels]: give --agreement FILE")], {}
    try:
        found = json.loads(Path(path).read_text(), parse_constant=_no_number)
        wrong = list(_problems(found, rules, run))
        return (wrong, {}) if wrong else ([], _measured(found, rules))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        return [Problem("agreement", f"{path} is not what `evalsuite kernels --json` writes ({reason})")], {}


def _problems(found: Mapping[str, Any], rules: Kernels, run: Side) -> Iterator[Problem]:
    if found["version"] != VERSION:
        yield Problem("agreement", f"the comparison of kernels has version {found['version']}, not {VERSION}")
        return
    trusted, tried = found["identities"]
    apart = [name for name in {**trusted, **tried} if name not in FREE and trusted.get(name) != tried.get(name)]
    if apart:
        yield Problem("agreement", f"the two kernels were compared on models that differ in {some(apart)}")
    other = [name for name, value in run.run.meta["identity"].items() if tried.get(name) != value]
    if other:
        yield Problem("agreement", f"the comparison of kernels is of another model than the run, in {some(other)}")
    if found["kernels"][0] != rules.against:
        yield Problem(
            "agreement", f"kernels were compared with {found['kernels'][0]}: the policy trusts {rules.against}"
        )
    if all(trusted.get(name) == tried.get(name) for name in FREE):
        yield Problem("agreement", f"{some(found['kernels'])} compute with the same operators: nothing was compared")
    revision = run.run.meta["requests"][-1].get("revision", "") if run.run.meta["requests"] else ""
    if found["revision"] != revision:
        told = f"of revision {found['revision'] or 'unknown'}, the run of {revision or 'unknown'}"
        yield Problem("agreement", f"the comparison of kernels is {told}: compare them again by the code that ran")
    yield from _unasked(found, len(tried["pattern"]), run)


def _unasked(found: Mapping[str, Any], layers: int, run: Side) -> Iterator[Problem]:
    """What the run answered and the kernels were not compared on."""
    rows = [row for row in run.run.rows if not failed(row)]
    lengths = {row["facets"].get("length", 0) for row in rows}
    compared = {n: sorted(row["layer"] for row in found["layers"] if row["length"] == n) for n in lengths}
    short = sorted(n for n, each in compared.items() if each != [*range(layers)])
    if short or not lengths:
        where = f" at {some(f'{n} tokens' for n in short)}" if short else ""
        yield Problem("agreement", f"hidden states were not compared in each of the {layers} layers{where}")
    asked = {(each["task"], each["id"], each["prompt_hash"]) for each in found["samples"]}
    missing = [row["id"] for row in rows if (row["task"], row["id"], row["prompt_hash"]) not in asked]
    if missing:
        of = f"{len(missing)} of the run's {len(rows)} answered samples (as {missing[0]})"
        yield Problem("agreement", f"kernels were not compared on {of}: give both the same tasks, lengths, limit, seed")
    if not any(None not in each["losses"] for each in found["samples"]):
        yield Problem("agreement", "kernels were compared on no right answer")


def _measured(found: Mapping[str, Any], rules: Kernels) -> dict[str, Cost]:
    """Verdicts by name; of a Cost, `old` is what is allowed, and the ratio is to that."""
    samples, dtype = found["samples"], found["dtype"]
    allowed = _rounding(dtype) if rules.tolerance is None else rules.tolerance
    worst = max(found["layers"], key=lambda row: _number(row["own"]))
    error = _number(worst["own"])
    place = f"layer {worst['layer']} ({worst['letter']}) at {worst['length'] or 'any'} tokens"
    states = f"{place} is {error:.1e} apart, where {allowed:.0e} is allowed in {dtype}"
    gaps = [abs(b - a) for a, b in (each["losses"] for each in samples if None not in each["losses"])]
    lost = sum(None in each["losses"] and each["losses"] != [None, None] for each in samples)
    gap, most = (math.inf if lost else fmean(gaps)), GAP * allowed if rules.gap is None else rules.gap
    answers = f"-log p of {len(gaps)} right answers moves by {gap:.1e} nats in the mean, where {most:.0e} are allowed"
    total = sum(each["tokens"] for each in samples)
    share = sum(each["agreed"] for each in samples) / max(total, 1)
    tokens = f"{share:.4f} of {total} greedy tokens agree, where {rules.tokens:g} must"
    return {
        "hidden states": _cost(error <= allowed, states, error, allowed),
        "right answers": _cost(gap <= most, answers, gap, most),
        "greedy tokens": _cost(total > 0 and share >= rules.tokens, tokens, share, rules.tokens),
    }


def _cost(fine: bool, reason: str, value: float, allowed: float) -> Cost:
    ratio = value / allowed if allowed else math.nan  # exactly equal was demanded
    return Cost(PASS if fine else REGRESSED, reason, value, allowed, ratio)


def _number(value: float | None) -> float:
    """What was no number when it was written is as far apart as can be."""
    return math.inf if value is None else float(value)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} in it")


def _rounding(dtype: str) -> float:
    import torch

    from evalsuite.models.layerwise import TOLERANCE

    return TOLERANCE[getattr(torch, dtype)]
