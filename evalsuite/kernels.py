"""Same weights, other kernels, at three layers: hidden states, gold answers and greedy tokens, scores."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from evalsuite import stats
from evalsuite.errors import UserError
from evalsuite.export import finite
from evalsuite.models.batching import common_prefix
from evalsuite.models.config import LETTERS
from evalsuite.models.layerwise import LayerError, layer_errors, tolerance
from evalsuite.models.own import OwnModel
from evalsuite.plan import Item, Plan
from evalsuite.records import Completion, Sample
from evalsuite.revision import revision
from evalsuite.stats import Difference
from evalsuite.table import Section
from evalsuite.task import Executing

PROMPTS = 4  # of each length, whose hidden states are compared


@dataclass(frozen=True, slots=True)
class Layers:
    """The largest errors of one layer over some prompts of one length."""

    length: int
    prompts: int
    error: LayerError


@dataclass(frozen=True, slots=True)
class Asked:
    """One sample under both kernels."""

    task: str
    id: str
    length: int
    cluster: str
    losses: tuple[float, float]  # -log p (natural) of the gold answer; NaN where there is none or it does not fit
    tokens: int  # greedy tokens that either wrote; 1 for a choice
    agreed: int  # of those, before the first that differs
    scores: tuple[float, float]
    prompt_hash: str = ""  # by which the gate knows the question again

    @property
    def loss_gap(self) -> float:
        return self.losses[1] - self.losses[0]


@dataclass(frozen=True, slots=True)
class Agreement:
    """All of one comparison; `kernels` names the first, which is what is trusted, and the second."""

    model: str
    dtype: str
    kernels: tuple[str, str]
    tolerance: float  # relative error of a layer that rounding explains
    layers: tuple[Layers, ...]  # by length and layer
    samples: tuple[Asked, ...]
    identities: tuple[Mapping[str, Any], Mapping[str, Any]]  # as run.json has them

    @property
    def begins(self) -> Layers | None:
        """Where a difference begins: of the least length that has one, the first layer that makes one of its own."""
        over = [at for at in self.layers if at.error.own > self.tolerance]
        return min(over, key=lambda at: (at.length, at.error.layer), default=None)

    @property
    def equal(self) -> bool:
        """Whether every number is the same to the bit."""
        still = all(at.error.own == at.error.largest == at.error.carried == 0 for at in self.layers)
        return still and all(
            s.agreed == s.tokens and s.scores[0] == s.scores[1] and (s.loss_gap == 0 or math.isnan(s.loss_gap))
            for s in self.samples
        )


def compare(
    one: OwnModel, kernels: str, plan: Plan, *, prompts: int = PROMPTS, within: float | None = None
) -> Agreement:
    """Ask `one` and the same weights under `kernels` every sample of a plan.

    `within` is the relative error of a layer that is called none, by default what rounding in the weights' dtype
    explains. Raises UserError where these kernels cannot run or no sample fits the model.
    """
    other = one.with_kernels(kernels)
    planned = [(item, sample) for item, sample in plan.samples(one.count) if one.count(sample.text) <= one.context]
    if not planned:
        raise UserError(f"no sample fits the context of {one.name} ({one.context} tokens); ask for shorter --lengths")
    return Agreement(
        one.name,
        str(one.model.dtype).removeprefix("torch."),
        (one.kernels, kernels),
        tolerance(one) if within is None else within,
        _layers(one, other, planned, prompts),
        _samples(one, other, planned),
        (one.identity(), other.identity()),
    )


def _length(item: Item) -> int:
    return int(item.cell.facets.get("length", 0))


def _layers(one: OwnModel, other: OwnModel, planned: Sequence[tuple[Item, Sample]], prompts: int) -> tuple[Layers, ...]:
    texts: dict[int, dict[str, None]] = {}
    for item, sample in planned:
        chosen = texts.setdefault(_length(item), {})
        if len(chosen) < prompts:
            chosen[sample.text] = None
    found = []
    for length in sorted(texts):
        each = [layer_errors(one, other, one.encode(text)) for text in texts[length]]
        for errors in zip(*each, strict=True):
            worst = replace(
                errors[0],
                own=max(e.own for e in errors),
                largest=max(e.largest for e in errors),
                carried=max(e.carried for e in errors),
            )
            found.append(Layers(length, len(each), worst))
    return tuple(found)


def _samples(one: OwnModel, other: OwnModel, planned: Sequence[tuple[Item, Sample]]) -> tuple[Asked, ...]:
    answers = [_answers(model, planned) for model in (one, other)]
    golds = [(sample, _gold(sample)) for _, sample in planned]
    losses = zip(one.losses(golds), other.losses(golds), strict=True)
    found = []
    for (item, sample), pair in zip(planned, losses, strict=True):
        (a, x, tokens), (b, y, others) = (each[sample.id] for each in answers)
        if sample.choices:
            count, agreed = 1, int(a.text == b.text)
        else:
            count = max(len(tokens), len(others))
            agreed = common_prefix(tokens, others)
        found.append(
            Asked(
                sample.task, sample.id, _length(item), sample.cluster, pair, count, agreed, (x, y), sample.prompt_hash
            )
        )
    return tuple(found)


def _answers(
    model: OwnModel, planned: Sequence[tuple[Item, Sample]]
) -> Mapping[str, tuple[Completion, float, list[int]]]:
    """Every sample's completion, score and tokens."""
    by_id = {sample.id: (item, sample) for item, sample in planned}
    model.tokens = {}
    try:
        completions = list(model.answer([sample for _, sample in planned]))
        found = {}
        for completion in completions:
            item, sample = by_id[completion.sample_id]
            score = 0.0
            if completion.finish != "error" and not completion.error:
                if isinstance(item.task, Executing):
                    score = item.task.scores([(sample, completion)])[0].value
                else:
                    score = item.task.score(sample, completion).value
            found[sample.id] = completion, score, model.tokens.get(sample.id, [])
        return found
    finally:
        model.tokens = None


def _gold(sample: Sample) -> str:
    """The first accepted answer as it continues the prompt; "" where a sample has none."""
    if not sample.target:
        return ""
    gold = sample.target[0]
    if sample.choices:
        return next((c for c in sample.choices if c.strip() == gold.strip()), "")
    return gold if not sample.text or sample.text[-1].isspace() else f" {gold}"


def sections(found: Agreement) -> list[Section]:
    """By length and layer type, then by length and task."""
    return [_by_layer(found), _by_task(found)]


def says(found: Agreement) -> str:
    """Where a difference begins, in one line."""
    first, second = found.kernels
    who = f"{found.model}, {second} beside {first}"
    if found.equal:
        return f"{who}: equal to the bit, in every layer, gold answer, token and score"
    began = found.begins
    if began is None:
        return f"{who}: no layer differs by more than {found.tolerance:.0e}, which rounding in {found.dtype} explains"
    e = began.error
    return (
        f"{who}: a difference begins at {began.length or 'any'} tokens in layer {e.layer} "
        f"({e.letter}, {_kind(e.letter)}): {e.own:.1e}, where rounding in {found.dtype} explains {found.tolerance:.0e}"
    )


def as_json(found: Agreement) -> str:
    """All of it, sample by sample, for machines: the gate reads it."""
    began = found.begins
    value = {
        "version": 1,
        "revision": revision(),
        "identities": list(found.identities),
        "model": found.model,
        "dtype": found.dtype,
        "kernels": list(found.kernels),
        "tolerance": found.tolerance,
        "says": says(found),
        "equal": found.equal,
        "begins": {"length": began.length, **asdict(began.error)} if began else None,
        "layers": [{"length": at.length, "prompts": at.prompts, **asdict(at.error)} for at in found.layers],
        "samples": [asdict(sample) for sample in found.samples],
    }
    return json.dumps(finite(value), indent=1)


def _by_layer(found: Agreement) -> Section:
    rows = []
    for length in dict.fromkeys(at.length for at in found.layers):
        here = [at for at in found.layers if at.length == length]
        for letter in dict.fromkeys(at.error.letter for at in here):
            errors = [at.error for at in here if at.error.letter == letter]
            over = [e.layer for e in errors if e.own > found.tolerance]
            worst = max(errors, key=lambda e: e.own)
            rows.append(
                (str(length or "any"), f"{letter}, {_kind(letter)}", str(len(errors)),
                 f"layer {over[0]}" if over else "nowhere", f"{worst.own:.1e}", f"{worst.largest:.1e}",
                 f"{max(e.carried for e in errors):.1e}")
            )  # fmt: skip
    note = (
        f"Largest relative error of a hidden state; a difference begins beyond {found.tolerance:.0e} ({found.dtype}). "
        "Own: of layers that read the same hidden states. Carried: with all that came before."
    )
    header = ("tokens", "layer type", "layers", "begins", "own", "largest number", "carried")
    return Section(f"Hidden states: {found.kernels[1]} beside {found.kernels[0]}", header, tuple(rows), note=note)


def _by_task(found: Agreement) -> Section:
    rows = []
    for task, length in dict.fromkeys((s.task, s.length) for s in found.samples):
        here = [s for s in found.samples if (s.task, s.length) == (task, length)]
        gaps = [s.loss_gap for s in here if not math.isnan(s.loss_gap)]
        tokens = sum(s.tokens for s in here)
        score = difference(here)
        rows.append(
            (task, str(length or "any"), str(len(here)),
             f"{fmean(gaps):+.1e}" if gaps else "-", f"{max(map(abs, gaps)):.1e}" if gaps else "-",
             f"{sum(s.agreed for s in here) / tokens:.4f}" if tokens else "-",
             str(sum(s.agreed < s.tokens for s in here)),
             f"{score.value:+.2f} [{score.low:+.2f}, {score.high:+.2f}]", str(score.wins + score.losses))
        )  # fmt: skip
    header = ("task", "tokens", "n", "gold loss", "largest", "greedy tokens", "texts apart", "score", "flips")
    note = (
        "Gold loss: mean and largest difference of -log p of the right answer, in nats. Greedy tokens: share that is "
        "the same, up to the first that differs. Score: paired, 95 % interval."
    )
    return Section(f"Answers: {found.kernels[1]} beside {found.kernels[0]}", header, tuple(rows), note=note)


def difference(samples: Sequence[Asked]) -> Difference:
    """The paired difference of scores, the second kernels less the first."""
    return stats.paired([s.scores[1] for s in samples], [s.scores[0] for s in samples], [s.cluster for s in samples])


def _kind(letter: str) -> str:
    return LETTERS[letter].partition(" (")[0]
