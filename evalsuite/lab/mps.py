"""NVIDIA's Multi-Process Service: kernels of processes that share a GPU run side by side, not in turns."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = "nvidia-cuda-mps-control"
# a client's first steps: a service that starts and then serves nobody would fail every process of the lab
_TRY = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
context = ctypes.c_void_p()
raise SystemExit(cuda.cuInit(0) or cuda.cuCtxCreate_v2(ctypes.byref(context), 0, 0))
"""
SECONDS = 30  # for a client's first steps


@contextmanager
def side_by_side(wanted: bool = True) -> Iterator[bool]:
    """Within it, processes that are started share GPUs through a service of their own; whether they do.

    Nothing changes where it is not wanted, where its program is missing or a client finds no service there, or where
    the caller's own service is at work (CUDA_MPS_PIPE_DIRECTORY is set). It ends with the block.
    """
    program = shutil.which(PROGRAM)
    if not wanted or program is None or "CUDA_MPS_PIPE_DIRECTORY" in os.environ:
        yield False
        return
    with tempfile.TemporaryDirectory(prefix="mps") as folder:
        places = {f"CUDA_MPS_{kind}_DIRECTORY": str(Path(folder, kind.lower())) for kind in ("PIPE", "LOG")}
        for place in places.values():
            os.mkdir(place)
        served = _begin(program, os.environ | places)
        try:
            if served:
                os.environ.update(places)
            yield served
        finally:
            for name in places:
                os.environ.pop(name, None)
            _end(program, os.environ | places)


def _begin(program: str, environment: dict[str, str]) -> bool:
    # a service numbers anew the GPUs that it is left: it has them all, and clients choose by the numbers they know
    every = {name: value for name, value in environment.items() if name != "CUDA_VISIBLE_DEVICES"}
    return _done([program, "-d"], every) and _done([sys.executable, "-c", _TRY], environment)


def _end(program: str, environment: dict[str, str]) -> None:
    _done([program], environment, "quit -t 5\n")


def _done(command: list[str], environment: dict[str, str], said: str = "") -> bool:
    try:
        done = subprocess.run(
            command, env=environment, input=said, text=True, timeout=SECONDS, check=False, capture_output=True
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
