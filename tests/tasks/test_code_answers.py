"""An answer is found in what a model says around it: in fences of any make, behind tags that it repeats."""

import json
from pathlib import Path

import pytest

from evalsuite import sandbox
from evalsuite.records import Completion, Sample
from evalsuite.task import Request, load

CODE = load("code")
needs_walls = pytest.mark.skipif(sandbox.tier().name == "none", reason=sandbox.tier().says)
ROWS = {
    "mbpp": {
        "task_id": 12,
        "text": "Add 12.",
        "code": "def twelve():\n    return 12\n\ndef plus(x):\n    return x + twelve()",
        "test_setup_code": "",
        "test_list": ["assert plus(1) == 13"],
    },
    "cruxeval": {"id": "sample_0", "code": "def f(x):\n    return x + 1", "input": "1", "output": "2"},
}
BODY = "def plus(x):\n    return x + 12"


def sample(part: str, tmp_path: Path) -> Sample:
    data = "mbpp" if part == "mbpp" else "cruxeval"
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[data]))
    request = Request((part,), data={data: str(tmp_path / "rows.jsonl")}, knobs={"shots": (0,)})
    (cell,) = CODE.cells(request)
    return CODE.sample(cell, 0, request, len)


RIGHT = {
    "bare": BODY,
    "py": f"```py\n{BODY}\n```",
    "Python": f"```Python\n{BODY}\n```\nDone.",
    "python3": f"```python3\n{BODY}\n```",
    "a space before the name": f"``` python\n{BODY}\n```",
    "a space after the name": f"```python \n{BODY}\n``` ",
    "lines of another system": f"Here:\r\n```python\r\n{BODY}\r\n```\r\n".replace("x):\n", "x):\r\n"),
    "a shell before": f"```bash\npip install plus\n```\nThen:\n```python\n{BODY}\n```",
    "an example before": f"So that\n```python\nplus(1)\n```\ngives 13:\n```python\n{BODY}\n```",
    "another after": f"Here:\n```\n{BODY}\n```\nNot:\n```\ndef plus(x): return 0\n```",
    "a docstring with a fence": 'def plus(x):\n    """Add.\n    ```\n    plus(1)\n    ```\n    """\n    return x + 12',
    "a fence and a docstring with one": f'```python\n"""Add.\n```\nplus(1)\n```\n"""\n{BODY}\n```\nDone.',
    "no end": f"```python\n{BODY}",
    "a repeated tag": f"[BEGIN]\n{BODY}\n",
    "a tag and a fence": f"[BEGIN]\n```python\n{BODY}\n```",
    "no function but a name": "Here:\n```python\nplus = lambda x: x + 12\n```",
}
WRONG = {
    "prose": "I add 12.",
    "an empty fence": "```\n```",
    "another function": "```python\ndef minus(x): return 13\n```",
}


@needs_walls
@pytest.mark.parametrize(("said", "score"), [*((x, 1.0) for x in RIGHT), *((x, 0.0) for x in WRONG)])
def test_mbpps_code_is_found(said, score, tmp_path):
    asked = sample("mbpp", tmp_path)
    assert CODE.score(asked, Completion(asked.id, {**RIGHT, **WRONG}[said], 1)).value == score


@needs_walls
@pytest.mark.parametrize("part", ["cruxeval_output", "cruxeval_input"])
@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "{}\n[/ANSWER]",
        "[ANSWER]\n{}\n[/ANSWER]\nThat is all.",
        "```python\n{}\n```",
        "[ANSWER]\n``` py \r\n{}\r\n```\n[/ANSWER]",
        "```\n[ANSWER]\n{}\n[/ANSWER]\n```",
        "So:\n```python\n{}\n```\nas f adds one.",
    ],
)
def test_cruxevals_answer_is_found(part, around, tmp_path):
    asked = sample(part, tmp_path)
    for said, score in (("assert f(1) == 2", 1.0), ("assert f(2) == 3", 0.0)):
        assert CODE.score(asked, Completion(asked.id, around.format(said), 1)).value == score
