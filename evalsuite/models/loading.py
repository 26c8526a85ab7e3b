"""Reads a checkpoint folder: every fault of it is one clear line, and no weight is ever made up."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from evalsuite.errors import UserError
from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.modeling import EvalsuiteForCausalLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SIZES = (
    "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "window", "conv_size", "num_experts_per_tok", "moe_intermediate_size", "max_position_embeddings",
)  # fmt: skip
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_config(folder: Path) -> EvalsuiteConfig:
    """The configuration in `config.json`."""
    raw = read_json(folder / "config.json")
    kind = raw.pop("model_type", None)
    if kind != EvalsuiteConfig.model_type:
        raise UserError(
            f"{folder / 'config.json'} has model_type {kind!r}, and only {EvalsuiteConfig.model_type!r} is read"
        )
    for name, least in [*((size, 1) for size in SIZES), ("gate_rank", 0), ("num_experts", 0)]:
        value = raw.get(name, least)
        if isinstance(value, int) and value < least:
            raise UserError(
                f"{folder / 'config.json'} is no valid configuration: {name} is {value}, and must be at least {least}"
            )
    if not isinstance(raw.get("pattern"), str):
        raise UserError(
            f"{folder / 'config.json'} is no valid configuration: pattern must be a string of layer letters"
        )
    try:
        return EvalsuiteConfig(**raw)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"{folder / 'config.json'} is no valid configuration: {_line(error)}") from error


def read_model(folder: Path, config: EvalsuiteConfig, dtype: torch.dtype, device: torch.device) -> EvalsuiteForCausalLM:
    """The model with exactly the weights of the folder."""
    tensors, origin = read_weights(folder)
    # nothing is initialised, but once torch.compile has been used, even a meta tensor moves the random generator
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = EvalsuiteForCausalLM(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings and "model.embed_tokens.weight" in tensors:
        embedding = tensors["model.embed_tokens.weight"]
        if not torch.equal(tensors.setdefault("lm_head.weight", embedding), embedding):
            raise UserError(
                f"{origin['lm_head.weight']}: lm_head.weight is another than the embeddings, to which config.json ties "
                "it; config.json and weights do not belong together"
            )
    _check_names(expected, tensors, folder)
    for name, shape in expected.items():
        found = tensors[name]
        if tuple(found.shape) != shape:
            raise UserError(
                f"{origin[name]}: {name} has shape {list(found.shape)} where config.json asks for {list(shape)}"
            )
        if not found.is_floating_point():
            raise UserError(f"{origin[name]}: {name} has dtype {found.dtype}, which is no floating-point dtype")
    model.load_state_dict({name: tensors[name].to(device, dtype) for name in expected}, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.requires_grad_(False)
    return model.eval()


def _check_names(expected: Mapping[str, Any], found: Mapping[str, Any], folder: Path) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    for names, what in ((missing, "lacks"), (extra, "has weights that config.json does not know:")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"checkpoint {folder} {what} {names[0]}{more}; config.json and weights do not belong together"
            )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or the shards that its index names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise UserError(f"no {WEIGHTS} in {folder}; save the model with save_pretrained")
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in shards.values()
    ):
        raise UserError(f"{folder / INDEX} has no weight_map of file names; save the model again")
    files = [folder / name for name in sorted(set(shards.values()))]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, though {INDEX} names it; copy the whole checkpoint")
    return files


def read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Path]]:
    """Every tensor by name, and the file that it comes from."""
    tensors: dict[str, Tensor] = {}
    origin: dict[str, Path] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 - the handle is no mapping
                    tensors[name], origin[name] = handle.get_tensor(name), file
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged or truncated ({_line(error)}); copy the checkpoint again") from error
    return tensors, origin


def read_tokenizer(folder: Path, config: EvalsuiteConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of `tokenizer.json`, checked against the model's vocabulary."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"no tokenizer.json in {folder}; save the tokenizer beside the weights with save_pretrained")
    if (folder / "tokenizer_config.json").exists():
        read_json(folder / "tokenizer_config.json")
    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises no narrower type
        raise UserError(f"{file} is no valid tokenizer: {_line(error)}") from error
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    finally:
        logging.set_verbosity(level)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= config.vocab_size:
        raise UserError(f"{file} has token {largest}, but config.json has a vocab_size of {config.vocab_size}")
    return tokenizer


def read_wording(folder: Path, config: EvalsuiteConfig) -> str:
    """The wording that `training.json` or `config.json` names. A checkpoint with a `training.json` that says nothing
    was trained by the lab, and so on the closed lexicon: "terse"."""
    trained = (folder / "training.json").exists()
    said = read_json(folder / "training.json").get("wording") if trained else None
    wording = said or getattr(config, "wording", None) or ("terse" if trained else "natural")
    if wording not in ("terse", "natural"):
        raise UserError(f"{folder} names the wording {wording!r}; it must be 'terse' or 'natural'")
    return wording


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, or a UserError that names the file."""
    if not file.is_file():
        raise UserError(f"no {file.name} in {file.parent}; give a checkpoint folder written by save_pretrained")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no valid JSON: {_line(error)}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} holds no JSON object")
    return value


def sha256(*files: Path) -> str:
    """Hash of the files' content, in the order given."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}; give auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name!r} asks for a GPU, and torch finds none; use --device cpu")
    return device


def pick_dtype(name: str, device: torch.device, config: EvalsuiteConfig) -> torch.dtype:
    """The dtype of that name; "auto" is fp32 on a CPU and the checkpoint's own elsewhere."""
    if name == "auto":
        own = config.dtype
        return own if device.type != "cpu" and isinstance(own, torch.dtype) else torch.float32
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}; give auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
