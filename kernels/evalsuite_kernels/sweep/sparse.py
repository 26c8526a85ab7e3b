"""Sparse attention: choices against brute force, errors against fp64, bits that must not change, memory, and times
beside our dense kernel and fla's NSA."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from evalsuite_kernels import block_attention, indexed_attention, lightning_index, sparse_attention
from evalsuite_kernels.launches import Launches
from evalsuite_kernels.sweep.common import Report, Row, attend, brief, milliseconds, poisoned
from evalsuite_kernels.sweep.exact import errors, gradients, limit_of, name_of, replays, same
from evalsuite_kernels.sweep.steps import replayed

# T, query heads, key heads, K, V, tokens or blocks chosen, block size (0: tokens), lists ("shared", "key", "query")
Case = tuple[int, int, int, int, int, int, int, str]
TOKENS: list[Case] = [
    (1, 4, 4, 128, 128, 8, 0, "shared"), (17, 6, 2, 64, 64, 8, 0, "shared"), (65, 16, 1, 128, 128, 16, 0, "shared"),
    (1000, 32, 2, 128, 128, 64, 0, "shared"), (1000, 4, 4, 128, 96, 64, 0, "shared"),
    (1000, 8, 2, 256, 256, 64, 0, "key"), (1000, 8, 2, 64, 64, 64, 0, "query"),
    (4096, 16, 1, 128, 128, 256, 0, "shared"),
]  # fmt: skip
BLOCKS: list[Case] = [
    (1, 4, 4, 128, 128, 2, 16, "key"), (65, 6, 2, 64, 64, 2, 16, "query"), (200, 16, 1, 128, 128, 4, 32, "shared"),
    (1000, 32, 2, 128, 128, 8, 64, "key"), (1000, 8, 8, 128, 96, 4, 64, "query"), (1000, 4, 2, 256, 256, 4, 64, "key"),
    (4096, 16, 1, 128, 128, 16, 64, "key"),
]  # fmt: skip
HQ, H, D = 32, 2, 128
# query and key heads of the times: one key head, as DeepSeek's attention has it where it is sparse, and two
PREFILL, DECODE = ((64, 1), (32, 2)), ((64, 8), (32, 2))
HI, DI, TOPK = 4, 64, 2048
BLOCK, CHOSEN = 64, 16
LENGTHS = (32768, 131072)


Three = tuple[Tensor, Tensor, Tensor]


def heads(
    B: int, T: int, S: int, dtype: torch.dtype, device: str, sizes: tuple[int, int, int, int] = (HQ, H, D, D)
) -> Three:
    """q, k and v for as many heads of each, and their dims K and V."""
    hq, h, K, V = sizes
    q, k, v = (torch.randn(shape, device=device) for shape in ((B, T, hq, K), (B, S, h, K), (B, S, h, V)))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def indexer(B: int, T: int, S: int, dtype: torch.dtype, device: str, whole: bool = False) -> Three:
    """Queries, keys and weights; `whole` numbers, whose scores are exact in any order, with many equal ones."""

    def draw(*shape: int) -> Tensor:
        return (torch.randint(-2, 3, shape, device=device) if whole else torch.randn(shape, device=device)).to(dtype)

    return draw(B, T, HI, DI), draw(B, S, DI), draw(B, T, HI)


def lists(case: Case, B: int, device: str) -> Tensor:
    """Random lists of a case: of tokens, or of blocks, up to the query's own."""
    T, hq, h, _, _, chosen, size, whose = case
    shape = (B, T) if whose == "shared" else (B, T, h if whose == "key" else hq)
    own = torch.arange(T, device=device) // max(size, 1)
    own = own.view(1, T, *([1] * (len(shape) - 2)))
    order = torch.rand(*shape, int(own.max()) + 1, device=device)
    order = order.masked_fill(torch.arange(order.shape[-1], device=device) > own[..., None], -1.0)
    found = order.topk(min(chosen, order.shape[-1]), dim=-1)
    return torch.where(found.values >= 0, found.indices, -1).int()


def reader(case: Case, listed: Tensor, impl: str) -> Callable[..., list[Tensor]]:
    size = case[6]
    if size:
        return lambda q, k, v: [block_attention(q, k, v, listed, size, impl=impl)]
    return lambda q, k, v: [sparse_attention(q, k, v, listed, impl=impl)]


def exact(case: Case, dtype: torch.dtype, impl: str, device: str) -> Row:
    """Output and gradients against the chunked form in fp64."""
    T = case[0]
    leaves = dict(zip("qkv", heads(2, T, T, dtype, device, (case[1], case[2], case[3], case[4])), strict=True))
    listed = lists(case, 2, device)
    towards = {"o": torch.randn(2, T, case[1], case[4], device=device).to(dtype)}
    with poisoned():
        got = gradients(reader(case, listed, impl), leaves, towards)
    want = gradients(reader(case, listed, "chunked"), {n: x.double() for n, x in leaves.items()}, towards)
    found, limit = errors(got, want), limit_of(dtype)
    return {"errors": found, "limit": limit, "passed": all(e <= limit for e in found.values())}


def choice(T: int, topk: int, dtype: torch.dtype, impl: str, device: str) -> Row:
    """Of whole numbers, the very sets that a stable sort of fp64's scores gives, plateaus included."""
    q, k, w = indexer(2, T, T, dtype, device, whole=True)
    got = lightning_index(q, k, w, topk, impl=impl)
    wrong = 0
    for b in range(2):
        for t in range(0, T, max(1, T // 64)):
            x = (w[b, t].double() @ (q[b, t].double() @ k[b, : t + 1].double().T).relu()).sort(
                descending=True, stable=True
            )
            want = x.indices[:topk].sort().values
            row = got[b, t]
            wrong += not torch.equal(row[row >= 0].long(), want)
    return {"equal": wrong == 0, "unequal_rows": wrong}


def everything(T: int, dtype: torch.dtype, impl: str, device: str) -> Row:
    """A choice of all keys beside the full kernel."""
    q, k, v = heads(1, T, T, dtype, device)
    chosen = lightning_index(*indexer(1, T, T, dtype, device), T, impl=impl)
    found = errors({"o": sparse_attention(q, k, v, chosen, impl=impl)}, {"o": attend(q, k, v, impl).double()})
    return {"errors": found, "limit": limit_of(dtype), "passed": found["o"] <= limit_of(dtype)}


def whole(x: dict[str, Tensor], impl: str, blocks: bool) -> list[Tensor]:
    """The choice and what is read by it."""
    q, k, v = x["q"], x["k"], x["v"]
    chosen = lightning_index(x["iq"], x["ik"], x["w"], 40, impl=impl)
    if blocks:
        two = F.pad(chosen, (0, 1), value=-1)  # a single query has one
        first, second = (torch.where(two[..., i] >= 0, two[..., i] // 16, -1) for i in (0, 1))
        named = torch.stack([first, torch.where(second != first, second, -1)], -1)  # each block once
        return [chosen, block_attention(q, k, v, named, 16, impl=impl)]
    return [chosen, sparse_attention(q, k, v, chosen, impl=impl)]


def unchanged(dtype: torch.dtype, impl: str, device: str, blocks: bool, T: int = 230) -> Row:
    """Edited and cut-off later tokens, sequences alone and in a batch, prefill in pieces and decoding."""
    names = ("q", "k", "v", "iq", "ik", "w")
    x = dict(zip(names, [*heads(3, T, T, dtype, device), *indexer(3, T, T, dtype, device)], strict=True))
    all_of = whole(x, impl, blocks)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for t in (1, 16, 40, 41, 64, 100, T - 1):
        later = {n: torch.cat([y[:, :t], 0.3 * y[:, t:] - 0.01], 1) for n, y in x.items()}
        early = {n: y[:, :t] for n, y in x.items()}
        rest = {n: y if n in {"k", "v", "ik"} else y[:, t:] for n, y in x.items()}
        for i, want in enumerate(all_of):
            pairs[f"edited from {t}, {i}"] = whole(later, impl, blocks)[i][:, :t], want[:, :t]
            cut, begin = whole(early, impl, blocks)[i], want[:, :t]
            pairs[f"cut at {t}, {i}"] = cut, begin[..., : cut.shape[-1]]
            pairs[f"continued at {t}, {i}"] = whole(rest, impl, blocks)[i], want[:, t:]
    for b in range(3):
        alone = whole({n: y[b : b + 1] for n, y in x.items()}, impl, blocks)
        pairs |= {f"sequence {b}, {i}": (a[0], want[b]) for i, (a, want) in enumerate(zip(alone, all_of, strict=True))}
    return same(pairs)


@torch.no_grad()
def step(S: int, T: int, topk: int, dtype: torch.dtype, impl: str, device: str, whole: bool) -> list[Row]:
    """Steps that make no list against fp64's attention over the list, and replays; with `whole` numbers many scores are
    equal, those of the last sequence all."""
    q, k, v = heads(3, T, S, dtype, device, (16, 2, D, D))
    x = indexer(3, T, S, dtype, device, whole)
    x[2][2] *= 0
    run = partial(indexed_attention, topk=topk, impl=impl)
    with poisoned():
        got = run(q, k, v, *x)
    chosen = lightning_index(*x, topk, impl=impl)
    want = sparse_attention(q.double(), k.double(), v.double(), chosen, impl="chunked")
    alone = [run(*[y[b : b + 1] for y in (q, k, v, *x)]) for b in range(3)]
    found, limit = errors({"o": got}, {"o": want}), limit_of(dtype)
    rows = same({f"sequence {b}": (y[0], got[b]) for b, y in enumerate(alone)})
    exact = {"errors": found, "limit": limit, "passed": found["o"] <= limit and rows["equal"], "alone": rows}
    return [exact, replays(lambda: [run(q, k, v, *x)], 1000)]


def with_gradients(x: dict[str, Tensor], impl: str, blocks: bool) -> list[Tensor]:
    leaves = {n: x[n].detach().requires_grad_() for n in "qkv"}
    chosen, o = whole(x | leaves, impl, blocks)
    return [chosen, o.detach(), *torch.autograd.grad(o, list(leaves.values()), o.detach().sin())]


def sparse(report: Report, impl: str, device: str, tiny: bool) -> bool:
    """Fill the report. True if all passed."""
    for case in [*TOKENS, *BLOCKS]:
        if tiny and case[0] > 65:
            continue
        for dtype in (torch.float32,) if tiny else (torch.bfloat16, torch.float32, torch.float16):
            report.add(f"sparse {name_of(dtype)} {case}", partial(exact, case, dtype, impl, device))
    dtype = torch.float32 if tiny else torch.bfloat16
    for T, topk in ((65, 16), (300, 300)) if tiny else ((65, 16), (1000, 1000), (4096, 256), (20000, 2048)):
        report.add(f"sparse choice T={T} topk={topk}", partial(choice, T, topk, dtype, impl, device))
    report.add("sparse everything", partial(everything, 65 if tiny else 1000, dtype, impl, device))
    for S, T, topk in () if tiny else ((9000, 1, 2048), (20000, 3, 100), (131072, 1, 2048)):
        for whole_numbers in (False, True):
            about = f"sparse step S={S} T={T} topk={topk}{' of whole numbers' * whole_numbers}"
            report.add(about, partial(step, S, T, topk, dtype, impl, device, whole_numbers))
    names = ("q", "k", "v", "iq", "ik", "w")
    for blocks in (False, True):
        kind = "blocks" if blocks else "tokens"
        report.add(f"sparse {kind} unchanged", partial(unchanged, dtype, impl, device, blocks, 70 if tiny else 230))
        T = 70 if tiny else 230
        x = dict(
            zip(names, [*heads(2, T, T, dtype, device), *indexer(2, T, T, dtype, device, whole=True)], strict=True)
        )
        again = partial(replays, partial(with_gradients, x, impl, blocks), 3 if tiny else 1000)
        report.add(f"sparse {kind} replays", again)
    report.close()
    return all(row.get("passed", row.get("equal", False)) for row in report.rows)


def timed(calls: dict[str, Callable[[], Any]], about: Row, seconds: float = 0.4) -> list[Row]:
    """A row for each call; "times_as_fast" is by how much it beats "dense", where there is one. What fails is told."""
    rows: dict[str, Row] = {}
    ready: dict[str, list[Callable[[], Any]]] = {}
    for name, one in calls.items():
        try:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            one()
            torch.cuda.synchronize()
            rows[name] = {"peak_bytes": torch.cuda.max_memory_allocated() - before}
            ready[name] = [one]
        except Exception as problem:
            rows[name] = {"error": brief(problem)}
    with torch.no_grad():
        for name, times in milliseconds(ready, seconds).items():
            rows[name] |= times
    dense = rows.get("dense", {}).get("ms")
    for name, row in rows.items():
        row["impl"] = name
        if dense and "ms" in row:
            row["times_as_fast"] = dense / row["ms"]
    return [about | row for row in rows.values()]


def _parts(B: int, T: int, S: int, hq: int, h: int) -> dict[str, Callable[[], Any]]:
    """The whole of it and its parts, beside our dense kernel."""
    q, k, v = heads(B, T, S, torch.bfloat16, "cuda", (hq, h, D, D))
    x = indexer(B, T, S, torch.bfloat16, "cuda")
    chosen, equal = lightning_index(*x, TOPK), torch.zeros_like(x[2])
    return {
        "dense": lambda: attend(q, k, v, "triton"),
        "dsa": lambda: indexed_attention(q, k, v, *x, TOPK),
        "dsa of equal scores": lambda: indexed_attention(q, k, v, *x[:2], equal, TOPK),
        "indexer": lambda: lightning_index(*x, TOPK),
        "attention": lambda: sparse_attention(q, k, v, chosen),
    }


def dsa(T: int, hq: int, h: int) -> list[Row]:
    """A prefill."""
    about = {"T": T, "B": 1, "HQ": hq, "H": h, "D": D, "HI": HI, "DI": DI, "topk": TOPK}
    return timed(_parts(1, T, T, hq, h), about)


@torch.no_grad()
def decoded(S: int, B: int, hq: int, h: int) -> list[Row]:
    """A step of B sequences inside a CUDA graph, over caches in turn that no cache of the GPU holds all of."""
    sets = [_parts(B, 1, S, hq, h) for _ in range(4 if B == 1 else 1)]
    about = {"S": S, "B": B, "HQ": hq, "H": h, "D": D, "HI": HI, "DI": DI, "topk": TOPK}
    rows: list[Row] = [about | {"impl": name} | replayed([one[name] for one in sets] * 4) for name in sets[0]]
    return [row | {"times_as_fast": rows[0]["us"] / row["us"]} for row in rows]


@contextmanager
def _launched(first: int) -> Iterator[None]:
    """Within it a call makes only its `first` launches."""
    whole = Launches.run

    def run(self: Launches, kind: tuple[Any, ...], device: torch.device) -> None:
        self.waiting = self.waiting[:first]
        whole(self, (*kind, first), device)

    with patch.object(Launches, "run", run):
        yield


@torch.no_grad()
def by_launch(S: int, hq: int, h: int) -> list[Row]:
    """A step launch by launch: what the first ones take; `decoded` has the whole."""
    sets = [(*heads(1, 1, S, torch.bfloat16, "cuda", (hq, h, D, D)), *indexer(1, 1, S, torch.bfloat16, "cuda"))
            for _ in range(4)]  # fmt: skip
    each: list[Callable[[], Any]] = [partial(indexed_attention, *one, TOPK) for one in sets]
    calls = each * 4
    names: list[str] = []
    with patch.object(Launches, "run", lambda self, *_: names.extend(k.fn.__name__ for k, *_ in self.waiting)):
        calls[0]()
    rows: list[Row] = []
    for first, name in enumerate(names, 1):
        with _launched(first):
            rows.append({"S": S, "HQ": hq, "H": h, "launch": first, "impl": name} | replayed(calls))
    return rows


def blocked(T: int, hq: int, h: int) -> list[Row]:
    """The attention over a block list alone; the list is made beforehand."""
    q, k, v = heads(1, T, T, torch.bfloat16, "cuda", (hq, h, D, D))
    chosen = random_blocks(T, h)
    calls: dict[str, Callable[[], Any]] = {
        "dense": lambda: attend(q, k, v, "triton"),
        "blocks": lambda: block_attention(q, k, v, chosen, BLOCK),
    }
    try:
        nsa = import_module("fla.ops.nsa").parallel_nsa
        listed = chosen.long().clamp(min=0)
        calls["fla nsa, selected branch"] = lambda: nsa(
            q, k, v, g_slc=torch.ones(1, T, hq, device="cuda", dtype=q.dtype), block_indices=listed,
            block_counts=CHOSEN, block_size=BLOCK,
        )  # fmt: skip
    except Exception as problem:
        print(f"fla's NSA is left out: {brief(problem)}")
    return timed(calls, {"T": T, "HQ": hq, "H": h, "D": D, "block": BLOCK, "chosen": CHOSEN})


def random_blocks(T: int, h: int) -> Tensor:
    """Of each query its own block and others at random, one in each of as many equal stretches of its past; all that
    there are where these are few."""
    own = torch.arange(T, device="cuda")[None, :, None, None] // BLOCK
    n = torch.arange(CHOSEN, device="cuda")
    low, high = n * (own + 1) // CHOSEN, (n + 1) * (own + 1) // CHOSEN
    drawn = low + torch.randint(0, 1 << 30, (1, T, h, CHOSEN), device="cuda") % (high - low).clamp(min=1)
    drawn = torch.where(n == CHOSEN - 1, own, drawn)
    return torch.where(own + 1 < CHOSEN, torch.where(n <= own, n, -1), drawn).int()


def sparse_speed(report: Report) -> None:
    """Fill the report with times; "peak_bytes" are beyond the inputs."""
    for hq, h in PREFILL:
        for T in LENGTHS:
            report.add(f"dsa prefill T{T} HQ{hq} H{h}", partial(dsa, T, hq, h))
    for hq, h in DECODE:
        for B in (1, 16):
            report.add(f"dsa decode S131072 B{B} HQ{hq} H{h}", partial(decoded, 131072, B, hq, h))
    for hq, h in DECODE:
        report.add(f"dsa decode S131072 HQ{hq} H{h} by launch", partial(by_launch, 131072, hq, h))
    for hq, h in PREFILL:
        for T in LENGTHS:
            report.add(f"blocks T{T} HQ{hq} H{h}", partial(blocked, T, hq, h))
    report.close()
