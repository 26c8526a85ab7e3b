"""lm_eval's command line and its own `ruler` tasks on our models: equal to `evalsuite run`, sample by sample.

Where lm_eval's ruler differs from our task family `ruler`, the differences are defects that are shown here one by one.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from evalsuite import plan, runner
from evalsuite.errors import UserError
from evalsuite.models.config import EvalsuiteConfig
from evalsuite.models.modeling import EvalsuiteForCausalLM
from evalsuite.models.own import open_checkpoint

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
import lm_eval
from lm_eval.tasks._index import TaskIndex

from evalsuite.integrations.lm_eval import command
from evalsuite.integrations.lm_eval.foreign import _seeded

LENGTH, LIMIT = 1024, 3
OFFLINE = ("niah_single_1", "niah_multikey_2", "ruler_cwe", "ruler_fwe", "ruler_vt")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers at random, and a tokenizer of English: ruler's texts are too long in letters."""
    from wonderwords.random_word import Defaults, RandomWord

    folder = tmp_path_factory.mktemp("checkpoint")
    texts = [file.read_text() for file in (ROOT / "README.md", *ROOT.glob("tasks/evalsuite_tasks/**/*.py"))]
    texts += [" ".join(RandomWord().filter(include_parts_of_speech=[part])) for part in ("noun", "adjective", "verb")]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=6000, special_tokens=special, initial_alphabet=alphabet)
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=2 * LENGTH
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = EvalsuiteConfig(
        vocab_size=core.get_vocab_size(),
        pattern="KF",
        intermediate_size=32,
        max_position_embeddings=2 * LENGTH,
        **sizes,
    )
    model = EvalsuiteForCausalLM(config).eval()
    for weight in (p for p in model.parameters() if p.dim() >= 2):
        torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)  # zero-initialised projections would do nothing
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert Defaults
    return folder


@pytest.fixture(autouse=True)
def _ruler_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm_eval reads 14,000 files to know its tasks: here those of ruler. Its survey of the machine is slow."""
    build = TaskIndex.build
    ruler = Path(lm_eval.__file__).parent / "tasks" / "ruler"
    monkeypatch.setattr("lm_eval.tasks.manager.TaskIndex.build", lambda _self, _paths: build([ruler]))
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def theirs(checkpoint: Path, out: Path, *names: str, lengths: Sequence[int] = (LENGTH,)) -> dict[str, Any]:
    """What lm_eval's command line wrote: the results, and samples by task."""
    words = ["--model", "evalsuite", "--model_args", f"pretrained={checkpoint}", "--device", "cpu", "--tasks", *names]
    words += ["--metadata", f"max_seq_lengths={list(lengths)}", "--limit", str(LIMIT), "--log_samples"]
    with _seeded():  # as in a process of its own: some of its tasks draw from a generator that is made at import
        command.run([*words, "--output_path", str(out)])
    (results,) = out.rglob("results_*.json")
    found: dict[str, Any] = json.loads(results.read_text())
    found["samples"] = {
        name: [
            json.loads(line) for file in out.rglob(f"samples_{name}_*.jsonl") for line in file.read_text().splitlines()
        ]
        for name in names
    }
    return found


@pytest.mark.parametrize("name", OFFLINE)
def test_its_ruler_scores_our_model_as_run_does(checkpoint: Path, tmp_path: Path, name: str) -> None:
    length = LENGTH if name != "niah_single_1" else LENGTH // 2  # 500 samples of it take long to make
    found = theirs(checkpoint, tmp_path / "theirs", name, lengths=(length,))
    model = open_checkpoint(checkpoint, "tiny", device="cpu")
    asked = [f"lm_eval:{name}.tokenizer={checkpoint}"]
    chosen = plan.select([f"lm_eval:{name}"], lengths=(length,), limit=LIMIT, settings=asked)
    rows = runner.run(model, plan.make(chosen, "natural"), tmp_path / "ours").rows
    samples = found["samples"][name]
    assert len(rows) == len(samples) == LIMIT
    for row, sample in zip(rows, samples, strict=True):
        assert sample["arguments"]["gen_args_0"]["arg_0"] == row["prompt"]
        assert sample["resps"] == [[row["text"]]]
        assert sample[str(length)] == row["score"]
        assert row["text"].strip()
    assert found["results"][name][f"{length},none"] == sum(row["score"] for row in rows) / LIMIT
    assert found["results"][name]["4096,none"] == -1  # R4: a length that was not asked has a score, and it is -1
    if name == "ruler_cwe":  # R2: room for an example that is then left out
        assert all(row["prompt_tokens"] < 0.8 * (LENGTH - 120) for row in rows)
        assert all("Below is a numbered list" in row["prompt"] for row in rows)
    if name == "ruler_vt":  # R8
        assert all("assgined" in row["prompt"] for row in rows)


def test_what_needs_a_tokenizer_says_how_to_give_it() -> None:
    with pytest.raises(UserError, match=r"give --set TASK\.tokenizer=FOLDER, and --lengths"):
        plan.make(plan.select(["lm_eval:ruler_fwe"]), "natural")


def test_its_data_depend_on_what_was_made_before_and_its_limit_on_the_shortest_length(
    checkpoint: Path, tmp_path: Path
) -> None:
    """R7 and R6; ours depend on neither."""
    alone = theirs(checkpoint, tmp_path / "alone", "niah_multikey_2")
    after = theirs(checkpoint, tmp_path / "after", "ruler_fwe", "niah_multikey_2", lengths=(LENGTH, 2 * LENGTH))
    first, second = (f["samples"]["niah_multikey_2"][0]["arguments"]["gen_args_0"]["arg_0"] for f in (alone, after))
    numbers = [re.findall(r"\d{7}", text) for text in (first, second)]
    assert numbers[0] != numbers[1]
    assert {sample["doc"]["max_length"] for sample in after["samples"]["niah_multikey_2"]} == {LENGTH}
    assert f"{2 * LENGTH},none" not in after["results"]["niah_multikey_2"]
