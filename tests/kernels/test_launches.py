"""Launches wait, go in order, and compile once a kind of call."""

import contextlib
import threading

import pytest
import torch

from evalsuite_kernels import launches

CPU = torch.device("cpu")


class Kernel:
    """A stand-in that writes down what is asked of it."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def warmup(self, *args, grid, **options):
        self.log.append(("compile", self.name, args, grid, options))
        return Compiled(self.name, self.log)

    def __getitem__(self, grid):
        return lambda *args, **options: self.log.append(("launch", self.name, args, grid, options))


class Compiled:
    """What comes of it: asked for a launch, it makes a launcher."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def result(self):
        return self

    def __getitem__(self, grid):
        self.log.append(("load", self.name))


@pytest.fixture
def compiled(monkeypatch):
    """As on a GPU, with a compiler of no kinds yet."""
    monkeypatch.setattr(launches, "INTERPRETED", False)
    monkeypatch.setattr(launches, "COMPILED", set())
    monkeypatch.setattr(launches.triton, "AsyncCompileMode", lambda pool: contextlib.nullcontext(), raising=False)


def call(log, kind):
    queue = launches.Launches()
    for name in "ab":
        queue.add(Kernel(name, log), (2, 3), 5, num_warps=4)
    assert not log or log[-1][0] == "launch"  # nothing happens before `run`
    queue.run(kind, CPU)
    return queue


def test_a_kind_is_compiled_whole_before_anything_runs(compiled):
    log = []
    call(log, ("kda",))
    made = [(verb, name) for verb, name, *_ in log]
    assert sorted(made[:4]) == [("compile", "a"), ("compile", "b"), ("load", "a"), ("load", "b")]
    assert made[4:] == [("launch", "a"), ("launch", "b")]
    asked = {
        (args, grid, *options.items()) for verb, _, *rest in log if verb != "load" for args, grid, options in [rest]
    }
    assert asked == {((5,), (2, 3), ("num_warps", 4))}


def test_a_kind_is_compiled_once(compiled):
    log = []
    call(log, ("kda",))
    call(log, ("kda",))
    call(log, ("gdn",))
    assert [verb for verb, *_ in log].count("compile") == 4
    assert [verb for verb, *_ in log].count("launch") == 6


def test_a_kernel_that_does_not_compile_says_so_and_is_asked_again(compiled, monkeypatch):
    def refuse(self, *args, grid, **options):
        raise RuntimeError("no such tile")

    with monkeypatch.context() as patch:
        patch.setattr(Kernel, "warmup", refuse)
        with pytest.raises(RuntimeError, match="no such tile"):
            call([], ("kda",))
    log = []
    call(log, ("kda",))
    assert sorted(verb for verb, *_ in log) == ["compile", "compile", "launch", "launch", "load", "load"]


def test_a_kernel_that_cannot_be_loaded_says_so_before_anything_runs(compiled, monkeypatch):
    def refuse(self, grid):
        raise RuntimeError("too much shared memory")

    monkeypatch.setattr(Compiled, "__getitem__", refuse)
    log = []
    with pytest.raises(RuntimeError, match="too much shared memory"):
        call(log, ("kda",))
    assert not [verb for verb, *_ in log if verb == "launch"]


def test_what_has_run_is_not_run_again(compiled):
    log = []
    queue = call(log, ("kda",))
    queue.run(("kda",), CPU)
    assert len(log) == 6


def test_every_thread_loads_and_launches_on_the_gpu_of_the_call(compiled, monkeypatch):
    seen, here = [], threading.local()

    @contextlib.contextmanager
    def on(device):
        here.device = device
        yield
        del here.device

    monkeypatch.setattr(launches, "_on", on)
    monkeypatch.setattr(Kernel, "__getitem__", lambda self, grid: lambda *a, **o: seen.append(here.device))
    monkeypatch.setattr(Compiled, "__getitem__", lambda self, grid: seen.append(here.device))
    queue = launches.Launches()
    queue.add(Kernel("a", []), (1,))
    queue.run(("kda",), torch.device("cuda", 3))
    assert seen == [torch.device("cuda", 3)] * 2
