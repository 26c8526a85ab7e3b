"""What RULER's table shows: the mean of 13 tasks, averages over lengths, the effective length. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evalsuite_tasks.ruler.specs import TASKS

THRESHOLD = 85.6  # percent: Llama-2-7B-chat at 4096 tokens, upstream's mark of a length that is still handled


@dataclass(frozen=True, slots=True)
class Mean:
    """Unweighted mean over the tasks that are there, which is a RULER score only where none is absent."""

    value: float
    absent: tuple[str, ...]

    @property
    def label(self) -> str:
        """`RULER`, or e.g. `mean of 11 of 13 (without qa_1, qa_2)`."""
        if not self.absent:
            return "RULER"
        return f"mean of {len(TASKS) - len(self.absent)} of {len(TASKS)} (without {', '.join(self.absent)})"


def mean(scores: Mapping[str, float]) -> Mean:
    """The score at one length from task -> score; names may carry the family, as in `ruler.vt`.

    Raises ValueError for a name that is no RULER task, and where there is none at all.
    """
    plain = {name.removeprefix("ruler."): score for name, score in scores.items()}
    strange = sorted(set(plain) - set(TASKS))
    if strange or not plain:
        raise ValueError(f"no RULER tasks: {', '.join(strange)}" if strange else "no scores")
    return Mean(sum(plain.values()) / len(plain), tuple(task for task in TASKS if task not in plain))


@dataclass(frozen=True, slots=True)
class Averages:
    """Over lengths: plain, with weights growing with the length (`inc`) and falling (`dec`)."""

    avg: float
    inc: float
    dec: float


def averages(scores: Sequence[float]) -> Averages:
    """Averages of the scores in ascending order of length; upstream's are over six lengths, 4K to 128K."""
    if not scores:
        raise ValueError("no scores")
    weights = range(1, len(scores) + 1)
    total = sum(weights)
    inc = sum(w * s for w, s in zip(weights, scores, strict=True)) / total
    dec = sum(w * s for w, s in zip(reversed(weights), scores, strict=True)) / total
    return Averages(sum(scores) / len(scores), inc, dec)


def effective_length(scores: Mapping[int, float], threshold: float = THRESHOLD) -> int | None:
    """The longest length tested whose score, in percent, exceeds the threshold; None where none does.

    Meaningful for means over all 13 tasks under `variant=nvidia`, with which the threshold was measured. Where it is
    the longest length tested, the true one may be longer.
    """
    return max((length for length, score in scores.items() if score > threshold), default=None)


def table(scores: Mapping[int, Mapping[str, float]]) -> dict[str, str]:
    """RULER's columns from length -> task -> score in 0..1: their names -> text.

    Only tasks that every length has are averaged. Where some of the 13 are absent each name says so, and there is no
    effective length, whose threshold is one of 13.
    """
    common = set.intersection(*map(set, scores.values())) if scores else set()
    common = {task for task in common if task.removeprefix("ruler.") in TASKS}
    if not common:
        return {}
    means = {length: mean({task: 100 * scores[length][task] for task in common}) for length in sorted(scores)}
    values = {length: each.value for length, each in means.items()}
    overall, effective = averages(list(values.values())), effective_length(values)
    every = next(iter(means.values()))
    label = f"{every.label.partition(' (')[0]}, {', '.join(map(str, values))} tokens"
    longest = "none" if effective is None else f"{effective:,}"
    first = {} if every.absent else {f"{label}: effective length (over {THRESHOLD})": longest}
    return first | {
        f"{label}: average": f"{overall.avg:.1f}",
        f"{label}: weighted to long (inc)": f"{overall.inc:.1f}",
        f"{label}: weighted to short (dec)": f"{overall.dec:.1f}",
    }
