"""Speed and memory as gated metrics. Bytes are exact; speeds are noisy, and are tested slice by slice.

A run notes tokens and seconds of every slice of some hundred samples. The two runs' slices are paired in order, and the
interval of the mean log ratio of their times, weighted by seconds, says whether the allowed ratio is surely missed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from evalsuite.gate.decide import IMPROVED, INCONCLUSIVE, INVALID, PASS, REGRESSED
from evalsuite.gate.policy import Metric
from evalsuite.store import Run


@dataclass(frozen=True, slots=True)
class Cost:
    """One metric of both runs: tokens per second, or bytes at the length where the ratio is worst."""

    verdict: str
    reason: str
    new: float = math.nan
    old: float = math.nan
    ratio: float = math.nan
    low: float = math.nan  # 90 % interval of a rate's ratio, each end one-sided at 0.05
    high: float = math.nan


def measure(metric: Metric, new: Run, old: Run) -> Cost:
    """The metric's verdict. INVALID where either run does not have it: what was not measured cannot pass."""
    return _rate(metric, new, old) if metric.rate else _bytes(metric, new, old)


def _bytes(metric: Metric, new: Run, old: Run) -> Cost:
    ours, theirs = (_lengths(run.meta.get("cost", {}), metric.name) for run in (new, old))
    if not ours or ours.keys() != theirs.keys():
        return Cost(
            INVALID, f"{metric.name}: bytes are recorded for {_list(ours)}, in the baseline for {_list(theirs)}"
        )
    ratios = {length: _ratio(ours[length], theirs[length]) for length in ours}
    worst = max(ratios, key=lambda length: ratios[length])
    seen = f"{ours[worst]:,} bytes beside {theirs[worst]:,} at {worst} tokens"
    value = (float(ours[worst]), float(theirs[worst]), ratios[worst])
    if ratios[worst] > metric.ratio:
        return Cost(REGRESSED, f"{seen}: {ratios[worst]:.3f} times, more than {metric.ratio:g}", *value)
    return Cost(IMPROVED if ratios[worst] < 1 else PASS, f"{seen}: {ratios[worst]:.3f} times", *value)


def _rate(metric: Metric, new: Run, old: Run) -> Cost:
    gpus = [
        {request.get("versions", {}).get("gpu", "no GPU") for request in run.meta["requests"]} for run in (new, old)
    ]
    if gpus[0] != gpus[1] or len(gpus[0]) > 1:
        told = " beside ".join(" and ".join(sorted(each)) for each in gpus)
        return Cost(INVALID, f"{metric.name}: timed on {told}: speeds of unlike machines do not compare")
    tokens, seconds = f"{metric.name}_tokens", f"{metric.name}_seconds"
    ours, theirs = (_total(run.timings, tokens) / max(_total(run.timings, seconds), 1e-12) for run in (new, old))
    if not ours or not theirs:
        return Cost(
            INVALID, f"{metric.name}: no speed was measured in {'one' if ours or theirs else 'both'} of the runs"
        )
    ratio = ours / theirs
    seen = f"{ours:,.0f} tokens/s beside {theirs:,.0f}: {ratio:.3f} times"
    both = list(zip(new.timings, old.timings, strict=False))
    alike = len(new.timings) == len(old.timings) and all(a.get("samples") == b.get("samples") for a, b in both)
    both = [(a, b) for a, b in both if a[tokens] and b[tokens] and a[seconds] > 0 and b[seconds] > 0]
    if not alike or len(both) < 3:
        reason = f"{seen}; the runs were timed in other slices, or in fewer than 3: run both in one sitting each"
        return Cost(INCONCLUSIVE, reason, ours, theirs, ratio)
    low, high = _interval([(a[tokens] / a[seconds] / (b[tokens] / b[seconds]), b[seconds]) for a, b in both])
    value = (ours, theirs, ratio, low, high)
    told = f"{seen} [{low:.3f}, {high:.3f}]"
    if high < metric.ratio:
        return Cost(REGRESSED, f"{told}, less than {metric.ratio:g}", *value)
    if low < metric.ratio:
        return Cost(INCONCLUSIVE, f"{told} around {metric.ratio:g}: time more samples, on a quiet machine", *value)
    return Cost(IMPROVED if low > 1 else PASS, told, *value)


def _interval(ratios: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """90 % interval of a weighted geometric mean of [slices] (ratio, weight), t with slices - 1 degrees."""
    logs = np.log([ratio for ratio, _ in ratios])
    weights = np.asarray([weight for _, weight in ratios])
    weights = weights / weights.sum()
    mean = float(weights @ logs)
    count = len(logs)
    error = math.sqrt(count / (count - 1) * float(weights**2 @ (logs - mean) ** 2))
    half = float(special.stdtrit(count - 1, 0.95)) * error
    return math.exp(mean - half), math.exp(mean + half)


def _lengths(cost: Mapping[str, Mapping[str, int]], name: str) -> dict[int, int]:
    return {int(length): kinds[name] for length, kinds in cost.items() if name in kinds}


def _ratio(new: int, old: int) -> float:
    return new / old if old else (1.0 if not new else math.inf)


def _total(timings: Sequence[Mapping[str, float]], name: str) -> float:
    return math.fsum(timing[name] for timing in timings)


def _list(lengths: Mapping[int, int]) -> str:
    return ", ".join(map(str, sorted(lengths))) + " tokens" if lengths else "no length"
