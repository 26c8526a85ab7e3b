"""A method of one instance that calls other functions than its class's does."""

from collections.abc import Callable
from functools import update_wrapper
from types import CellType, FunctionType
from typing import Any

from evalsuite.errors import UserError


def rebound(function: Callable[..., Any], names: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """`function` as a new one that finds `names` instead of its module's globals of these names; decorators that keep
    `__wrapped__` stay around it. The module itself is left as it is, so that other models call what they called.

    Raises:
        UserError: the function does not read all these names, so that something would be left as it was.
    """
    inner = getattr(function, "__wrapped__", None)
    if inner is None:
        missing = sorted(set(names) - set(function.__code__.co_names))
        if missing:
            raise _strange(function, f"does not call {', '.join(missing)}")
        return _again(function, {**function.__globals__, **names}, function.__closure__)
    cells = function.__closure__ or ()
    if not any(cell.cell_contents is inner for cell in cells):
        raise _strange(function, "is wrapped by something that hides what it calls")
    new = rebound(inner, names)
    outer = _again(
        function, function.__globals__, tuple(CellType(new) if c.cell_contents is inner else c for c in cells)
    )
    outer.__wrapped__ = new  # type: ignore[attr-defined]
    return outer


def _again(function: Callable[..., Any], names: dict[str, Any], closure: tuple[CellType, ...] | None) -> FunctionType:
    new = FunctionType(function.__code__, names, function.__name__, function.__defaults__, closure)
    new.__kwdefaults__ = function.__kwdefaults__
    return update_wrapper(new, function)  # type: ignore[return-value]


def _strange(function: Callable[..., Any], what: str) -> UserError:
    from transformers import __version__

    return UserError(
        f"{function.__qualname__} of transformers {__version__} {what}; "
        "nothing was swapped: take transformers 5.17 to 5.23, or leave the kernels out"
    )
