"""HumanEval and MBPP are asked byte for byte as lm-eval asks them."""

import gzip
import json
import os
from functools import cache
from pathlib import Path

import pytest

from evalsuite.task import Request, load

DATA = os.environ.get("EVALSUITE_DATA", "")


def _rows(name):
    with gzip.open(f"{DATA}/{name}.jsonl.gz", "rt") as file:
        return list(map(json.loads, file))


@pytest.mark.skipif(not DATA, reason="EVALSUITE_DATA is not set: no problems to ask")
@pytest.mark.filterwarnings("ignore")  # lm-eval's
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_prompts_and_stops_are_lm_evals(name, monkeypatch):
    import datasets
    import evaluate
    from lm_eval import tasks, utils

    rows = [row for row in _rows(name) if name == "humaneval" or 11 <= row["task_id"] <= 510]

    class Unused:
        def compute(self, **_):
            return ({"pass@1": 1.0},)

    table = datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    monkeypatch.setattr(evaluate, "load", lambda *_: Unused())  # it would fetch a metric, which nothing here asks
    monkeypatch.setattr(utils.env, "from_string", cache(utils.env.from_string))
    folder = Path(tasks.__file__).parent / name
    manager = tasks.TaskManager(include_path=str(folder), include_defaults=False)
    (theirs,) = tasks.get_task_dict([name], manager).values()
    theirs.build_all_requests()
    expected = {each.args[0] for each in theirs.instances}
    code, request = load("code"), Request((name,), data={name: f"{DATA}/{name}.jsonl.gz"})
    (cell,) = code.cells(request)
    asked = [code.sample(cell, i, request, len) for i in range(len(rows))]
    assert len(expected) == {"humaneval": 164, "mbpp": 500}[name]
    assert {sample.text for sample in asked} == expected
    assert list(asked[0].stop) == theirs.instances[0].args[1]["until"]
