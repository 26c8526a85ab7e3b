"""What a record of results says of the operators: which implementation runs, and what compiled and drove it."""

import subprocess
from importlib import metadata

import torch
from torch import Tensor

from evalsuite_kernels.arguments import IMPLEMENTATIONS, choose, listening, meaning, meant, told
from evalsuite_kernels.full import dispatch

__all__ = ["IMPLEMENTATIONS", "implementations", "listening", "meaning", "output", "told", "version", "versions"]


def implementations(x: Tensor, widest: int = 0) -> dict[str, str]:
    """Operator -> what impl="auto", or what stands for it (`meaning`), runs without gradients for tensors like x and
    heads of up to `widest`. Raises ValueError where that cannot run.

    "chunked; window: triton" names kinds of calls that go another way: of softmax attention by `full.dispatch`, for
    heads of `widest`.
    """
    name = choose("auto", x, widest=widest)
    full = name if meant("auto") != "auto" else "chunked"
    if name == "triton" and meant("auto") == "auto":
        kinds = [kind for kind in dispatch.KINDS if dispatch.of_class(kind, x, widest, widest, "forward") == name]
        full = "; ".join([full, *(f"{kind}: {name}" for kind in sorted(kinds))])
    families = "linear_attention", "delta_rule", "lightning_index", "sparse_attention", "block_attention"
    short = "reference" if name == "reference" else "chunked"
    return {"full_attention": full, "short_convolution": short} | dict.fromkeys(families, name)


def versions(x: Tensor) -> dict[str, str] | None:
    """Of all that makes and runs kernels on x's device: {"triton", "ptxas", "cuda", "driver", "gpu"}; None on a CPU."""
    if not x.is_cuda:
        return None
    driver = output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]) or "unknown"
    return {
        "triton": version("triton") or "not installed",
        "ptxas": _ptxas(x.device),
        "cuda": torch.version.cuda or torch.version.hip or "unknown",
        "driver": driver.partition("\n")[0],
        "gpu": torch.cuda.get_device_name(x.device),
    }


def _ptxas(device: torch.device) -> str:
    """The version of the assembler that Triton takes for this GPU, by its own word."""
    major, minor = torch.cuda.get_device_capability(device)
    try:
        from triton.backends.nvidia.compiler import get_ptxas

        return str(get_ptxas(10 * major + minor).version)
    except (ImportError, AttributeError, TypeError, RuntimeError):  # no public API: it may move
        return "unknown"


def version(package: str) -> str | None:
    """Of an installed package, else None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def output(command: list[str]) -> str:
    """What a command prints; "" if it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
