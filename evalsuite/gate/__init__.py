"""The gate: one run against its baseline under a policy, ending in a verdict and an exit code.

`policy` reads the rules, `sides` and `pairs` say whether two runs may be compared at all, `decide` owns the statistics
of one family and `costs` speed and memory, `judge` puts the verdicts together, `outputs`, `junit` and `summary` write
them down, and `baseline` keeps what later runs are held against.
"""

from evalsuite.gate.judge import Report, judge
from evalsuite.gate.policy import Policy

__all__ = ["Policy", "Report", "judge"]
