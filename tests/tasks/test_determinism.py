"""Same bytes under any order of tasks, any limit, any number of workers and any PYTHONHASHSEED."""

import hashlib
import json
import os
import random
import subprocess
import sys

import pytest

from evalsuite.records import Sample
from evalsuite.task import Request, load

FAMILIES = ("multihop", "ruler", "knowledge", "trace", "longcode")
LENGTHS = {"natural": (2048,), "terse": (512,)}
LIMIT = 3


def words(text):
    return len(text.split()) + 1


def digest(sample: Sample) -> str:
    """Every byte of the sample, in one hash; how it is drawn is no part of a question that is answered greedily."""
    assert (sample.temperature, sample.top_p) == (0.0, 1.0)
    parts = [getattr(sample, name) for name in Sample.__dataclass_fields__ if name not in ("temperature", "top_p")]
    return hashlib.blake2b(json.dumps(parts, default=dict).encode(), digest_size=8).hexdigest()


def jobs(wording: str, limit: int) -> list[tuple[str, int, int]]:
    """(family, number of the cell, index) of everything to make."""
    request = Request(lengths=LENGTHS[wording], wording=wording)
    return [(name, c, i) for name in FAMILIES for c in range(len(load(name).cells(request))) for i in range(limit)]


def make(wording: str, todo: list[tuple[str, int, int]]) -> dict[str, str]:
    """Sample id -> digest, made one after the other in the given order."""
    request = Request(lengths=LENGTHS[wording], wording=wording)
    tasks = {name: load(name) for name in FAMILIES}
    cells = {name: task.cells(request) for name, task in tasks.items()}
    made = (tasks[name].sample(cells[name][c], i, request, words) for name, c, i in todo)
    return {sample.id: digest(sample) for sample in made}


def elsewhere(wording: str, todo: list[tuple[str, int, int]], hashseed: str) -> dict[str, str]:
    """The same in a process of its own."""
    environment = {**os.environ, "PYTHONHASHSEED": hashseed}
    command = [sys.executable, __file__, wording, json.dumps(todo)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


@pytest.mark.parametrize("wording", ["natural", "terse"])
def test_same_bytes_whatever_runs_before_or_beside(wording):
    todo = jobs(wording, LIMIT)
    expected = make(wording, todo)
    assert len(expected) == len(todo), "ids are unique"

    mixed = random.Random(0).sample(todo, len(todo))
    random.seed(1)  # the global generator changes nothing
    assert make(wording, mixed) == expected
    assert make(wording, [job for job in mixed if job[2] == LIMIT - 1]).items() <= expected.items(), "no first samples"

    halves = [elsewhere(wording, mixed[part::2], hashseed) for part, hashseed in ((0, "0"), (1, "4242"))]
    assert {**halves[0], **halves[1]} == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_another_seed_is_another_text(name):
    one, two = (Request(lengths=(512,), wording="terse", seed=seed) for seed in (0, 1))
    task = load(name)
    cell = task.cells(one)[0]
    assert task.sample(cell, 0, one, words).prompt != task.sample(cell, 0, two, words).prompt
    assert task.sample(cell, 0, one, words).prompt != task.sample(cell, 1, one, words).prompt


GOLDEN = {
    "multihop": (1, "10c9619137f0975a"),
    "knowledge": (1, "b2a59c06b9b37ed2"),
    "trace": (1, "afd61df5287ee253"),
    "longcode": (1, "551f7185019f9211"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_version_one_is_never_changed_in_silence(name):
    """Where this fails, stored results no longer pair with new ones: raise the family's version, then this hash."""
    task = load(name)
    request = Request(lengths=(512,), wording="terse")
    made = [digest(task.sample(cell, 0, request, words)) for cell in task.cells(request)]
    assert (task.version, hashlib.blake2b("".join(made).encode(), digest_size=8).hexdigest()) == GOLDEN[name]


if __name__ == "__main__":
    print(json.dumps(make(sys.argv[1], json.loads(sys.argv[2]))))
