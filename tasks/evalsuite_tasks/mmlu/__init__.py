"""MMLU and its descendants: what was learned, asked by letter, by text, and behind a long text."""

from evalsuite_tasks.mmlu.pro import Pro
from evalsuite_tasks.mmlu.task import Mmlu, Redux

__all__ = ["Mmlu", "Pro", "Redux"]
