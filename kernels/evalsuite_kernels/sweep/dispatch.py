"""Our softmax attention beside torch's for every shape class: the table that impl="auto" goes by."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evalsuite_kernels.full.dispatch import KINDS, WIDTHS
from evalsuite_kernels.sweep.apart import all_apart
from evalsuite_kernels.sweep.common import Report, Row, attend, milliseconds, poisoned
from evalsuite_kernels.sweep.exact import errors, gradients, limit_of

Sizes = tuple[int, int, int, int, int]  # B, T, S, HQ, H
WHOLE: list[Sizes] = [(1, 8192, 8192, 32, 32), (8, 1000, 1000, 16, 4)]
# the calls that a kind stands for; a single query is decoding, which nobody takes gradients of
SHAPES: dict[str, list[Sizes]] = {
    "square": WHOLE,
    "cached": [(1, 1024, 8192, 32, 8), (8, 500, 1000, 16, 16), (16, 1, 8192, 32, 8)],
    "window": WHOLE,
    "sinks": WHOLE,
    "packed": [(1, 8192, 8192, 32, 32), (1, 4000, 4000, 16, 4)],
    "padded": [(8, 1000, 1000, 16, 4), (2, 1024, 4096, 32, 32), (16, 1, 8192, 32, 8)],
}
PLAIN = 4  # fp32 runs at this part of the length
PARTS = (1, 40, 7, 120, 3, 260, 25, 68)  # lengths of packed sequences, in proportion
WINDOW = 512
DTYPES = {2: torch.bfloat16, 4: torch.float32}
Class = tuple[str, int, int, str]  # as in FASTER


def made(kind: str, sizes: Sizes, D: int, dtype: torch.dtype, device: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Random q, k, v (and sinks), and the other options of a call of this kind; heads of D."""
    B, T, S, HQ, H = sizes
    shapes = {"q": (B, T, HQ, D), "k": (B, S, H, D), "v": (B, S, H, D)}
    leaves = {name: torch.randn(shape, device=device).to(dtype) for name, shape in shapes.items()}
    options: dict[str, Any] = {}
    if kind == "sinks":
        leaves["sinks"] = torch.randn(HQ, device=device)
    elif kind == "window":
        options["window"] = min(WINDOW, S // 3)
    elif kind == "packed":
        shares = torch.tensor([0, *PARTS]).cumsum(0)
        options["cu_seqlens"] = (shares * T // shares[-1]).int().to(device)
    elif kind == "padded":
        options["key_lengths"] = torch.linspace(S // 3, S, B).int().to(device)
    return leaves, options


def runner(options: dict[str, Any]) -> Callable[[str], Callable[..., list[Tensor]]]:
    """impl -> o, as a list, of the tensors given by name."""

    def of(impl: str) -> Callable[..., list[Tensor]]:
        return lambda q, k, v, sinks=None: [attend(q, k, v, impl, sinks=sinks, **options)]

    return of


def check(kind: str, size: int, D: int, device: str = "cuda") -> Row:
    """Output and gradients of the Triton kernels on a small call against chunked in fp64, and those of one query."""
    dtype = DTYPES[size]
    found: dict[str, float] = {}
    shorter = kind in {"cached", "padded"}
    for T, S in [(150, 260 if shorter else 150), *([(1, 260)] if shorter else [])]:
        leaves, options = made(kind, (1 if kind == "packed" else 2, T, S, 4, 2), D, dtype, device)
        run, doubles = runner(options), {name: x.double() for name, x in leaves.items()}
        towards = {"o": torch.randn(leaves["q"].shape, device=device).to(dtype)}
        with poisoned():
            got = gradients(run("triton"), leaves, towards)
        want = gradients(run("chunked"), doubles, towards)
        found |= {f"{name}, T={T}": e for name, e in errors(got, want).items()}
    limit = limit_of(dtype)
    return {"errors": found, "limit": limit, "passed": all(e <= limit for e in found.values())}


def timed(kind: str, size: int, D: int, passes: str, sizes: Sizes, seconds: float) -> Row:
    """Ours beside chunked; "ratio" is how many times as fast ours is."""
    leaves, options = made(kind, sizes, D, DTYPES[size], "cuda")
    run = runner(options)
    row: Row = {"shape": "B{} T{} S{} HQ{} H{}".format(*sizes)}
    if passes == "forward":
        steps = {impl: partial(run(impl), **leaves) for impl in ("triton", "chunked")}
    else:
        leaves = {name: x.requires_grad_() for name, x in leaves.items()}
        g = torch.randn_like(leaves["q"])

        def both(impl: str) -> Any:
            return torch.autograd.grad(run(impl)(**leaves), list(leaves.values()), [g])

        steps = {impl: partial(both, impl) for impl in ("triton", "chunked")}
    with torch.set_grad_enabled(passes == "both"):
        times = milliseconds({impl: [one] for impl, one in steps.items()}, seconds)
    ours, theirs = times["triton"], times["chunked"]
    return row | ours | {"chunked": theirs, "ratio": theirs["ms"] / ours["ms"]}


def shapes_of(kind: str, size: int, passes: str, tiny: bool) -> list[Sizes]:
    part = 16 if tiny else PLAIN if size == 4 else 1
    shapes: list[Sizes] = [(B, max(1, T // part), S // part, HQ, H) for B, T, S, HQ, H in SHAPES[kind]]
    return [sizes for sizes in shapes if sizes[1] > 1 or passes == "forward"]


def compared(each: Class, checked: Row, tiny: bool, seconds: float) -> list[Row]:
    kind, size, D, passes = each
    about = {"kind": kind, "bytes": size, "head_dim": D, "passes": passes, "check": checked}
    if not checked.get("passed", False):
        return [about | {"error": checked.get("error", f"wrong: {checked.get('errors')}")}]
    rows = []
    for sizes in shapes_of(kind, size, passes, tiny):
        rows.append(about | timed(kind, size, D, passes, sizes, seconds))
        torch.cuda.empty_cache()
    return rows


def table(rows: list[Row]) -> dict[Class, str]:
    """FASTER: the classes of which every row has ours at least as fast."""
    ratios: dict[Class, list[float]] = {}
    for row in rows:
        if "kind" in row:
            at = (row["kind"], row["bytes"], row["head_dim"], row["passes"])
            ratios.setdefault(at, []).append(row.get("ratio", 0.0))
    return {each: "triton" for each, found in ratios.items() if min(found) >= 1.0}


def name_of(each: Class) -> str:
    kind, size, D, passes = each
    return f"{kind} {8 * size} bit D{D} {passes}"


def dispatch(report: Report, tiny: bool, seconds: float = 0.1) -> None:
    """Fill the report and print FASTER: the small calls of all classes first, in processes that fill Triton's cache."""
    groups = [(kind, size, D) for size in (2, 4) for D in sorted(WIDTHS, key=lambda D: D != 128) for kind in KINDS]
    classes = [(*group, passes) for group in (groups[:6] if tiny else groups) for passes in ("forward", "both")]
    classes = [each for each in classes if report.wants(name_of(each))]
    needed = list(dict.fromkeys(each[:3] for each in classes))
    checked = dict(zip(needed, all_apart(__name__, "check", needed), strict=True))
    for each in classes:
        report.add(name_of(each), partial(compared, each, checked[each[:3]], tiny, seconds))
    report.close()
    print("\nFASTER: dict[tuple[str, int, int, str], str] = {")
    for each, impl in table(report.rows).items():
        parts = ", ".join(f'"{part}"' if isinstance(part, str) else str(part) for part in each)
        print(f'    ({parts}): "{impl}",')
    print("}", flush=True)
