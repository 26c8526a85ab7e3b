"""Small calls of every kernel under compute-sanitizer: accesses out of bounds, and races in shared memory."""

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from evalsuite_kernels.sweep.common import OPERATORS, Report, Row

TOOLS = ("memcheck", "racecheck")
AT_A_TIME = 8  # each is slow for its processor, not for the GPU
# gates of -200 as well, a chunk and a part of one, value heads that share keys; then one token alone
RECURRENT = """
from evalsuite_kernels.sweep.common import call, inputs
x = inputs(op, 1, 130, 1, 128, HV=2, regime="storm" if op in ("kda", "gla", "gdn", "mamba2") else "mixed")
leaves = {n: t.detach().requires_grad_() for n, t in x.items() if t is not None and t.dim() > 1}
with torch.no_grad():
    call(op, x, "triton")
    call(op, {n: t if t is None or t.dim() == 1 else t[:, :1].contiguous() for n, t in x.items()}, "triton")
o = call(op, {**x, **leaves}, "triton")[0]
torch.autograd.grad(o, list(leaves.values()), torch.randn_like(o))
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
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


def checked(op: str, tool: str, program: str = "compute-sanitizer") -> Row:
    """ "found" counts what the tool reports; without its summary the row is an error, never a pass."""
    code = "import sys, torch\nop = sys.argv[1]\ntorch.manual_seed(0)\n" + (FULL if op == "full" else RECURRENT)
    code += "torch.cuda.synchronize()\nprint('all calls returned')\n"
    command = [program, "--tool", tool, sys.executable, "-c", code, op]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except subprocess.TimeoutExpired:
        return {"op": op, "tool": tool, "error": "it took more than 300 s", "passed": False}
    summary = SUMMARY.search(ran.stdout)
    if summary is None or "all calls returned" not in ran.stdout:
        return {"op": op, "tool": tool, "error": (ran.stderr or ran.stdout).strip()[-300:], "passed": False}
    found = int(summary[1])
    reports = [line.strip("= ") for line in ran.stdout.splitlines() if "Error: " in line or "Warning: " in line]
    return {"op": op, "tool": tool, "found": found, "reports": reports[:20], "passed": found == 0}


def sanitize(report: Report) -> bool:
    """Fill the report; True if nothing was found."""
    if shutil.which("compute-sanitizer") is None:
        print("sanitize left out: compute-sanitizer is not installed; it comes with the CUDA toolkit")
        return False
    names = {f"{op} {tool}": (op, tool) for tool in TOOLS for op in (*OPERATORS, "full")}
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        rows = {name: pool.submit(checked, *each) for name, each in names.items() if report.match in name}
        for name, row in rows.items():
            report.add(name, row.result)
    report.close()
    return all(row.get("passed", False) for row in report.rows)
