"""Code whose meaning is scattered over a long context: functions among look-alikes, aliases, lists built step by step.

Preview: `python -m evalsuite_tasks.longcode crux_exploded --hops 4 --length 1024`.
"""

from evalsuite_tasks.longcode.task import LongCode

__all__ = ["LongCode"]
