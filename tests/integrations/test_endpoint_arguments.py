"""What is typed after `openai:`, and what a generated text is read as."""

import subprocess
import sys

import pytest

from evalsuite.errors import UserError
from evalsuite.integrations.endpoint.choices import chosen
from evalsuite.models import load


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("", "needs base_url"),
        ("base_url=http://h/v1", "needs model"),
        ("base_url=h/v1,model=x", "base_url is no address"),
        ("base_url=http://me:hunter2@h/v1,model=x", "key_env=VARIABLE"),
        ("base_url=http://h/v1?key=hunter2,model=x", "key_env=VARIABLE"),
        ("base_url=http://h/v1,model=x,api_key=hunter2", "key_env=VARIABLE"),
        ("base_url=http://h/v1,model=x,concurency=3", "did you mean 'concurrency'"),
        ("base_url=http://h/v1,model=x,concurrency=0", "concurrency=0 is no whole number"),
        ("base_url=http://h/v1,model=x,rate=fast", "rate=fast is no number"),
        ("base_url=http://h/v1,model=x,chat=yes", "chat=yes is neither true nor false"),
        ("base_url=http://h/v1,model=x,wording=curt", "unknown wording 'curt'"),
        ("base_url=http://h/v1,model=x,context=", "context has no value"),
        ("base_url=http://h/v1,model=x,chat=true,choices=logprobs", "leave choices=logprobs or chat=true out"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_sent(args: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load(f"openai:{args}")
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_missing_package_is_one_line() -> None:
    code = (
        "import sys\nsys.modules['httpx2'] = None\n"
        "from evalsuite.models import load\nload('openai:base_url=http://h/v1,model=x')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert told.stderr.splitlines()[-1].endswith("needs httpx2; pip install 'evalsuite[endpoint]'")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (" A", " A"), ("A.", " A"), ("**B**", " B"), ("The answer is (B) because", " B"), ("Answer: A\nFor", " A"),
        ("A cat sat", None), ("b", None), ("", None), ("Both A and B", None), ("B) no", " B"), ("AB", None),
    ],
)  # fmt: skip
def test_a_generated_letter(text: str, wanted: str | None) -> None:
    assert chosen(text, (" A", " B")) == wanted


def test_a_generated_phrase() -> None:
    options = (" red", " red wine", " it's")
    assert [chosen(text, options) for text in ("red wine, please", "reddish", "Red", "It's", "it's so")] == [
        " red wine", None, None, None, " it's",
    ]  # fmt: skip
