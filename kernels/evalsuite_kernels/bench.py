"""Times the operators against their own definitions: `python -m evalsuite_kernels.bench --op kda --length 4096`."""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from evalsuite_kernels import delta_rule, full_attention, lightning_slopes, linear_attention, short_convolution

Run = Callable[[str], Tensor]  # impl -> output


def operators(B: int, T: int, H: int, D: int, device: str) -> tuple[dict[str, Run], list[Tensor]]:
    """The operators by their models' names, on one set of fp32 inputs [B, T, H, D]; and those inputs."""
    torch.manual_seed(0)
    q, k = (F.normalize(torch.randn(B, T, H, D, device=device), dim=-1) for _ in range(2))
    v = torch.randn(B, T, H, D, device=device)
    beta = torch.rand(B, T, H, device=device)
    half_lives = torch.logspace(0, 4, D, device=device)  # tokens
    vector = -(2.0**0.5 / half_lives).log1p() * torch.rand(B, T, H, D, device=device)
    scalar = vector.mean(-1)
    taps = torch.randn(H * D, 4, device=device)
    inputs = [x.requires_grad_() for x in (q, k, v, beta, vector, scalar, taps)]
    fixed = lightning_slopes(H, 0, 2).to(device)
    return {
        "linear": lambda impl: linear_attention(q, k, v, impl=impl)[0],
        "lightning": lambda impl: linear_attention(q, k, v, fixed, scale=1.0, impl=impl)[0],
        "mamba2": lambda impl: linear_attention(q, k, v, scalar, scale=1.0, impl=impl)[0],
        "gla": lambda impl: linear_attention(q, k, v, vector, impl=impl)[0],
        "deltanet": lambda impl: delta_rule(q, k, v, beta, impl=impl)[0],
        "gdn": lambda impl: delta_rule(q, k, v, beta, scalar, impl=impl)[0],
        "kda": lambda impl: delta_rule(q, k, v, beta, vector, impl=impl)[0],
        "full": lambda impl: full_attention(q, k, v, impl=impl),
        "conv": lambda impl: short_convolution(v.flatten(2), taps, impl=impl)[0],
    }, inputs


def seconds(
    call: Run, impls: Sequence[str], inputs: Sequence[Tensor], repeats: int, backward: bool
) -> dict[str, list[float]]:
    """Wall-clock of `repeats` calls of each implementation after one that warms up, in turn: whatever slows the
    machine for a while slows them alike."""
    times: dict[str, list[float]] = {impl: [] for impl in impls}
    for _ in range(repeats + 1):
        for impl, each in times.items():
            _wait(inputs[0])
            start = time.perf_counter()
            if backward:
                torch.autograd.grad(call(impl).sum(), inputs, allow_unused=True)
            else:
                with torch.no_grad():
                    call(impl)
            _wait(inputs[0])
            each.append(time.perf_counter() - start)
    return {impl: each[1:] for impl, each in times.items()}


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print milliseconds (median, fastest, slowest) and tokens per second of each implementation, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", default="kda")
    parser.add_argument("--length", type=int, default=4096, help="tokens of each sequence")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dim", type=int, default=64, help="K and V")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backward", action="store_true", help="time forward and backward, not forward alone")
    parser.add_argument("--impl", nargs="+", default=["reference", "chunked"])
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    calls, inputs = operators(args.batch, args.length, args.heads, args.dim, args.device)
    if args.op not in calls:
        parser.error(f"unknown op {args.op!r}; known: {', '.join(calls)}")
    times = seconds(calls[args.op], args.impl, inputs, args.repeats, args.backward)
    for impl, each in times.items():
        low, median, high = min(each), statistics.median(each), max(each)
        rate = args.batch * args.length / median
        print(f"{args.op} {impl}: {median * 1e3:.2f} ms ({low * 1e3:.2f} .. {high * 1e3:.2f}), {rate:,.0f} tokens/s")
    if len(times) == 2:
        first, second = times.values()
        ratio = statistics.median(a / b for a, b in zip(first, second, strict=True))
        print(f"{args.impl[1]} is {ratio:.1f} times as fast as {args.impl[0]}")


if __name__ == "__main__":
    main()
