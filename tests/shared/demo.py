"""The demo's own command."""

import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command() -> list[str]:
    """The arguments of the demo as the Makefile has them."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    chosen = next(line.partition(":= ")[2] for line in lines if line.startswith("DEMO :="))
    asked = next(line for line in lines if "run $(DEMO)" in line)
    return shlex.split(asked.strip().replace("$(BIN)/evalsuite", "").replace("$(DEMO)", chosen))
