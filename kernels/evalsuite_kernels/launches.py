"""Kernels that are launched one after another, and compiled all at a time when they are new: each takes seconds."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
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


class Launches:
    """The launches of one call, in order."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = []

    def add(self, kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        self.waiting.append((kernel, grid, args, options))

    def run(self, kind: tuple[Any, ...], device: torch.device) -> None:
        """Launch what is waiting. Calls of one kind need the same kernels; a kernel that is missing all the same is
        compiled when it is launched."""
        compile_all({kind: self}, device)
        with _on(device):
            for kernel, grid, args, options in self.waiting:
                kernel[grid](*args, **options)
        self.waiting.clear()


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
