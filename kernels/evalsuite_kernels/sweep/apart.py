"""Work in processes of their own: a kernel that crashes or hangs there costs nothing but itself."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from evalsuite_kernels.sweep.common import Row

WORKERS = min(12, os.cpu_count() or 1)
PROGRAM = """
import importlib, json, sys
place, name, arguments = json.loads(sys.stdin.read())
row = getattr(importlib.import_module(place), name)(*arguments)
print()
print(json.dumps(row))
"""


def apart(place: str, name: str, arguments: Sequence[Any], seconds: float = 180.0) -> Row:
    """The row that function `name` of module `place` gives for `arguments` (what JSON can carry), or {"error"}."""
    try:
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=json.dumps([place, name, arguments]),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {seconds:.0f} s"}
    if result.returncode:
        last = result.stderr.strip().splitlines()[-1:] or [""]
        return {"error": f"exit status {result.returncode}: {last[0][:300]}"}
    row: Row = json.loads(result.stdout.strip().splitlines()[-1])
    return row


def all_apart(place: str, name: str, jobs: Sequence[Sequence[Any]], seconds: float = 180.0) -> list[Row]:
    """`apart` for each of `jobs`, a few at a time: to check and compile, not to time."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(lambda arguments: apart(place, name, arguments, seconds), jobs))
