"""Where the parts of a checkpoint go, and how it is quantised: what lm_eval's `hf` does not hand to transformers.

lm_eval 0.4.13 drops `device_map`, `max_memory` and `offload_folder` unread unless it is given `parallelize=true`, and
cannot be given a `quantization_config`. Here they reach `from_pretrained` as they are. A `tp_plan` it hands on itself.
"""

import os
import warnings
from collections.abc import Mapping
from typing import Any

from evalsuite.errors import UserError

WHERE = ("device_map", "max_memory", "offload_folder")
QUANTISED = "quantization_config"
LM_EVALS = ("max_memory_per_gpu", "max_cpu_memory")  # which it reads with `parallelize=true` alone
SPREAD = ("parallelize", *WHERE, *LM_EVALS)  # these place a model, and change no answer beyond its rounding


def check(kind: str, given: Mapping[str, Any], device: str) -> None:
    """Raise UserError for arguments that would not be kept to, or would wait for a rank that never comes."""
    ranks, spread = int(os.environ.get("WORLD_SIZE") or 1), [name for name in SPREAD if given.get(name)]
    if ranks > 1 and str(given.get("batch_size", "")).startswith("auto"):
        raise UserError(f"{kind}: batch_size=auto has ranks wait for each other in every batch; give batch_size=N")
    if "tp_plan" in given:
        _check_plan(f"{kind}: tp_plan={given['tp_plan']}", spread, device, ranks)
        return
    if where := [name for name in spread if name in WHERE]:
        _check_where(kind, given, device, where[0])
    for name in LM_EVALS:
        if given.get(name) and not given.get("parallelize"):
            raise UserError(f"{kind}: {name} is for parallelize=true; with device_map it is max_memory={{...}}")
    if given.get("parallelize"):
        _expect_gpus(kind)


def _check_plan(plan: str, spread: list[str], device: str, ranks: int) -> None:
    import torch

    if spread:
        raise UserError(f"{plan} splits every layer over the ranks, and {spread[0]} places whole ones; give one")
    if ranks < 2:
        raise UserError(
            f"{plan} splits a model over ranks, and this is one process; start it by "
            "torchrun --nproc-per-node N -m evalsuite run ..."
        )
    if device == "cpu" and torch.cuda.is_available():
        raise UserError(f"{plan} takes the GPUs that there are; leave --device cpu out, or hide them from the command")


def _check_where(kind: str, given: Mapping[str, Any], device: str, first: str) -> None:
    if "device_map" not in given:
        raise UserError(f"{kind}: {first} is for device_map; add device_map=auto")
    if given.get("parallelize"):
        raise UserError(f"{kind}: parallelize is lm_eval's word for device_map=auto; give one of the two")
    if (ranks := int(os.environ.get("WORLD_SIZE") or 1)) > 1:
        raise UserError(
            f"{kind}: device_map in each of {ranks} ranks would place {ranks} models on the same devices; leave "
            "torchrun out, or give tp_plan=auto"
        )
    if device != "auto":
        raise UserError(f"{kind}: device_map says where the model goes; leave --device {device} out")
    if not isinstance(room := given.get("max_memory", {}), dict):
        raise UserError(f"""{kind}: max_memory={room} is for no device; write max_memory='{{"0": "20GiB"}}'""")


def _expect_gpus(kind: str) -> None:
    import torch

    if not torch.cuda.device_count():  # lm_eval then leaves no room anywhere, and transformers reads all from disk
        raise UserError(f"{kind}: parallelize=true spreads a model over GPUs, and there is none; leave it out")


def placed(hf: type[Any], given: Mapping[str, Any]) -> tuple[type[Any], dict[str, Any]]:
    """lm_eval's class and arguments for a backend `hf`, so that all of them reach transformers.

    Raises UserError for a `quantization_config` that transformers does not know.
    """
    rest = {name: value for name, value in given.items() if name not in (*WHERE, QUANTISED)}
    where = {name: given[name] for name in WHERE if name in given}
    if "max_memory" in where:  # JSON's keys are words, and GPUs are numbers
        where["max_memory"] = {int(k) if k.isdecimal() else k: v for k, v in where["max_memory"].items()}
    quantised = _quantised(given[QUANTISED]) if QUANTISED in given else None

    class Placed(hf):
        def _get_accelerate_args(self, *args: Any, **options: Any) -> dict[str, Any]:
            return dict(where) if where else dict(super()._get_accelerate_args(*args, **options))

        def _create_model(self, *args: Any, quantization_config: Any = None, **options: Any) -> None:
            if quantised is not None and quantization_config is not None:
                raise UserError("the checkpoint is quantised already, and stays so; leave quantization_config out")
            auto: Any = self.AUTO_MODEL_CLASS
            self.AUTO_MODEL_CLASS: Any = Whole(auto)
            try:
                with warnings.catch_warnings():  # of the checkpoint's own, which lm_eval hands on: None would be none
                    warnings.filterwarnings("ignore", "You passed `quantization_config`")
                    super()._create_model(*args, quantization_config=quantised or quantization_config, **options)
            finally:
                self.AUTO_MODEL_CLASS = auto

    if where:
        rest["parallelize"] = True  # it would move the model to one device otherwise
    return Placed, rest


class Whole:
    """An `AutoModelFor...` that opens no checkpoint of which weights are missing, to be drawn at random, or whose
    scales are left over."""

    def __init__(self, auto: Any) -> None:
        self.auto = auto

    def from_pretrained(self, name: str, **options: Any) -> Any:
        """The model. Raises UserError where the checkpoint does not hold all of it."""
        model, told = self.auto.from_pretrained(name, output_loading_info=True, **_distributed(options))
        if missing := sorted(told["missing_keys"]):
            raise UserError(
                f"{name} lacks {len(missing)} of its model's weights, {missing[0]} for one, which would be drawn at "
                "random; give a whole checkpoint of this architecture"
            )
        if scales := sorted(name for name in told["unexpected_keys"] if "weight_scale" in name):
            raise UserError(
                f"{name} is quantised, and its scales ({scales[0]} for one) were not read: its config.json says no "
                "quantization_config that this transformers keeps; the weights would be numbers of another size"
            )
        return model


def _distributed(options: dict[str, Any]) -> dict[str, Any]:
    """lm_eval's `tp_plan` in the words of newer releases of transformers, which take it from a configuration alone."""
    from transformers import distributed

    known: Any = getattr(distributed, "DistributedConfig", None)
    if options.get("tp_plan") is None or "tp_plan" not in getattr(known, "__dataclass_fields__", ()):
        return options
    rest = {name: value for name, value in options.items() if name != "tp_plan"}
    return rest | {"distributed_config": known(tp_plan=options["tp_plan"])}


def _quantised(config: Any) -> Any:
    """transformers' own object for the dictionary."""
    from transformers.quantizers.auto import AutoQuantizationConfig

    try:
        return AutoQuantizationConfig.from_dict(dict(config))
    except Exception as error:  # of whatever library quantises
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"quantization_config={config} is none of transformers': {line}") from error


def together(kind: str, given: Mapping[str, Any], lm: Any) -> tuple[int, str]:
    """How many ranks hold one model, and in words what this one holds of it; 1 and "" without tp_plan.

    Raises UserError where the plan splits nothing: every rank would hold it whole.
    """
    if not given.get("tp_plan"):
        return 1, ""
    every = list(lm.model.parameters())
    own = sum((weight.to_local() if hasattr(weight, "to_local") else weight).numel() for weight in every)
    share = own / sum(weight.numel() for weight in every)
    if share == 1:
        raise UserError(f"{kind}: tp_plan={given['tp_plan']} splits no layer of this model; leave tp_plan out")
    ranks = int(os.environ["WORLD_SIZE"])
    return ranks, f"rank {os.environ['RANK']} of {ranks}: {share:.0%} of the parameters"
