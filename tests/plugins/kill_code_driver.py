"""One run of HumanEval whose every other answer is hostile, to be killed at any moment.

python kill_code_driver.py OUT DATA LIMIT DRAWS. An answer is a hash of its sample's id: the reference, or one of the
hacks that do not take their whole time, or, seldom, one that does.
"""

import hashlib
import runpy
import sys
from dataclasses import replace
from pathlib import Path

from evalsuite import plan, runner
from evalsuite.models.base import Speed
from evalsuite.records import Completion
from evalsuite_tasks.code import functions, task

FOUND = runpy.run_path(str(Path(__file__).parents[1] / "sandbox" / "hacks.py"))
HACKS = sorted(FOUND["HACKS"].items())


def answer(sample):
    """Whether it is honest, and the text."""
    number = int.from_bytes(hashlib.blake2b(sample.id.encode(), digest_size=8).digest())
    if number % 2:
        return True, sample.target[0]
    name, text = HACKS[number // 2 % len(HACKS)]
    if any(word in name for word in FOUND["SLOW"]) and number // 1000 % 4:
        name, text = HACKS[0]
    return False, f"    pass\n{text.replace('ENTRY', sample.meta['entry'])}"


class Half:
    """Half of its answers are honest."""

    name, context, wording = "half", 1 << 20, "natural"

    def __init__(self):
        self.speed = Speed()

    def identity(self):
        return {"weights": "none"}

    def count(self, text):
        return len(text.split())

    def cost(self, length):
        return {}

    def answer(self, samples):
        for sample in samples:
            yield Completion(sample.id, answer(sample)[1], 1, 1)


def main(out, data, limit, draws):
    """The run."""
    task.PARTS = {"humaneval": replace(functions.HUMANEVAL, seconds=lambda problem: 8.0)}
    settings = ["code.temperature=0.8", f"code.draws={draws}"]
    chosen = plan.select(["code.humaneval"], limit=int(limit), settings=settings, data=[f"humaneval={data}"])
    runner.POOL = 16
    runner.run(Half(), plan.make(chosen, "natural"), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
