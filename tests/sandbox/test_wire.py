"""Plain values go over the wire and come back the same; everything else is an error, and no harm."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalsuite.sandbox import wire

numbers = st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
texts = st.binary() | st.text(st.characters(codec=None, exclude_categories=()))
atoms = st.none() | st.booleans() | numbers | texts
keys = st.integers() | st.text() | st.tuples(st.integers(), st.text())
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys, inner)
        | st.sets(keys)
        | st.frozensets(keys)
    ),
    max_leaves=20,
)


def there_and_back(value: object) -> object:
    return wire.decode(wire.parse(wire.encode(value, wire.no_other)), wire.no_other)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(values)
def test_round_trip(value: object) -> None:
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


def test_what_equals_nothing_or_more_than_itself_comes_back_too() -> None:
    odd = [float("nan"), -0.0, True, 1, 1.0, "\udc80"]
    assert repr(there_and_back(odd)) == repr(odd)


def test_subclasses_are_read_by_their_bases_methods() -> None:
    class Liar(int):
        def __pos__(self) -> int:
            return 7

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    class Lists(list[int]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            raise AssertionError

    back = there_and_back([Liar(3), Lists([1, 2])])
    assert back == [3, [1, 2]]
    assert [type(part) for part in back] == [int, list]  # type: ignore[attr-defined]


BAD = [
    "", "1 2", "{", "[", "[]", "[[]]", '{"a": 1}', '["x"]', '["s", ["l"]]', '["r", "a"]', '["r", 1, 2, 0]',
    "[" * 100_000, "1" * 5000,
    '["c", "x", 1]', '["d", 1]', '["k", "eval"]', '["k", []]', '["b", 1]', '["b", "0"]', '["i", 1]',
    '["i", "zz"]', f'["i", "{"f" * 100_000}"]', '["l",' * 120 + '["l"]' + "]" * 120, '["d", ["l"], 1]', "Infinit",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_is_malformed_is_an_error(text: str) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(wire.parse(text), wire.no_other)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(alphabet='[]{}",:ltsdzcbikr0123456789.eEn -\\u', max_size=60))
def test_any_text_is_a_plain_value_or_an_error(text: str) -> None:
    try:
        value = wire.decode(wire.parse(text), wire.no_other)
    except wire.WireError:
        return
    assert type(value).__module__ == "builtins"


@pytest.mark.parametrize(
    "value", [1 << wire.BITS, object(), lambda: 0, iter([])], ids=["int", "object", "function", "iterator"]
)
def test_what_cannot_be_sent_is_an_error(value: object) -> None:
    with pytest.raises(wire.WireError):
        wire.encode([value], wire.no_other)


def test_a_list_within_itself_is_an_error() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(wire.WireError, match="nested"):
        wire.encode(loop, wire.no_other)
