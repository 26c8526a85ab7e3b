"""`python -m evalsuite_tasks.code PART --data PATH`: do a benchmark's own answers pass here, with these data?

Prints every problem whose reference fails, with the reason, and how many pass; exit status 1 where one fails.
"""

import argparse
import sys
from itertools import count

from evalsuite.errors import UserError
from evalsuite.records import Completion, Sample
from evalsuite.task import Request
from evalsuite_tasks.code.task import PARTS, Code


def problems(part: str, source: str) -> list[Sample]:
    """Every problem of a benchmark, without examples. Raises UserError."""
    task, bench = Code(), PARTS[part]
    request = Request((part,), knobs={"shots": (0,)}, data={bench.data: source})
    if missing := task.missing(request):
        raise UserError("; ".join(missing.values()))
    (cell,) = task.cells(request)
    found: list[Sample] = []
    for index in count():
        try:
            found.append(task.sample(cell, index, request, len))
        except IndexError:
            return found
    raise AssertionError("a benchmark ends")


def main(argv: list[str] | None = None) -> int:
    """Judge the references of one benchmark; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m evalsuite_tasks.code", description="Judge a benchmark's own answers."
    )
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("--data", required=True, help="PATH or hub")
    args = parser.parse_args(argv)
    task = Code()
    try:
        asked = problems(args.part, args.data)
        scores = task.scores([(sample, Completion(sample.id, sample.target[0], 0)) for sample in asked])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for sample, score in zip(asked, scores, strict=True):
        if not score.value:
            print(f"{sample.facets['problem']}: {score.detail['reason']}")
    passed = sum(score.value > 0 for score in scores)
    print(f"{args.part}: {passed} of {len(scores)} reference answers pass in {task.tier()}")
    return int(passed < len(scores))


if __name__ == "__main__":
    sys.exit(main())
