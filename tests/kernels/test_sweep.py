"""The sweep's own parts, without a GPU: its timing, its processes, the tables that it prints."""

import json
from pathlib import Path

import pytest
import torch

from evalsuite_kernels import chunk_run
from evalsuite_kernels.full import triton as kernels
from evalsuite_kernels.full.settings import SETTINGS
from evalsuite_kernels.launches import Launches
from evalsuite_kernels.sweep import __main__ as command
from evalsuite_kernels.sweep import common, control, dispatch, sanitize, sparse, tune
from evalsuite_kernels.sweep.apart import all_apart, apart


class FakeGpu:
    """Says in which order it is asked for what; every call takes 2 ms."""

    def __init__(self, monkeypatch):
        self.log = log = []

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                log.append("event")

            def elapsed_time(self, other):
                return 2.0

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append(("spin", cycles)))
        monkeypatch.setattr(common, "_flusher", lambda: lambda: log.append("flush"))
        monkeypatch.setattr(common, "spin_rate", lambda: 1e6)


def test_the_gpu_spins_before_each_timed_call(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    calls = {name: [lambda i=i, name=name: gpu.log.append(f"{name}{i}") for i in range(2)] for name in "ab"}
    times = common.milliseconds(calls, seconds=1e-9)
    first = gpu.log.index("flush")
    gpu.log[first:] = [x if isinstance(x, str) else x[0] for x in gpu.log[first:]]
    assert gpu.log.pop() == "wait"
    turns = [gpu.log[i : i + 5] for i in range(first, len(gpu.log), 5)]
    assert all(turn[:3] + turn[4:] == ["flush", "spin", "event", "event"] for turn in turns)
    called = [turn[3] for turn in turns]
    rounds = [tuple(called[i : i + 2]) for i in range(0, 20, 2)]
    assert all(sorted(each) == [f"a{i % 2}", f"b{i % 2}"] for i, each in enumerate(rounds))
    assert {each[0][0] for each in rounds} == {"a", "b"}  # nobody always follows the same neighbour
    assert times["a"]["ms"] == times["b"]["p90"] == 2.0
    assert all(row["runs"] == 10 and 0 <= row["host_ms"] < 100 for row in times.values())


def test_the_spin_covers_the_host(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    monkeypatch.setattr(common, "_clocked", lambda one: (0.004, 0.005))  # seconds to launch, and in all
    times = common.milliseconds({"a": [lambda: None]}, seconds=0.1, flush=False)
    spins = {x[1] for x in gpu.log if not isinstance(x, str)}
    assert spins == {int(1e6 * (1.5 * 4 + 0.2))}
    assert times["a"]["host_ms"] == 4
    assert times["a"]["runs"] == 20


def test_processes_of_their_own():
    assert apart("os", "_exit", [3]) == {"error": "exit status 3: "}
    assert apart("time", "sleep", [60], seconds=2) == {"error": "not done within 2 s"}
    right, wrong = all_apart("math", "gcd", [[12, 18], ["x", 1]])
    assert right == 6
    assert wrong["error"].startswith("exit status 1: TypeError")


@pytest.mark.parametrize("kind", dispatch.KINDS)
def test_small_calls_of_every_kind_are_right(kind):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    row = dispatch.check(kind, 4, 64 if device == "cuda" else 16, device)
    assert row["passed"], row


def test_the_table_needs_every_shape():
    about = {"kind": "window", "bytes": 2, "head_dim": 64}
    rows = [about | {"passes": passes, "ratio": r} for passes, r in (("forward", 1.2), ("both", 1.5), ("both", 0.99))]
    rows += [about | {"kind": "sinks", "passes": "both", "error": "it failed"}, {"name": "other", "error": "it failed"}]
    assert dispatch.table(rows) == {("window", 2, 64, "forward"): "triton"}


def test_the_shapes_of_a_class():
    assert all(len(dispatch.shapes_of(kind, 2, "both", False)) >= 2 for kind in dispatch.KINDS)
    assert (16, 1, 8192, 32, 8) in dispatch.shapes_of("padded", 2, "forward", False)
    assert dispatch.shapes_of("square", 4, "both", False) == [(1, 2048, 2048, 32, 32), (8, 250, 250, 16, 4)]
    for kind in dispatch.KINDS:
        leaves, options = dispatch.made(kind, dispatch.shapes_of(kind, 2, "both", True)[0], 8, torch.float32, "cpu")
        assert dispatch.runner(options)("chunked")(**leaves)[0].shape == leaves["q"].shape


def test_candidates_are_settings_that_may_run():
    assert set(tune.FUSED) == set(tune.USES) == set(chunk_run.SETTINGS)
    for family, key, candidates in tune.entries():
        if family == "full":
            assert candidates[0] == SETTINGS[key]
            assert all(kernels.SPLIT % n == 0 and m >= 16 for m, n, _, _ in candidates)
            continue
        assert candidates[0] == chunk_run.SETTINGS[key]
        for candidate in candidates[1:]:
            assert set(candidate) == set(candidates[0])
            assert candidate.get("STAGES", 2) >= 2
            narrow = min(candidate.get("BK", 64), candidate.get("BV", 64)) < 64
            assert not narrow or candidate["num_warps"] <= 2


def test_a_candidate_runs_and_is_judged(monkeypatch):
    monkeypatch.setitem(SETTINGS, ("queries", 4, 64), (16, 16, 4, 1))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    row = tune.check("full", ["queries", 4, 64], [32, 32, 4, 1], device)
    assert SETTINGS["queries", 4, 64] == (32, 32, 4, 1)
    assert row["passed"], row


def test_the_best_of_those_that_are_right(monkeypatch):
    given = []

    def fake(place, name, arguments):
        given.append(arguments[2])
        return {"times": [{"ms": 3.0}, {"ms": 2.0}]}

    monkeypatch.setattr(tune, "apart", fake)
    candidates = [(1,), (2,), (3,), (4,)]
    checks = [{"passed": True}, {"error": "it crashed"}, {"passed": True}, {"passed": False, "errors": {"o": 1.0}}]
    row = tune.chosen("full", ("forward", 2, 64), candidates, checks, 0.1)
    assert given == [[(1,), (3,)]]
    assert (row["best"], row["ratio"], row["committed"]) == ((3,), 1.5, (1,))
    assert [x["why"] for x in row["rejected"]] == ["it crashed", {"o": 1.0}]
    assert "error" in tune.chosen("full", ("forward", 2, 64), candidates[1:2], checks[1:2], 0.1)


def test_exactness_in_small(tmp_path, monkeypatch):
    arguments = ["sweep", "--out", str(tmp_path), "--only", "correctness", "dispatch", "tune"]
    monkeypatch.setattr("sys.argv", [*arguments, "--device", "cpu", "--tiny", "--match", "gdn"])
    assert command.main() == 0
    assert {path.name for path in tmp_path.iterdir()} == {"correctness.json", "environment.json"}


@pytest.mark.parametrize(("said", "found", "passed"), [
    ("all calls returned\n========= ERROR SUMMARY: 0 errors\n", 0, True),
    ("all calls returned\n==== RACECHECK SUMMARY: 19 hazards displayed\n", 19, False),
    ("========= ERROR SUMMARY: 0 errors\n", None, False),  # the calls themselves failed
    ("all calls returned\n", None, False),  # and here the tool
])  # fmt: skip
def test_what_a_sanitizer_says(said, found, passed, tmp_path):
    tool = tmp_path / "tool"
    tool.write_text(f"#!/bin/sh\nprintf '%b' '{said}'\n")
    tool.chmod(0o755)
    row = sanitize.checked("kda", "memcheck", str(tool))
    assert row.get("found") == found
    assert row["passed"] is passed
    assert ("error" in row) is (found is None)


def race(read, *written):
    """As racecheck says it."""
    ends = [f"=========     and Write access at x+0x{n}0 in {place} [3 hazards]" for n, place in enumerate(written)]
    return "\n".join([f"========= Error: Race reported between Read access at x+0x130 in {read}", *ends, ""])


def test_races_of_how_warps_start_are_told_from_others(tmp_path):
    """Only where both ends are the kernel's name or the statement itself, and nothing was left unparsed."""
    text = Path(control.__file__).read_text().splitlines()
    name, start, store = (
        f"control.py:{next(n for n, line in enumerate(text, 1) if part in line)}"
        for part in ("def _alone", "gl.warp_specialize(", "gl.store(")
    )
    tool = tmp_path / "tool"
    for races, total, found in [
        ([race(name, name, start)], 1, 0),
        ([race(name, start), race(store, name)], 2, 1),
        ([race(name, name, store)], 1, 1),
        ([race("nowhere.py:19", "nowhere.py:19")], 1, 1),
        (["========= Error: Race reported between Read access at x in " + name], 1, 1),
        ([race(name, name)], 2, 2),
    ]:
        (tmp_path / "said").write_text("".join(races) + f"all calls returned\n== RACECHECK SUMMARY: {total} hazards\n")
        tool.write_text(f"#!/bin/sh\ncat {tmp_path / 'said'}\n")
        tool.chmod(0o755)
        row = sanitize.checked("control", "racecheck", str(tool))
        assert (row["found"], row["of_start"], row["passed"]) == (found, total - found, not found)


def test_processes_of_a_section(tmp_path, monkeypatch, capsys):
    """All rows of all parts come together; a part that dies is a row that did not pass."""
    arguments = ["--out", str(tmp_path), "--only", "correctness", "--device", "cpu", "--tiny", "--match", "gdn"]
    monkeypatch.setattr("sys.argv", ["sweep", *arguments, "--jobs", "2"])
    monkeypatch.setattr(command, "OPERATORS", ("gdn",))
    assert command.main() == 0
    rows = json.loads((tmp_path / "correctness.json").read_text())["rows"]
    assert len(rows) == 27
    assert {row["dtype"] for row in rows} == {"bfloat16", "float16", "float32", "float64"}
    assert "27 of 27 cases passed" in capsys.readouterr().out
    report = common.Report(tmp_path / "bitwise.json", 60.0, "gdn")
    command.gather(report, "bitwise", 1, [*arguments, "--device", "nowhere"])
    assert [row["name"] for row in report.rows] == ["gdn ", "full "]
    assert report.rows[0]["error"].startswith("exit status")


def sparse_rows(tmp_path):
    command_line = ["--only", "sparse", "--tiny", "--device", "cpu", "--impl", "chunked", "--out", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sweep", *command_line])
        status = command.main()
    rows = json.loads((tmp_path / "sparse.json").read_text())["rows"]
    return status, {row["name"]: row for row in rows}


def test_sparse_attention_is_proven(tmp_path):
    status, rows = sparse_rows(tmp_path)
    assert status == 0
    assert len(rows) == 12
    assert all(row.get("passed", row.get("equal")) for row in rows.values())


@pytest.mark.parametrize(("fault", "seen"), [
    (lambda values, seen, count: values.masked_fill(~seen, -1e9) >= values.masked_fill(~seen, -1e9)
     .topk(min(count, values.shape[-1])).values[..., -1:], "choice"),  # all of those that are equal
    (lambda values, seen, count: torch.ones_like(seen), "unchanged"),  # later keys too
])  # fmt: skip
def test_a_wrong_choice_is_noticed(tmp_path, monkeypatch, fault, seen):
    monkeypatch.setattr("evalsuite_kernels.sparse.chunked.chosen", fault)
    status, rows = sparse_rows(tmp_path)
    assert status == 1
    assert any(seen in name and not row.get("equal", False) for name, row in rows.items())


def test_a_step_is_cut_after_some_launches():
    """So that what each adds is the difference of two times."""
    made = []

    class Kernel:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda: made.append(self.name)

    def step():
        launches = Launches()
        for name in "abc":
            launches.add(Kernel(name), (1,))
        launches.run((), torch.device("cpu"))
        assert launches.waiting == []

    with sparse._launched(2):
        step()
    assert "".join(made) == "ab"
    step()
    assert "".join(made) == "ababc"
