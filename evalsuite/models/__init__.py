"""What answers: the Model protocol, the language model of this package, its engine, presets and other backends."""

import contextlib
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError, unknown
from evalsuite.models.base import Model
from evalsuite.models.presets import PRESETS

GROUP = "evalsuite.models"
BACKENDS = "evalsuite.backends"  # modules with `names()`, and `open_backend(name, args, device=, kernels=)` for each
ZOO = Path(__file__).parents[1] / "zoo"


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of `evalsuite list models`."""

    name: str
    pattern: str  # "" for a plugin
    about: str
    shipped: bool  # a trained checkpoint comes with the package


def names() -> list[Listed]:
    """Every preset, then every plugin that is installed."""
    presets = [Listed(name, preset.pattern, preset.about, shipped(name)) for name, preset in PRESETS.items()]
    plugins = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    return presets + [Listed(entry.name, "", f"plugin {entry.value}", False) for entry in plugins]


def backends() -> dict[str, list[str]]:
    """Names of NAME:ARGS by the module that opens them; none of one whose package is not installed."""
    found: dict[str, list[str]] = {}
    for entry in entry_points(group=BACKENDS):
        with contextlib.suppress(ImportError):
            found[entry.name] = sorted(entry.load().names())
    return found


def describe() -> list[dict[str, object]]:
    """The presets as plain rows."""
    return [asdict(listed) for listed in names() if listed.name in PRESETS]


def pieces(text: str) -> list[str]:
    """`a=1,b={"x": 0, "y": 1}` -> [`a=1`, `b={"x": 0, "y": 1}`]: commas within brackets part nothing."""
    found, depth = [""], 0
    for letter in text:
        depth += (letter in "{[") - (letter in "}]" and depth > 0)
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [piece.strip() for piece in found if piece.strip()]


def shipped(preset: str) -> bool:
    """Whether a preset has a trained checkpoint in the package."""
    return (ZOO / preset / "config.json").is_file()


def check(spec: str) -> None:
    """Raise load()'s UserError for a name that does not exist, before anything heavy is imported or run."""
    if spec.partition(":")[0] in {entry.name for entry in entry_points(group=GROUP)}:
        return
    if _backend(spec) is None:
        _folder(spec)


def _backend(spec: str) -> Any:
    """The module that opens the backend of `NAME:ARGS`; None where no backend has that name."""
    name, colon, _ = spec.partition(":")
    lacking = ""
    for entry in entry_points(group=BACKENDS) if colon else ():
        try:
            module = entry.load()
            if name in module.names():
                return module
        except ImportError as error:
            lacking = f"{entry.name} ({error})"
    if lacking:
        raise UserError(
            f"{name!r} is no plugin, and {lacking} cannot be asked for it: pip install 'evalsuite[lm-eval]'"
        )
    return None


def _folder(spec: str) -> Path:
    """The checkpoint folder of a preset, or the folder itself."""
    if spec in PRESETS:
        if not shipped(spec):
            raise UserError(
                f"preset {spec!r} has no shipped checkpoint; train it with `evalsuite train --model {spec}` "
                "or give a checkpoint folder"
            )
        return ZOO / spec
    folder = Path(spec).expanduser()
    if folder.is_file():
        raise UserError(f"{spec} is a file; give the checkpoint folder that holds it")
    if not spec or not folder.is_dir():
        raise unknown("model", spec, [listed.name for listed in names()])
    return folder


def load(spec: str, *, device: str = "auto", dtype: str = "auto", memory: int = 2**30, kernels: str = "auto") -> Model:
    """The model that `spec` names: a plugin `NAME[:ARGS]`, a backend `NAME:ARGS`, a preset with a checkpoint, or a
    checkpoint folder.

    `device` is auto, cpu, cuda or cuda:N; `dtype` auto (fp32 on a CPU) or a name such as bfloat16; `memory` the bytes
    that the caches of one batch may take; `kernels` auto, reference, chunked, triton, or recurrent (prompts are read
    token by token too), or evalsuite for the backend hf; a plugin gets its ARGS alone. Raises UserError, one line. Uses
    no network, but where a backend asks the hub.
    """
    name, _, args = spec.partition(":")
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            for option, value in (("kernels", kernels), ("dtype", dtype)):
                if value != "auto":
                    raise UserError(
                        f"--{option} is for this package's own models, and {name!r} is a plugin; leave it out"
                    )
            model = entry.load()(args)
            if not isinstance(model, Model):
                raise UserError(f"plugin {name!r} ({entry.value}) returns no evalsuite.models.base.Model")
            return model
    if (backend := _backend(spec)) is not None:
        if dtype != "auto":
            raise UserError(f"--dtype is for this package's own models; write {name}:...,dtype={dtype}")
        opened: Model = backend.open_backend(name, args, device=device, kernels=kernels)
        return opened
    folder = _folder(spec)
    from evalsuite.models.engine import Limits
    from evalsuite.models.own import open_checkpoint

    label = spec if spec in PRESETS else folder.resolve().name
    return open_checkpoint(folder, label, device=device, dtype=dtype, limits=Limits(memory=memory), kernels=kernels)
