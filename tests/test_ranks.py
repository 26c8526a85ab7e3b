"""Several ranks are one run: the same samples as one process, whoever dies, and however many go on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import installed
from evalsuite import compare, files, plan, ranks, store
from evalsuite.errors import UserError
from evalsuite.plan import Gap
from evalsuite.ranks import World, deal
from evalsuite.records import Sample
from evalsuite.store import Store
from evalsuite.task import Cell, Request, sample_id
from installed import PLUGINS

ASKED = ("--tasks", "multihop.graph,capitals", "--lengths", "256,512", "--limit", "30", "--set", "multihop.hops=1,2")
TOTAL = 2 * 2 * 30 + 2 * 2 * 2 * 30


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the metadata of an installed distribution whose plugins are the tests'."""
    return installed.site(tmp_path, tasks="capitals = capitals:Capitals", models="scribe = scribe:Scribe")


def command(ranks: int, *words: str) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    return [sys.executable, *launch, "-m", "evalsuite", "run", *words]


def environment(site: Path | None = None, **more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(site or ""), str(PLUGINS), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **more}


def run(ranks: int, *words: str, site: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    env = environment(site, **more)
    return subprocess.run(command(ranks, *words), env=env, capture_output=True, text=True, check=False, timeout=150)


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error: ")]


def scribe(site: Path, name: str) -> tuple[str, ...]:
    return "--model", f"scribe:{site / name}.log", "--out", str(site / name), *ASKED


def asked(site: Path, name: str) -> list[str]:
    log = site / f"{name}.log"
    return log.read_text().split("\n")[:-1] if log.exists() else []


def whole(site: Path) -> bytes:
    done = run(0, *scribe(site, "whole"), site=site)
    assert done.returncode == 0, done.stderr
    return (site / "whole" / "scribe" / "samples.parquet").read_bytes()


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    """To the bit, but for log-likelihoods: a product's last bits depend on how many rows of others it is made with."""
    words = ("--model", "hybrid-kda", "--tasks", "multihop,knowledge", "--lengths", "256", "--limit", "3", "--json")
    one, two = run(0, *words, "--out", str(tmp_path / "one")), run(2, *words, "--out", str(tmp_path / "two"))
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    folders = [tmp_path / name / "hybrid-kda" for name in ("one", "two")]
    rows = [store.read(folder).rows for folder in folders]
    chances = [[row.pop("choice_logprobs") for row in each] for each in rows]
    assert len(rows[0]) > 40
    assert rows[0] == rows[1]
    assert sum(map(bool, chances[0])) == 3
    assert chances[1] == [pytest.approx(values, abs=1e-4) for values in chances[0]]
    tables = [json.loads(done.stdout) for done in (one, two)]  # rank 1 prints nothing, or this would not parse
    for table in tables:
        for model in table["models"]:
            del model["prefill_tokens_per_second"], model["decode_tokens_per_second"]
    assert tables[0] == tables[1]
    records = [store.read_meta(folder) for folder in folders]
    assert records[0]["requests"][0]["ran"] == records[1]["requests"][0]["ran"] != {}
    timings = store.read(folders[1]).timings
    assert {timing["rank"] for timing in timings} == {0, 1}
    assert len({timing["sitting"] for timing in timings}) == 1
    assert sum(timing["samples"] for timing in timings) == len(rows[1])
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["hybrid-kda"]
    assert not list(folders[1].glob("samples-*.jsonl"))


@pytest.mark.parametrize(("victim", "then"), [(1, 4), (0, 2)])
def test_a_killed_rank_costs_its_sample_in_flight(site: Path, victim: int, then: int) -> None:
    """Killed in the middle, and repeated with as many ranks or with more."""
    out = site / "killed"
    with subprocess.Popen(
        command(2, *scribe(site, "killed")), env=environment(site), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        while len(asked(site, "killed")) < TOTAL // 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        (about,) = out.glob(f".ranks-*/rank-{victim}")
        pid = json.loads(about.read_text())["process"]
        os.kill(pid, signal.SIGKILL)
        printed, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert [path.name for path in out.iterdir()] == ["scribe"]
    (line,) = errors(said)
    assert line.startswith(f"error: rank {victim} (process {pid} on ")
    assert line.endswith(" has died; what was answered is stored, and the same command goes on")
    assert printed == ""
    before = asked(site, "killed")
    assert {line.split()[0] for line in before} == {"0", "1"}
    kept = {row["id"] for row in store.read(out / "scribe").rows}
    assert len(before) - 2 <= len(kept) < TOTAL

    again = run(then, *scribe(site, "killed"), site=site)
    assert again.returncode == 0, again.stderr
    after = [line.split(maxsplit=1)[1] for line in asked(site, "killed")[len(before) :]]
    assert len(after) == len(set(after)) == TOTAL - len(kept)
    assert not set(after) & kept, "a stored sample was asked again"
    assert (out / "scribe" / "samples.parquet").read_bytes() == whole(site)
    shares = [line.split()[0] for line in asked(site, "killed")[len(before) :]]
    counts = [shares.count(str(rank)) for rank in range(then)]
    assert max(counts) - min(counts) <= 12, f"what was left is spread unevenly: {counts}"


def test_a_rank_with_other_weights_is_refused_and_only_one_line_says_so(site: Path) -> None:
    done = run(2, *scribe(site, "unlike"), site=site, SCRIBE_WEIGHTS_1="others")
    assert done.returncode != 0
    (line,) = errors(done.stderr)
    assert line.startswith("error: rank 1 is not like rank 0")
    assert line.endswith('It differs in model.weights: "none" -> "others"')
    assert done.stdout == ""
    assert not [line for line in asked(site, "unlike") if line.startswith("1")]


def test_a_mistake_is_said_once(site: Path) -> None:
    done = run(2, *scribe(site, "typo"), "--tasks", "multihp", site=site)
    assert done.returncode != 0
    assert errors(done.stderr) == ["error: unknown task 'multihp'; did you mean 'multihop'?"]


def test_ranks_and_a_stranger_do_not_write_in_one_folder(site: Path) -> None:
    with subprocess.Popen(
        command(2, *scribe(site, "both")), env=environment(site), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        while not asked(site, "both") and time.monotonic() < deadline:
            time.sleep(0.01)
        stranger = run(0, *scribe(site, "both"), site=site)
        assert "is being written by process" in errors(stranger.stderr)[0]
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(asked(site, "both")) == TOTAL


META: dict[str, Any] = {
    "format": 1, "model": "m", "created": "1", "identity": {}, "tasks": {}, "missing": {}, "cost": {},
    "requests": [{"limit": 1}],
}  # fmt: skip


def test_a_rank_that_outlived_rank_0_keeps_others_out(tmp_path: Path) -> None:
    with Store.open(tmp_path, META) as first:
        orphan = Store.join(tmp_path, META, 1, first.sitting)
    with pytest.raises(UserError, match=r"samples-1\.jsonl is still being written by a rank of another run"):
        Store.open(tmp_path, META)
    orphan.close()
    Store.open(tmp_path, META).close()


def test_a_second_rank_of_one_number_is_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path, META) as first, Store.join(tmp_path, META, 1, first.sitting):
        with pytest.raises(UserError, match="another rank 1"):
            Store.join(tmp_path, META, 1, first.sitting)
        with pytest.raises(UserError, match="rank 2 is not like rank 0"):
            Store.join(tmp_path, {**META, "identity": {"weights": 2}}, 2, first.sitting)


def items(limit: int, **lengths: tuple[int, ...]) -> list[plan.Item]:
    """For each task, its lengths: three cells of one text, `limit` texts a length."""
    found: list[plan.Item] = []
    for task, each in lengths.items():
        for length in each:
            cells = [Cell(task, {"length": length, "hops": h} if length else {"hops": h}) for h in range(3)]
            found += [plan.Item(task, None, c, i, Request()) for i in range(limit) for c in cells]  # type: ignore[arg-type]
    return found


def load(items: list[plan.Item], places: list[int]) -> int:
    return sum(int(items[p].cell.facets.get("length", 0)) for p in places)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 64])
def test_shares_are_the_plan_parted_between_texts_and_balanced(size: int) -> None:
    asked = items(31, graph=(512, 131072), path=(512,), flat=(0,))
    dealt = deal(asked, size, lambda *_: False)
    assert sorted(place for places in dealt for place in places) == list(range(len(asked)))
    assert all(places == sorted(places) for places in dealt)
    texts = [
        {(asked[p].family, asked[p].cell.facets.get("length"), asked[p].index) for p in places} for places in dealt
    ]
    assert sum(map(len, texts)) == len(set().union(*texts)), "samples of one text are parted"
    loads = [load(asked, places) for places in dealt]
    assert max(loads) - min(loads) <= 3 * 131072
    for length in (0, 512, 131072):
        counts = [sum(t[1] == (length or None) for t in text) for text in texts]
        assert max(counts) - min(counts) <= (2 if length == 512 else 1)
    assert deal(asked, size, lambda *_: False) == dealt


@pytest.mark.parametrize("before", [2, 4])
@pytest.mark.parametrize("after", [2, 4])
def test_what_one_rank_left_is_work_for_all(before: int, after: int) -> None:
    """Rank 1 died at once and the others finished: with the same rule over the whole plan, only one would have work."""
    asked = items(32, graph=(512,))
    left = {
        sample_id(asked[p].cell.task, asked[p].cell.facets, asked[p].index)
        for p in deal(asked, before, lambda *_: False)[1]
    }
    dealt = deal(asked, after, lambda _, name: name not in left)
    work = [
        sum(sample_id(asked[p].cell.task, asked[p].cell.facets, asked[p].index) in left for p in places)
        for places in dealt
    ]
    assert sum(work) == len(left)
    assert max(work) == min(work)


class Short:
    """Cells end at different indices, and every fourth question is too long."""

    def sample(self, cell: Cell, index: int, request: Request, count: Any) -> Sample:
        if index >= cell.facets["length"]:
            raise IndexError
        if index % 4 == 3:
            raise UserError(f"question {index} is too long")
        return Sample(sample_id(cell.task, cell.facets, index), cell.task, "?", ("x",))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_what_is_missing_is_told_as_one_process_would(size: int) -> None:
    short = Short()
    cells = [Cell("short", {"length": n, "draw": d}) for n in (5, 9, 40) for d in (0, 1)]
    whole = tuple(plan.Item("short", short, c, i, Request()) for c in cells for i in range(12))  # type: ignore[arg-type]

    def make() -> plan.Plan:
        return plan.Plan(whole, {"other": "no data"}, plan.Selection({}, {}, limit=12), "terse")

    alone = make()
    names = [sample.id for _, sample in alone.samples(len)]
    together, found = make(), list[Gap]()
    several: list[str] = []
    for places in deal(whole, size, lambda *_: False):
        part = together.part(places)
        several += [sample.id for _, sample in part.samples(len)]
        found += [Gap(places[gap.place], gap.reason) for gap in part.gaps]
    together.merge(found)
    assert sorted(several) == sorted(names)
    assert together.missing == alone.missing
    assert "it has 5 of 12 questions" in " ".join(alone.missing.values())


def test_the_speed_is_that_of_the_whole(tmp_path: Path) -> None:
    """Two ranks beside each other are twice as fast, as far as both have work; two sittings are not."""

    def rates(*lines: tuple[str, int, float]) -> float:
        timings = [
            {"prefill_tokens": 100, "prefill_seconds": s, "sitting": sitting, "rank": rank}
            for sitting, rank, s in lines
        ]
        return compare._rate(timings, "prefill")

    assert rates(("a", 0, 1.0), ("a", 0, 1.0)) == 100
    assert rates(("a", 0, 1.0), ("a", 1, 1.0)) == 200
    assert rates(("a", 0, 1.0), ("a", 1, 4.0)) == 50
    assert rates(("a", 0, 1.0), ("b", 1, 1.0)) == 100
    assert compare._rate([{"prefill_tokens": 100, "prefill_seconds": 1.0}] * 2, "prefill") == 100  # of older runs


def told(**values: object) -> Mapping[str, str]:
    return {key: str(value) for key, value in values.items()}


@pytest.mark.parametrize(
    "values",
    [
        {"WORLD_SIZE": 2},
        {"RANK": 1},
        {"RANK": 2, "WORLD_SIZE": 2},
        {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 1},
        {"RANK": "x", "WORLD_SIZE": 2},
        {"RANK": "-1", "WORLD_SIZE": 2},
    ],
)
def test_ranks_that_are_none_are_refused(tmp_path: Path, values: dict[str, object]) -> None:
    """A rank that took itself for alone would ask everything once more."""
    with pytest.raises(UserError, match="torchrun"):
        World.found(tmp_path, told(**values))


def test_no_rank_is_one_alone(tmp_path: Path) -> None:
    for values in ({}, {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}, {"RANK": 0}):
        world = World.found(tmp_path, told(**values))
        with world:
            assert (world.rank, world.size, world.device("auto")) == (0, 1, "auto")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[World, World]:
    monkeypatch.setattr(ranks, "POLL", 0.01)
    both = [World.found(tmp_path, told(RANK=r, WORLD_SIZE=2, MASTER_PORT=1)) for r in (0, 1)]
    assert both[0].folder == both[1].folder
    return both[0], both[1]


def test_messages_of_an_earlier_launch_are_not_believed(pair: tuple[World, World]) -> None:
    leader, other = pair
    other.folder.mkdir()
    files.write_json(other.folder / "start-m.json", {"dealt": "stale"})
    with other, ThreadPoolExecutor(1) as beside:
        heard = beside.submit(other.hear, "start-m", 0)
        time.sleep(0.2)
        assert not heard.done()
        with leader:
            time.sleep(0.2)
            assert not heard.done()
            leader.tell("start-m", {"dealt": "fresh"})
            assert heard.result(5) == {"dealt": "fresh"}
    assert not leader.folder.exists()


def test_waiting_for_a_rank_that_never_comes_ends(pair: tuple[World, World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "START", 0.3)
    with pytest.raises(UserError, match=r"rank 1 did not come; is .* one folder for all machines"), pair[0] as leader:
        leader.hear("end-m-1", 1)


def test_a_silent_rank_of_another_machine_is_dead(pair: tuple[World, World], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock says nothing here; its file's time does, by this machine's clock alone."""
    monkeypatch.setattr(ranks, "SILENCE", 0.5)
    said = r"rank 1 \(process 7 on elsewhere\) has died"
    with pytest.raises(UserError, match=said), pair[0] as leader:  # noqa: PT012 - it lives for a while
        far = leader.folder / "rank-1"
        far.write_text(json.dumps({"process": 7, "machine": "elsewhere"}))
        for beat in range(5):
            os.utime(far, (leader.began + 1e4 + beat, leader.began + 1e4 + beat))  # a clock that is hours ahead
            leader.check()
            time.sleep(0.2)
        leader.hear("end-m-1", 1)


def test_a_rank_that_left_in_order_is_not_dead(pair: tuple[World, World]) -> None:
    with pair[0] as leader:
        with pair[1] as other:
            other.tell("end-m-1", {"gaps": []})
        assert leader.hear("end-m-1", 1) == {"gaps": []}
        leader.check()


def test_only_one_rank_speaks(pair: tuple[World, World]) -> None:
    with pytest.raises(SystemExit) as silent, pair[0]:  # noqa: PT012
        with pytest.raises(UserError, match="mine"), pair[1]:
            raise UserError("mine")
        raise UserError("what follows from it")
    assert silent.value.code == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("count", "local", "name", "expected"),
    [
        (2, 0, "auto", "cuda:0"), (2, 1, "auto", "cuda:1"), (2, 1, "cuda", "cuda:1"), (2, 1, "cpu", "cpu"),
        (2, 1, "cuda:0", "cuda:0"), (0, 1, "auto", "cpu"),
    ],
)  # fmt: skip
def test_each_rank_has_its_own_gpu(
    count: int, local: int, name: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = gpus(count, monkeypatch)
    assert World(rank=local + 2, size=4, local=local).device(name) == expected
    assert chosen == ([local] if count and name in ("auto", "cuda") else [])


def test_two_ranks_never_share_a_gpu_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(1, monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match="rank 1 has no GPU of its own: this machine has 1"):
        World(rank=1, size=2, local=1).device("auto")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # the launcher has dealt them
    assert World(rank=1, size=2, local=1).device("auto") == "cuda:0"


def gpus(count: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine of so many GPUs; which of them becomes torch's current one."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen
