"""`python -m evalsuite_tasks.multihop SUBTASK`: print one sample."""

from evalsuite_tasks.multihop import Multihop
from evalsuite_tasks.multihop.preview import preview

preview(Multihop())
