"""Print one RULER sample: `python -m evalsuite_tasks.ruler niah_multikey_1 --length 512 --wording terse`."""

import argparse
import sys

from evalsuite.errors import UserError
from evalsuite.task import Request
from evalsuite_tasks.ruler import Ruler
from evalsuite_tasks.ruler.specs import HAYSTACKS, TASKS, VARIANTS


def main() -> int:
    """Parse the command line, print the sample; words stand in for tokens."""
    parser = argparse.ArgumentParser(prog="python -m evalsuite_tasks.ruler", description=__doc__)
    parser.add_argument("subtask", choices=TASKS)
    parser.add_argument("--length", type=int, default=512, help="words of prompt and answer (default: 512)")
    parser.add_argument("--wording", choices=("natural", "terse"), default="natural")
    parser.add_argument("--variant", choices=VARIANTS, default="default")
    parser.add_argument("--haystack", choices=HAYSTACKS, default="paper")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH", help="essays, squad or hotpotqa")
    args = parser.parse_args()
    task = Ruler()
    request = Request(
        (args.subtask,),
        (args.length,),
        {"variant": (args.variant,), "haystack": (args.haystack,)},
        dict(pair.split("=", 1) for pair in args.data if "=" in pair),
        args.seed,
        args.wording,
    )
    try:
        for name, lack in task.missing(request).items():
            raise UserError(f"{name}: {lack}")
        cell = task.cells(request)[0]
        sample = task.sample(cell, args.index, request, lambda text: len(text.split()) + 1)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(sample.id, sample.text, f"target: {', '.join(sample.target)}", f"facets: {dict(sample.facets)}", sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
