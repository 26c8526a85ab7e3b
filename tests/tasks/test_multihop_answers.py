"""Reading answers: a denial is no answer, and talk about the answer is not its marker."""

import pytest

from evalsuite_tasks.multihop.answers import one_name


@pytest.mark.parametrize(
    ("text", "cot", "name"),
    [
        ("wona", False, "wona"),
        ("The answer is Wona.", False, "wona"),
        ("kozi -> wona", False, "wona"),
        ("The answer is not wona, I cannot tell", False, ""),
        ("It isn't wona", False, ""),
        ("wona or bazi", False, ""),
        ("Answer: wona\nThis answer follows from the arrows.", True, "wona"),
        ("Answer: wona. (I double-checked the answer)", True, "wona"),
        ("first bazi, then gebu\nThe answer is: wona", True, "wona"),
        ("Answer: bazi\nNo. Answer: wona", True, "wona"),
        ("Answer: the name is not wona", True, ""),
        ("wona, without a marker", True, ""),
    ],
)
def test_one_name(text: str, cot: bool, name: str) -> None:
    assert one_name(text, ("kozi",), cot=cot) == name
