"""`python -m evalsuite_tasks.trace SUBTASK`: print one sample."""

from evalsuite_tasks.multihop.preview import preview
from evalsuite_tasks.trace import Trace

preview(Trace())
