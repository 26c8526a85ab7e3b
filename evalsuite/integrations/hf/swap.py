"""Swap the operators of a loaded transformers model for ours, in this model alone, and back."""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers import __version__ as version

from evalsuite.errors import UserError
from evalsuite.integrations.hf import attention
from evalsuite.integrations.hf.architectures import Change, mixers_of
from evalsuite.integrations.hf.tally import SLOT, Tally
from evalsuite_kernels import record

DIMS = ("head_dim", "v_head_dim", "index_head_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim")


@dataclass(slots=True, eq=False)
class Swapped:
    """A model on our operators.

    Attributes:
        model: the model itself, changed in place.
        layers: a row a layer: {"layer": 0, "type": "linear_attention", "module": its class, "operators": [names]}.
        calls: (layer, operator) -> how often it ran since. A layer on transformers' own path would have none.
    """

    model: PreTrainedModel
    layers: list[dict[str, Any]]
    calls: Counter[tuple[int, str]]
    _undo: list[Callable[[], object]] = field(default_factory=list)

    def as_record(self) -> dict[str, Any]:
        """What of this makes two runs the same, as plain JSON: architecture, layers, and their operators' forms."""
        config: Any = self.model.config
        widest = [getattr(config, name, None) or 0 for name in DIMS]
        widest.append(
            (getattr(config, "qk_nope_head_dim", None) or 0) + (getattr(config, "qk_rope_head_dim", None) or 0)
        )
        where = next(
            (p.device for p in self.model.parameters() if not p.is_meta), torch.device("cpu")
        )  # meta: offloaded
        example = torch.empty(0, dtype=self.model.dtype, device=where)
        computed = record.implementations(example, max(widest))
        used = sorted({name for row in self.layers for name in row["operators"]})
        return {
            "kernels": "evalsuite",
            "architecture": config.model_type,
            "transformers": version,
            "layers": [dict(row) for row in self.layers],
            "implementations": {name: computed[name] for name in used},
        }

    def undo(self) -> None:
        """Give the model back as it was before `use`. Once is enough; a second time does nothing."""
        while self._undo:
            self._undo.pop()()


def use(model: PreTrainedModel) -> Swapped:
    """Let a loaded model run on the operators of `evalsuite_kernels`: prompts, padded batches, cached stretches, steps.

    Load it as transformers does, quantised, sharded or over several devices, and call this afterwards. Only mixing
    between tokens is swapped: projections, norms, short convolutions, experts and the head stay transformers'. Nothing
    of transformers' modules changes, so another model of the same class is what it was. Use `Swapped.undo` to go back.

    Args:
        model: a causal language model of one of `architectures.ARCHITECTURES`.

    Returns:
        The report, which goes on counting.

    Raises:
        UserError: an architecture, layer type or transformers that is not known, or a model that was changed before.
            Nothing is swapped then.
    """
    calls: Counter[tuple[int, str]] = Counter()
    rows: list[dict[str, Any]] = []
    planned: list[tuple[Change, Tally]] = []
    for i, kind, layer in _layers(model):
        found, operators = _planned(model, i, kind, layer, Tally(i, calls))
        planned += found
        rows.append({"layer": i, "type": kind, "module": type(found[-1][0][0]).__name__, "operators": operators})
    attention.register()
    swapped = Swapped(model, rows, calls)
    try:
        swapped._undo.append(_own_config(model))
        for (module, forward), tally in planned:
            swapped._undo.append(_set(module, SLOT, tally))
            if forward is not None:
                swapped._undo.append(_set(module, _slot(module), MethodType(forward, module)))
    except BaseException:
        swapped.undo()
        raise
    return swapped


def _layers(model: PreTrainedModel) -> list[tuple[int, str, nn.Module]]:
    """Number, type and module of each decoder layer."""
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"the kernels go into a transformers model, not into {type(model).__name__}")
    config: Any = model.config
    known = mixers_of(config.model_type)
    layers = getattr(model.base_model, "layers", None)
    if layers is None or len(layers) != config.num_hidden_layers:
        raise UserError(f"{type(model).__name__} has not the {config.num_hidden_layers} decoder layers of its config")
    slides = getattr(config, "sliding_window", None) and "sliding_attention" in known
    everywhere = "sliding_attention" if slides else next(iter(known))  # the type of layers that are given none
    types = getattr(config, "layer_types", None) or [everywhere] * len(layers)
    return [(i, kind, layer) for i, (kind, layer) in enumerate(zip(types, layers, strict=True))]


def _planned(
    model: PreTrainedModel, i: int, kind: str, layer: nn.Module, tally: Tally
) -> tuple[list[tuple[Change, Tally]], list[str]]:
    """The changes of one layer, the mixer itself last, and the operators that it runs then."""
    model_type = model.config.model_type
    known = mixers_of(model_type)
    if kind not in known:
        raise UserError(
            f"layer {i} of this {model_type} is of type {kind!r}, which the kernels do not know; "
            f"known: {', '.join(known)}. Nothing was swapped: leave the kernels out"
        )
    mixer = known[kind]
    found = [module for module in layer.modules() if type(module).__name__ == mixer.name]
    if len(found) != 1:
        raise UserError(
            f"layer {i} ({kind}) of this {model_type} has {len(found)} modules {mixer.name} instead of one; "
            f"transformers {version} builds it otherwise than 5.17 to 5.23 do. Nothing was swapped"
        )
    changes = list(mixer.changes(found[0], tally))
    for (module, _), _ in changes:
        if SLOT in vars(module):
            raise UserError("this model runs on the kernels already; undo() first")
        if _slot(module) == "forward" and "forward" in vars(module):
            raise UserError(f"layer {i}: the forward of {type(module).__name__} was replaced before; load it afresh")
    return [(change, tally) for change, _ in changes], [operator for _, operator in changes]


def _slot(module: nn.Module) -> str:
    """Where a module's forward is looked up: accelerate's hooks (device_map) keep it behind their own."""
    return "_old_forward" if hasattr(module, "_hf_hook") and "_old_forward" in vars(module) else "forward"


def _set(module: nn.Module, name: str, value: object) -> Callable[[], object]:
    """Set an instance's attribute and return what undoes it."""
    held = vars(module)
    if name in held:
        before = held[name]
        held[name] = value
        return lambda: held.__setitem__(name, before)
    held[name] = value
    return lambda: held.pop(name)


def _own_config(model: PreTrainedModel) -> Callable[[], object]:
    """Give the model's modules a config of their own, which names our attention: models may share one."""
    memo: dict[int, Any] = {}
    changed: list[tuple[nn.Module, PretrainedConfig]] = []
    for module in model.modules():
        config = vars(module).get("config")
        if isinstance(config, PretrainedConfig):
            vars(module)["config"] = copy.deepcopy(config, memo)
            changed.append((module, config))
    model.config._attn_implementation = attention.NAME

    def undo() -> None:
        for module, config in changed:
            vars(module)["config"] = config

    return undo
