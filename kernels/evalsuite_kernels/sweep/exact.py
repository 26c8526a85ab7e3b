"""Errors against fp64, and what must not change a single bit."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evalsuite_kernels.sweep.common import OPERATORS, Inputs, Report, Row, attend, call, inputs, poisoned

LIMITS = {torch.bfloat16: 5e-3, torch.float32: 1e-5}
EVERY_TOKEN = 65  # up to this length the truth is the recurrence itself; beyond it the chunked form in fp64
SAMPLED = 16384  # softmax attention in fp64 is computed for the last queries alone beyond this length


@dataclass(frozen=True)
class Case:
    """One input of one operator."""

    T: int
    B: int = 1
    H: int = 2
    HV: int = 0
    K: int = 128
    V: int = 0
    regime: str = "mixed"
    state: bool = False
    lengths: tuple[int, ...] = ()  # packed sequences
    window: int = 0
    sinks: bool = False
    segment: int = 0
    frozen: bool = False  # nothing is owed to gates

    @property
    def name(self) -> str:
        fields = {f: x for f, x in asdict(self).items() if x and (f, x) not in {("B", 1), ("regime", "mixed")}}
        return " ".join(f if x is True else f"{f}={x}" for f, x in fields.items())


Pairs = dict[str, tuple[Tensor, Tensor]]
PACKED = (5, 0, 33, 1, 64, 127, 200, 0, 70)


def recurrent_cases(tiny: bool) -> list[Case]:
    if tiny:
        cases = [Case(T, K=16, state=T > 1) for T in (1, 15, 17, 65)]
        cases += [Case(70, K=16, regime=regime) for regime in ("long", "storm", "collinear")]
        cases += [
            Case(70, K=16, frozen=True),
            Case(70, K=16, HV=4, regime="raw"),
            Case(300, K=16, regime="long", segment=128, state=True),
        ]
        return [*cases, Case(33, K=16, V=8, B=3, HV=4), Case(sum(PACKED), K=16, lengths=PACKED, state=True)]
    cases = [Case(T, state=T % 2 == 1) for T in (1, 15, 16, 17, 63, 64, 65, 1000, 8192)]
    cases += [Case(1000, regime=regime, state=True) for regime in ("long", "storm", "collinear", "softplus")]
    cases += [Case(8192, regime="long", H=1), Case(65536, H=1), Case(65536, H=1, regime="long", state=True)]
    cases += [Case(200, B=B, state=B == 8) for B in (2, 5, 8)]
    cases += [Case(200, H=2, HV=6, state=True), Case(130, K=64, HV=4), Case(130, K=256, H=1), Case(130, K=64, V=128)]
    cases += [Case(130, K=128, V=96, state=True)]
    cases += [Case(1000, frozen=True, state=True)]
    # what a head's A_log is owed is one sum over all tokens: the norm of a few may be far below their terms
    cases += [Case(1000, H=16, regime="raw", state=True), Case(130, K=64, H=8, HV=16, regime="raw")]
    cases += [Case(130, K=256, H=16, regime="raw"), Case(8192, H=16, regime="raw")]
    cases += [Case(8192, H=1, regime="long", segment=1024, state=True), Case(1000, H=16, regime="raw", segment=256)]
    cases += [Case(sum(PACKED), lengths=PACKED, HV=4, segment=128, state=True)]
    return [*cases, Case(sum(PACKED), lengths=PACKED, state=True), Case(sum(PACKED), lengths=PACKED, HV=4)]


def possible(op: str, case: Case) -> bool:
    """Linear attention has nothing to activate but gates."""
    family, gate = OPERATORS[op]
    if case.frozen and gate not in {"head", "scalar"}:  # elsewhere it changes nothing
        return False
    return case.regime != "raw" or family == "delta" or gate in {"scalar", "vector"}


def full_cases(tiny: bool) -> list[Case]:
    if tiny:
        return [Case(T, K=16) for T in (1, 17, 65)] + [Case(70, K=16, H=1, HV=2, window=9, sinks=True)]
    cases = [Case(T) for T in (1, 15, 16, 17, 63, 64, 65, 1000, 8192)] + [Case(65536, H=1)]
    cases += [Case(1000, K=64), Case(1000, K=256), Case(1000, H=2, HV=8), Case(1000, window=100)]
    cases += [Case(1000, sinks=True), Case(200, B=8), Case(sum(PACKED), lengths=PACKED)]
    return [*cases, Case(sum(PACKED), lengths=PACKED, HV=4, window=50, sinks=True)]


def errors(got: dict[str, Tensor], want: dict[str, Tensor]) -> dict[str, float]:
    """||a - b|| / ||b|| of each tensor; where the truth is 0 (dq over a single key), of the largest tensor's size."""
    sizes = {name: b.norm().item() for name, b in want.items()}
    largest = max(sizes.values())
    return {
        name: (got[name].double() - b).norm().item() / (size if size > 1e-12 * largest else largest or 1.0)
        for (name, b), size in zip(want.items(), sizes.values(), strict=True)
    }


def bounds(case: Case, device: str) -> Tensor | None:
    return torch.tensor([0, *case.lengths], device=device).cumsum(0) if case.lengths else None


def gradients(run: Callable[..., list[Tensor]], leaves: dict[str, Tensor], out: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by the names of `out`, which holds their cotangents, and the gradients of all leaves."""
    fresh = {name: x.detach().clone().requires_grad_() for name, x in leaves.items()}
    results = dict(zip(out, run(**fresh), strict=True))
    loss = [results[name] for name in out]
    towards = [out[name].to(results[name].dtype) for name in out]
    found = torch.autograd.grad(loss, list(fresh.values()), towards, allow_unused=True)
    grads = {f"d{n}": torch.zeros_like(x) if d is None else d for (n, x), d in zip(fresh.items(), found, strict=True)}
    return {name: x.detach() for name, x in results.items()} | grads


def recurrent(op: str, case: Case, dtype: torch.dtype, impl: str, device: str) -> Row:
    x = inputs(op, case.B, case.T, case.H, case.K, HV=case.HV, V=case.V, regime=case.regime, dtype=dtype, device=device)
    q, v = x["q"], x["v"]
    assert q is not None
    assert v is not None
    HV, V = v.shape[2:]
    N = len(case.lengths) or case.B
    leaves = {name: t for name, t in x.items() if t is not None and not (case.frozen and name == "g")}
    if case.state:
        leaves["state"] = torch.randn(N, HV, case.K, V, device=device)
    if dtype == torch.float64:
        leaves = {name: t.double() for name, t in leaves.items()}
    towards = {
        "o": torch.randn(v.shape, device=device).to(dtype),
        "final": torch.randn(N, HV, case.K, V, device=device),
    }
    cu = bounds(case, device)

    def run(impl: str) -> Callable[..., list[Tensor]]:
        def run_impl(state: Tensor | None = None, **given: Tensor) -> list[Tensor]:
            mine: Inputs = {**x, **given}
            options: dict[str, Any] = {"initial_state": state, "cu_seqlens": cu, "segment": case.segment or None}
            o, final = call(op, mine, impl, case.regime == "raw", output_final_state=True, **options)
            assert final is not None
            return [o, final]

        return run_impl

    with poisoned():
        got = gradients(run(impl), leaves, towards)
    truth = "reference" if case.T <= EVERY_TOKEN else "chunked"
    want = gradients(run(truth), {n: t.double() for n, t in leaves.items()}, towards)
    return {"op": op, "errors": errors(got, want), "truth": f"{truth} fp64"}


def full(case: Case, dtype: torch.dtype, impl: str, device: str) -> Row:
    shape = (case.B, case.T, case.H, case.K)
    leaves = {"q": torch.randn(case.B, case.T, case.HV or case.H, case.K, device=device).to(dtype)}
    leaves |= {name: torch.randn(shape, device=device).to(dtype) for name in ("k", "v")}
    if case.sinks:
        leaves["sinks"] = torch.randn(case.HV or case.H, device=device)
    options: dict[str, Any] = {"window": case.window or None, "cu_seqlens": bounds(case, device)}

    def run(impl: str) -> Callable[..., list[Tensor]]:
        return lambda q, k, v, sinks=None: [attend(q, k, v, impl, sinks=sinks, **options)]

    exact = {n: t.double() for n, t in leaves.items()}
    if case.T > SAMPLED:
        with torch.no_grad(), poisoned():
            (o,) = run(impl)(**leaves)
        tail = exact | {"q": exact["q"][:, -256:]}
        with torch.no_grad():
            (want,) = run("chunked")(**tail)
        return {
            "op": "full",
            "errors": errors({"o": o[:, -256:]}, {"o": want}),
            "truth": "last 256 queries, chunked fp64",
        }
    towards = {"o": torch.randn(leaves["q"].shape, device=device).to(dtype)}
    with poisoned():
        got = gradients(run(impl), leaves, towards)
    truth = "reference" if case.T <= EVERY_TOKEN else "chunked"
    wanted = gradients(run(truth), exact, towards)
    return {"op": "full", "errors": errors(got, wanted), "truth": f"{truth} fp64"}


def truth_check(op: str, device: str, T: int) -> Row:
    """The chunked form in fp64 against the recurrence in fp64, so that it may stand for it at length."""
    case = Case(T, K=32, state=True)
    row = recurrent(op, case, torch.float64, "reference", device)
    return row | {"dtype": "float64", "limit": 1e-10, "passed": max(row["errors"].values()) <= 1e-10}


def judged(op: str, case: Case, dtype: torch.dtype, impl: str, device: str) -> Row:
    row = full(case, dtype, impl, device) if op == "full" else recurrent(op, case, dtype, impl, device)
    limit = limit_of(dtype)
    passed = all(e <= limit for e in row["errors"].values())  # NaN does not pass
    return row | {"dtype": name_of(dtype), "impl": impl, "limit": limit, "passed": passed, "case": asdict(case)}


def limit_of(dtype: torch.dtype) -> float:
    """Of an error; fp16 is held to bf16's."""
    return LIMITS[torch.bfloat16 if dtype == torch.float16 else dtype]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def correctness(report: Report, impl: str, device: str, tiny: bool) -> bool:
    """Fill the report; the worst errors are printed last. True if all passed."""
    for op in OPERATORS:
        report.add(f"{op} truth", partial(truth_check, op, device, 130 if tiny else 1000))
    cases = [(op, case) for op in OPERATORS for case in recurrent_cases(tiny) if possible(op, case)]
    cases += [("full", case) for case in full_cases(tiny)]
    cases.sort(key=lambda pair: pair[1].T)  # a spent budget costs the long ones
    for op, case in cases:
        some = case.regime in {"softplus", "raw"} or case.lengths
        for dtype in [*LIMITS, torch.float16] if some else LIMITS:
            report.add(f"{op} {name_of(dtype)} {case.name}", partial(judged, op, case, dtype, impl, device))
    report.close()
    return table(report.rows)


def table(rows: list[Row]) -> bool:
    """Print the worst error of each operator, dtype and tensor; True if nothing failed."""
    worst: dict[tuple[str, str, str], tuple[float, str]] = {}
    for row in rows:
        for tensor, e in row.get("errors", {}).items():
            key = (row["op"], row["dtype"], tensor)
            if not e <= worst.get(key, (-1.0, ""))[0]:
                worst[key] = (e, row["name"])
    print(f"\n{'op':10} {'dtype':9} {'tensor':7} {'worst':8}  case")
    for (op, dtype, tensor), (e, name) in sorted(worst.items()):
        print(f"{op:10} {dtype:9} {tensor:7} {e:.1e}  {name}")
    failed = [row["name"] for row in rows if not row.get("passed", False)]
    print(f"{len(rows) - len(failed)} of {len(rows)} cases passed" + "".join(f"\n  failed: {name}" for name in failed))
    return not failed


def same(pairs: Pairs) -> Row:
    unequal = [name for name, (a, b) in pairs.items() if not torch.equal(a, b)]
    return {"equal": not unequal, "unequal": unequal, "checked": len(pairs)}


def cut(x: Inputs, tokens: slice) -> Inputs:
    return {name: t if t is None or t.dim() == 1 else t[:, tokens] for name, t in x.items()}


def prefixes(run: Callable[[Inputs], list[Tensor]], x: Inputs, T: int) -> Row:
    """Edited and cut-off future tokens leave every earlier output as it was."""
    before = run(x)[0]
    pairs: Pairs = {}
    for t in (1, 3, 15, 16, 17, 40, 63, 64, 65, 100, T - 1):
        for name, tensor in x.items():
            if tensor is None or tensor.dim() == 1:
                continue
            changed = tensor.clone()
            changed[:, t:] = changed[:, t:] * 0.3 - (50.0 if name == "g" else 0.01)
            pairs[f"{name} edited from {t}"] = (run(x | {name: changed})[0][:, :t], before[:, :t])
        pairs[f"cut at {t}"] = (run(cut(x, slice(0, t)))[0], before[:, :t])
    return same(pairs)


def batches(run: Callable[[Inputs], list[Tensor]], x: Inputs, B: int) -> Row:
    """Outputs, states and gradients of a sequence alone are those it has in a batch."""
    together = run(x)
    pairs: Pairs = {}
    for b in range(B):
        alone = run({n: t if t is None or t.dim() == 1 else t[b : b + 1] for n, t in x.items()})
        pairs |= {
            f"sequence {b}, tensor {i}": (a[0], t[b]) for i, (a, t) in enumerate(zip(alone, together, strict=True))
        }
    return same(pairs)


def replays(run: Callable[[], list[Tensor]], times: int) -> Row:
    first = run()
    wrong = torch.zeros((), dtype=torch.int64, device=first[0].device)
    for _ in range(times):
        wrong += torch.stack([(a != b).any() for a, b in zip(run(), first, strict=True)]).any()
    return {"equal": not wrong.item(), "replays": times, "unequal_replays": int(wrong.item())}


def splits(op: str, x: Inputs, impl: str, T: int, segment: int = 0) -> Row:
    """Prefill in pieces, cut on chunk borders, or between segments, against prefill in one call."""
    o, final = call(op, x, impl, output_final_state=True, segment=segment or None)
    assert final is not None
    pairs: Pairs = {}
    for points in ((128,), (256,), (128, 384)) if segment else ((64,), (128,), (64, 128), (192,)):
        S, outputs = None, []
        for a, b in zip((0, *points), (*points, T), strict=True):
            options: dict[str, Any] = {"initial_state": S, "segment": segment or None}
            part, S = call(op, cut(x, slice(a, b)), impl, output_final_state=True, **options)
            outputs.append(part)
        assert S is not None
        pairs |= {f"o at {points}": (torch.cat(outputs, 1), o), f"state at {points}": (S, final)}
    return same(pairs)


def outputs(op: str, impl: str, x: Inputs, **options: Any) -> list[Tensor]:
    """o and, of the recurrences, the final state."""
    if op == "full":
        q, k, v = x["q"], x["k"], x["v"]
        assert q is not None and k is not None and v is not None  # noqa: PT018
        return [attend(q, k, v, impl)]
    o, final = call(op, x, impl, output_final_state=True, **options)
    assert final is not None
    return [o, final]


def with_gradients(run: Callable[[Inputs], list[Tensor]], x: Inputs) -> list[Tensor]:
    """Outputs and the gradients of per-sequence inputs, for cotangents that depend on the outputs alone."""
    leaves = {n: t.detach().clone().requires_grad_() for n, t in x.items() if t is not None and t.dim() > 1}
    out = run({**x, **leaves})
    grads = torch.autograd.grad(out, list(leaves.values()), [o.detach().sin() for o in out], allow_unused=True)
    return [*(o.detach() for o in out), *(g for g in grads if g is not None)]


def segments(op: str, impl: str, D: int, dtype: torch.dtype, device: str) -> Row:
    """What holds without segments, for four of 128 tokens and a part of one, and splits between them."""
    x = inputs(op, 3, 530, 2, D, HV=4, dtype=dtype, device=device)
    run = partial(outputs, op, impl, segment=128)
    rows = {
        "prefix": prefixes(run, cut_batch(x, 1), 530),
        "batch": batches(partial(with_gradients, run), x, 3),
        "splits": splits(op, cut_batch(x, 1), impl, 530, 128),
    }
    unequal = [f"{name}: {each}" for name, row in rows.items() for each in row["unequal"]]
    return {"equal": not unequal, "unequal": unequal, "checked": sum(row["checked"] for row in rows.values())}


def cut_batch(x: Inputs, B: int) -> Inputs:
    return {name: t if t is None or t.dim() == 1 else t[:B] for name, t in x.items()}


def bitwise(report: Report, impl: str, device: str, tiny: bool) -> bool:
    """Fill the report. True if nothing differed."""
    short, D, B, count = (230, 16, 3, 5) if tiny else (230, 128, 5, 1000)
    dtype = torch.float32 if tiny else torch.bfloat16
    for op in OPERATORS:
        T = 1030 if OPERATORS[op][0] == "linear" and not tiny else short  # two groups of chunks
        x = inputs(op, 1, T, 2, D, HV=4, dtype=dtype, device=device)
        many = inputs(op, B, T, 2, D, HV=4, dtype=dtype, device=device)

        run = partial(outputs, op, impl)
        both = partial(with_gradients, run)
        report.add(f"{op} prefix", partial(prefixes, run, x, T))
        report.add(f"{op} batch", partial(batches, both, many, B))
        report.add(f"{op} replays", partial(replays, partial(both, many), count))
        report.add(f"{op} splits", partial(splits, op, x, impl, T))
        if OPERATORS[op][0] == "delta" or OPERATORS[op][1] == "vector":
            report.add(f"{op} segments", partial(segments, op, impl, D, dtype, device))
        if op in {"gdn", "kda"}:
            own = inputs(op, 1, T, 2, D, HV=4, dtype=dtype, device=device, regime="raw")
            report.add(f"{op} raw prefix", partial(prefixes, partial(run, raw=True), own, T))
    shapes = {"q": (4, D), "k": (2, D), "v": (2, D)}
    y: Inputs = {n: torch.randn(B, short, *shape, device=device).to(dtype) for n, shape in shapes.items()}
    run = partial(outputs, "full", impl)
    both = partial(with_gradients, run)
    report.add("full prefix", partial(prefixes, run, y, short))
    report.add("full batch", partial(batches, both, y, B))
    report.add("full replays", partial(replays, partial(both, y), count))
    report.add("full splits", lambda: same({f"at {t}": _tail(y, t, impl) for t in (64, 128, 192)}))
    report.close()
    return unequal_table(report.rows)


def unequal_table(rows: list[Row]) -> bool:
    """Print what differed; True if nothing did."""
    unequal = [row["name"] for row in rows if not row.get("equal", False)]
    print(f"\n{len(rows) - len(unequal)} of {len(rows)} hold bit for bit" + "".join(f"\n  not: {n}" for n in unequal))
    return not unequal


TABLES = {"correctness": table, "bitwise": unequal_table}


def _tail(x: Inputs, t: int, impl: str) -> tuple[Tensor, Tensor]:
    q, k, v = x["q"], x["k"], x["v"]
    assert q is not None and k is not None and v is not None  # noqa: PT018
    return attend(q[:, t:], k, v, impl), attend(q, k, v, impl)[:, t:]
