"""One choice of kernels for a whole model: what is asked for is what runs, and says so."""

from pathlib import Path

import pytest
import torch
from tiny_models import tiny

import evalsuite.models
from evalsuite import plan, runner
from evalsuite.errors import UserError
from evalsuite.models import own
from evalsuite.models.engine import Ask, Engine, Job, Limits
from evalsuite.models.own import OwnModel
from evalsuite.models.tokenizer import build_tokenizer
from evalsuite.records import Sample
from evalsuite_kernels import arguments

TOKENIZER = build_tokenizer(256)
EVERY = "FRSKGNLAMCDBT"


def sample(id_: str, prompt: str, **more: object) -> Sample:
    return Sample(id_, "t", prompt, ("x",), max_new_tokens=4, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("kernels", ["reference", "chunked"])
def test_every_operator_of_a_model_runs_as_asked(kernels: str) -> None:
    model = OwnModel("tiny", tiny(EVERY, vocab_size=len(TOKENIZER)), TOKENIZER, kernels=kernels)
    list(model.answer([sample("a", "grass sky sun"), sample("b", "grass", choices=(" sky", " sun"))]))
    ran = model.ran()
    assert len(ran) == 7
    assert {name: [kernels] for name in ran} == ran
    assert set(model.implementations().values()) == {kernels}
    assert arguments.meant("auto") == "auto", "the choice ends with the answer"


def test_triton_runs_where_there_is_triton_and_the_convolution_says_what_it_is() -> None:
    model = OwnModel("tiny", tiny("KLF").float(), TOKENIZER, kernels="triton")
    if arguments.INTERPRETED or torch.cuda.is_available():
        said = dict(model.implementations())
        assert said.pop("short_convolution") == "chunked"
        assert set(said.values()) == {"triton"}


@pytest.mark.parametrize(
    ("kernels", "model", "message"),
    [
        ("chunky", "KF", "unknown kernels 'chunky'"),
        ("triton", "KF", "it takes bf16, fp16 and fp32, not torch.float64; take chunked, or leave --kernels out"),
    ],
)
def test_what_cannot_run_is_one_line(kernels: str, model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        OwnModel("tiny", tiny(model), TOKENIZER, kernels=kernels)


def test_triton_without_a_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "INTERPRETED", False)
    with pytest.raises(UserError, match=r"^--kernels triton cannot run here: it needs a GPU, and a tensor is on cpu"):
        evalsuite.models.load("full", device="cpu", kernels="triton")


def test_blocks_that_no_kernel_reads_are_one_line() -> None:
    with pytest.raises(UserError, match="multiples of 16 tokens, and this model's have 4"):
        OwnModel("tiny", tiny("BF").float(), TOKENIZER, kernels="triton")


def test_a_plugin_has_no_kernels_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name, value = "parrot", "x:y"

    monkeypatch.setattr(evalsuite.models, "entry_points", lambda group: [Entry()])
    with pytest.raises(UserError, match=r"--kernels is for this package's own models, and 'parrot' is a plugin"):
        evalsuite.models.load("parrot", kernels="reference")


@pytest.mark.parametrize("pattern", ["F", "S", "K", "L", "M", "C", "D", "B", "T", "KKSF"])
def test_token_by_token_answers_and_scores_as_prompts_at_once(pattern: str) -> None:
    """Sequences of unlike lengths wait for each other; none may see what another's waiting wrote."""
    torch.manual_seed(0)
    lm = tiny(pattern)
    prompts = [torch.randint(3, 90, (n,)).tolist() for n in (1, 17, 4, 30, 9)]
    asks = [Ask(prompt, [[5], [7, 8, 9], [11, 12]]) for prompt in prompts]
    jobs = [Job(prompt, 6) for prompt in prompts]
    at_once, stepped = (Engine(lm, TOKENIZER, Limits(), stepwise=stepwise) for stepwise in (False, True))
    assert {i: a.tokens for i, a in stepped.generate(jobs)} == {i: a.tokens for i, a in at_once.generate(jobs)}
    one, other = dict(at_once.score(asks)), dict(stepped.score(asks))
    assert all(one[i] == pytest.approx(other[i], abs=1e-9) for i in one)
    assert stepped.speed.prefill_tokens > 0


def test_recurrent_meets_every_token_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    lm = tiny("KF", vocab_size=len(TOKENIZER))
    lm.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0].shape[1]), with_kwargs=True)
    model = OwnModel("tiny", lm, TOKENIZER, kernels="recurrent")
    list(model.answer([sample("a", "grass sky sun")]))
    assert set(seen) == {1}
    assert len(seen) == model.count("grass sky sun") + 3
    assert dict(model.identity())["prefill"] == "token by token"


def test_runs_of_unlike_kernels_are_never_mixed(tmp_path: Path) -> None:
    def run(kernels: str, out: Path = tmp_path) -> list[dict[str, object]]:
        model = evalsuite.models.load("full", device="cpu", kernels=kernels)
        return runner.run(model, plan.make(plan.select(["knowledge.cloze"], limit=2), "terse"), out).rows

    first = run("chunked")
    assert run("auto") == first, "on a CPU auto is chunked: the same computation goes on"
    for other, says in (("reference", 'kernels.full_attention: "chunked" -> "reference"'), ("recurrent", "prefill")):
        with pytest.raises(UserError, match=f"holds another run; take another --out. It differs in .*{says}"):
            run(other)
    assert [row["answer"] for row in run("reference", tmp_path / "b")] == [row["answer"] for row in first]


def test_names_are_those_of_the_operators() -> None:
    assert own.KERNELS == ("auto", "reference", "chunked", "triton", "recurrent")
    with pytest.raises(ValueError, match="unknown impl 'recurrent'"), arguments.meaning("recurrent"):
        pass


def test_a_dtype_that_nobody_would_heed_is_refused() -> None:
    """A backend and a plugin choose for themselves: an option without effect would be believed."""
    with pytest.raises(UserError, match=r"--dtype is for this package's own models; write hf:\.\.\.,dtype=float16"):
        evalsuite.models.load("hf:pretrained=nowhere", dtype="float16")
    with pytest.raises(UserError, match=r"--dtype is for this package's own models, and 'openai' is a plugin"):
        evalsuite.models.load("openai:base_url=http://127.0.0.1:9/v1,model=m,context=9", dtype="float16")
