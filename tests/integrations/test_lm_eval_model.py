"""Our models inside lm_eval: equal to the native engine, nothing cut, no other model's cached answers."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evalsuite.errors import UserError
from evalsuite.lexicon import WORDS
from evalsuite.models.own import OwnModel
from evalsuite.records import Sample

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM

from evalsuite.integrations.lm_eval.model import REFUSED, EvalsuiteLM, Templated

TEXTS = ("the red house is near", "edge a b , edge b c . hop two from a", "x", "")


@pytest.fixture
def lm(native: OwnModel) -> EvalsuiteLM:
    return EvalsuiteLM(native)


def scored(*pairs: tuple[str, str]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, i, ("t", i, 1)) for i, pair in enumerate(pairs)]


def written(*asked: tuple[str, dict[str, object]], doc: dict[str, object] | None = None) -> list[Instance]:
    return [Instance("generate_until", doc or {}, pair, 0, ("t", i, 1)) for i, pair in enumerate(asked)]


def by_hand(native: OwnModel, context: str, continuation: str) -> tuple[float, bool]:
    """The sum of ln p from transformers' own forward pass of the joined text."""
    whole = native.encode(context + continuation)
    start = len(native.encode(context))
    with torch.no_grad():
        logits = native.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    steps = range(start, len(whole))
    greedy = all(int(logits[i - 1].argmax()) == whole[i] for i in steps)
    return sum(float(logits[i - 1, whole[i]]) for i in steps), greedy


def test_log_likelihoods_are_those_of_a_plain_forward_pass(native: OwnModel, lm: EvalsuiteLM) -> None:
    pairs = [(text, end) for text in TEXTS for end in (" red", " red house", " blue two three")]
    found = lm.loglikelihood(scored(*pairs), disable_tqdm=True)
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        expected, best = by_hand(native, context, continuation)
        assert value == pytest.approx(expected, abs=1e-4)
        assert greedy == best


def test_greedy_is_said_of_what_the_model_writes_and_of_nothing_else(native: OwnModel, lm: EvalsuiteLM) -> None:
    (text,) = lm.generate_until(written((TEXTS[1], {"until": [], "max_gen_toks": 5})), disable_tqdm=True)
    own, other = " " + text.strip(), " " + text.strip().rpartition(" ")[0] + " zebra"
    (_, best), (_, not_best) = lm.loglikelihood(scored((TEXTS[1], own), (TEXTS[1], other)), disable_tqdm=True)
    assert best
    assert not not_best


def test_rolling_predicts_every_token_once_in_windows(native: OwnModel) -> None:
    lm = EvalsuiteLM(native, max_length=16)
    text = " ".join(["the red house is near the blue tree and"] * 5)
    (value,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    tokens = native.encode(text)
    total = 0.0
    for first in range(
        1, len(tokens), 16
    ):  # the windows of lm_eval: 16 tokens each, the last reads as far back as it can
        last = min(first + 16, len(tokens))
        start = max(0, last - 1 - 16)
        with torch.no_grad():
            logits = native.model(torch.tensor([tokens[start : last - 1]])).logits[0].double().log_softmax(-1)
        total += sum(float(logits[i - 1 - start, tokens[i]]) for i in range(first, last))
    assert len(tokens) > 40
    assert value == pytest.approx(total, abs=1e-3)


def test_generation_is_the_native_one_with_its_limits_and_stops(native: OwnModel, lm: EvalsuiteLM) -> None:
    samples = [
        Sample(f"s{i}", "t", text or "a", (), max_new_tokens=new, stop=stop)
        for i, (text, new, stop) in enumerate([(TEXTS[1], 8, ()), (TEXTS[0], 3, ()), (TEXTS[1], 8, ("a",))])
    ]
    own = {c.sample_id: c.text for c in native.answer(samples)}
    asked = [(s.text, {"until": list(s.stop), "max_gen_toks": s.max_new_tokens}) for s in samples]
    assert lm.generate_until(written(*asked), disable_tqdm=True) == [own[s.id] for s in samples]


def test_draws_are_those_of_the_sample_and_repeats_differ(native: OwnModel, lm: EvalsuiteLM) -> None:
    sample = Sample("tasks/draw/0", "t", TEXTS[1], (), max_new_tokens=12, temperature=1.5)
    (own,) = native.answer([sample])
    asked = (TEXTS[1], {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.5})
    doc = {"id": sample.id, "prompt_hash": sample.prompt_hash}
    first, second = lm.generate_until(written(asked, asked, doc=doc), disable_tqdm=True)
    assert first == own.text
    assert second != first


def test_a_prompt_over_the_context_is_never_cut(native: OwnModel) -> None:
    lm = EvalsuiteLM(native, max_length=64)
    long, end = " ".join([WORDS[50]] * 60), f" {WORDS[50]}"
    assert lm.generate_until(written((long, {"max_gen_toks": 16, "until": []})), disable_tqdm=True) == [""]
    assert lm.loglikelihood(scored((f"{long} {long}", end), (long, end)), disable_tqdm=True)[0] == REFUSED
    assert lm.get_model_info()["evalsuite_refused"] == {"over the context": 2}
    fits = written((" ".join([WORDS[50]] * 40), {"max_gen_toks": 16, "until": []}))
    assert lm.generate_until(fits, disable_tqdm=True) != [""]


def test_what_it_cannot_honour_is_an_error(native: OwnModel, lm: EvalsuiteLM) -> None:
    one = written(("edge", {"max_gen_toks": 2, "num_beams": 1, "repetition_penalty": 1.0}))
    assert lm.generate_until(one, disable_tqdm=True) == lm.generate_until(
        written(("edge", {"max_gen_toks": 2})), disable_tqdm=True
    )
    with pytest.raises(UserError, match="generates without num_beams"):
        lm.generate_until(written(("a", {"num_beams": 4, "until": []})), disable_tqdm=True)
    with pytest.raises(UserError, match="knows no argument revision"):
        EvalsuiteLM(native, revision="main")
    with pytest.raises(UserError, match="max_length=32768 is not within"):
        EvalsuiteLM(native, max_length=32768)
    with pytest.raises(UserError, match="unknown model"):
        EvalsuiteLM("hybrid-kdda")


def test_cached_answers_are_kept_sample_by_sample(lm: EvalsuiteLM, tmp_path: Path) -> None:
    requests = written(*((text, {"until": [], "max_gen_toks": 4}) for text in TEXTS))
    cached = CachingLM(lm, str(tmp_path / "cache.db"))
    real = lm.model.engine.generate

    def dies(*args: object) -> object:
        for i, found in enumerate(real(*args)):
            if i == 2:
                raise KeyboardInterrupt
            yield found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm.model.engine, "generate", dies)
        with pytest.raises(KeyboardInterrupt):
            cached.generate_until(requests)
    assert len(cached.dbdict) == 1 + 2  # the owner, and what was answered
    assert cached.generate_until(requests) == lm.generate_until(requests, disable_tqdm=True)


def test_a_cache_answers_for_its_own_model_alone(lm: EvalsuiteLM, tmp_path: Path) -> None:
    place = str(tmp_path / "cache.db")
    CachingLM(lm, place).generate_until(written(("a", {"until": [], "max_gen_toks": 2})))
    CachingLM(EvalsuiteLM(lm.model), place)
    with pytest.raises(UserError, match="another model's answers"):
        CachingLM(EvalsuiteLM("full", device="cpu"), place)


def test_what_was_refused_is_counted_again_behind_a_cache(native: OwnModel, tmp_path: Path) -> None:
    """Its answer would come from the cache, and nothing would say that it is none."""
    long, end = " ".join([WORDS[50]] * 60), f" {WORDS[50]}"
    for _ in range(3):
        cached = CachingLM(EvalsuiteLM(native, max_length=64), str(tmp_path / "cache.db"))
        cached.generate_until(written((long, {"max_gen_toks": 16, "until": []}), ("a", {"max_gen_toks": 2})))
        cached.loglikelihood(scored((f"{long} {long}", end), (f"{long} {long}", f"{end}{end}"), ("a", end)))
        assert cached.get_model_info()["evalsuite_refused"] == {"over the context": 3}


TEMPLATE = (
    "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot:{% endif %}"
)


def test_only_a_template_writes_special_tokens(native: OwnModel, lm: EvalsuiteLM) -> None:
    with pytest.raises(UserError, match="has no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "a"}])
    before = lm.tokenizer_name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native.tokenizer, "chat_template", TEMPLATE)
        text = lm.apply_chat_template([{"role": "user", "content": "red house"}])
        assert text == "<s>user: red house\nbot:"
        assert lm.chat_template(True) == TEMPLATE
        assert lm.tokenizer_name != before
        tokens = native.encode(text, templated=isinstance(text, Templated))
        assert tokens.count(native.tokenizer.bos_token_id) == 1
        assert native.encode(str(text)).count(native.tokenizer.bos_token_id) == 1  # its own, the text's being text
        asked = {"until": [], "max_gen_toks": 6}
        lm.generate_until(written((text, asked)), disable_tqdm=True)
        seen: list[list[int]] = []
        real = native.engine.generate
        patch.setattr(
            native.engine, "generate", lambda jobs, s=None: (seen.extend(j.prompt for j in jobs), real(jobs, s))[1]
        )
        lm.generate_until(written((text, asked)), disable_tqdm=True)
        assert seen == [tokens]


def test_lm_eval_keeps_its_own_names_whoever_is_first() -> None:
    code = (
        "from evalsuite.integrations.lm_eval import register, TARGET; register(); register();"
        "from lm_eval.api.registry import get_model, model_registry; import sys;"
        "assert 'torch' not in sys.modules, 'a name alone loads no model';"
        "assert 'hf' in model_registry and 'local-completions' in model_registry;"
        "c = get_model('evalsuite'); print(f'{c.__module__}:{c.__name__}' == TARGET)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == "True"


@pytest.mark.parametrize("first", ["the entry point", "the class"])
def test_coming_releases_find_the_model_by_its_entry_point(first: str) -> None:
    """They put entry points into the registry; the name is then taken, and importing the class must not mind."""
    code = (
        "import sys; from importlib.metadata import entry_points\n"
        "(entry,) = entry_points(group='lm_eval.models', name='evalsuite')\n"
        "if sys.argv[1] == 'the class': import evalsuite.integrations.lm_eval.model\n"
        "import lm_eval.models; from lm_eval.api.registry import get_model, model_registry\n"
        "if 'evalsuite' not in model_registry: model_registry.register('evalsuite', target=entry)\n"
        "cls = get_model('evalsuite'); print(entry.value == f'{cls.__module__}:{cls.__name__}')"
    )
    done = subprocess.run([sys.executable, "-c", code, first], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "True", done.stderr


PARALLEL = """
import json, sys
from pathlib import Path
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from evalsuite.integrations.lm_eval import folder
from evalsuite.integrations.lm_eval.model import EvalsuiteLM
lm = EvalsuiteLM("full", device="cpu", max_length=200)
manager = TaskManager(include_path=str(folder.write()), include_defaults=False,
                      metadata={"pretrained": "full", "lengths": 256, "limit": 3, "set": "multihop.hops=1"})
found = simple_evaluate(model=lm, tasks=["evalsuite_multihop_graph", "evalsuite_knowledge"], task_manager=manager)
if found:
    rows = {t: sorted((s["doc"]["id"], s["score"]) for s in rows) for t, rows in found["samples"].items()}
    scores = {t: r["score,none"] for t, r in found["results"].items()}
    Path(sys.argv[1]).write_text(json.dumps([lm.world_size, rows, scores, found["config"]["evalsuite_refused"]]))
"""


def test_two_processes_answer_as_one(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(PARALLEL)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, command in {"two": launcher, "one": [sys.executable]}.items():
        out = str(tmp_path / f"{name}.json")
        done = subprocess.run([*command, str(script), out], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    (ranks, *one), (more, *two) = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert (ranks, more) == (1, 2)
    assert one[0] == two[0]
    assert one[1:] == two[1:]
    assert one[2]["over the context"] > 0
    assert math.isfinite(one[1]["evalsuite_multihop_graph"])
