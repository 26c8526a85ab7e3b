"""Loads leaf tasks of lm_eval at the lengths asked for, where they size their own texts, and says where they do not.

lm_eval hands lengths to such tasks as metadata, `max_seq_lengths`: its ruler takes a list of numbers, its babilong one
word such as `4k`. ruler makes the texts of several lengths in turn, shortest first, from one random generator, and
`limit` takes the first: so each length is loaded by itself here.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from evalsuite.integrations.lm_eval.parts import reason

LENGTHS = "max_seq_lengths"
NAMED = 3  # tasks that a line names


class Sizes:
    """Leaf tasks by (name, length in tokens; 0 where their texts tell none), and why others could not be made."""

    def __init__(self, manager: Any, metadata: dict[str, Any], lengths: Sequence[int]) -> None:
        """`metadata` is the manager's own: what stands in it when a task is loaded is what the task is handed."""
        self.manager, self.metadata, self.lengths = manager, metadata, lengths
        self.found: dict[tuple[str, int], Any] = {}
        self.failed: dict[tuple[str, int], str] = {}  # the length is 0 where no length could be made
        self.versions: dict[str, object] = {}  # of leaf tasks, and of those that failed
        self.sized: set[str] = set()

    def load(self, name: str, seeded: Callable[[], AbstractContextManager[None]]) -> None:
        """Load a task, or a group as a whole, once for each length if it takes any: under the seeds each time, so that
        a text depends on no other task, no other length, and not on whether another's data are there."""
        about = self._entry(name)
        takes = "custom_dataset" in about or "dataset_path" not in about  # what lm_eval downloads reads no metadata
        lengths = (takes and self.lengths) or (0,)
        failed: dict[int, str] = {}
        leaves: list[str] = []
        for length in lengths:
            try:
                with seeded():
                    tasks, word = self._made(name, length)
            except Exception as error:  # of any library that a data set is read with
                failed[length] = reason(error)
                continue
            leaves = list(tasks)
            own = {leaf: _own_length(task) or (length if word else 0) for leaf, task in tasks.items()}
            self.found |= {(leaf, own[leaf]): task for leaf, task in tasks.items()}
            self.versions |= {leaf: task.VERSION for leaf, task in tasks.items()}
            self.sized |= {leaf for leaf in tasks if own[leaf]}
            if length not in own.values():
                return
        if not leaves:
            self.failed[name, 0] = next(iter(failed.values()))
            self.versions[name] = (about.get("metadata") or {}).get("version")
        else:
            self.failed |= {(leaf, length): why for length, why in failed.items() for leaf in leaves}

    def unheeded(self) -> dict[str, str]:
        """What was asked of texts that are as lm_eval has them -> one line that says so."""
        loose = list(dict.fromkeys(leaf for leaf, length in self.found if length not in self.lengths))
        told: dict[str, str] = {}
        if self.lengths and loose:
            some = ", ".join(loose[:NAMED]) + (", ..." if len(loose) > NAMED else "")
            who = "its texts" if len(loose) == len(self.found) else f"texts of {some}"
            told[f"with lengths {', '.join(map(str, self.lengths))}"] = (
                f"{who} have the lengths that lm_eval gives them, and are asked as they are"
            )
        if self.found and "tokenizer" in self.metadata and not any(map(_custom, self.found.values())):
            told["with a tokenizer"] = "it sizes no texts, and uses none; leave --set ...tokenizer out"
        return told

    def _made(self, name: str, length: int) -> tuple[dict[str, Any], bool]:
        """Leaf tasks at a length, and whether they took it as a word."""
        if not length:
            return self.manager.load([name])["tasks"], False
        try:
            self.metadata[LENGTHS] = [length]
            return self.manager.load([name])["tasks"], False
        except Exception:
            if length % 1024:
                raise
            self.metadata[LENGTHS] = f"{length // 1024}k"
            try:
                return self.manager.load([name])["tasks"], True
            except Exception:
                self.metadata[LENGTHS] = [length]
            raise

    def _entry(self, name: str) -> dict[str, Any]:
        entry = self.manager.task_index.get(name)
        return dict((entry and entry.cfg) or {})


def _custom(task: Any) -> bool:
    return getattr(task.config, "custom_dataset", None) is not None


def _own_length(task: Any) -> int:
    """The one length that all texts of a task say they are made for, as ruler's do; 0 where they say none."""
    if not _custom(task):
        return 0
    docs = task.eval_docs
    told = set(docs["max_length"]) if "max_length" in (getattr(docs, "column_names", None) or ()) else set()
    (length,) = told if len(told) == 1 else (0,)
    return length if isinstance(length, int) else 0
