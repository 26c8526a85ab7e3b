"""Code out of what a model says around it: fences, and tags that it repeats."""

import ast
import re
from collections.abc import Callable, Iterator, Set

from evalsuite_tasks.code.problems import parsed

FENCE = re.compile(r"^[ \t]*```[^`\n]*$", re.MULTILINE)
FENCES = 40  # lines of them that are looked at


def code(said: str, fits: Callable[[ast.Module], bool]) -> str:
    """All that is said where it is Python; else the first fence that fits, or is Python, or the first of all."""
    if parsed(said) is not None:
        return said
    inside = list(_inside(said.replace("\r\n", "\n")))
    trees = [parsed(each) for each in inside]
    python = [each for each, tree in zip(inside, trees, strict=True) if tree is not None and tree.body]
    fitting = [each for each, tree in zip(inside, trees, strict=True) if tree is not None and fits(tree)]
    return next(iter([*fitting, *python, *inside, said]))


def _inside(said: str) -> Iterator[str]:
    """What may stand in a fence, from each of them to each later one, nearest first: a docstring may hold some too."""
    fences = list(FENCE.finditer(said))[:FENCES]
    for i, fence in enumerate(fences):
        for end in fences[i + 1 :]:
            yield said[fence.end() + 1 : end.start()]
        yield said[fence.end() + 1 :]


def defined(tree: ast.Module) -> Set[str]:
    """The names that a program gives a meaning at its top level."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {each.id for each in node.targets if isinstance(each, ast.Name)}
    return names
