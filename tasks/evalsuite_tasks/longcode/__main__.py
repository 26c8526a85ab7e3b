"""`python -m evalsuite_tasks.longcode SUBTASK`: print one sample."""

from evalsuite_tasks.longcode import LongCode
from evalsuite_tasks.multihop.preview import preview

preview(LongCode())
