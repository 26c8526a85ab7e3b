"""`python -m evalsuite_kernels.sweep --out DIR`: see the package."""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import torch

from evalsuite_kernels.sweep.common import OPERATORS, Report, Row, environment, machine

SECTIONS = ("correctness", "bitwise", "sparse", "sanitize", "speed", "decode", "sparse-speed", "start")
PROOFS = {"correctness": "exact", "bitwise": "exact", "sparse": "sparse"}  # and their modules
TIMES = {
    "speed": "speed", "decode": "steps", "sparse-speed": "sparse", "start": "start", "dispatch": "dispatch",
    "tune": "tune",
}  # fmt: skip
TABLES = ("dispatch", "tune")  # print what is committed; only on request


def main() -> int:
    parser = argparse.ArgumentParser(description="Prove and time the GPU kernels; writes JSON and a figure.")
    parser.add_argument("--out", type=Path, default=Path("results/kernels"))
    parser.add_argument("--only", nargs="+", choices=(*SECTIONS, *TABLES), default=list(SECTIONS))
    parser.add_argument("--budget-seconds", type=float, default=3600.0, help="for each section")
    parser.add_argument("--match", default="", help="only cases in whose name this expression is found")
    parser.add_argument("--impl", default="", help="default: triton on CUDA, chunked on a CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script itself")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time for correctness and bitwise")
    parser.add_argument("--gate", choices=("bf16", "fp32"), default="bf16", help="vector gates in speed")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    impl = args.impl or ("triton" if args.device == "cuda" else "chunked")
    only = [name for name in args.only if args.device == "cuda" or name in PROOFS]
    torch.manual_seed(0)
    if set(only) - set(TABLES):  # a table says itself what it was measured on
        (args.out / "environment.json").write_text(json.dumps(environment(), indent=1))
    rates = machine() if args.device == "cuda" and {"speed", "decode"} & set(only) else {}
    passed = True
    for name in only:
        report = Report(args.out / f"{name}.json", args.budget_seconds, args.match)
        report.about = rates if name in {"speed", "decode"} else {}
        if name in TABLES:
            report.about = {"environment": environment()}
        if name in {"correctness", "bitwise"} and args.jobs > 1:
            gather(report, name, args.jobs, sys.argv[1:])
            from evalsuite_kernels.sweep import exact

            passed &= exact.TABLES[name](report.rows)
        elif name in PROOFS:
            module = import_module(f"evalsuite_kernels.sweep.{PROOFS[name]}")
            passed &= getattr(module, name)(report, impl, args.device, args.tiny)
        elif name == "sanitize":
            from evalsuite_kernels.sweep import sanitize

            passed &= sanitize.sanitize(report)
        else:
            measure(name, report, rates, args)
    return 0 if passed else 1


def measure(name: str, report: Report, rates: Row, args: argparse.Namespace) -> None:
    """Fill the report of a section that times something."""
    module = import_module(f"evalsuite_kernels.sweep.{TIMES[name]}")
    if name == "speed":
        module.speed(report, rates, {"bf16": torch.bfloat16, "fp32": torch.float32}[args.gate], args.tiny)
        module.figure(report.rows, rates, args.out / "roofline.png")
    elif name == "decode":
        module.decode(report, rates, args.tiny)
    elif name == "dispatch":
        module.dispatch(report, args.tiny)
    else:
        getattr(module, name.replace("-", "_"))(report)


def gather(report: Report, section: str, jobs: int, arguments: list[str]) -> None:
    """Fill the report of a section with the rows of processes of this command, one for each operator and dtype: what
    crashes there takes no others with it."""
    parts = [f"{op} " for op in (*OPERATORS, "full")]
    if section == "correctness":
        parts = [part + kind for part in parts for kind in ("bfloat16", "float32", "float16")]
        parts += [f"{op} truth" for op in OPERATORS]

    def run(part: str) -> Row:
        with tempfile.TemporaryDirectory() as out:
            both = f"^(?={re.escape(part)})(?=.*(?:{report.match.pattern}))"
            own = ["--only", section, "--jobs", "1", "--match", both, "--out", out]
            command = [sys.executable, "-m", "evalsuite_kernels.sweep", *arguments, *own]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            path = Path(out) / f"{section}.json"
            made = path.exists()
            content: Row = json.loads(path.read_text()) if made else {"left_out_for_time": 0, "rows": []}
        if ran.returncode not in {0, 1} or not made:  # 1: something did not pass
            last = ran.stderr.strip().splitlines()[-1:] or [""]
            content["rows"].append({"name": part, "error": f"exit status {ran.returncode}: {last[0][:300]}"})
        return content

    with ThreadPoolExecutor(jobs) as pool:
        for content in pool.map(run, parts):
            report.rows += content["rows"]
            report.left_out += content["left_out_for_time"]
            report.write()
    report.close()


if __name__ == "__main__":
    sys.exit(main())
