"""Small calls of every kernel under compute-sanitizer: accesses out of bounds, and races in shared memory."""

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from evalsuite_kernels.sweep.common import OPERATORS, Report, Row

TOOLS = ("memcheck", "racecheck")
CONTROLS = ("control", "control, meeting")
AT_A_TIME = 8  # each is slow for its processor, not for the GPU
# gates of -200 as well, a chunk and a part of one, value heads that share keys; then one token alone
RECURRENT = """
from evalsuite_kernels.sweep.common import call, inputs
T = 1030 if op in ("linear", "lightning", "mamba2") else 130  # two groups of chunks
x = inputs(op, 1, T, 1, 128, HV=2, regime="storm" if op in ("kda", "gla", "gdn", "mamba2") else "mixed")
leaves = {n: t.detach().requires_grad_() for n, t in x.items() if t is not None and t.dim() > 1}
with torch.no_grad():
    call(op, x, "triton")
    call(op, {n: t if t is None or t.dim() == 1 else t[:, :1].contiguous() for n, t in x.items()}, "triton")
o = call(op, {**x, **leaves}, "triton")[0]
torch.autograd.grad(o, list(leaves.values()), torch.randn_like(o))
if op in ("gdn", "kda"):  # norms and activations inside, segments at once
    x = {n: t if t is None else t.requires_grad_() for n, t in inputs(op, 1, 200, 1, 128, HV=2, regime="raw").items()}
    o = call(op, x, "triton", raw=True, segment=128)[0]
    torch.autograd.grad(o, list(x.values()), torch.randn_like(o))
"""
FULL = """
from evalsuite_kernels.sweep.common import attend
for options in ({}, {"window": 40}):
    q, k, v = (torch.randn(1, 130, 2, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    o = attend(q, k, v, "triton", **options)
    torch.autograd.grad(o, (q, k, v), torch.randn_like(o))
with torch.no_grad():
    attend(q[:, -1:], k, v, "triton")
"""
SPARSE = """
from evalsuite_kernels.sparse import block_attention, indexed_attention, lightning_index, sparse_attention
from evalsuite_kernels.sweep.sparse import heads, indexer
q, k, v = (x.requires_grad_() for x in heads(1, 130, 130, torch.bfloat16, "cuda", (4, 2, 128, 128)))
chosen = lightning_index(*indexer(1, 130, 130, torch.bfloat16, "cuda"), 20, impl="triton")
blocks = torch.arange(130, device="cuda")[None, :, None] // 16 - torch.arange(3, device="cuda")
for o in (
    sparse_attention(q, k, v, chosen, impl="triton"),
    block_attention(q, k, v, blocks.clamp(min=-1), 16, impl="triton"),
):
    torch.autograd.grad(o, (q, k, v), torch.randn_like(o))
sizes = 1, 2, 8200, torch.bfloat16, "cuda"
for lengths in (None, torch.tensor([100], device="cuda")):  # over so few keys a list is made
    x = *heads(*sizes, (4, 2, 128, 128)), *indexer(*sizes)
    indexed_attention(*x, 20, key_lengths=lengths, impl="triton")
"""
CONTROL = "from evalsuite_kernels.sweep.control import run; run(op == 'control, meeting')\n"
REPORT = re.compile(r"Error: |Warning: |and .* access at ")
STARTS = re.compile(r"^def |^ +gl\.warp_specialize\(")
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


def checked(op: str, tool: str, program: str = "compute-sanitizer") -> Row:
    """ "found" counts what the tool reports, less "of_start" (see `_of_start`).

    Without the tool's summary the row is an error, never a pass.
    """
    code = "import sys, torch\nop = sys.argv[1]\ntorch.manual_seed(0)\n"
    code += CONTROL if op in CONTROLS else {"full": FULL, "sparse": SPARSE}.get(op, RECURRENT)
    code += "torch.cuda.synchronize()\nprint('all calls returned')\n"
    command = [program, "--tool", tool, sys.executable, "-c", code, op]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except subprocess.TimeoutExpired:
        return {"op": op, "tool": tool, "error": "it took more than 300 s", "passed": False}
    summary = SUMMARY.search(ran.stdout)
    if summary is None or "all calls returned" not in ran.stdout:
        return {"op": op, "tool": tool, "error": (ran.stderr or ran.stdout).strip()[-300:], "passed": False}
    reports: list[list[str]] = []  # each with all the accesses that it names
    for line in (line.strip("= ") for line in ran.stdout.splitlines() if REPORT.search(line)):
        if line.startswith("and"):
            reports[-1].append(line)
        else:
            reports.append([line])
    starts = sum(_of_start(report) for report in reports) if len(reports) == int(summary[1]) else 0
    found = int(summary[1]) - starts
    row: Row = {"op": op, "tool": tool, "found": found, "of_start": starts}
    return row | {"reports": ["; ".join(report) for report in reports[:20]], "passed": found == 0}


def _of_start(report: list[str]) -> bool:
    """Whether a race is only in how Triton starts and ends groups of warps: it gives that the line of the kernel's name
    or of the statement. The first warps write there what the others shall do, and all wait at barrier 1 before those
    read it; racecheck does not see that wait once the first have met among themselves, at barrier 0: `control.py`."""
    places = [re.search(r" in (\w+\.py):(\d+)", line) for line in report]
    return len(places) > 1 and all(
        place is not None and STARTS.search(_line(place[1], int(place[2]))) for place in places
    )


def _line(name: str, number: int) -> str:
    """A line of one of the kernels' files; "" if there is none, or there are two."""
    files = list(Path(__file__).parents[1].rglob(name))
    lines = files[0].read_text().splitlines() if len(files) == 1 else []
    return lines[number - 1] if number <= len(lines) else ""


def sanitize(report: Report) -> bool:
    """Fill the report; True if nothing was found."""
    if shutil.which("compute-sanitizer") is None:
        print("sanitize left out: compute-sanitizer is not installed; it comes with the CUDA toolkit")
        return False
    names = {f"{op} {tool}": (op, tool) for tool in TOOLS for op in (*CONTROLS, *OPERATORS, "full", "sparse")}
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        rows = {name: pool.submit(checked, *each) for name, each in names.items() if report.wants(name)}
        for name, row in rows.items():
            report.add(name, row.result)
    report.close()
    return all(row.get("passed", False) for row in report.rows)
