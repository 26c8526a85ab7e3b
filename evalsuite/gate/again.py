"""A baseline's questions asked again, of the code and the model as they are now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalsuite import kernels, models, plan, runner
from evalsuite.errors import UserError
from evalsuite.gate import sides
from evalsuite.gate.policy import Kernels
from evalsuite.models.own import OwnModel
from evalsuite.plan import Selection
from evalsuite.store import Run


def ask(baseline: Path, out: Path, model: str = "", device: str = "auto") -> Run:
    """Ask `model` all that a baseline's model was asked, by default the one of that name, in a folder of `out`.

    Raises UserError where the baseline cannot be read, or not be repeated here, as without its data.
    """
    answering = models.load(model, device=device) if model else None
    old = sides.read(baseline, "baseline", answering.name if answering else "")
    if old.problems:
        raise UserError(old.problems[0].message)
    if not old.run.meta["requests"]:
        raise UserError(f"{old.called} records no request: nothing can be asked again; promote another run")
    answering = answering or models.load(old.run.name, device=device)
    for request in old.run.meta["requests"]:
        run = runner.run(answering, plan.make(_selection(request), request["wording"]), out)
    return run


def agree(baseline: Path, rules: Kernels, file: Path, model: str = "", device: str = "auto") -> None:
    """Write to `file` how the model is apart from itself under the trusted kernels, over what a baseline asked last.

    Raises UserError for a model that is a plugin's.
    """
    name = model or sides.read(baseline, "baseline").run.name
    trusted = models.load(name, device=device, kernels=rules.against)
    if not isinstance(trusted, OwnModel):
        raise UserError(f"[kernels] is for this package's own models, and {name!r} is a plugin")
    request = sides.read(baseline, "baseline", trusted.name).run.meta["requests"][-1]
    found = kernels.compare(trusted, "auto", plan.make(_selection(request), request["wording"]))
    file.write_text(kernels.as_json(found))


def _selection(request: Mapping[str, Any]) -> Selection:
    """What was typed, from what run.json keeps of it."""
    chosen = {family: [f"{family}.{part}" for part in parts] or [family] for family, parts in request["tasks"].items()}
    return plan.select(
        [name for names in chosen.values() for name in names],
        lengths=request["lengths"],
        limit=request["limit"],
        seed=request["seed"],
        settings=[
            f"{owner}.{knob}={','.join(map(str, values))}"
            for owner, knobs in request["knobs"].items()
            for knob, values in knobs.items()
        ],
        data=[f"{name}={path}" for name, path in request["data"].items()],
    )
