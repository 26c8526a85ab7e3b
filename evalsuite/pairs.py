"""Two runs' answers to the same questions: paired by task, sample id and prompt, and what could not be paired."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from evalsuite import stats
from evalsuite.stats import Difference
from evalsuite.store import Key, Row


@dataclass(frozen=True, slots=True)
class Paired(Difference):
    """A difference to the first run in shares of 1, and the smallest one that as many pairs, disagreeing as often,
    would show in 8 of 10 runs (one-sided test at 5 %)."""

    detectable: float

    @property
    def ties(self) -> int:
        return self.n - self.wins - self.losses


@dataclass(frozen=True, slots=True)
class Unequal:
    """Samples of one task that a run was asked in other words than the first: in no difference."""

    model: int  # the run's place
    task: str
    of: int  # samples of that id that both have
    ids: tuple[str, ...]


def paired(rows: Sequence[Row], base: Mapping[Key, Row], *, by_task: bool = False) -> Paired | None:
    """Difference to the first run over the samples that both were asked in the same words; None where there are none.

    With `by_task` it is the mean of the tasks' mean differences, as family scores are means of tasks.
    """
    pairs = [(row, base[row["task"], row["id"]]) for row in rows if (row["task"], row["id"]) in base]
    same = [(a, b) for a, b in pairs if a["prompt_hash"] == b["prompt_hash"]]
    if not same:
        return None
    clusters = [a["cluster"] for a, _ in same]
    found = stats.paired([a["score"] for a, _ in same], [b["score"] for _, b in same], clusters)
    gaps = [a["score"] - b["score"] for a, b in same]
    parts: dict[str, list[float]] = {}
    for (a, _), gap in zip(same, gaps, strict=True):
        parts.setdefault(a["task"] if by_task else "", []).append(gap)
    if len(parts) > 1:
        means = {task: fmean(values) for task, values in parts.items()}
        mean = fmean(means.values())
        weights = [len(gaps) / (len(parts[a["task"]]) * len(parts)) for a, _ in same]
        # what each pair moves the mean of means, times n, around it: as in `stats.stratified`
        moved = [mean + (gap - means[a["task"]]) * w for (a, _), gap, w in zip(same, gaps, weights, strict=True)]
        # unseen, a pair of the smallest task could move it most
        whole = stats.paired(moved, [0.0] * len(moved), clusters, reach=max(weights))
        found = replace(whole, wins=found.wins, losses=found.losses)
        gaps = [gap * w for gap, w in zip(gaps, weights, strict=True)]
    return Paired(
        found.value, found.low, found.high, found.n, found.wins, found.losses, found.p, _detectable(gaps, clusters)
    )


def _detectable(gaps: Sequence[float], clusters: Sequence[str]) -> float:
    """`stats.detectable` of the discordance seen, a cluster's pairs counted together, after adding one average cluster
    at +1 and one at -1: where no pair disagrees it is not 0, for other questions might."""
    sums: dict[object, float] = {}
    for i, (gap, label) in enumerate(zip(gaps, clusters, strict=True)):
        sums[label or i] = sums.get(label or i, 0.0) + gap
    n, each = len(gaps), len(gaps) / len(sums)
    seen = sum(total**2 for total in sums.values()) + 2 * each**2
    return stats.detectable(seen * n / (n + 2 * each) ** 2, n)


def unequal(index: Sequence[Mapping[Key, Row]]) -> tuple[Unequal, ...]:
    """Every run's samples that have an id of the first run's and another prompt, by task."""
    found = []
    for i, rows in enumerate(index[1:], 1):
        both: dict[str, list[Row]] = {}
        for key, row in rows.items():
            if key in index[0]:
                both.setdefault(row["task"], []).append(row)
        for task, members in both.items():
            ids = tuple(r["id"] for r in members if r["prompt_hash"] != index[0][task, r["id"]]["prompt_hash"])
            if ids:
                found.append(Unequal(i, task, len(members), ids))
    return tuple(found)
