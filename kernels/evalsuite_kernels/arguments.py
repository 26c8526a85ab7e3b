"""What the operators share at the door: shapes, dtypes, the choice of implementation, packed sequences."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, wraps
from importlib.metadata import version
from itertools import pairwise
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
IMPLEMENTATIONS = ("auto", "reference", "chunked", "triton")
LARGEST = 256  # head dim of the Triton kernels

INSTALLED = importlib.util.find_spec("triton") is not None
GLUON = INSTALLED and tuple(map(int, version("triton").split(".")[:2])) >= (3, 6)  # with what Hopper's kernels need
# Triton's kernels then run on a CPU, slowly; Triton reads the variable when it is imported, as this does
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "on", "true"}


_MEANT: list[str] = ["auto"]


@contextmanager
def meaning(impl: str) -> Iterator[None]:
    """Let impl="auto" stand for `impl` meanwhile, in every operator and thread: "auto" itself, "reference", "chunked"
    or "triton". An operator without a form of that name raises as if it were given, but the short convolution, which
    has no kernel of its own and stays "chunked" under "triton".
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown impl {impl!r}; known: {', '.join(IMPLEMENTATIONS)}")
    _MEANT.append(impl)
    try:
        yield
    finally:
        _MEANT.pop()


def meant(impl: str) -> str:
    """`impl`, or what "auto" stands for meanwhile."""
    return _MEANT[-1] if impl == "auto" else impl


_LISTENING: list[dict[str, set[str]]] = []


@contextmanager
def listening(heard: dict[str, set[str]] | None = None) -> Iterator[dict[str, set[str]]]:
    """What really runs meanwhile, in any thread: operator -> implementations, added to `heard`.

    A gradient's kernels are "... backward"; torch's own gradients are not named. A graph that `torch.compile` made
    tells of our kernels in it alone, a CUDA graph of what was recorded.
    """
    heard = {} if heard is None else heard
    _LISTENING.append(heard)
    try:
        yield heard
    finally:
        at = max(i for i, each in enumerate(_LISTENING) if each is heard)  # equal ones are not the same
        del _LISTENING[at]


def told(heard: dict[str, set[str]]) -> dict[str, list[str]]:
    """The same as JSON carries it, in order."""
    return {name: sorted(heard[name]) for name in sorted(heard)}


def note(operator: str, impl: str) -> None:
    """Tell all who are listening."""
    if not torch.compiler.is_compiling():
        for heard in _LISTENING:
            heard.setdefault(operator, set()).add(impl)


def remembered(make: Callable[P, R]) -> Callable[P, R]:
    """The latest few results again for equal arguments: the layers of a model ask for the same ones, one by one.

    Not while a CUDA graph is recorded, which would go on reading a result that is forgotten; and each CUDA stream has
    its own, because what is forgotten is another's to write to as soon as the stream that it was made on gets there.
    """

    @lru_cache(maxsize=8)
    def recent(stream: int, *args: P.args, **kwargs: P.kwargs) -> R:
        return make(*args, **kwargs)

    @wraps(make)
    def again(*args: P.args, **kwargs: P.kwargs) -> R:
        cuda = torch.cuda.is_available()
        if cuda and torch.cuda.is_current_stream_capturing():
            return make(*args, **kwargs)
        stream = torch.cuda.current_stream().cuda_stream if cuda else 0
        with torch.inference_mode(False):  # who asks next may want a gradient
            return recent(stream, *args, **kwargs)  # type: ignore[arg-type]  # Hashable cannot be asked of P

    return again


class Raw(NamedTuple):
    """What the operator makes of its inputs by itself: see `delta_rule`."""

    l2norm: bool = False
    A_log: Tensor | None = None
    dt_bias: Tensor | None = None
    sigmoid: bool = False
    beta_max: float = 1.0


def choose(impl: str, *tensors: Tensor | None, widest: int = 0) -> str:
    """The implementation to run on these tensors and heads of `widest`: "auto" is "triton" on a GPU if it can, but for
    what `meaning` says.

    Raises:
        ValueError: an unknown impl, or "triton" where it cannot run.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown impl {impl!r}; known: {', '.join(IMPLEMENTATIONS)}")
    given, impl = [x for x in tensors if x is not None], meant(impl)
    if impl == "auto":
        return "triton" if given[0].is_cuda and _obstacle(given, widest) is None else "chunked"
    if impl == "triton" and (obstacle := _obstacle(given, widest)):
        raise ValueError(f"impl='triton' cannot run here: {obstacle}; use impl='auto' or 'chunked'")
    return impl


def _obstacle(tensors: list[Tensor], widest: int) -> str | None:
    if not INSTALLED:
        return "the package triton is not installed"
    for x in tensors:
        if not x.is_cuda and not INTERPRETED:
            return f"it needs a GPU, and a tensor is on {x.device.type}"
        if x.dtype not in {torch.bfloat16, torch.float16, torch.float32}:
            return f"it takes bf16, fp16 and fp32, not {x.dtype}"
    return f"head dims may reach {LARGEST}, not {widest}" if widest > LARGEST else None


@cache
def hopper(device: torch.device) -> bool:
    """Whether it has TMA and wgmma."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """fp64 where any input is fp64, else fp32: half-precision inputs are computed and kept as state in fp32."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def expect(name: str, x: Tensor, *shape: int | str) -> None:
    """Raise unless `x` has this shape; a letter stands for any size and documents it."""
    fits = x.dim() == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, x.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape [{', '.join(map(str, shape))}], not {list(x.shape)}")


def expect_whole(name: str, x: object, least: int = 1) -> None:
    """Raise unless `x` is an int of at least `least`."""
    if not isinstance(x, int) or isinstance(x, bool) or x < least:
        raise ValueError(f"{name} must be a whole number and at least {least}, not {x!r}")


def expect_integers(name: str, x: object) -> None:
    """Raise unless `x` is a tensor of integers."""
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"{name} must be an integer tensor, not {x.dtype if isinstance(x, Tensor) else x!r}")


def expect_heads(q: Tensor, k: Tensor, v: Tensor | None = None) -> None:
    """Raise unless q is [B, T, HQ, K], k [B, S, H, K] and v, if any, [B, S, H, V]; K >= 1 and HQ a multiple of H."""
    expect("q", q, "B", "T", "HQ", "K")
    expect("k", k, q.shape[0], "S", "H", q.shape[3])
    S, H = k.shape[1:3]
    if v is not None:
        expect("v", v, q.shape[0], S, H, "V")
    if H == 0 or q.shape[2] % H:
        raise ValueError(f"q has {q.shape[2]} heads, which is no multiple of the {H} heads of k")
    if q.shape[3] == 0:
        raise ValueError("q and k have heads of dim 0")


def offsets(cu_seqlens: Tensor, batch: int, total: int, name: str = "cu_seqlens") -> list[int]:
    """The bounds of packed sequences as a list [N + 1]; empty sequences are allowed.

    Raises:
        ValueError: the batch is not 1, or the bounds are no integers rising from 0 to `total`.
    """
    if batch != 1:
        raise ValueError(f"{name} packs sequences along time, so the batch size must be 1, not {batch}")
    expect_integers(name, cu_seqlens)
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        raise ValueError(f"{name} must be an integer tensor [N + 1], not {cu_seqlens.dtype} {list(cu_seqlens.shape)}")
    bounds: list[int] = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != total or any(a > b for a, b in pairwise(bounds)):
        raise ValueError(f"{name} must rise from 0 to the {total} packed tokens; it runs {bounds[0]} .. {bounds[-1]}")
    return bounds


def pieces(
    B: int, T: int, S: int, cu_q: Tensor | None, cu_k: Tensor | None, key_lengths: Tensor | None
) -> list[tuple[int, int, int, int, list[int]]]:
    """Query bounds, key bounds and valid keys of what is computed alone; pieces without queries are left out."""
    if cu_q is None:
        if cu_k is not None:
            raise ValueError("cu_seqlens_k needs cu_seqlens for the queries")
        lengths = [S] * B
        if key_lengths is not None:
            expect_integers("key_lengths", key_lengths)
            expect("key_lengths", key_lengths, B)
            lengths = [int(n) for n in key_lengths.tolist()]
            if any(n < 0 or n > S for n in lengths):
                raise ValueError(f"key_lengths must lie in 0 .. {S}; they span {min(lengths)} .. {max(lengths)}")
        elif T > S:
            raise ValueError(f"{T} queries cannot be the last of {S} keys; pass k and v with the cache included")
        return [(0, T, 0, S, lengths)] if T and B else []
    if key_lengths is not None:
        raise ValueError("key_lengths is for padded batches; packed sequences give cu_seqlens_k")
    queries = offsets(cu_q, B, T)
    keys = offsets(cu_q if cu_k is None else cu_k, B, S, "cu_seqlens" if cu_k is None else "cu_seqlens_k")
    if len(keys) != len(queries):
        raise ValueError(f"cu_seqlens names {len(queries) - 1} sequences and cu_seqlens_k {len(keys) - 1}")
    found = []
    for a, b, c, d in zip(queries, queries[1:], keys, keys[1:], strict=False):
        if b - a > d - c:
            raise ValueError(
                f"a packed sequence has {b - a} queries and only {d - c} keys; keys must include the queries' own"
            )
        if b > a:
            found.append((a, b, c, d, [d - c]))
    return found
