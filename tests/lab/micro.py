"""A budget of seconds, and a run of it as a program: `python micro.py OUT`."""

import sys
from dataclasses import replace
from pathlib import Path

from evalsuite.lab.budget import TINY
from evalsuite.lab.equal import Machine, run
from evalsuite.lab.probe import Questions

QUESTIONS = (Questions("multihop.graph", 8, (96,), ("multihop.hops=1,2", "multihop.facts=12")),)
MICRO = replace(
    TINY, width=32, head=16, steps=30, tokens=384, designs={"FF": 2, "CF": 1}, probes=QUESTIONS, questions=QUESTIONS,
    warmup=5, gate_hops=(1, 2),
)  # fmt: skip
LONG = replace(MICRO, steps=300, designs={"FF": 1, "KF": 1})

if __name__ == "__main__":
    run(LONG, LONG.designs, Path(sys.argv[1]), Machine(("cpu",) * 2), print)
