"""Two runs: whether they may be compared, and their samples in pairs of one task, id and prompt."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evalsuite.gate.policy import Identity
from evalsuite.gate.sides import Problem, Side, failed, some
from evalsuite.store import Key, Row, differences

MOST = 8  # problems of one kind that are told


@dataclass(frozen=True, slots=True)
class Pair:
    """One question, answered twice."""

    new: Row
    old: Row


def pairs(new: Side, old: Side) -> list[Pair]:
    """The samples that both sides were asked in the same words."""
    index = _index(old)
    found = ((row, index.get((row["task"], row["id"]))) for row in new.run.rows)
    return [Pair(a, b) for a, b in found if b is not None and a["prompt_hash"] == b["prompt_hash"]]


def problems(new: Side, old: Side, identity: Identity) -> Iterator[Problem]:
    """Why the two must not be compared, though each alone is sound."""
    if new.run.folder.resolve() == old.run.folder.resolve():
        yield Problem("same-folder", f"{new.called} and the {old.role} are one folder: a run equals itself")
        return
    if not new.run.rows or not old.run.rows:
        return  # told by each side alone
    if new.run.meta["created"] == old.run.meta["created"] and _asked(new, str) == _asked(old, str):
        yield Problem("same-run", f"{new.called} is a copy of {old.called}: both began at {new.run.meta['created']}")
    yield from _identities(new, old, identity)
    yield from _tasks(new, old)
    yield from _samples(new, old)


def required(side: Side, identity: Identity) -> Iterator[Problem]:
    """What the policy demands of the run's own record."""
    for path, wanted in identity.require.items():
        found = _at(side.run.meta["identity"], path)
        if str(found) != wanted:
            told = "does not say" if found is None else f"has {found}"
            yield Problem("required", f"{side.called} {told}: {path} must be {wanted}")
    ran: dict[str, set[str]] = {}
    for request in side.run.meta["requests"]:
        for name, kinds in request.get("ran", {}).items():
            ran.setdefault(name, set()).update(kinds)
    for name, wanted in identity.ran.items():
        if ran.get(name) != {wanted}:
            did = " and ".join(sorted(ran.get(name, ()))) or "nothing"
            yield Problem("not-exercised", f"{side.called} computed {name} with {did}: the policy demands {wanted}")


def same_model(first: Side, second: Side) -> Iterator[Problem]:
    """Two batches of one side are by one model."""
    for line in differences(_model(first), _model(second)):
        yield Problem("identity", f"{first.called} and {second.called} are not of one model: {line}")


def _model(side: Side) -> dict[str, Any]:
    return {"model": side.run.meta["model"], **side.run.meta["identity"], "context": side.run.meta.get("context")}


def _identities(new: Side, old: Side, identity: Identity) -> Iterator[Problem]:
    """Tokenizer, weights, dtype, kernels, context: whatever is recorded and not free to differ."""
    for line in differences(_model(old), _model(new)):
        path = line.partition(":")[0]
        if not any(path == free or path.startswith(f"{free}.") for free in identity.may_differ):
            kind = path if path in ("tokenizer", "dtype", "weights", "config", "context", "model") else "identity"
            kind = "kernels" if path.startswith("kernels") else kind
            yield Problem(kind, f"identity differs from the {old.role}'s in {line}")


def _tasks(new: Side, old: Side) -> Iterator[Problem]:
    """Version, seed, wording, data, sandbox: what makes two runs of one task ask the same and judge alike."""
    ours, theirs = new.run.meta["tasks"], old.run.meta["tasks"]
    for family in sorted(ours.keys() & theirs.keys()):
        then, now = (
            {k: v for k, v in about.items() if k not in ("licence", "source")}
            for about in (theirs[family], ours[family])
        )
        for line in differences(then, now, family):
            name = line.partition(":")[0].removeprefix(f"{family}.").partition(".")[0]
            yield Problem(name if name != "subtasks" else "version", f"task differs from the {old.role}'s in {line}")
    for line in list(differences(old.run.meta["missing"], new.run.meta["missing"], "missing"))[:MOST]:
        yield Problem("missing-task", f"what could not be asked differs from the {old.role}'s: {line}")


def _samples(new: Side, old: Side) -> Iterator[Problem]:
    ours, theirs = _index(new), _index(old)
    gone = [name for task, name in theirs if (task, name) not in ours]
    more = [name for task, name in ours if (task, name) not in theirs]
    if gone or more:
        limits = [_asked(side, lambda request: request.get("limit")) for side in (new, old)]
        if limits[0] != limits[1]:
            yield Problem("limit", f"--limit {_list(limits[0])} beside the {old.role}'s {_list(limits[1])}")
    if gone:
        yield Problem("missing", f"{new.called} lacks samples that the {old.role} has, {some(gone)}")
    if more:
        yield Problem("extra", f"{new.called} has samples that the {old.role} lacks, {some(more)}")
    both = [(ours[key], theirs[key]) for key in ours if key in theirs]
    for kind, what, what_of in CHECKS:
        unequal = ((a["id"], what_of(a), what_of(b)) for a, b in both)
        apart = [f"{name} ({_short(x)} beside {_short(y)})" for name, x, y in unequal if x != y]
        if apart:
            yield Problem(kind, f"{what} differ from the {old.role}'s, {some(apart, 1)}")
    answered = [(a, b) for a, b in both if not failed(a) and not failed(b) and a["prompt_hash"] == b["prompt_hash"]]
    ways = [a["id"] for a, b in answered if bool(a.get("choice_logprobs")) != bool(b.get("choice_logprobs"))]
    if ways:
        yield Problem("choices", f"choices are by log probability on one side and generated on the other, {some(ways)}")
    tokens = [a["id"] for a, b in answered if a.get("prompt_tokens") != b.get("prompt_tokens")]
    if tokens:
        yield Problem(
            "prompt-tokens", f"the same prompts have other counts of tokens than the {old.role}'s, {some(tokens)}"
        )


CHECKS: tuple[tuple[str, str, Callable[[Row], Any]], ...] = (
    ("prompt", "prompts", lambda row: row["prompt_hash"]),
    ("choices", "choices", lambda row: row.get("choices")),
    ("target", "accepted answers", lambda row: row.get("target")),
    ("chance", "chance levels", lambda row: row["chance"]),
    ("cluster", "clusters", lambda row: row["cluster"]),
    ("facets", "facets", lambda row: (row["facets"], row["cell"])),
)


def _index(side: Side) -> dict[Key, Row]:
    return {(row["task"], row["id"]): row for row in side.run.rows}


def _asked(side: Side, what: Callable[[Mapping[str, Any]], Any]) -> set[Any]:
    return {what(request) for request in side.run.meta["requests"]}


def _list(values: set[Any]) -> str:
    return " and ".join(sorted(map(str, values)))


def _at(record: Mapping[str, Any], path: str) -> Any:
    value: Any = record
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
