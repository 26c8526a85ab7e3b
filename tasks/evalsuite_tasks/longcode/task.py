"""The task family `longcode`: what a long program says only when its parts are put together."""

from collections.abc import Mapping
from typing import ClassVar

from evalsuite.records import Facet
from evalsuite.task import Document
from evalsuite_tasks.longcode import documents
from evalsuite_tasks.longcode.aliases import ALIASES
from evalsuite_tasks.longcode.exploded import EXPLODED
from evalsuite_tasks.longcode.latent import LATENT
from evalsuite_tasks.trace.task import Programs

KINDS = {kind.name: kind for kind in (EXPLODED, ALIASES, LATENT)}


class LongCode(Programs):
    """Detectors in code: nothing a model writes is run. Natural text is Python, terse text the closed lexicon.

    A program is fixed by its knobs, and comments fill the length. `crux_exploded` is asked of the same module as
    exploded and inlined, and `aliases` of 0 to 4 hops at the end of the same text.
    """

    name = "longcode"
    version = 1
    licence = "Apache-2.0"
    source = "generated; after arXiv 2401.03065 (CRUXEval), 2409.12640 (Latent List) and 2402.13718 (code_run)"
    needs = ""
    kinds = KINDS
    parts: ClassVar = {kind.name: kind.knobs for kind in KINDS.values()}
    defaults: ClassVar[Mapping[str, tuple[Facet, ...]]] = {
        "hops": (1, 2, 4),
        "functions": (32,),
        "form": ("exploded", "inlined"),
        "overwrites": (1,),
        "steps": (1, 5, 20),
        "lists": (3,),
        "size": (6,),
    }
    words: ClassVar = {"form": ("exploded", "inlined")}
    least: ClassVar = {"hops": 0, "functions": 2, "overwrites": 0, "steps": 1, "lists": 1, "size": 1}

    def document(self, subtask: str, seed: int, index: int, budget: int, **knobs: Facet) -> Document:
        """Training document number `index`, at most `budget` words; no set of names is shared with an evaluation."""
        return documents.document(subtask, seed, index, budget, knobs)
