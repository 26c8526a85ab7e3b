"""Multi-hop questions over facts in the prompt: the part of long context that cheap attention may lose.

Preview: `python -m evalsuite_tasks.multihop graph --hops 4 --facts 8 --length 256 --wording terse`.
"""

from evalsuite_tasks.multihop.task import Multihop

__all__ = ["Multihop"]
