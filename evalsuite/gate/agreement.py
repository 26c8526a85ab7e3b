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
from evalsuite.gate.sides import Problem, Side, some

VERSION = 1
FREE = ("kernels", "prefill")  # what two kernels of one model differ in
GAP = 10  # times a layer's tolerance: what rounding may move -log p of a right answer, in nats


def read(path: str, rules: Kernels, run: Side) -> tuple[list[Problem], dict[str, Cost]]:
    """What makes the comparison invalid, and if nothing does each measure with its verdict."""
    if not path:
        return [Problem("no-agreement", "the policy demands [kernels]: give --agreement FILE")], {}
    try:
        found = json.loads(Path(path).read_text())
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
    layers = len(tried["pattern"])
    lengths = {row["length"] for row in found["layers"]}
    if not lengths or any(
        sorted(row["layer"] for row in found["layers"] if row["length"] == n) != [*range(layers)] for n in lengths
    ):
        yield Problem("agreement", f"hidden states were not compared in each of the {layers} layers")
    asked = {each["task"].partition(".")[0] for each in found["samples"]}
    missing = {row["task"].partition(".")[0] for row in run.run.rows} - asked
    if missing:
        yield Problem("agreement", f"kernels were compared on no sample of {some(sorted(missing))}")
    if not any(None not in each["losses"] for each in found["samples"]):
        yield Problem("agreement", "kernels were compared on no right answer")


def _measured(found: Mapping[str, Any], rules: Kernels) -> dict[str, Cost]:
    """Verdicts by name; of a Cost, `old` is what is allowed, and the ratio is to that."""
    samples, dtype = found["samples"], found["dtype"]
    allowed = rules.tolerance or _rounding(dtype)
    worst = max(found["layers"], key=lambda row: _number(row["own"]))
    error = _number(worst["own"])
    place = f"layer {worst['layer']} ({worst['letter']}) at {worst['length'] or 'any'} tokens"
    states = f"{place} is {error:.1e} apart, where {allowed:.0e} is allowed in {dtype}"
    gaps = [abs(b - a) for a, b in (each["losses"] for each in samples if None not in each["losses"])]
    lost = sum(None in each["losses"] and each["losses"] != [None, None] for each in samples)
    gap, most = (math.inf if lost else fmean(gaps)), rules.gap or GAP * allowed
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
    return Cost(PASS if fine else REGRESSED, reason, value, allowed, value / allowed)


def _number(value: float | None) -> float:
    """What was no number when it was written is as far apart as can be."""
    return math.inf if value is None else float(value)


def _rounding(dtype: str) -> float:
    import torch

    from evalsuite.models.layerwise import TOLERANCE

    return TOLERANCE[getattr(torch, dtype)]
