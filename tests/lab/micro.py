"""A budget of seconds, and a run of it as a program: `python micro.py OUT`, or with the reference's models on GPUs
`python micro.py OUT cuda`."""

import sys
from dataclasses import replace
from pathlib import Path

from evalsuite.lab.budget import REFERENCE, TINY
from evalsuite.lab.equal import Machine, run
from evalsuite.lab.probe import Questions

QUESTIONS = (Questions("multihop.graph", 8, (96,), ("multihop.hops=1,2", "multihop.facts=12")),)
MICRO = replace(
    TINY, width=32, head=16, steps=30, tokens=384, designs={"FF": 2, "CF": 1}, probes=QUESTIONS, questions=QUESTIONS,
    warmup=5, gate_hops=(1, 2),
)  # fmt: skip
LONG = replace(MICRO, steps=300, designs={"FF": 1, "KF": 1})

GPU = replace(  # the reference's batches, so that what is compiled for those serves here
    REFERENCE, steps=600, rates=(2e-3,), designs={"full": 1, "hybrid-kda-dsa": 1}, probes=QUESTIONS,
    questions=QUESTIONS, warmup=50, gate_hops=(1, 2),
)  # fmt: skip

if __name__ == "__main__":
    gpu = sys.argv[2:] == ["cuda"]
    machine = Machine.found("cuda", 2) if gpu else Machine(("cpu",) * 2)
    budget = GPU if gpu else LONG
    run(budget, budget.designs, Path(sys.argv[1]), machine, print)
