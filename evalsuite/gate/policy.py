"""The rules of a gate, from a TOML file. What is not understood is an error: no typing mistake makes a gate pass."""

import datetime
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError, unknown
from evalsuite.records import Facet
from evalsuite.store import Row

TIERS = ("critical", "supporting", "advisory")
MODES = ("pr", "release")
KERNELS = ("reference", "chunked", "triton", "recurrent")
METRICS = ("prefill", "decode", "kv", "index", "state")  # the first two are rates, the others bytes of one sequence
LEAST = 1e-6  # of margins and levels: 0 could never be met
FINEST = 1e-4  # the least p that 9,999 random sign flips can show
NEVER_FREE = ("tokenizer", "context")  # where these differ, the questions do


@dataclass(frozen=True, slots=True)
class Family:
    """Samples that are tested together."""

    name: str
    tasks: tuple[str, ...]  # multihop.graph, multihop.*
    tier: str = "critical"
    facets: Mapping[str, tuple[Facet, ...]] = field(default_factory=dict)  # none: every sample of the tasks
    margin: float = 0.02  # a drop of less than this is none worth stopping for
    floor: float = 0.0  # a score below this is a regression whatever the baseline's was

    @property
    def gates(self) -> bool:
        """Whether a drop fails the gate."""
        return self.tier != "advisory"

    def holds(self, row: Row) -> bool:
        """Whether a sample belongs to the family."""
        return any(fnmatchcase(row["task"], each) for each in self.tasks) and all(
            row["facets"].get(name) in values for name, values in self.facets.items()
        )


@dataclass(frozen=True, slots=True)
class Metric:
    """A speed, which may fall to `ratio` of the baseline's, or a memory cost, which may grow to `ratio` of it."""

    name: str
    ratio: float
    tier: str = "supporting"

    @property
    def rate(self) -> bool:
        """Whether more is better."""
        return self.name in ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A task that is asked and shown, and does not count until a day."""

    task: str
    reason: str
    issue: str
    until: datetime.date


@dataclass(frozen=True, slots=True)
class Escalation:
    """A second look at fresh questions, registered before the first: what each may spend, and the second's seed."""

    alpha: tuple[float, float]
    seed: int
    shared: float = 0.0  # share of the second batch's questions that may be known from the first; they are left out


@dataclass(frozen=True, slots=True)
class Identity:
    """Which records of two runs may differ, and what the run must have been made with."""

    may_differ: tuple[str, ...] = ()
    require: Mapping[str, str] = field(default_factory=dict)  # dtype = "float32"; kernels.delta_rule = "triton"
    ran: Mapping[str, str] = field(default_factory=dict)  # delta_rule = "triton": it was called, and nothing else was


@dataclass(frozen=True, slots=True)
class Kernels:
    """How far a model under its kernels may be from the same weights under those that are trusted."""

    against: str  # one of KERNELS; "auto" is whatever the run had, and nothing to trust
    tolerance: float | None = None  # relative error of a layer's hidden states; None: what rounding explains
    gap: float | None = None  # nats, mean distance of -log p of right answers; None: ten times the tolerance
    tokens: float = 0.99  # share of greedy tokens that must agree
    tier: str = "critical"


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that a gate decides by."""

    families: tuple[Family, ...]
    name: str = "gate"
    mode: str = "pr"
    alpha: float = 0.05
    power: float = 0.8  # at which detectable differences and needed sizes are given
    seed: int = 0  # of the permutations
    max_errors: float = 0.0  # share of a task's samples
    max_truncated: float = 0.0  # share of a task's answers that ended at max_new_tokens; terse answers always do
    gaps: tuple[str, ...] = ()  # tasks whose ids end in numbers that do not count on from 0
    identity: Identity = Identity()
    metrics: tuple[Metric, ...] = ()
    kernels: Kernels | None = None
    escalation: Escalation | None = None
    quarantines: tuple[Quarantine, ...] = ()

    def quarantined(self, task: str) -> Quarantine | None:
        """The quarantine that a task is under."""
        return next((each for each in self.quarantines if fnmatchcase(task, each.task)), None)


def load(path: str | Path, today: datetime.date | None = None) -> Policy:
    """Read a policy. Raises UserError where it holds nothing to gate, an unknown key, or an expired quarantine."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UserError(f"policy {path} cannot be read: {error.strerror or error}; give --policy FILE") from error
    return parse(text, str(path), today)


def parse(text: str, where: str = "policy", today: datetime.date | None = None) -> Policy:
    """The policy of a TOML text; `where` names it in errors."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is no TOML: {error}") from error
    top = _Table(table, where)
    margin = top.number("margin", 0.02, LEAST, 1)
    policy = Policy(
        name=top.text("name", "gate"),
        mode=top.one_of("mode", MODES, "pr"),
        alpha=top.number("alpha", 0.05, LEAST, 0.5),
        power=top.number("power", 0.8, 0.5, 1 - LEAST),
        seed=top.whole("seed", 0),
        max_errors=top.share("max_errors"),
        max_truncated=top.share("max_truncated"),
        gaps=top.texts("gaps", ()),
        identity=_identity(top.table("identity")),
        families=tuple(_family(each, margin) for each in top.tables("family")),
        metrics=tuple(_metric(each) for each in top.tables("metric")),
        kernels=_kernels(top.table("kernels")) if "kernels" in table else None,
        escalation=_escalation(top.table("escalation")) if "escalation" in table else None,
        quarantines=tuple(_quarantine(each, today or _today()) for each in top.tables("quarantine")),
    )
    top.done()
    _sound(policy, where)
    return policy


def _sound(policy: Policy, where: str) -> None:
    """Raise UserError for rules that could not gate anything, or that contradict each other."""
    if not any(family.gates for family in policy.families):
        raise UserError(f"{where} gates nothing: it needs a [[family]] of tier critical or supporting")
    for kind, names in (
        ("family", [family.name for family in policy.families]),
        ("metric", [metric.name for metric in policy.metrics]),
    ):
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UserError(f"{where} has two [[{kind}]] called {twice[0]!r}; give each its own name")
    if policy.escalation is not None and sum(policy.escalation.alpha) > policy.alpha + 1e-12:
        spent = " + ".join(map(str, policy.escalation.alpha))
        raise UserError(f"{where}: [escalation] spends alpha {spent}, more than alpha = {policy.alpha}")
    gated = 2 * sum(family.gates for family in policy.families)  # each beside the baseline and a release
    spent = min((policy.alpha, *(policy.escalation.alpha if policy.escalation else ())))
    if spent < gated * FINEST:
        told = f"alpha = {spent:g} over {gated} tests is finer than the permutation test can tell"
        raise UserError(f"{where}: {told}, and no drop could fail it; take {gated * FINEST:g} or more")


def _identity(table: "_Table") -> Identity:
    found = Identity(table.texts("may_differ", ()), table.flat("require"), table.flat("ran"))
    table.done()
    fixed = [name for name in found.may_differ if name in NEVER_FREE]
    if fixed:
        raise UserError(f"{table.where}: may_differ cannot hold {fixed[0]}: other {fixed[0]}, other questions")
    return found


def _family(table: "_Table", margin: float) -> Family:
    family = Family(
        name=table.text("name"),
        tasks=table.texts("tasks"),
        tier=table.one_of("tier", TIERS, "critical"),
        facets=table.facets("facets"),
        margin=table.number("margin", margin, LEAST, 1),
        floor=table.number("floor", 0.0, 0, 1),
    )
    table.done()
    if not family.tasks:
        raise UserError(f"{table.where} {family.name!r} has no tasks")
    return family


def _metric(table: "_Table") -> Metric:
    name = table.one_of("name", METRICS)
    rate = name in ("prefill", "decode")
    ratio = table.number("ratio", None, *((LEAST, 1) if rate else (1, 1000)))
    metric = Metric(name, ratio, table.one_of("tier", TIERS, "supporting"))
    table.done()
    return metric


def _kernels(table: "_Table") -> Kernels:
    table.known += ["tolerance", "gap"]
    found = Kernels(
        against=table.one_of("against", KERNELS),
        tolerance=table.number("tolerance", 0.0, 0, 0.1) if "tolerance" in table.values else None,
        gap=table.number("gap", 0.0, 0, 1) if "gap" in table.values else None,
        tokens=table.number("tokens", 0.99, 0.5, 1),
        tier=table.one_of("tier", TIERS, "critical"),
    )
    table.done()
    return found


def _escalation(table: "_Table") -> Escalation:
    alpha = table.take("alpha", None)
    right = isinstance(alpha, list) and len(alpha) == 2 and all(isinstance(a, float) and 0 < a < 1 for a in alpha)
    if not right:
        raise UserError(f"{table.where}: alpha = {alpha!r} is no pair of levels; write alpha = [0.01, 0.04]")
    found = Escalation((alpha[0], alpha[1]), table.whole("seed", None), table.share("shared"))
    table.done()
    return found


def _quarantine(table: "_Table", today: datetime.date) -> Quarantine:
    until = table.take("until", None)
    if type(until) is not datetime.date:
        raise UserError(f"{table.where}: until = {until!r} is no date; write until = 2026-12-31")
    found = Quarantine(table.text("task"), table.text("reason"), table.text("issue"), until)
    table.done()
    if until < today:
        raise UserError(f"{table.where} of {found.task} expired on {until}: mend it ({found.issue}) or set another day")
    return found


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


@dataclass(slots=True)
class _Table:
    """A TOML table whose keys are taken one by one; what nobody took is unknown."""

    values: Mapping[str, Any]
    where: str
    known: list[str] = field(default_factory=list)

    def take(self, key: str, default: Any) -> Any:
        """A value; None as its default makes it required."""
        self.known.append(key)
        value = self.values.get(key, default)
        if value is None:
            raise UserError(f"{self.where} has no {key!r}")
        return value

    def done(self) -> None:
        """Raise UserError for keys that are none of ours."""
        for key in self.values:
            if key not in self.known:
                raise unknown(f"key of {self.where}", key, self.known)

    def text(self, key: str, default: str | None = None) -> str:
        return str(self._checked(key, default, lambda v: isinstance(v, str) and v.strip() != "", "a text"))

    def one_of(self, key: str, names: Iterable[str], default: str | None = None) -> str:
        value = self.text(key, default)
        if value not in names:
            raise unknown(f"{key} of {self.where}", value, names)
        return value

    def whole(self, key: str, default: int | None) -> int:
        return int(self._checked(key, default, lambda v: type(v) is int and v >= 0, "a whole number from 0"))

    def number(self, key: str, default: float | None, low: float, high: float) -> float:
        """A number from low to high."""
        what = f"a number from {low:g} to {high:g}"
        return float(self._checked(key, default, lambda v: type(v) in (int, float) and low <= v <= high, what))

    def share(self, key: str) -> float:
        value = self._checked(key, 0.0, lambda v: type(v) in (int, float) and 0 <= v < 1, "a share below 1")
        return float(value)

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        value = self.take(key, default)
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) and v for v in value):
            raise UserError(f"{self.where}: {key} = {value!r} is no list of texts")
        return tuple(value)

    def table(self, key: str) -> "_Table":
        value = self.take(key, {})
        if not isinstance(value, dict):
            raise UserError(f"{self.where}: {key} is no table; write [{key}]")
        return _Table(value, f"{self.where} [{key}]")

    def tables(self, key: str) -> list["_Table"]:
        value = self.take(key, [])
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise UserError(f"{self.where}: {key} is no list of tables; write [[{key}]]")
        return [_Table(v, f"{self.where} [[{key}]]") for v in value]

    def flat(self, key: str) -> dict[str, str]:
        """A table of texts; tables in it are joined by dots."""
        found: dict[str, str] = {}
        left: list[tuple[str, Any]] = [("", self.table(key).values)]
        while left:
            prefix, value = left.pop()
            if isinstance(value, dict):
                left += ((f"{prefix}.{k}" if prefix else k, v) for k, v in value.items())
            elif isinstance(value, str):
                found[prefix] = value
            else:
                raise UserError(f"{self.where}: {key}.{prefix} = {value!r} is no text")
        return found

    def facets(self, key: str) -> dict[str, tuple[Facet, ...]]:
        found: dict[str, tuple[Facet, ...]] = {}
        for name, value in self.table(key).values.items():
            values = value if isinstance(value, list) else [value]
            if not values or not all(type(v) in (str, int, float) for v in values):
                raise UserError(f"{self.where}: {key}.{name} = {value!r} is no value of a facet, and no list of them")
            found[name] = tuple(values)
        return found

    def _checked(self, key: str, default: Any, fits: Callable[[Any], bool], what: str) -> Any:
        value = self.take(key, default)
        if not fits(value):
            raise UserError(f"{self.where}: {key} = {value!r} is not {what}")
        return value
