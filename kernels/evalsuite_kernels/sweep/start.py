"""The first call of each operator with an empty Triton cache, each in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial

from evalsuite_kernels.sweep.common import OPERATORS, Report, Row

LIMITS = {"op": 6.0, "model": 25.0}  # seconds
# a matmul first: what CUDA itself needs to start is not the operator's
COMMON = """
import json, sys, time, torch
x = torch.randn(64, 64, device="cuda"); (x @ x).sum().item()
def timed(work):
    began = time.perf_counter(); work(); torch.cuda.synchronize(); return time.perf_counter() - began
"""
OPERATOR = """
op, backward = sys.argv[1], sys.argv[2] == "both"
from evalsuite_kernels.sweep.common import attend, call, inputs
if op == "full":
    leaves = {n: torch.randn(1, 1024, 4, 128, device="cuda", dtype=torch.bfloat16) for n in "qkv"}
    run = lambda: attend(leaves["q"], leaves["k"], leaves["v"], "triton")
elif op == "index":
    from evalsuite_kernels import lightning_index
    from evalsuite_kernels.sweep.sparse import indexer
    scored = indexer(1, 1024, 1024, torch.bfloat16, "cuda")
    run = lambda: lightning_index(*scored, 64, impl="triton")
elif op in ("sparse", "blocks"):
    from evalsuite_kernels import block_attention, sparse_attention
    from evalsuite_kernels.sweep.sparse import heads
    leaves = dict(zip("qkv", heads(1, 1024, 1024, torch.bfloat16, "cuda", (16, 1, 128, 128))))
    lists = torch.arange(64 if op == "sparse" else 8, device="cuda", dtype=torch.int32).expand(1, 1024, -1)
    if op == "sparse":
        run = lambda: sparse_attention(**leaves, indices=lists, impl="triton")
    else:
        run = lambda: block_attention(**leaves, blocks=lists, block_size=64, impl="triton")
else:
    given = inputs(op, 1, 1024, 4, 128, regime="softplus")
    leaves = {n: t for n, t in given.items() if t is not None and t.dim() > 1}
    run = lambda: call(op, given | leaves, "triton")[0]
if backward:
    leaves |= {n: t.detach().requires_grad_() for n, t in leaves.items()}
    work = lambda: torch.autograd.grad(run().sum(), list(leaves.values()))
else:
    work = run
print(json.dumps({"seconds": timed(work), "again_seconds": timed(work)}))
"""
DECODE = """
from evalsuite_kernels.sweep import steps
from evalsuite_kernels.sweep.common import inputs
x = inputs(sys.argv[1], 1, 1, 32, 128, regime="softplus")
q, k, v, g, beta = (None if t is None else t[:, 0].contiguous() for t in x.values())
S, options = torch.zeros(1, 32, 128, 128, device="cuda"), steps.fused(sys.argv[1], 32, 1)
work = lambda: steps.decode_step(q, k, v, g, beta, S, **(options if sys.argv[2] == "fused" else {}))
print(json.dumps({"seconds": timed(work), "again_seconds": timed(work)}))
"""
# as text: the kernels know no harness, and this row is left empty where there is none
MODEL = """
from evalsuite.lab.train import Recipe, loss_of, optimizer_of
from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.modeling import EvalsuiteForCausalLM
from evalsuite.models.presets import pattern_of
config = EvalsuiteConfig(pattern=pattern_of(sys.argv[1]))
model = torch.nn.Module.to(EvalsuiteForCausalLM(config), "cuda")
optimizer = optimizer_of(model, Recipe())
ids = torch.randint(3, config.vocab_size, (4, 2048), device="cuda")
def work():
    with torch.autocast("cuda", torch.bfloat16):
        loss, _ = loss_of(model, ids, ids)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
print(json.dumps({"seconds": timed(work), "again_seconds": timed(work)}))
"""


def first(program: str, arguments: list[str], limit: float) -> Row:
    """The row of a program of its own."""
    with tempfile.TemporaryDirectory() as cache:
        result = subprocess.run(
            [sys.executable, "-c", COMMON + program, *arguments],
            env=os.environ | {"TRITON_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        kernels = sum(name.endswith(".cubin") for _, _, names in os.walk(cache) for name in names)
    if result.returncode:
        return {"error": result.stderr.strip()[-400:]}
    row: Row = json.loads(result.stdout.strip().splitlines()[-1])
    return row | {"kernels_compiled": kernels, "limit": limit, "passed": row["seconds"] <= limit}


def start(report: Report) -> None:
    """Fill the report; "seconds" are those of the first call, "again_seconds" of the second."""
    jobs: dict[str, tuple[str, list[str], float]] = {}
    others = ("full", "index", "sparse", "blocks", *(op for op in OPERATORS if op != "kda"))
    for way in ("forward", "both"):
        for op in ("kda", *(op for op in others if (op, way) != ("index", "both"))):
            jobs[f"{op} {way}"] = OPERATOR, [op, way], LIMITS["op"]
    for way in ("plain", "fused"):
        for op in ("kda", "gdn"):
            jobs[f"decode {op} {way}"] = DECODE, [op, way], LIMITS["op"]
    jobs["training step hybrid-kda"] = MODEL, ["hybrid-kda"], LIMITS["model"]
    for name, job in jobs.items():  # nothing beside them, which would make them slower
        report.add(name, partial(first, *job))
    report.close()
