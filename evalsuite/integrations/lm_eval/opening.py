"""Opens a model of lm_eval: `names()` are those that it knows, `open_backend` loads one with its arguments."""

import contextlib
import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evalsuite.errors import UserError, unknown
from evalsuite.integrations.lm_eval import NAME, placing
from evalsuite.integrations.lm_eval.watching import UNCHECKED, hold, watch
from evalsuite.models import pieces
from evalsuite.models.base import Model
from evalsuite.plan import WORDINGS

HF = ("hf", "hf-auto", "huggingface")
WHOLE = ("vllm", "sglang")  # they batch on their own whatever they are given at once
OURS = ("name", "wording", "slice", "chat")  # arguments that lm_eval does not get
SAME = {  # arguments that change no answer, or that no record may hold
    "device", "batch_size", "max_batch_size", "num_concurrent", "max_retries", "timeout", "verify_certificate",
    "ca_cert_path", "auth_token", "header", "api_key", "token", "gpu_memory_utilization", "tp_plan", *placing.SPREAD,
}  # fmt: skip
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
ABOUT = ("config.json", "generation_config.json", "adapter_config.json", "*.py")  # what else decides answers
LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")  # of a transformers configuration
UNSAID = 10**9  # a tokenizer's length beyond it means that none is known


def names() -> frozenset[str]:
    """Every model that lm_eval knows, but our own under its name. Raises ImportError without lm_eval."""
    import lm_eval.models  # noqa: F401 - it registers them
    from lm_eval.api.registry import model_registry

    return frozenset(model_registry) - {NAME}


def open_backend(kind: str, arguments: str, *, device: str = "auto", kernels: str = "auto") -> Model:
    """The model `kind` of lm_eval with its own `key=value,...`, a value in brackets as JSON, and these of ours: name,
    wording (natural or terse), slice (samples asked at once), chat=true (prompts through the tokenizer's template).

    The context is `max_length` where it is given, else what the model says of itself. Raises UserError, one line, where
    neither is known, for a lacking package, and for whatever else lm_eval cannot open.
    """
    given = _parsed(kind, arguments)
    ours = {key: given.pop(key) for key in OURS if key in given}
    if kernels not in ("auto", "evalsuite") or (kernels == "evalsuite" and kind not in HF):
        raise UserError(f"--kernels {kernels} is not for {kind!r}: hf alone takes --kernels evalsuite; leave it out")
    _check(kind, ours, given)
    if kind in HF:
        placing.check(kind, given, device)
    named = str(given.get("pretrained", ""))
    if named.startswith(("/", ".", "~")) and not Path(named).expanduser().exists():
        raise UserError(f"{kind}: there is no {named}")
    server = "chat" in kind or kind == "litellm"
    counts = not server and str(given.get("tokenizer_backend", "")).lower() != "none"
    counter = None if counts else _counter(kind, given)
    lm = _opened(kind, given, device)
    if counts and not hasattr(lm, "tok_encode"):
        counter = _counter(kind, given)
    context = _context(kind, lm, given)
    if hasattr(lm, "amodel_call"):
        watch(lm)
    swapped = importlib.import_module("evalsuite.integrations.hf").use(lm.model) if kernels == "evalsuite" else None
    from evalsuite.integrations.lm_eval.backend import Backend

    chat = "server" if server else "template" if ours.get("chat") else ""
    identity = _identity(kind, given, lm, counter) | ({"chat": chat} if chat else {})
    beside = 0
    if server:
        identity["tokens"], beside = hold(lm, counter) if hasattr(lm, "amodel_call") else (UNCHECKED, 0)
    if chat == "template":
        identity["template"] = hashlib.sha256(_template(kind, lm).encode()).hexdigest()
    size = max(1, int(ours.get("slice") or (64 if kind in WHOLE else _batch(given))))
    return Backend(
        str(ours.get("name") or f"{kind}-{Path(_named(given) or kind).name}"),
        lm,
        context=context,
        identity=identity | ({} if swapped is None else {"kernels": swapped.as_record()}),
        wording=str(ours.get("wording") or _wording(given)),
        tokenizer=counter,
        chat=chat,
        size=size,
        swapped=swapped,
        ranks=placing.together(kind, given, lm),
        beside=beside,
    )


def _parsed(kind: str, arguments: str) -> dict[str, Any]:
    """lm_eval's own reading of `key=value,...`, and of a value in brackets as JSON."""
    from lm_eval.utils import simple_parse_args_string

    found: dict[str, Any] = {}
    for piece in pieces(arguments):
        name, _, value = (side.strip() for side in piece.partition("="))
        if value[:1] not in ("{", "["):
            found |= simple_parse_args_string(piece)
            continue
        try:
            found[name] = json.loads(value)
        except ValueError as error:
            raise UserError(
                f"""{kind}: {name}={value} is no JSON ({error}); write {name}='{{"KEY": "VALUE"}}'"""
            ) from error
    return found


def _check(kind: str, ours: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise UserError for arguments of ours that mean nothing and for theirs that cannot be kept to, before anything is
    loaded."""
    if given.get("truncation"):
        raise UserError(f"{kind}: truncation={given['truncation']}, and no prompt is cut here; leave it out")
    if "@" in str(given.get("base_url", "")).partition("://")[2].partition("/")[0]:
        raise UserError(
            f"{kind}: base_url holds a password, which would stand in the run's record; export OPENAI_API_KEY"
        )
    if (size := ours.get("slice")) is not None and not (isinstance(size, int) and size > 0):
        raise UserError(f"{kind}: slice={size} is no number of samples, 1 or more")
    if (wording := ours.get("wording")) is not None and wording not in WORDINGS:
        raise unknown("wording", str(wording), WORDINGS)
    if not isinstance(chat := ours.get("chat", False), bool):
        raise UserError(f"{kind}: chat={chat} is neither true nor false")


def _template(kind: str, lm: Any) -> str:
    """What a chat template makes of two turns and of an answer's beginning."""
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    try:
        made = [lm.apply_chat_template(turns[:1]), lm.apply_chat_template(turns, add_generation_prompt=False)]
    except Exception as error:  # of templates, tokenizers and what lacks them
        raise UserError(f"{kind}: chat=true, and it has no chat template ({_line(error)}); leave chat out") from error
    if not all(isinstance(text, str) for text in made):
        raise UserError(f"{kind}: chat=true, and its prompts are not made here; leave chat out, or take a chat server")
    return json.dumps([*made, getattr(getattr(lm, "tokenizer", None), "chat_template", None)])


def _opened(kind: str, given: Mapping[str, Any], device: str) -> Any:
    """lm_eval's own object, its device the one asked for."""
    import torch
    from lm_eval.api.registry import get_model

    import evalsuite.models.modeling  # noqa: F401 - AutoModelForCausalLM then opens checkpoints of this package

    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    more = {"device": place} if "device" not in given else {}
    if kind in WHOLE and "batch_size" not in given:
        more["batch_size"] = "auto"
    try:
        backend = get_model(kind)
        if kind in HF:
            backend, given = placing.placed(backend, given)
        return backend.create_from_arg_obj(dict(given), more)
    except ImportError as error:
        reason = f"{kind} needs a package that is not installed: {_line(error)}"
        raise UserError(f"{reason}; pip install 'lm-eval[{_extra(kind)}]'") from error
    except UserError:
        raise
    except Exception as error:  # of any library that a backend is made of
        raise UserError(f"lm_eval cannot open {kind}: {type(error).__name__}: {_line(error)}") from error


def _context(kind: str, lm: Any, given: Mapping[str, Any]) -> int:
    """Tokens of prompt and answer: said, or known from the model; never a default that somebody made up."""
    from lm_eval.models.api_models import TemplateAPI

    said = given.get("max_length") or given.get("max_model_len")
    if said is not None and not (isinstance(said, int) and said > 1):
        raise UserError(f"max_length={said} is no number of tokens")
    if said is None and (isinstance(lm, TemplateAPI) or not _states(lm)):
        raise UserError(
            f"{kind} does not say how long its model's context is, and lm_eval would take 2048 and cut; "
            f"write {kind}:...,max_length=N, tokens of prompt and answer"
        )
    own = getattr(lm, "max_length", None)
    return min(int(x) for x in (said, own) if x)


def _states(lm: Any) -> bool:
    """Whether the length of the context is the model's own, and not lm_eval's default."""
    own, default = getattr(lm, "max_length", None), getattr(type(lm), "_DEFAULT_MAX_LENGTH", None)
    if not own or default is None:  # a class without that default has one in its constructor
        return False
    if own != default:
        return True
    config = getattr(getattr(lm, "model", None), "config", None)
    config = getattr(config, "text_config", None) or config
    if any(getattr(config, name, None) is not None for name in LENGTHS):
        return True
    return int(getattr(getattr(lm, "tokenizer", None), "model_max_length", None) or UNSAID) < UNSAID


def _identity(kind: str, given: Mapping[str, Any], lm: Any, counter: Any) -> dict[str, Any]:
    """Backend, arguments, weights and tokenizer by content where they are local, by commit where the hub said one."""
    arguments = {k: v for k, v in sorted(given.items()) if k not in SAME and k not in ("pretrained", "peft", "delta")}
    found: dict[str, Any] = {"backend": kind, "args": {k: _plain(v) for k, v in arguments.items()}}
    for key in ("pretrained", "peft", "delta", "model"):
        if isinstance(spec := given.get(key), str):
            place = Path(spec).expanduser() / (str(given.get("subfolder", "")) if key == "pretrained" else "")
            found |= {key: _weights(place) or spec}
    module = getattr(lm, "_model", None)
    if (dtype := getattr(module, "dtype", None)) is not None:
        found["dtype"] = str(dtype).removeprefix("torch.")
    if commit := getattr(getattr(module, "config", None), "_commit_hash", None):
        found["commit"] = commit
    with contextlib.suppress(OSError, ValueError):  # some load it when it is first looked at
        tokenizer = getattr(lm, "tokenizer", None) if counter is None else counter
        if (core := getattr(tokenizer, "backend_tokenizer", None)) is not None:
            found["tokenizer"] = hashlib.sha256(core.to_str().encode()).hexdigest()
            found["args"].pop("tokenizer", None)  # the same one may lie elsewhere, or another in its place
    return found


def _weights(folder: Path) -> str:
    """Hash of a local checkpoint's weights and configuration; "" for what is none."""
    files = sorted({file for pattern in (*WEIGHTS, *ABOUT) for file in folder.glob(pattern)})
    if folder.is_file():
        files = [folder]
    if all(file.suffix == ".py" for file in files):  # a folder of the same name, by chance
        return ""
    from evalsuite.models.loading import sha256

    return sha256(*files)


def _counter(kind: str, given: dict[str, Any]) -> Any:
    """What counts tokens where lm_eval does not: a tokenizer, or `bytes` itself."""
    spec = str(given.get("tokenizer") or "")
    if spec == "bytes":
        del given["tokenizer"]
        return bytes
    if not spec:
        raise UserError(
            f"{kind} counts no tokens; name the model's tokenizer, {kind}:...,tokenizer=FOLDER, or tokenizer=bytes, "
            "which takes every byte for a token"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(spec)
    except (OSError, ValueError) as error:
        raise UserError(f"there is no tokenizer {spec!r}: {_line(error)}") from error


def _wording(given: Mapping[str, Any]) -> str:
    """The wording that a checkpoint of this package was trained on; natural for any other."""
    from evalsuite.models import loading

    folder = Path(_named(given)).expanduser()
    if not (folder / "config.json").is_file() or loading.read_json(folder / "config.json").get("model_type") != NAME:
        return "natural"
    return loading.read_wording(folder, loading.read_config(folder))


def _named(given: Mapping[str, Any]) -> str:
    return next((str(given[key]) for key in ("pretrained", "model") if given.get(key)), "")


def _batch(given: Mapping[str, Any]) -> int:
    """Samples at once: some batches, so that an error costs little and a batch is full."""
    size = str(given.get("batch_size", 1))
    many = int(given.get("num_concurrent") or 1)
    return 4 * max(int(size), many) if size.isdigit() else 64


def _extra(kind: str) -> str:
    return kind if kind in WHOLE else "hf" if kind in HF else "api"


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _line(error: BaseException) -> str:
    text: Iterable[str] = (str(error).strip() or type(error).__name__).splitlines()
    return next(iter(text))[:200]
