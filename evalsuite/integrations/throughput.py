"""How much faster two ranks answer than one: `python -m evalsuite.integrations.throughput --device cuda --out FILE`.

The same command is run by one rank and by two, each a process of torchrun's with a GPU of its own (on a CPU, a thread).
The ratio is of wall times from the first rank's first question to the last rank's last answer, questions made and
answers scored; `with_start` is of the whole commands, imports and checkpoints loaded. FILE is JSON.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalsuite import files, store
from evalsuite.errors import UserError

COMPARED = ("id", "prompt_hash", "text", "answer", "score", "finish", "error")
LIMIT = 3600.0  # seconds that one run may take


def measure(words: Sequence[str], device: str, place: Path) -> dict[str, Any]:
    """Run `evalsuite run` with these options by two ranks and by one, in folders of `place`.

    Before them a short run fills the caches of compiled kernels; what it missed is then at the cost of the two ranks,
    who run first. Raises UserError where a run fails.
    """
    _run([*words, "--limit", "4"], device, place / "warm", 2)
    two, one = (_run(words, device, place / str(count), count) for count in (2, 1))
    rows, others = two.pop("rows"), one.pop("rows")
    return {
        "device": device,
        "options": list(words),
        "times": one["seconds"] / two["seconds"],
        "times_with_start": one["seconds_with_start"] / two["seconds_with_start"],
        "unequal": _unequal(others, rows),
        "log_likelihoods_apart": _apart(others, rows),
        "one": one,
        "two": two,
    }


def _run(words: Sequence[str], device: str, out: Path, count: int) -> dict[str, Any]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "evalsuite"]
    command = [sys.executable, *launch, "run", *words, "--device", device, "--out", str(out)]
    began = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")] or ["no error line"]
        raise UserError(f"the run by {count} ranks failed: {lines[0].removeprefix('error: ')}")
    (folder,) = [file.parent for file in out.glob("*/run.json")]
    run = store.read(folder)
    walls = [
        line
        for log in folder.glob("timings-*.jsonl")
        for line, _ in files.lines(log)
        if line is not None and "wall" in line
    ]
    tokens = sum(row["prompt_tokens"] + row["completion_tokens"] for row in run.rows)
    wall = max(line["at"] for line in walls) - min(line["at"] - line["wall"] for line in walls)
    request = run.meta["requests"][-1]
    return {
        "model": run.name,
        "samples": len(run.rows),
        "tokens": tokens,
        "seconds": wall,
        "seconds_of_ranks": [line["wall"] for line in sorted(walls, key=lambda line: line["rank"])],
        "seconds_with_start": seconds,
        "tokens_per_second": tokens / wall,
        "errors": sum(bool(row["error"]) for row in run.rows),
        "versions": request["versions"],
        "revision": request["revision"],
        "kernels": request.get("ran", {}),
        "rows": run.rows,
    }


def _unequal(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of samples that are not there twice, or were not answered and scored alike."""
    here, there = ({row["id"]: [row[name] for name in COMPARED] for row in rows} for rows in (one, other))
    return sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))


def _apart(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> float:
    """The largest difference of a choice's log-likelihood."""
    there = {row["id"]: row["choice_logprobs"] for row in other}
    both = [(a, b) for row in one for a, b in zip(row["choice_logprobs"], there.get(row["id"], ()), strict=False)]
    return max((abs(a - b) for a, b in both if a != b), default=0.0)


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--dtype", default="auto", help="float32: sums that depend on a batch's size move no token")
    parser.add_argument("--model", default="hybrid-kda")
    parser.add_argument("--tasks", default="multihop,ruler,knowledge")
    parser.add_argument("--lengths", default="512,1k,2k")
    parser.add_argument("--limit", type=int, default=200, help="samples in each cell")
    given = parser.parse_args()
    words = ["--model", given.model, "--tasks", given.tasks, "--lengths", given.lengths, "--limit", str(given.limit)]
    words += ["--dtype", given.dtype]
    with tempfile.TemporaryDirectory() as place:
        try:
            found = measure(words, given.device, Path(place))
        except UserError as error:
            raise SystemExit(f"error: {error}") from None
    given.out.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(given.out, found)
    print(
        f"{found['two']['samples']} samples by 2 ranks: {found['times']:.2f} times as fast as by 1, "
        f"{found['times_with_start']:.2f} with start-up; {len(found['unequal'])} unequal"
    )


if __name__ == "__main__":
    main()
