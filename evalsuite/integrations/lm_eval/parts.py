"""One task of lm_eval: its prompts, its scores, and whether it can be asked as a task of ours."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from evalsuite.integrations.lm_eval import MAX_NEW, NEUTRAL

NOT_ASKED = -1  # what a metric is where lm_eval's ruler did not ask it, in place of a share
TRIALS = 8  # answers that a task's metrics are tried on, before any is asked


@dataclass(slots=True)
class Part:
    """One leaf task of lm_eval, with the prompts that were built so far."""

    task: Any
    shots: int
    docs: Any
    requests: list[list[Any]] = field(default_factory=list)  # by document
    unfit: set[tuple[str, str]] = field(default_factory=set)  # (filter, metric): on another scale than shares are
    unknown: set[tuple[str, str]] = field(default_factory=set)  # that depends on what our answers do not say

    def asked(self, index: int) -> list[Any]:
        """The requests of a document. Those before it are built first: the examples of a prompt are drawn in turn.

        Raises IndexError past the last document.
        """
        if index >= len(self.docs):
            raise IndexError(index)
        while len(self.requests) <= index:
            at = len(self.requests)
            doc = self.docs[at]
            prompt = self.task.fewshot_context(doc, num_fewshot=self.shots, gen_prefix=self.task.doc_to_prefix(doc))
            made = self.task.construct_requests(doc=doc, ctx=prompt, metadata=(self.task.config.task, at, 1))
            self.requests.append(made if isinstance(made, list) else [made])
        return self.requests[index]

    def metrics(self, index: int, responses: Sequence[Any]) -> dict[str, dict[str, Any]]:
        """Filter -> metric -> value of one document, from one response to each of its requests."""
        requests = self.asked(index)
        for request, response in zip(requests, responses, strict=True):
            request.resps, request.filtered_resps = [response], {}
        for chain in self.task._filters:
            chain.apply(requests)
        kept = [list(request.filtered_resps) for request in requests]
        doc = self.docs[index]
        return {
            name: dict(self.task.process_results(doc, [request.filtered_resps[name] for request in requests]))
            for name in kept[0]
        }


def generation(request: Any) -> dict[str, Any]:
    """How a request is to be answered, in lm_eval's one way of saying it."""
    from lm_eval.models.utils import normalize_gen_kwargs

    return dict(normalize_gen_kwargs(dict(request.args[1]), MAX_NEW))


def unaskable(part: Part) -> str:
    """Why a leaf task cannot be asked; "" where it can."""
    kind = part.task.OUTPUT_TYPE
    if getattr(part.task, "UNSAFE_CODE", False):
        return "it runs what the model writes, outside any sandbox; evalsuite's own family `code` has a sandbox"
    if getattr(part.task, "MULTIMODAL", False):
        return "it shows images or plays sounds"
    if kind not in ("multiple_choice", "loglikelihood", "generate_until"):
        return f"its requests are {kind}, whose score is no share of right answers"
    if (part.task.config.repeats or 1) > 1:
        return f"it draws {part.task.config.repeats} answers to a question, and here each has one"
    try:
        return _tried(part)
    except Exception as error:
        return reason(error)


def _tried(part: Part) -> str:
    """The same, by the first document."""
    kind, requests = part.task.OUTPUT_TYPE, part.asked(0)
    part.task.doc_to_target(part.docs[0])
    if kind == "multiple_choice" and len({request.args[0] for request in requests}) > 1:
        return "it asks one question with several contexts, which is not supported"
    if kind == "generate_until" and (more := _settings(requests[0])):
        return f"it generates with {more}, which models are not asked for here"
    _measure(part)
    trial = [""] if kind == "generate_until" else [(-1.0, False)] * len(requests)
    if first(part, part.metrics(0, trial)) is None:
        return "none of its metrics is a share of right answers, question by question"
    return ""


def _settings(request: Any) -> str:
    """Settings of generation that a sample of ours does not have."""
    ours = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}
    more = {k: v for k, v in generation(request).items() if k not in ours and v is not None and v != NEUTRAL.get(k)}
    return ", ".join(f"{k}={v}" for k, v in sorted(more.items()))


def _measure(part: Part) -> None:
    """Find metrics that are no shares, by answers to the first document that may be right, such as its own words; and
    those that depend on more than which choice is likeliest."""
    kind, many = part.task.OUTPUT_TYPE, len(part.asked(0))
    trials: list[list[Any]] = [[text] for text in _words([part.task.doc_to_target(part.docs[0]), part.docs[0]])]
    if kind != "generate_until":
        trials = [[(-float(i == j) - 1, False) for j in range(many)] for i in range(min(many, TRIALS))]
        first = part.metrics(0, trials[0])
        changed = [(v - 1, flag) if kind == "loglikelihood" else (v, True) for v, flag in trials[0]]
        for chain, metrics in part.metrics(0, changed).items():
            told = {metric: value for metric, value in metrics.items() if isinstance(value, Real)}
            part.unknown |= {(chain, metric) for metric, value in told.items() if value != first[chain][metric]}
    for trial in trials[:TRIALS]:
        with contextlib.suppress(Exception):  # an answer may be too odd for a task's own code
            for chain, metrics in part.metrics(0, trial).items():
                part.unfit |= {(chain, metric) for metric, value in metrics.items() if not _share(value)}
    part.unfit |= part.unknown


def _words(value: Any) -> Iterator[str]:
    """Every text in a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _words(each)


def _share(value: object) -> bool:
    return isinstance(value, Real) and (0 <= float(value) <= 1 or value == NOT_ASKED)


def first(part: Part, found: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The first share of which more is better, of the first filter that has one; None where it is none after all."""
    better = part.task.higher_is_better()
    for chain, metrics in found.items():
        for metric, value in metrics.items():
            fit = better.get(metric, True) and isinstance(value, Real) and (chain, metric) not in part.unfit
            if fit and value != NOT_ASKED:
                return float(value) if _share(value) else None
    return None


def reason(error: Exception) -> str:
    """One line, with the mend that most often helps."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    mend = "its data may need the hub or another package"
    if "tokenizer" in line.lower():
        mend = "it sizes its own texts: give --set TASK.tokenizer=FOLDER, and --lengths"
    return f"lm_eval cannot make it: {type(error).__name__}: {line}; {mend}"
