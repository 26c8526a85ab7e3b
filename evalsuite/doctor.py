"""What this machine can do, and how to fix what it lacks."""

import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version

from evalsuite import task as tasks


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `fix` says what to do where `ok` is false, one line a remedy."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def checks() -> list[Check]:
    """Everything that is looked at. Raises nothing: what cannot be found out is a finding."""
    return [_python(), *map(_package, ("torch", "transformers")), _gpu(), _sandbox(), *_tasks(), *_models(), _disk()]


def show(*, as_json: bool) -> None:
    """Print the findings to standard output."""
    found = checks()
    if as_json:
        sys.stdout.write(json.dumps([asdict(check) for check in found], indent=1) + "\n")
        return
    for check in found:
        sys.stdout.write(f"{'ok' if check.ok else '--'}  {check.name}: {check.found}\n")
        sys.stdout.writelines(f"      fix: {line}\n" for line in filter(None, check.fix.split("\n")))


def _python() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check(
        "python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cores} cores"
    )


def _package(name: str) -> Check:
    try:
        return Check(name, True, version(name))
    except PackageNotFoundError:
        return Check(name, False, "not installed", f"pip install {name}")


def _gpu() -> Check:
    try:
        import torch

        if torch.cuda.is_available():
            names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            free = torch.cuda.mem_get_info()[0] / 2**30
            return Check("gpu", True, f"{', '.join(names)}; {free:.1f} GiB free")
        built = torch.version.cuda or torch.version.hip
    except (ImportError, RuntimeError) as error:
        return Check("gpu", False, f"cannot be asked: {error}", "mend the installation of torch")
    if built:
        return Check("gpu", False, f"none visible to torch built for {built}", "check the driver with nvidia-smi")
    return Check("gpu", False, "none: this torch is a CPU build", "on a machine with a GPU install torch's CUDA build")


def _sandbox() -> Check:
    """How strong the walls around generated code are here, tried out by a canary."""
    from evalsuite import sandbox

    tier = sandbox.tier()
    sound = tier.name != "none"
    return Check(
        "sandbox", sound, f"{tier.name}: {tier.says}", "" if sound else "apt-get install bubblewrap, or Linux 6.2"
    )


def _tasks() -> list[Check]:
    """Every task plugin, loaded; where it lacks data, how to give it."""
    found = []
    for name in tasks.names():
        try:
            task = tasks.load(name)
            missing = task.missing(tasks.Request())
            parts = f"version {task.version}, {max(len(task.subtasks()), 1)} parts"
        except Exception as error:
            found.append(
                Check(f"task {name}", False, f"cannot be loaded: {error}", "reinstall the package it comes from")
            )
            continue
        lacks = f"; without {', '.join(missing)}" if missing else ""
        fixes = dict.fromkeys(missing.values())
        found.append(Check(f"task {name}", not missing, parts + lacks, "\n".join(fixes)))
    return found or [Check("tasks", False, "none found", "reinstall evalsuite: pip install -e .")]


def _models() -> list[Check]:
    from evalsuite.models import describe

    shipped = [str(model["name"]) for model in describe() if model["shipped"]]
    plugins = [f"{entry.name}:ARGS" for entry in entry_points(group="evalsuite.models")]
    found = ", ".join([*shipped, *plugins])
    return [Check("models", bool(found), found or "none", "" if found else "make checkpoints")]


def _disk() -> Check:
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    return Check("disk", free >= 1, f"{free:.1f} GiB free here", "" if free >= 1 else "give another --out")
