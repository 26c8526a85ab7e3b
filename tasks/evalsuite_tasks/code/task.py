"""The task family `code`: cells, samples, and scores by running what the model wrote.

One answer a problem, greedily, unless `draws` asks for more at a `temperature` over 0, with nucleus 0.95 as Chen et al.
(2021) drew: then pass@k is the unbiased estimate, with an interval over problems. A draw is a cell of its own, so that
`--limit` counts problems, and more draws of a finished run only add to it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from evalsuite import sandbox, stats
from evalsuite.errors import UserError, unknown
from evalsuite.records import Completion, Facet, Sample, Score
from evalsuite.task import Cell, Count, Judged, Request, sample_id
from evalsuite_tasks.code import cruxeval, functions
from evalsuite_tasks.code.problems import Benchmark, Problem, fault, load, order
from evalsuite_tasks.rows import UnreachableError, revisions

PARTS: Mapping[str, Benchmark] = {
    bench.name: bench
    for bench in (
        functions.HUMANEVAL,
        functions.HUMANEVAL_PLUS,
        functions.MBPP,
        functions.MBPP_PLUS,
        cruxeval.CRUX_INPUT,
        cruxeval.CRUX_OUTPUT,
    )
}
KNOBS: Mapping[str, tuple[Facet, ...]] = {"shots": (3,), "temperature": (0.0,), "draws": (1,)}
PASS = (1, 5, 10, 100)  # k of pass@k, as far as there are so many draws
NUCLEUS = 0.95
FAULTS = ("SyntaxError", "IndentationError", "ModuleNotFoundError", "ImportError", "MemoryError", "RecursionError")
WORKERS = 8  # at most, and one for each core: limits are by the clock, and no answer pays for its neighbours' work
LATE = "timed out"


class Code:
    """The task family `code`; a part is a benchmark."""

    name = "code"
    version = 1
    licence = "MIT (HumanEval, CRUXEval), CC BY 4.0 (MBPP), Apache-2.0 (EvalPlus); given by the user, never shipped"
    source = "arXiv 2107.03374, 2108.07732, 2305.01210, 2401.03065; prompts as lm-eval 0.4.13, CRUXEval's as upstream"
    needs = "humaneval, humaneval_plus, mbpp, mbpp_plus, cruxeval (--data NAME=PATH or hub)"
    revisions = staticmethod(revisions)

    def subtasks(self) -> tuple[str, ...]:
        """The benchmarks."""
        return tuple(PARTS)

    def knobs(self) -> Mapping[str, tuple[Facet, ...]]:
        """`shots` of MBPP, `temperature`, and `draws`, answers to each problem."""
        return KNOBS

    def cells(self, request: Request) -> Sequence[Cell]:
        """One cell for every part, temperature, number of shots and draw. Raises UserError for what does not exist."""
        for part in request.subtasks:
            if part not in PARTS:
                raise unknown("subtask", f"code.{part}", (f"code.{name}" for name in PARTS))
        self._check(request)
        knobs = {**KNOBS, **request.knobs}
        missing = self.missing(request)
        return [
            Cell(f"code.{part}", {**({"shots": shots} if bench.shots else {}), "temperature": heat, "draw": draw})
            for part, bench in PARTS.items()
            if part in (request.subtasks or PARTS) and not {"code", f"code.{part}"} & missing.keys()
            for shots in (knobs["shots"] if bench.shots else (0,))
            for heat in map(float, knobs["temperature"])
            for draw in range(max(int(each) for each in knobs["draws"]))
        ]

    def _check(self, request: Request) -> None:
        for knob, values in request.knobs.items():
            if knob not in KNOBS:
                raise unknown("knob", f"code.{knob}", (f"code.{name}" for name in KNOBS))
            for value in values:
                least, most = {"shots": (0, 3), "temperature": (0, 2), "draws": (1, 1000)}[knob]
                whole = isinstance(value, int) or (knob == "temperature" and isinstance(value, float))
                if not whole or not least <= float(value) <= most:
                    raise UserError(f"code.{knob}={value} is not possible; choose {least} to {most}")
        many = max(int(each) for each in request.knobs.get("draws", (1,)))
        if many > 1 and not all(map(float, request.knobs.get("temperature", (0.0,)))):
            raise UserError(
                f"code.draws={many} at temperature 0 would be one answer {many} times; add --set code.temperature=0.8"
            )

    def missing(self, request: Request) -> Mapping[str, str]:
        """Parts without data, the family where there are no data at all or a wording that has no such problems."""
        if request.wording != "natural":
            return {"code": "its problems are in English and Python, which a model of the closed lexicon does not read"}
        named = set(request.subtasks or PARTS) != set(PARTS)
        if not named and not {bench.data for bench in PARTS.values()} & request.data.keys():
            return {"code": f"no data given; it takes {self.needs}"}
        lacks = {f"code.{part}": self._lack(PARTS[part], request, named) for part in request.subtasks or PARTS}
        return {part: lack for part, lack in lacks.items() if lack}

    def _lack(self, bench: Benchmark, request: Request, named: bool) -> str:
        """What a part lacks; with all advice only where somebody has named it."""
        if bench.data not in request.data:
            return f"no {bench.data} given; {bench.advice}" if named else f"no --data {bench.data} given"
        try:
            load(bench, request.data[bench.data])
            shots = max(map(int, request.knobs.get("shots", KNOBS["shots"]))) if bench.shots else 0
            if shots and functions.SHOTS.data not in request.data:
                return f"no mbpp given for its examples; {functions.MBPP.advice}, or --set code.shots=0"
            if shots:
                _examples(request.data[functions.SHOTS.data], shots)
        except UnreachableError as error:
            return str(error)
        return ""

    def sample(self, cell: Cell, index: int, request: Request, count: Count) -> Sample:
        """Problem `index` of a shuffled order, the same in every draw. `count` does not matter."""
        bench = PARTS[cell.task.partition(".")[2]]
        problem = order(bench, request.data[bench.data], request.seed)[index]
        shots = int(cell.facets.get("shots", 0))
        examples = _examples(request.data[functions.SHOTS.data], shots) if shots else ""
        heat = float(cell.facets["temperature"])
        return Sample(
            id=sample_id(cell.task, cell.facets, index),
            task=cell.task,
            prompt=examples + problem.prompt,
            answer_prefix=problem.prefix,
            target=(problem.reference,),
            cluster=f"{cell.task}/{problem.name}",
            facets={**cell.facets, "problem": problem.name},
            max_new_tokens=bench.room,
            stop=bench.stop,
            meta=asdict(problem),
            temperature=heat,
            top_p=NUCLEUS if heat else 1.0,
        )

    def tier(self) -> str:
        """The sandbox in which answers run. Raises UserError where there is none."""
        return sandbox.chosen()

    def score(self, sample: Sample, completion: Completion) -> Score:
        """1 where the program passes all tests."""
        if completion.error:
            return Score(sample.id, 0.0)
        return self.scores([(sample, completion)])[0]

    def scores(self, answered: Sequence[tuple[Sample, Completion]]) -> Sequence[Score]:
        """Judge programs in the sandbox, several at a time. `detail["reason"]` says why one has failed.

        What timed out among others is judged once more, alone, before it counts; `detail["judged"]` says how often.
        Raises UserError where the fault is the test's: no answer could pass it.
        """
        jobs = {}
        found = [Score(sample.id, 0.0, "", {"reason": "no answer"}) for sample, _ in answered]
        for i, (sample, completion) in enumerate(answered):
            bench = PARTS[sample.task.partition(".")[2]]
            problem = Problem(**sample.meta)
            try:
                code = bench.code(completion.text, problem)
            except ValueError as error:
                found[i] = Score(sample.id, 0.0, "", {"reason": str(error)})
                continue
            if code is not None:
                jobs[i] = problem.job(code, bench.seconds(problem))
        verdicts = dict(
            zip(jobs, sandbox.judge_many(list(jobs.values()), min(WORKERS, os.cpu_count() or 1)), strict=True)
        )
        late = [i for i, verdict in verdicts.items() if len(jobs) > 1 and verdict.reason.startswith(LATE)]
        verdicts |= {i: sandbox.judge_many([jobs[i]], 1)[0] for i in late}
        for i, verdict in verdicts.items():
            reason = verdict.reason or "passed"
            if reason.startswith(FAULTS) and (why := fault(jobs[i].test)):  # else the answer itself is to blame
                name = answered[i][0].facets["problem"]
                raise UserError(f"{name} cannot be judged: {why}; mend that and run again")
            found[i] = Score(
                answered[i][0].id, float(verdict.passed), "", {"reason": reason, "judged": 1 + (i in late)}
            )
        return found

    def averages(self, judged: Sequence[Judged]) -> Mapping[str, str]:
        """pass@k in percent with its 95 % interval, for every k up to the draws that each problem has.

        It is the mean of the problems' own rates, so that a problem with more draws weighs no more. For a k that only
        some problems have draws for, it is said why there is none.
        """
        groups: dict[str, dict[str, list[float]]] = {}
        for each in judged:
            setting = ", ".join(
                f"{knob} {each.facets[knob]:g}" for knob in ("shots", "temperature") if _unusual(each, knob)
            )
            name = each.task.partition(".")[2] + (f" ({setting})" if setting else "")
            groups.setdefault(name, {}).setdefault(str(each.facets["problem"]), []).append(each.score)
        figures = {}
        for name, problems in groups.items():
            many = [len(draws) for draws in problems.values()]
            draws, few = min(many), many.count(min(many))
            for k in (k for k in PASS if k <= draws):
                found = stats.estimate([stats.pass_at_k(len(s), round(sum(s)), k) for s in problems.values()])
                interval = f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"
                figures[f"{name} pass@{k}"] = f"{100 * found.value:.1f} {interval}"
            for k in (k for k in PASS if draws < k <= max(many)):
                figures[f"{name} pass@{k}"] = f"- ({few} of {len(many)} problems have {draws} draws)"
        return figures


def _unusual(each: Judged, knob: str) -> bool:
    return knob in each.facets and each.facets[knob] != KNOBS[knob][0]


def _examples(source: str, shots: int) -> str:
    """MBPP's examples, problems 2, 3 and 4, from its split `prompt` or from a file that holds all. Raises UserError."""
    bench = functions.SHOTS
    try:
        found = load(bench, source, "prompt")
    except UnreachableError:
        raise
    except UserError as error:
        raise UserError(f"{source} has no examples 2, 3 and 4 for MBPP's prompt; take --set code.shots=0") from error
    if len(found) < shots:
        raise UserError(f"{source} has {len(found)} examples for MBPP's prompt, not {shots}; take --set code.shots=0")
    return "".join(problem.example for problem in list(found.values())[:shots])
