"""Programs that are followed line by line: what a variable, an element or a stack holds at the end.

Preview: `python -m evalsuite_tasks.trace swap --steps 16 --variables 8 --length 256 --wording terse`.
"""

from evalsuite_tasks.trace.task import Trace

__all__ = ["Trace"]
