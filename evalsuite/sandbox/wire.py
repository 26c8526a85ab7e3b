"""Plain values as tagged JSON, and the frames that carry them. Both sides of the sandbox's wall run this file.

None, bool, int up to 64 bits, float and str are JSON's own. Everything else is a list whose first item is a tag:
i int, c complex, b bytes, y bytearray, l list, t tuple, s set, z frozenset, d dict, r range, q dict_keys,
v dict_values, w dict_items, k a builtin type by its name. Other tags are left to the caller's `other`. Decoding makes
exact builtins and nothing else, whatever was sent. A frame is four bytes of length, most significant first, and ASCII.

Inside the sandbox there is no package to import from and no time for the json module, which brings `re` with it: only
json's compiled parts are used.
"""

from __future__ import annotations

import os
from _json import encode_basestring_ascii as quote
from _json import make_scanner

TYPE_CHECKING = False  # typing and collections.abc would cost the sandbox more than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Other = Callable[[Any], list[Any]]

FRAME = 8 << 20  # bytes of one message
DEPTH = 100  # containers within containers
BITS = 1 << 17  # of an int

TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, object)
}
TYPES["NoneType"] = type(None)


class WireError(Exception):
    """What was to be sent, or what came, is no plain value within the bounds."""


class _Json:
    """What the compiled scanner asks of its owner."""

    strict, object_hook, object_pairs_hook = True, None, None
    parse_float, parse_int = float, int
    parse_constant = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}.__getitem__


_scan: Callable[[str, int], tuple[Any, int]] = make_scanner(_Json())  # type: ignore[arg-type]


def parse(text: str) -> Any:
    """JSON text as a tree of lists, numbers and strings. Raises WireError."""
    try:
        tree, end = _scan(text, 0)
    except (StopIteration, ValueError, KeyError, RecursionError, MemoryError):
        raise WireError("it is not JSON") from None
    if end != len(text):
        raise WireError("it is not JSON")
    return tree


def encode(value: Any, other: Other, depth: int = DEPTH) -> str:
    """`value` as text. What is no plain value goes through `other`, which gives a list of strings and ints.

    A subclass is sent as its base: its content is read by the base's own methods, never by those it defines.
    Raises WireError for too deep a value or too large an int.
    """
    kind = type(value)
    if kind in _SCALARS:
        return _SCALARS[kind](value)
    if depth <= 0:
        raise WireError(f"it is nested more than {DEPTH} deep")
    if kind in _ROWS:
        tag, items = _ROWS[kind]
        return f'["{tag}"{"".join([", " + encode(item, other, depth - 1) for item in items(value)])}]'
    if kind is type and value in TYPES.values():
        return f'["k", "{value.__name__}"]'
    base = _base(value, kind)
    if base is not value:
        return encode(base, other, depth)
    return f"[{', '.join(quote(item) if type(item) is str else str(int(item)) for item in other(value))}]"


def _integer(value: int) -> str:
    if value.bit_length() > BITS:
        raise WireError(f"it is an int of more than {BITS} bits")
    return str(value) if value.bit_length() < 64 else f'["i", "{value:x}"]'


def _real(value: float) -> str:
    return float.__repr__(value).replace("inf", "Infinity").replace("nan", "NaN")


_SCALARS: dict[type, Callable[[Any], str]] = {
    type(None): lambda value: "null",
    bool: lambda value: "true" if value else "false",
    int: _integer,
    float: _real,
    str: quote,
    bytes: lambda value: f'["b", "{value.hex()}"]',
    bytearray: lambda value: f'["y", "{value.hex()}"]',
    complex: lambda value: f'["c", {_real(value.real)}, {_real(value.imag)}]',
    range: lambda value: f'["r", {_integer(value.start)}, {_integer(value.stop)}, {_integer(value.step)}]',
}
_ROWS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    list: ("l", list),
    tuple: ("t", list),
    set: ("s", list),
    frozenset: ("z", list),
    type({}.keys()): ("q", list),
    type({}.values()): ("v", list),
    dict: ("d", lambda value: [part for pair in value.items() for part in pair]),
    type({}.items()): ("w", lambda value: [part for pair in value for part in pair]),
}


def _base(value: Any, kind: type) -> Any:
    """The content of a subclass of a plain type, by that type's own methods; any other value itself."""
    for base, plain in (
        (int, lambda: int.__pos__(value)),
        (float, lambda: float.__pos__(value)),
        (complex, lambda: complex.__pos__(value)),
        (str, lambda: str.__getitem__(value, slice(None))),
        (bytes, lambda: bytes.__getitem__(value, slice(None))),
        (bytearray, lambda: bytearray.__getitem__(value, slice(None))),
        (list, lambda: [*list.__iter__(value)]),
        (tuple, lambda: (*tuple.__iter__(value),)),
        (dict, lambda: dict(dict.items(value))),
        (set, lambda: {*set.__iter__(value)}),
        (frozenset, lambda: frozenset([*frozenset.__iter__(value)])),
    ):
        if issubclass(kind, base):
            return plain()
    return value


def decode(tree: Any, other: Callable[[list[Any]], Any], depth: int = DEPTH) -> Any:
    """The value of a parsed message. A list with a foreign tag goes through `other`. Raises WireError."""
    if type(tree) is not list:
        if type(tree) is dict:
            raise WireError("it has an unknown form")
        return tree
    if depth <= 0:
        raise WireError(f"it is nested more than {DEPTH} deep")
    try:
        return _rebuild(tree[0], tree[1:], other, depth - 1)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        raise WireError("it has an unknown form") from None


def _rebuild(tag: Any, rest: list[Any], other: Callable[[list[Any]], Any], depth: int) -> Any:
    if tag in _MAKERS:
        return _MAKERS[tag]([decode(item, other, depth) for item in rest])
    if tag in _READERS:
        return _READERS[tag](*rest)
    return other([tag, *rest])


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _hexadecimal(digits: str) -> int:
    if len(digits) > BITS // 4 + 2:
        raise WireError(f"it is an int of more than {BITS} bits")
    return int(digits, 16)


_MAKERS: dict[str, Callable[[list[Any]], Any]] = {
    "l": list,
    "t": tuple,
    "s": set,
    "z": frozenset,
    "q": lambda items: dict.fromkeys(items).keys(),
    "v": lambda items: dict(enumerate(items)).values(),
    "d": _pairs,
    "w": lambda items: _pairs(items).items(),
    "r": lambda items: range(*items),
}
_READERS: dict[str, Callable[..., Any]] = {
    "i": _hexadecimal,
    "b": bytes.fromhex,
    "y": bytearray.fromhex,
    "c": lambda real, imaginary: complex(float(real), float(imaginary)),
    "k": TYPES.__getitem__,
}


def no_other(value: Any) -> Any:
    """For `other`, where plain values alone may pass. Raises WireError."""
    raise WireError("it is no plain value")


def send(to: int, text: str) -> None:
    """Write one frame. Raises WireError when it is too long, OSError when nobody reads."""
    if len(text) > FRAME:
        raise WireError(f"it is longer than {FRAME >> 20} MiB")
    data = memoryview(len(text).to_bytes(4, "big") + text.encode("ascii"))
    while data:
        data = data[os.write(to, data) :]


def receive(source: int) -> str | None:
    """Read one frame; None at the end. Raises WireError for one that is too long or no text."""
    head = take(source, 4)
    if len(head) < 4:
        return None
    size = int.from_bytes(head, "big")
    if size > FRAME:
        raise WireError(f"it is longer than {FRAME >> 20} MiB")
    data = take(source, size)
    if len(data) < size:
        return None
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise WireError("it is not ASCII") from None


def take(source: int, size: int) -> bytes:
    """Up to `size` bytes, fewer only at the end."""
    parts = []
    while size > 0:
        part = os.read(source, min(size, 1 << 20))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
