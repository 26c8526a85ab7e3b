"""The demo's own command, and its questions."""

import os
import shlex
from itertools import pairwise
from pathlib import Path

from evalsuite import plan
from evalsuite.plan import Plan

ROOT = Path(__file__).parents[2]
WHOLE = bool(os.environ.get("EVALSUITE_WHOLE"))  # tests of the demo's size ask all of it, for hours


def command() -> list[str]:
    """The arguments of the demo as the Makefile has them."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    chosen = next(line.partition(":= ")[2] for line in lines if line.startswith("DEMO :="))
    asked = next(line for line in lines if "run $(DEMO)" in line)
    return shlex.split(asked.strip().replace("$(BIN)/evalsuite", "").replace("$(DEMO)", chosen))


def questions(limit: int = 0, length: str = "") -> Plan:
    """The questions of the demo's command; `limit` in each cell, of `length` tokens, where they are given."""
    given = dict(pairwise(command()))
    lengths = plan.parse_lengths(length or given["--lengths"])
    names = given["--tasks"].split(",")
    return plan.make(plan.select(names, lengths=lengths, limit=limit or int(given["--limit"])), "terse")
