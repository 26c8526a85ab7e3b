"""A checkpoint of transformers, asked as any model is, on its own operators and on ours."""

from pathlib import Path
from typing import Any

import pytest

from evalsuite import models, plan, runner
from evalsuite.integrations.hf.cases import build
from evalsuite.models import ZOO

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed; lm_eval's backend hf needs it")


@pytest.mark.parametrize("name", ["llama", "kimi_linear"])
def test_a_saved_checkpoint_answers_alike_on_our_operators(name: str, tmp_path: Path) -> None:
    """Greedy answers and log-likelihoods of whole questions, fp32, in padded batches; every layer was called."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ZOO / "full")
    place = tmp_path / name
    build(name, vocab_size=len(tokenizer), max_position_embeddings=1024).save_pretrained(place)
    tokenizer.save_pretrained(place)
    asked = plan.select(["multihop.graph", "multihop.binding", "knowledge"], lengths=[256], limit=2)
    answers: dict[str, Any] = {}
    for kernels in ("auto", "evalsuite"):
        spec = f"hf:pretrained={place},dtype=float32,batch_size=4,wording=terse,max_length=1024"
        model = models.load(spec, device="cpu", kernels=kernels)
        run = runner.run(model, plan.make(asked, "terse"), tmp_path / kernels)
        answers[kernels] = {row["id"]: row["text"] for row in run.rows if not row["error"]}
        assert len(answers[kernels]) == len(run.rows) > 10
        record = model.identity().get("kernels")
        if kernels == "evalsuite":
            calls = model.swapped.calls  # type: ignore[attr-defined]
            assert {layer for layer, _ in calls} == set(range(len(record["layers"])))
            assert min(calls.values()) > 0
        else:
            assert record is None
    assert answers["auto"] == answers["evalsuite"]
