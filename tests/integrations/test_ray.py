"""A run on a Ray cluster is the run of one process, also where a node dies under it."""

import contextlib
import copy
import importlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import installed
from evalsuite import executors, models, progress, store
from evalsuite.errors import UserError
from evalsuite.executors import Order
from evalsuite.integrations import ray as ray_executor
from evalsuite.integrations.ray_worker import Worker
from installed import PLUGINS

ASKED = ("--tasks", "multihop.graph,capitals", "--lengths", "256,512", "--limit", "25", "--set", "multihop.hops=1,2")
TOTAL = 2 * 2 * 25 + 2 * 2 * 2 * 25

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'evalsuite[ray]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the metadata of an installed distribution whose plugins are the tests'."""
    place = tmp_path_factory.mktemp("installed")
    return installed.site(place, tasks="capitals = capitals:Capitals", models="scribe = scribe:Scribe")


def environment(site: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(site), str(PLUGINS), os.environ.get("PYTHONPATH", "")]))
    plain = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {
        **plain,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
        "RAY_USAGE_STATS_ENABLED": "0",
        "SCRIBE_PAUSE": "0.02",
        **more,
    }


class Cluster:
    """Three nodes on this machine, one CPU each."""

    def __init__(self, site: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PLUGINS / "ray_cluster.py"), "3"], env=environment(site), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.address = self._line()

    def kill(self) -> set[str]:
        """Kill a node; the processes that were its workers."""
        assert self.process.stdin is not None
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()
        said, *workers = self._line().split()
        assert said == "killed"
        return set(workers)

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def cluster(site: Path) -> Iterator[Cluster]:
    found = Cluster(site)
    yield found
    found.end()


def start(site: Path, *words: str, address: str = "") -> "subprocess.Popen[str]":
    executor = ("--executor", "ray") if address else ()
    more = {"RAY_ADDRESS": address} if address else {}
    return subprocess.Popen(
        [sys.executable, "-m", "evalsuite", "run", *words, *executor], env=environment(site, **more), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    printed, said = process.communicate(timeout=150)
    return process.returncode, printed, said


def scribe(site: Path, name: str) -> tuple[str, ...]:
    return "--model", f"scribe:{site / name}.log", "--out", str(site / name), *ASKED


def asked(site: Path, name: str) -> list[str]:
    log = site / f"{name}.log"
    return [line.split(maxsplit=1)[1] for line in log.read_text().split("\n")[:-1]] if log.exists() else []


def workers(site: Path, name: str, since: int = 0) -> set[str]:
    """Processes that were asked something, from a line of the log on."""
    log = site / f"{name}.log"
    return {line.split()[0] for line in log.read_text().split("\n")[since:-1]} if log.exists() else set()


@needs_ray
def test_a_node_killed_in_mid_run_costs_what_was_in_flight(site: Path, cluster: Cluster) -> None:
    process = start(site, *scribe(site, "killed"), address=cluster.address)
    deadline = time.monotonic() + 90
    while len(workers(site, "killed")) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None
    dead = cluster.kill() & workers(site, "killed")
    mark = len(asked(site, "killed"))
    assert len(dead) == 1
    assert 0 < mark < TOTAL
    code, printed, said = end(process)
    assert code == 0, said
    assert len(workers(site, "killed", mark) - dead) == 2
    code, _, said = end(start(site, *scribe(site, "whole")))
    assert code == 0, said
    folders = [site / name / "scribe" for name in ("killed", "whole")]
    assert (folders[0] / "samples.parquet").read_bytes() == (folders[1] / "samples.parquet").read_bytes()
    names = asked(site, "killed")
    assert len(set(names)) == TOTAL
    assert len(names) - TOTAL <= 2, "answers that had been given are asked again"
    assert len({timing["rank"] for timing in store.read(folders[0]).timings}) >= 2
    assert not list(folders[0].glob("samples-*.jsonl"))

    before = len(names)  # and it is finished: two nodes find nothing to ask
    code, again, said = end(start(site, *scribe(site, "killed"), address=cluster.address))
    assert code == 0, said
    assert f"{TOTAL} stored from before" in said
    assert len(asked(site, "killed")) == before
    assert [line for line in printed.splitlines() if "tokens/s" not in line] == [
        line for line in again.splitlines() if "tokens/s" not in line
    ]


@needs_ray
def test_an_interrupted_driver_goes_on_in_one_process(site: Path, cluster: Cluster) -> None:
    process = start(site, *scribe(site, "stopped"), address=cluster.address)
    deadline = time.monotonic() + 90
    while len(asked(site, "stopped")) < TOTAL // 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    end(process)
    kept = {row["id"] for row in store.read(site / "stopped" / "scribe").rows}
    assert 0 < len(kept) < TOTAL
    time.sleep(2)  # until Ray has ended the workers of a driver that is gone
    mark = len(asked(site, "stopped"))
    code, _, said = end(start(site, *scribe(site, "stopped")))
    assert code == 0, said
    after = asked(site, "stopped")[mark:]
    assert len(after) == len(set(after)) == TOTAL - len(kept)
    assert not set(after) & kept


@needs_ray
def test_a_fault_of_a_worker_is_one_line_that_names_the_shard(site: Path, cluster: Cluster) -> None:
    words = ("--model", "scribe:/nowhere/log", "--out", str(site / "fault"), *ASKED)
    code, printed, said = end(start(site, *words, address=cluster.address))
    assert (code, printed) == (2, "")
    assert said.splitlines()[-1].startswith("error: loading scribe:/nowhere/log failed on ")
    assert "FileNotFoundError" in said.splitlines()[-1]


@needs_ray
def test_a_shard_that_no_worker_survives_is_named_and_the_rest_is_kept(site: Path, cluster: Cluster) -> None:
    deadly = "capitals/direct/256/hops=2/9"
    (site / "deadly.log.deadly").write_text(deadly)
    code, printed, said = end(start(site, *scribe(site, "deadly"), address=cluster.address))
    assert (code, printed) == (2, "")
    line = said.splitlines()[-1]
    assert re.match(
        r"error: shard \d+ of \d+ of scribe \(\d+ samples from capitals\.direct \(hops=1, length=256\)", line
    )
    assert "was lost with its worker 4 times" in line
    names = asked(site, "deadly")
    assert names.count(deadly) == 4
    assert len(names) - len(set(names)) <= 3 + 2, "what had been answered beside it was asked again"
    kept = {row["id"] for row in store.read(site / "deadly" / "scribe").rows}
    assert set(names) - kept <= {deadly, *names[-2:]}
    (site / "deadly.log.deadly").unlink()
    code, _, said = end(start(site, *scribe(site, "deadly"), address=cluster.address))
    assert code == 0, said
    assert len(store.read(site / "deadly" / "scribe").rows) == TOTAL


@needs_ray
def test_torchrun_beside_ray_is_refused(site: Path) -> None:
    words = [sys.executable, "-m", "evalsuite", "run", *scribe(site, "both"), "--executor", "ray"]
    ranks = environment(site, RANK="0", WORLD_SIZE="2", LOCAL_RANK="0")
    done = subprocess.run(words, env=ranks, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.splitlines()[-1] == "error: --executor ray spreads the work itself; leave torchrun out"


@needs_ray
def test_no_cluster_is_one_line(site: Path) -> None:
    code, printed, said = end(start(site, *scribe(site, "none"), address="127.0.0.1:1"))
    assert (code, printed) == (2, "")
    assert "error: --executor ray finds no running Ray cluster; start one with `ray start --head`" in said


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    order = Order(["full"], {"names": ["knowledge"]}, "", str(tmp_path))
    with pytest.raises(UserError, match=r"pip install 'evalsuite\[ray\]'"):
        executors.load("ray")(order, progress.Silent())
    with pytest.raises(UserError, match="unknown executor 'rai'; did you mean 'ray'"):
        executors.load("rai")
    with pytest.raises(UserError, match="--device cuda:1: Ray gives each worker its GPU"):
        executors.load("ray")(Order(["full"], {}, "", "", device="cuda:1"), progress.Silent())
    assert not list(tmp_path.iterdir())


def test_workers_are_given_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand in other folders than the command."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "full", "openai", "words"):
        (tmp_path / name).mkdir()
    (tmp_path / "arc.yaml").write_text("")
    asked = {
        "names": ["mmlu", "lm_eval:arc.yaml", "lm_eval:arc_easy"],
        "data": ["mmlu=mine/x.csv", "essays=hub", "squad=hub:rajpurkar/squad@main"],
        "settings": ["multihop.hops=1", "lm_eval:arc.tokenizer=words", "lm_eval:arc_easy.tokenizer=owner/model"],
        "limit": 3,
    }
    specs = {
        "mine": f"{tmp_path}/mine",
        "full": "full",
        "openai": "openai",  # a plugin, as without Ray
        "scribe:mine": "scribe:mine",
        "hf:pretrained=./mine,dtype=float32,tokenizer=words": f"hf:pretrained={tmp_path}/mine,dtype=float32,"
        f"tokenizer={tmp_path}/words",
        "hf:pretrained=owner/model": "hf:pretrained=owner/model",
        'hf:pretrained=./mine,device_map={"a": "cpu", "b": 0}': f"hf:pretrained={tmp_path}/mine,"
        'device_map={"a": "cpu", "b": 0}',
        "openai:base_url=http://127.0.0.1:1/v1,model=mine": "openai:base_url=http://127.0.0.1:1/v1,model=mine",
    }
    order = ray_executor._absolute(Order([*specs], asked, "", "runs"))
    assert order.specs == [*specs.values()]
    assert order.asked == {
        "names": ["mmlu", f"lm_eval:{tmp_path}/arc.yaml", "lm_eval:arc_easy"],
        "data": [f"mmlu={tmp_path}/mine/x.csv", "essays=hub", "squad=hub:rajpurkar/squad@main"],
        "settings": [
            "multihop.hops=1", f"lm_eval:arc.tokenizer={tmp_path}/words", "lm_eval:arc_easy.tokenizer=owner/model",
        ],
        "limit": 3,
    }  # fmt: skip


class FakeRay:
    """As much of Ray as holds what a run began with."""

    def put(self, value: object) -> object:
        return value


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Worker]]:
    """A driver that no worker has met yet, and a worker that has loaded its model."""
    monkeypatch.syspath_prepend(PLUGINS)
    scribe = importlib.import_module("scribe")
    monkeypatch.setattr(models, "load", lambda *_, **__: scribe.Scribe(str(tmp_path / "log")))
    order = Order(["scribe"], {"names": ["knowledge"], "limit": 2}, "", str(tmp_path / "runs"))
    worker = Worker(order)
    worker._open("scribe")
    with contextlib.ExitStack() as stack:
        yield ray_executor._Driver(FakeRay(), order, progress.Silent(), stack), worker


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about["meta"]["identity"].update(weights="others"), 'model.weights: "none" -> "others"'),
        (lambda about: about["meta"]["tasks"]["knowledge"].update(version=99), "knowledge.version"),
        (lambda about: about.update(plan="otherwise"), "its plan: install one version everywhere"),
        (lambda about: about["meta"]["requests"][0]["versions"].update(torch="1.0"), '-> "1.0"'),
        (lambda about: about["meta"]["requests"][0]["versions"].update(vllm="9"), 'version of vllm: null -> "9"'),
    ],
)
def test_a_worker_that_is_not_like_the_first_is_refused(
    driver: tuple[Any, Worker], change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """Or half of the answers would be another model's."""
    first, worker = driver
    shard = ray_executor._Shard("scribe", "loading")
    first._meet(ray_executor._Hand(None, 0, None, "here"), shard, copy.deepcopy(worker.about))
    like = copy.deepcopy(worker.about)
    like["meta"]["requests"][0]["versions"]["python"] = "3.11.99"  # computes nothing
    first._meet(ray_executor._Hand(None, 1, None, "there"), shard, like)
    other = copy.deepcopy(worker.about)
    change(other)
    with pytest.raises(UserError, match="the worker on elsewhere is not like the others") as caught:
        first._meet(ray_executor._Hand(None, 2, None, "elsewhere"), shard, other)
    assert message in str(caught.value)


def test_one_answer_is_never_stored_twice(driver: tuple[Any, Worker]) -> None:
    first, worker = driver
    hand, shard = ray_executor._Hand(None, 0, None), ray_executor._Shard("scribe", "shard 1", [0, 1])
    said = list(worker.answer("scribe", [0, 1], {}))
    assert [kind for kind, _ in said] == ["model", "row", "row", "timing", "timing", "end"]
    for kind, value in said[:3]:
        first._keep(hand, shard, kind, copy.deepcopy(value))
    with pytest.raises(UserError, match="made two samples with the id"):
        first._keep(hand, shard, *said[1])
    assert [kind for kind, _ in worker.answer("scribe", [0, 1], shard.done)] == ["model", "timing", "end"]
    command = first.jobs["scribe"].store.meta["requests"][0]["command"]
    assert command == shlex.join(sys.argv)
