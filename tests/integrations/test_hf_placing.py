"""Checkpoints in several files, quantised ones, parts on other devices, and one model over two ranks: through `hf:`."""

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from evalsuite import models, store, verbs
from evalsuite.errors import UserError
from evalsuite.integrations.hf.cases import SMALL, build
from evalsuite.models import ZOO

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed; lm_eval's backend hf needs it")
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TASKS = ["multihop.graph", "knowledge"]
TOKENS = torch.randint(5, 1000, (2, 40), generator=torch.Generator().manual_seed(1))
LAYER = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama in several files, and `whole`, the same in one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    saved(folder / "parts", "llama", max_shard_size="100KB")
    saved(folder / "whole", "llama")
    return folder


def saved(place: Path, name: str, **options: Any) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "full")
    build(name, vocab_size=len(tokenizer), max_position_embeddings=1024).save_pretrained(place, **options)
    tokenizer.save_pretrained(place)
    return place


def opened(place: Path, *arguments: str, **options: Any) -> Any:
    words = [f"hf:pretrained={place}", "dtype=float32", "wording=terse", *arguments]
    return models.load(",".join(words), **{"device": "cpu", **options})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.lm.model(TOKENS, use_cache=False).logits
    return found


def ran(out: Path, spec: str, *, kernels: str = "auto", limit: int = 2) -> store.Run:
    """What the verb `run` leaves behind."""
    options = {"lengths": "256", "limit": limit, "out": str(out), "kernels": kernels}
    verbs.run(verbs.Asked([spec], TASKS, **options))  # type: ignore[arg-type]
    (folder,) = out.iterdir()
    return store.read(folder)


def answers(run: store.Run) -> dict[str, Any]:
    assert run.rows
    assert not any(row["error"] for row in run.rows)
    return {row["id"]: (row["text"], row["score"]) for row in run.rows}


def test_a_checkpoint_in_several_files_is_the_same_model(place: Path) -> None:
    assert len(list((place / "parts").glob("*.safetensors"))) > 3
    whole, parts = opened(place / "whole"), opened(place / "parts")
    assert torch.equal(logits(whole), logits(parts))
    copy = place / "changed"
    shutil.copytree(place / "parts", copy)
    file = sorted(copy.glob("*.safetensors"))[-1]
    save_file({name: weight * 1.01 for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    assert opened(copy).identity()["pretrained"] != parts.identity()["pretrained"]
    file.unlink()
    with pytest.raises(UserError, match="lm_eval cannot open hf"):
        opened(copy)


def test_weights_of_a_subfolder_make_the_model(place: Path, tmp_path: Path) -> None:
    found = []
    for name in ("one", "same", "other"):
        shutil.copytree(place / "whole", tmp_path / name / "inner")
        file = tmp_path / name / "inner" / "model.safetensors"
        by = 1.01 if name == "other" else 1.0
        save_file({key: weight * by for key, weight in load_file(file).items()}, file, metadata={"format": "pt"})
        found.append(opened(tmp_path / name, "subfolder=inner").identity())
    assert found[0] == found[1] != found[2]


def test_weights_that_are_missing_are_not_drawn_at_random(place: Path) -> None:
    """transformers logs a table and goes on; every answer would be another model's, and each time another."""
    copy = place / "lacking"
    shutil.copytree(place / "whole", copy)
    weights = load_file(copy / "model.safetensors")
    del weights[LAYER]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"lacks 1 of its model's weights, {LAYER} for one"):
        opened(copy)


def parts_of(place: Path, last: str) -> str:
    """A device map as an argument: the last layer elsewhere."""
    names = ("model.embed_tokens", "model.norm", "lm_head", "model.rotary_emb", "model.layers.0")
    return json.dumps({**dict.fromkeys(names, "cpu"), "model.layers.1": last})


@pytest.mark.parametrize("kernels", ["auto", "evalsuite"])
def test_a_device_map_reaches_transformers(place: Path, tmp_path: Path, kernels: str) -> None:
    """lm_eval itself drops it unread."""
    base = f"hf:pretrained={place / 'parts'},dtype=float32,wording=terse"
    wanted = answers(ran(tmp_path / "wanted", f"{base},batch_size=4"))
    off = tmp_path / "off"
    spec = f"{base},device_map={parts_of(place, 'disk')},offload_folder={off},batch_size=4"
    assert answers(ran(tmp_path / "disk", spec, kernels=kernels)) == wanted
    assert off.is_dir()  # files of safetensors are read where they are
    model = models.load(spec, kernels=kernels)
    assert model.lm.model.hf_device_map["model.layers.1"] == "disk"  # type: ignore[attr-defined]
    assert any(weight.is_meta for weight in model.lm.model.parameters())  # type: ignore[attr-defined]
    whole = opened(place / "parts", kernels=kernels)
    assert model.identity() == whole.identity()  # where its parts are does not make another model


def test_a_device_map_of_its_own_choice_keeps_to_the_memory_it_is_given(place: Path, tmp_path: Path) -> None:
    room = json.dumps({"cpu": "600KB"})
    where = ("device_map=auto", f"max_memory={room}", f"offload_folder={tmp_path / 'off'}")
    model = opened(place / "parts", *where, device="auto")
    assert set(model.lm.model.hf_device_map.values()) == {"cpu", "disk"}
    assert torch.equal(logits(model), logits(opened(place / "whole")))
    assert torch.equal(logits(opened(place / "parts", "device_map=auto", device="auto")), logits(model))


@pytest.mark.parametrize(
    ("arguments", "options", "ranks", "message"),
    [
        ("max_memory={}", {}, 1, None),
        ('max_memory={"cpu": "1GB"}', {"device": "auto"}, 1, "max_memory is for device_map; add device_map=auto"),
        ("device_map=auto,max_memory=9GB", {"device": "auto"}, 1, "max_memory=9GB is for no device"),
        ("offload_folder=x", {"device": "auto"}, 1, "offload_folder is for device_map"),
        ("device_map=auto", {"device": "cpu"}, 1, "device_map says where the model goes; leave --device cpu out"),
        ("device_map=auto", {"device": "auto"}, 2, "device_map in each of 2 ranks"),
        ("device_map=auto,parallelize=true", {"device": "auto"}, 1, "lm_eval's word for device_map=auto"),
        ("max_cpu_memory=1GB", {}, 1, "max_cpu_memory is for parallelize=true"),
        ("device_map={model: cpu}", {"device": "auto"}, 1, r"device_map=\{model: cpu\} is no JSON"),
        ('device_map={"model": "cpu"', {"device": "auto"}, 1, "is no JSON"),
        (
            "tp_plan=auto",
            {},
            1,
            "tp_plan=auto splits a model over ranks, and this is one process; start it by torchrun",
        ),
        ("tp_plan=auto,device_map=auto", {"device": "auto"}, 2, "and device_map places whole ones; give one"),
        ("batch_size=auto", {}, 2, "batch_size=auto has ranks wait"),
        ('quantization_config={"quant_method": "nonesuch"}', {}, 1, "quantization_config=.* is none of transformers'"),
    ],
)
def test_what_would_be_dropped_or_would_wait_for_ever_is_one_line(
    place: Path,
    arguments: str,
    options: dict[str, str],
    ranks: int,
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    if message is None:  # nothing is asked
        monkeypatch.delenv("WORLD_SIZE")
        assert opened(place / "whole", arguments, **options)
        return
    with pytest.raises(UserError, match=message) as found:
        opened(place / "whole", arguments, **options)
    assert "\n" not in str(found.value)


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="there is a GPU")
def test_parallelize_without_a_gpu_does_not_read_all_from_disk(place: Path) -> None:
    with pytest.raises(UserError, match="parallelize=true spreads a model over GPUs, and there is none"):
        opened(place / "whole", "parallelize=true")


def test_commas_within_brackets_are_no_other_model() -> None:
    spec = 'hf:pretrained=x,device_map={"a": {"b": 1, "c": [2, 3]}, "d": "cpu"},dtype=y'
    assert verbs.split_models([f"full,{spec},hybrid-kda"]) == ["full", spec, "hybrid-kda"]
    assert verbs.split_models(["a}b,full"]) == ["a}b", "full"]


def fp8(place: Path, whole: Path) -> Path:
    """The checkpoint with its projections as 8-bit floats and a scale a block of 16, as DeepSeek publishes them."""
    shutil.copytree(whole, place)
    weights = load_file(place / "model.safetensors")
    for name in [name for name in weights if "proj" in name]:
        rows, columns = (size // 16 for size in weights[name].shape)
        blocks = weights[name].view(rows, 16, columns, 16)
        scales = blocks.abs().amax((1, 3)) / 448
        weights[name] = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn).reshape(weights[name].shape)
        weights[f"{name}_scale_inv"] = scales
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((place / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [16, 16],
        "activation_scheme": "dynamic",
    }
    (place / "config.json").write_text(json.dumps(config))
    return place


def test_a_checkpoint_quantised_on_disk_is_what_transformers_makes_of_it(place: Path, tmp_path: Path) -> None:
    quantised = fp8(tmp_path / "fp8", place / "whole")
    wanted = AutoModelForCausalLM.from_pretrained(quantised, dtype=torch.float32)
    model = opened(quantised)
    assert torch.equal(model.lm.model.state_dict()[LAYER], wanted.state_dict()[LAYER])
    error = (logits(model) - logits(opened(place / "whole"))).abs().max() / logits(model).abs().max()
    assert 1e-4 < error < 0.2
    ours = opened(quantised, kernels="evalsuite")
    assert (logits(ours) - logits(model)).abs().max() < 1e-4 * logits(model).abs().max()
    assert {layer for layer, _ in ours.swapped.calls} == {0, 1}
    assert model.identity()["pretrained"] != opened(place / "whole").identity()["pretrained"]
    with pytest.raises(UserError, match="the checkpoint is quantised already"):
        opened(quantised, 'quantization_config={"quant_method": "fp8"}')
    config = json.loads((quantised / "config.json").read_text())
    del config["quantization_config"]
    (quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"is quantised, and its scales .*were not read"):
        opened(quantised)


@pytest.fixture
def torchao() -> Iterator[Any]:
    found = pytest.importorskip("torchao.quantization", reason="torchao is not installed; it writes 8-bit weights")
    yield found
    gc.collect()


def test_weights_of_torchao_are_read_as_they_were_written(place: Path, tmp_path: Path, torchao: Any) -> None:
    from transformers import TorchAoConfig

    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    made = AutoModelForCausalLM.from_pretrained(
        place / "whole", quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    made.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(place / "whole").save_pretrained(tmp_path)
    model = opened(tmp_path)
    weight = model.lm.model.model.layers[0].self_attn.q_proj.weight
    assert type(weight).__name__ == "Int8Tensor"
    with torch.no_grad():
        assert torch.equal(logits(model), made(TOKENS, use_cache=False).logits)
    ours = opened(tmp_path, kernels="evalsuite")
    assert (logits(ours) - logits(model)).abs().max() < 1e-4 * logits(model).abs().max()
    told = json.dumps({"quant_method": "torchao", **config.to_dict()})
    now = opened(place / "whole", f"quantization_config={told}")  # quantised while it is read
    assert type(now.lm.model.model.layers[0].self_attn.q_proj.weight).__name__ == "Int8Tensor"
    assert now.identity() != opened(place / "whole").identity()


def torchrun(ranks: int, *words: str) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, *launch], env=environment, capture_output=True, text=True, check=False, timeout=200
    )


@pytest.mark.parametrize("kernels", ["auto", "evalsuite"])
def test_two_ranks_hold_one_model_and_are_one_run(place: Path, tmp_path: Path, kernels: str) -> None:
    """Each holds its heads of every layer, both are asked the same, and one writes: also where a run goes on."""
    base = f"hf:pretrained={place / 'parts'},dtype=float32,wording=terse,batch_size=4"
    wanted = ran(tmp_path / "wanted", base, limit=3)
    words = [
        "-m",
        "evalsuite",
        "run",
        "--model",
        f"{base},tp_plan=auto",
        "--kernels",
        kernels,
        "--out",
        str(tmp_path / "tp"),
    ]
    words += ["--tasks", ",".join(TASKS), "--lengths", "256"]
    for limit in ("2", "3"):
        done = torchrun(2, *words, "--limit", limit)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("multihop.graph") == 1
        assert "Passing `tp_plan`" not in done.stderr  # which newer releases of transformers no longer take
    (folder,) = (tmp_path / "tp").iterdir()
    run = store.read(folder)
    assert run.finished
    assert answers(run) == answers(wanted)
    assert [row["prompt_hash"] for row in run.rows] == [row["prompt_hash"] for row in wanted.rows]
    for mine, theirs in zip(run.rows, wanted.rows, strict=True):
        assert mine["choice_logprobs"] == pytest.approx(theirs["choice_logprobs"], abs=2e-4)
    told = run.meta["requests"][-1]["ran"]
    shares = [re.fullmatch(r"rank (\d) of 2: (\d+)% of the parameters", each) for each in told["tensor parallel"]]
    assert [each[1] for each in shares if each] == ["0", "1"]
    assert all(50 <= int(each[2]) < 60 for each in shares if each)
    assert told.get("full_attention") == (["evalsuite"] if kernels == "evalsuite" else None)
    if kernels == "auto":
        assert run.meta["identity"] == wanted.meta["identity"]
        lost = torchrun(3, *words)
        assert lost.returncode != 0
        assert "num_key_value_heads (2) to be divisible by WORLD_SIZE (3)" in lost.stderr


def test_a_rank_that_dies_ends_the_run_and_nothing_is_lost(place: Path, tmp_path: Path) -> None:
    """The other waits in a collective for a part that never comes."""
    base = f"hf:pretrained={place / 'parts'},dtype=float32,wording=terse,slice=2"
    words = ["--tasks", "multihop.graph", "--lengths", "256", "--limit", "40", "--out", str(tmp_path / "out")]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "evalsuite", "run"]
    started = subprocess.Popen(
        [sys.executable, *launch, "--model", f"{base},tp_plan=auto", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log, end = tmp_path / "out" / "hf-parts" / "samples-0.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 6):
        assert started.poll() is None, started.communicate()[1][-2000:]
        assert time.monotonic() < end
        time.sleep(0.05)
    (rank,) = (tmp_path / "out").glob(".ranks-*/rank-1")
    os.kill(json.loads(rank.read_text())["process"], signal.SIGKILL)
    said = started.communicate(timeout=100)[1]
    assert started.returncode != 0, said[-2000:]
    before = len(store.read(log.parent).rows)
    assert 6 <= before < 120
    verbs.run(verbs.Asked([base], ["multihop.graph"], lengths="256", limit=40, out=str(tmp_path / "out")))
    run = store.read(log.parent)  # the same weights in one process: it is one run
    assert run.finished
    assert len(run.rows) == 120
    assert not any(row["error"] for row in run.rows)


def test_ranks_with_parts_of_two_models_are_no_model(place: Path, tmp_path: Path) -> None:
    """As where two machines have other files under one path."""
    for rank in (0, 1):
        shutil.copytree(place / "whole", tmp_path / str(rank) / "model")
    file = tmp_path / "1" / "model" / "model.safetensors"
    save_file({name: weight * 1.01 for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    start = "import os, runpy\nos.chdir(os.environ['RANK'])\nrunpy.run_module('evalsuite', run_name='__main__')\n"
    (tmp_path / "start.py").write_text(f"import os\nos.chdir({str(tmp_path)!r})\n{start}")
    spec = "hf:pretrained=./model,dtype=float32,wording=terse,tp_plan=auto"
    words = ["run", "--model", spec, "--tasks", "knowledge", "--limit", "1", "--out", str(tmp_path / "out")]
    done = torchrun(2, str(tmp_path / "start.py"), *words)
    assert done.returncode != 0
    assert "rank 1 is not like rank 0" in done.stderr
    assert "model.pretrained" in done.stderr


HEADS = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
from evalsuite.integrations.hf import use

torch.set_grad_enabled(False)
tokens = torch.arange(2, 42).repeat(2, 1)
mask = torch.ones_like(tokens)
mask[1, :7] = 0
for place in sorted(Path(sys.argv[1]).iterdir()):
    whole = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    wanted = whole(tokens, attention_mask=mask).logits[:, 7:]
    parts = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, tp_plan="auto").eval()
    swapped = use(parts)
    error = ((parts(tokens, attention_mask=mask).logits[:, 7:] - wanted).abs().max() / wanted.abs().max()).item()
    calls = all((row["layer"], name) in swapped.calls for row in swapped.layers for name in row["operators"])
    local = sum(hasattr(weight, "to_local") and "attn" in name for name, weight in parts.named_parameters())
    print(f"FOUND {place.name} {error:.2e} {calls} {local}\\n", end="", flush=True)
"""


def test_the_kernels_take_the_heads_of_a_rank_in_every_architecture(tmp_path: Path) -> None:
    for name in SMALL:
        build(name).save_pretrained(tmp_path / "models" / name)
    (tmp_path / "heads.py").write_text(HEADS)
    done = torchrun(2, str(tmp_path / "heads.py"), str(tmp_path / "models"))
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert sorted(name for name, *_ in lines) == sorted([*SMALL, *SMALL])
    assert all(float(error) < 1e-4 and calls == "True" for _, error, calls, _ in lines), lines
    sharded = {name for name, _, _, local in lines if int(local)}
    assert sharded >= {"llama", "qwen3", "qwen3_next", "qwen3_5_text", "minimax", "olmo_hybrid", "deepseek_v32"}


def test_a_plan_takes_the_gpus_whatever_device_is_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="tp_plan=auto takes the GPUs that there are; leave --device cpu out"):
        opened(place / "whole", "tp_plan=auto")
