"""Prints one sample: what `python -m evalsuite_tasks.<family> SUBTASK [--length N] [--KNOB VALUE]` does."""

import argparse
import re
import sys

from evalsuite.errors import UserError
from evalsuite.task import Request, Task


def _value(text: str) -> str | int:
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def words(text: str) -> int:
    """Words and punctuation marks, and one more for the beginning: the token count of a preview."""
    return len(re.findall(r"\w+|[^\w\s]+", text)) + 1


def preview(task: Task, argv: list[str] | None = None) -> None:
    """Print one sample of `task` as the command line asks for it."""
    parser = argparse.ArgumentParser(prog=f"python -m evalsuite_tasks.{task.name}", description="Print one sample.")
    parser.add_argument("subtask", choices=task.subtasks())
    parser.add_argument("--length", type=int, help="tokens; a word counts as one")
    parser.add_argument("--wording", choices=("natural", "terse"), default="natural")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", type=int, default=0)
    for knob, values in task.knobs().items():
        parser.add_argument(f"--{knob}", type=_value, help=f"default {values[0]}")
    args = parser.parse_args(argv)
    given = {knob: (getattr(args, knob),) for knob in task.knobs() if getattr(args, knob) is not None}
    lengths = (args.length,) if args.length else ()
    request = Request((args.subtask,), lengths, given, seed=args.seed, wording=args.wording)
    try:
        cells = task.cells(request)
        if not cells:
            raise UserError("; ".join(dict.fromkeys(task.missing(request).values())))
        sample = task.sample(cells[0], args.index, request, words)
    except UserError as error:
        sys.exit(f"{parser.prog}: {error}")
    print(sample.prompt + sample.answer_prefix)
    print()
    print(f"# id: {sample.id}")
    print(f"# target: {' | '.join(sample.target)}   chance: {cells[0].chance:.3f}")
    if sample.choices:
        print(f"# choices: {', '.join(map(repr, sample.choices))}")  # with the space that each begins with
    print(f"# facets: {dict(sample.facets)}")
    print(f"# tokens: {words(sample.text)} + {sample.max_new_tokens} new")
