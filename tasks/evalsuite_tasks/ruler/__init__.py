"""RULER: thirteen synthetic long-context tasks (Hsieh et al. 2024, arXiv 2404.06654)."""

from evalsuite_tasks.ruler.task import Ruler

__all__ = ["Ruler"]
