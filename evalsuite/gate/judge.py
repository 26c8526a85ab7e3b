"""From two runs and a policy to a verdict: checks first, then the families, the costs and the advisory cells."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from statistics import fmean

from evalsuite import stats
from evalsuite.gate import agreement, costs, decide, pairs, sides
from evalsuite.gate.decide import IMPROVED, INCONCLUSIVE, INVALID, PASS, QUARANTINED, REGRESSED, Level, Outcome, Rule
from evalsuite.gate.pairs import Pair
from evalsuite.gate.policy import Family, Policy
from evalsuite.gate.sides import Problem, Side
from evalsuite.groups import pick

EXITS = {PASS: 0, IMPROVED: 0, INCONCLUSIVE: 0, REGRESSED: 1, INVALID: 3}


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that was looked at: a family, its drift, a metric, a quarantined task or a cell."""

    kind: str  # family, drift, metric, kernels, quarantine or cell
    name: str
    tier: str
    verdict: str
    reason: str
    outcome: Outcome | None = None
    cost: costs.Cost | None = None
    p_adjusted: float | None = None
    detectable: float | None = None
    look: int = 1  # 2 where the second batch decided

    @property
    def gates(self) -> bool:
        """Whether its verdict decides the whole."""
        return self.tier != "advisory"


@dataclass(frozen=True, slots=True)
class Report:
    """What a gate found."""

    verdict: str
    reason: str
    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    policy: Policy
    sides: tuple[Side, ...]  # run, baseline, then release and the second pair where they were given

    def exit_code(self, *, strict: bool = False) -> int:
        """0 pass, 1 regression, 3 invalid; 4 where a critical family is undecided and that is not enough: with
        `strict`, and always in release mode."""
        if self.verdict == INCONCLUSIVE and any(self.fails(case, strict=strict) for case in self.cases):
            return 4
        return EXITS[self.verdict]

    def fails(self, case: Case, *, strict: bool = False) -> bool:
        """Whether a case alone is enough for an exit code over 0."""
        if case.verdict == INCONCLUSIVE:
            return case.tier == "critical" and (strict or self.policy.mode == "release")
        return case.gates and case.verdict == REGRESSED


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One hypothesis of the gate: a family beside the baseline, or beside the release."""

    kind: str
    family: Family
    pairs: Sequence[Pair]
    more: Sequence[Pair]  # fresh ones of the second batch


def judge(
    new: Side,
    old: Side,
    policy: Policy,
    release: Side | None = None,
    second: tuple[Side, Side] | None = None,
    kernels: str = "",
) -> Report:
    """Compare a run with its baseline, and its kernels with trusted ones by the file `kernels` where the policy demands
    it. Where anything makes that comparison invalid, nothing else is said."""
    given = (new, old, *((release,) if release else ()), *(second or ()))
    paired = pairs.pairs(new, old)
    drifted = pairs.pairs(new, release) if release else []
    fresh, known = _fresh(paired, pairs.pairs(*second)) if second else ([], [])
    problems = [*_problems(given, policy, release, second)]
    if not problems:
        problems += _batch(policy, second, paired, fresh, known) if second else []
        problems += _matches(policy, paired)
    if problems:
        return _report(INVALID, [], problems, [], policy, given)
    tests = [
        Hypothesis(kind, family, _of(family, policy, found), _of(family, policy, fresh) if kind == "family" else [])
        for kind, found in (("family", paired), ("drift", drifted))
        for family in policy.families
    ]
    tests = [test for test in tests if test.pairs]
    cases = _families([test for test in tests if test.family.gates], policy, looked=second is not None)
    cases += _advisory([test for test in tests if not test.family.gates], policy)
    for metric in policy.metrics:
        cost = costs.measure(metric, new.run, old.run)
        if cost.verdict == INVALID and metric.tier != "advisory":
            problems.append(Problem("unmeasured", cost.reason))
        verdict = INCONCLUSIVE if cost.verdict == INVALID else cost.verdict
        cases.append(Case("metric", metric.name, metric.tier, verdict, cost.reason, cost=cost))
    if policy.kernels:
        wrong, measured = agreement.read(kernels, policy.kernels, new)
        problems += wrong
        cases += (Case("kernels", k, policy.kernels.tier, v.verdict, v.reason, cost=v) for k, v in measured.items())
    if problems:
        return _report(INVALID, [], problems, [], policy, given)
    cases += _quarantined(paired, policy)
    cases += _cells(paired, policy)
    return _report(_whole(cases), cases, [], _notes(new, old, paired, policy, known), policy, given)


def _problems(
    given: Sequence[Side], policy: Policy, release: Side | None, second: tuple[Side, Side] | None
) -> Iterable[Problem]:
    new, old = given[:2]
    for side in given:
        yield from sides.problems(side, policy)
    if any(problem.kind == "unreadable" for side in given for problem in side.problems):
        return
    yield from pairs.required(new, policy.identity)
    yield from pairs.problems(new, old, policy.identity)
    if release:
        yield from pairs.problems(new, release, policy.identity)
    if second:
        yield from pairs.problems(*second, policy.identity)
        yield from pairs.required(second[0], policy.identity)
        for first, again in ((new, second[0]), (old, second[1])):
            yield from pairs.same_model(first, again)


def _batch(
    policy: Policy, second: tuple[Side, Side], first: Sequence[Pair], fresh: Sequence[Pair], known: Sequence[Pair]
) -> Iterable[Problem]:
    """The second batch is the one that was registered: its questions are new, and of each kind as many."""
    plan = policy.escalation
    if plan is None:
        yield Problem("unregistered", "the policy registers no [escalation]: a second batch chosen now proves nothing")
        return
    for side in second:
        seeds = {about["seed"] for about in side.run.meta["tasks"].values()}
        if seeds != {plan.seed}:
            found = " and ".join(map(str, sorted(seeds)))
            yield Problem("seed", f"{side.called} was asked with seed {found}: the policy registers seed {plan.seed}")
    before, after = (Counter(map(_cell, batch)) for batch in (first, [*fresh, *known]))
    apart = [f"{name} {after[name]} after {before[name]}" for name in before | after if before[name] != after[name]]
    if apart:
        yield Problem("batch", f"the second batch has other numbers of samples than the first, in {sides.some(apart)}")
    if len(known) > plan.shared * (len(fresh) + len(known)):
        shown = sides.some(pair.new["id"] for pair in known)
        yield Problem("not-fresh", f"the second batch asks what the first did, {shown}: that is a retry")


def _fresh(first: Sequence[Pair], second: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """The second batch's pairs whose prompt the first did not have, and those it had."""
    seen = {(pair.new["task"], pair.new["prompt_hash"]) for pair in first}
    fresh = [pair for pair in second if (pair.new["task"], pair.new["prompt_hash"]) not in seen]
    return fresh, [pair for pair in second if (pair.new["task"], pair.new["prompt_hash"]) in seen]


def _matches(policy: Policy, paired: Sequence[Pair]) -> Iterable[Problem]:
    """Every rule of the policy, and every part of it, is about something that was asked."""
    for family in policy.families:
        if not any(family.holds(pair.new) for pair in paired):
            about = f", facets {dict(family.facets)}" if family.facets else ""
            names = ", ".join(family.tasks)
            yield Problem("no-match", f"family {family.name!r} matches no sample of the runs: tasks {names}{about}")
            continue
        held = [pair.new["facets"] for pair in paired if family.holds(pair.new)]
        idle = [each for each in family.tasks if not any(fnmatchcase(pair.new["task"], each) for pair in paired)]
        idle += [
            f"{k} = {v!r}" for k, values in family.facets.items() for v in values if not any(f[k] == v for f in held)
        ]
        if idle:
            yield Problem(
                "no-match", f"of family {family.name!r} this matches no sample of the runs: {', '.join(idle)}"
            )
    for each in policy.quarantines:
        if not any(policy.quarantined(pair.new["task"]) is each for pair in paired):
            yield Problem("no-match", f"the quarantine of {each.task!r} matches no task of the runs")
    gated = [family for family in policy.families if family.gates]
    if gated and not any(_of(family, policy, paired) for family in gated):
        yield Problem("all-quarantined", "every sample of the gated families is quarantined: nothing would be tested")


def _of(family: Family, policy: Policy, found: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in found if family.holds(pair.new) and policy.quarantined(pair.new["task"]) is None]


def _measure(found: Sequence[Pair], level: Level, more: Sequence[Pair] = ()) -> Outcome:
    labels = [_label(pair, "") for pair in found] + [_label(pair, "second ") for pair in more]
    both = [*found, *more]
    return decide.measure([p.new["score"] for p in both], [p.old["score"] for p in both], labels, level)


def _label(pair: Pair, batch: str) -> str:
    """Clusters of two batches are not one, though they are called alike."""
    return f"{batch}{pair.new['cluster']}" if pair.new["cluster"] else ""


def _families(tests: Sequence[Hypothesis], policy: Policy, *, looked: bool) -> list[Case]:
    """The gated hypotheses, corrected together; the undecided are looked at again with the second batch."""
    plan = policy.escalation
    cases = _look(tests, policy, plan.alpha[0] if plan else policy.alpha, again=False)
    if plan is None or not looked:
        return cases
    last = _look(tests, policy, plan.alpha[1], again=True)
    return [
        replace(after, look=2) if before.verdict == INCONCLUSIVE and test.more else before
        for test, before, after in zip(tests, cases, last, strict=True)
    ]


def _look(tests: Sequence[Hypothesis], policy: Policy, alpha: float, *, again: bool) -> list[Case]:
    level = Level(alpha, policy.power, policy.seed)
    outcomes = [_measure(test.pairs, level, test.more if again else ()) for test in tests]
    drops = stats.holm([outcome.p_drop for outcome in outcomes])
    gains = stats.holm([outcome.p_gain for outcome in outcomes])
    cases = []
    for test, outcome, drop, gain in zip(tests, outcomes, drops, gains, strict=True):
        floor = test.family.floor if test.kind == "family" else 0.0
        rule = Rule(test.family.margin, floor, fmean(pair.old["chance"] for pair in test.pairs))
        verdict, reason = decide.verdict(outcome, rule, level, drop, gain, len(tests))
        name, tier = test.family.name, test.family.tier
        found = Case(test.kind, name, tier, verdict, reason, outcome, None, drop, outcome.detectable(level))
        cases.append(found)
    return cases


def _advisory(tests: Sequence[Hypothesis], policy: Policy) -> list[Case]:
    """Families that are only shown: corrected among themselves, and costing the gated ones nothing."""
    return _look(tests, policy, policy.alpha, again=False) if tests else []


def _quarantined(paired: Sequence[Pair], policy: Policy) -> list[Case]:
    cases = []
    level = Level(policy.alpha, policy.power, policy.seed)
    for task in dict.fromkeys(pair.new["task"] for pair in paired):
        found = policy.quarantined(task)
        if found:
            outcome = _measure([pair for pair in paired if pair.new["task"] == task], level)
            reason = f"{found.reason} ({found.issue}), until {found.until}"
            cases.append(Case("quarantine", task, "advisory", QUARANTINED, reason, outcome, None, outcome.p_drop))
    return cases


def _cells(paired: Sequence[Pair], policy: Policy) -> list[Case]:
    """Every task and cell, as advice: of those called regressed a share of alpha is expected to be none."""
    groups: dict[str, list[Pair]] = {}
    for pair in paired:
        if policy.quarantined(pair.new["task"]) is None:
            groups.setdefault(_cell(pair), []).append(pair)
    level = Level(policy.alpha, policy.power, policy.seed)
    outcomes = [_measure(found, level) for found in groups.values()]
    drops = stats.benjamini_hochberg([outcome.p_drop for outcome in outcomes])
    gains = stats.benjamini_hochberg([outcome.p_gain for outcome in outcomes])
    cases = []
    for name, outcome, drop, gain in zip(groups, outcomes, drops, gains, strict=True):
        verdict = REGRESSED if drop <= policy.alpha else IMPROVED if gain <= policy.alpha else PASS
        reason = (
            f"difference {decide.points(outcome.difference.value)}, a drop may be "
            f"{decide.points(outcome.drop_bound, sign=False)}; advice, one of {len(groups)} cells"
        )
        seen = outcome.detectable(level)
        cases.append(Case("cell", name, "advisory", verdict, reason, outcome, None, drop, seen))
    return cases


def _cell(pair: Pair) -> str:
    facets = pick(pair.new, (name for name in pair.new["cell"] if name != "draw"))
    told = ", ".join(f"{name}={value}" for name, value in facets)
    return f"{pair.new['task']} ({told})" if told else str(pair.new["task"])


def _whole(cases: Sequence[Case]) -> str:
    found = {case.verdict for case in cases if case.gates}
    return next(verdict for verdict in (REGRESSED, INCONCLUSIVE, IMPROVED, PASS) if verdict in found)


def _notes(new: Side, old: Side, paired: Sequence[Pair], policy: Policy, known: Sequence[Pair]) -> list[str]:
    """What a reader should know beside the verdicts."""
    notes = []
    outside = Counter(
        pair.new["task"] for pair in paired if not any(f.gates and f.holds(pair.new) for f in policy.families)
    )
    if outside:
        notes.append(f"held by no gated family: {', '.join(outside)}")
    versions = [_latest(side, lambda request: request.get("versions", {})) for side in (new, old)]
    apart = sorted(k for k in {**versions[0], **versions[1]} if versions[0].get(k) != versions[1].get(k))
    notes += (f"{name}: {versions[1].get(name)} -> {versions[0].get(name)}" for name in apart)
    notes += (f"{each.task} is quarantined until {each.until}: {each.reason}" for each in policy.quarantines)
    if known:
        notes.append(f"{len(known)} questions of the second batch were known, and are left out")
    if all(pair.new["score"] == pair.old["score"] for pair in paired):
        notes.append(f"all {len(paired)} scores are equal")
    return notes


def _latest(side: Side, what: Callable[[Mapping[str, object]], object]) -> dict[str, object]:
    found = what(side.run.meta["requests"][-1]) if side.run.meta["requests"] else {}
    return dict(found) if isinstance(found, dict) else {}


def _report(
    verdict: str,
    cases: Sequence[Case],
    problems: Sequence[Problem],
    notes: Sequence[str],
    policy: Policy,
    given: Sequence[Side],
) -> Report:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        reason = f"the comparison is invalid: {problems[0].message}{more}"
    else:
        told = [case for case in cases if case.gates and case.verdict == verdict]
        reason = "; ".join(f"{case.kind} {case.name}: {case.reason}" for case in told[:3])
    return Report(verdict, reason, tuple(cases), tuple(dict.fromkeys(problems)), tuple(notes), policy, tuple(given))
