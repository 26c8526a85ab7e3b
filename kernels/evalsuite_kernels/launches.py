"""Kernels that are launched one after another, and compiled all at a time when they are new: each takes seconds."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
import triton

from evalsuite_kernels.arguments import INTERPRETED

# half of a second of each kernel is Python's, one thread at a time: the first ones are the slowest, and shall not wait
AT_A_TIME = 4
COMPILED: set[tuple[Any, ...]] = set()  # kinds of calls


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton loads and launches on the current GPU, which every thread has its own of."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _begin() -> None:
    """What Triton does once in a process, at a time: it hashes its own files while a C compiler makes its driver."""
    with ThreadPoolExecutor(1) as hashing:
        hashing.submit(getattr(triton.runtime.cache, "triton_key", bool))  # kept by Triton
        triton.runtime.driver.active.get_current_device()


def _load(kernel: Any, device: torch.device) -> None:
    """Wait until a kernel is compiled, and make what launches it: Triton 3.6 asks a C compiler for that."""
    with _on(device):
        if kernel is not None:  # hooks may forbid compiling
            getattr(kernel, "result", lambda: kernel)()[(1,)]


@contextmanager
def _streams(device: torch.device, more: int) -> Iterator[list[AbstractContextManager[Any]]]:
    """The current stream and `more` beside it, which begin where it is; afterwards it waits for them."""
    if more == 0 or device.type != "cuda":
        yield [nullcontext()] * (more + 1)
        return
    current, beside = torch.cuda.current_stream(), [_beside(device, i) for i in range(more)]
    for stream in beside:
        stream.wait_stream(current)
    yield [nullcontext(), *map(torch.cuda.stream, beside)]
    for stream in beside:
        current.wait_stream(stream)


@cache
def _beside(device: torch.device, _: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class Launches:
    """The launches of one call, in order; those of another `lane` run beside them, on a stream of their own."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = []
        self.lane, self.lanes = 0, list[int]()

    def add(self, kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        self.waiting.append((kernel, grid, args, options))
        self.lanes.append(self.lane)

    def run(self, kind: tuple[Any, ...], device: torch.device) -> None:
        """Launch what is waiting. Calls of one kind need the same kernels; a kernel that is missing all the same is
        compiled when it is launched."""
        compile_all({kind: self}, device)
        with _on(device), _streams(device, max(self.lanes, default=0)) as streams:
            for (kernel, grid, args, options), lane in zip(self.waiting, self.lanes, strict=True):
                with streams[lane]:
                    kernel[grid](*args, **options)
        self.waiting.clear()
        self.lanes.clear()


class Rehearsal(Launches):
    """What a call would launch, and of what kind."""

    kind: tuple[Any, ...] = ()

    def run(self, kind: tuple[Any, ...], device: torch.device) -> None:
        self.kind = kind


def compile_all(calls: Mapping[tuple[Any, ...], Launches], device: torch.device) -> None:
    """Compile and load at a time what waits in calls of kinds that are new."""
    new = {kind: call for kind, call in calls.items() if (kind, device) not in COMPILED}
    if not new or INTERPRETED or not hasattr(triton, "AsyncCompileMode"):
        return
    if not COMPILED and torch.cuda.is_available():
        _begin()
    with (
        _on(device),
        ThreadPoolExecutor() as loading,
        ThreadPoolExecutor(AT_A_TIME) as compiling,
        triton.AsyncCompileMode(compiling),
    ):
        ready = [
            loading.submit(_load, kernel.warmup(*args, grid=grid, **options), device)
            for call in new.values()
            for kernel, grid, args, options in call.waiting
        ]
    for one in ready:
        one.result()
    COMPILED.update((kind, device) for kind in new)
