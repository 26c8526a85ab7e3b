"""The engine against plain forward passes: a batch that leaks, a cache that slips or a sum that is off fails here."""

import math
import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evalsuite.errors import UserError
from evalsuite.models.batching import Group, common_prefix, share, slices
from evalsuite.models.config import LETTERS, EvalsuiteConfig
from evalsuite.models.decoding import Detokenizer, Sampling
from evalsuite.models.engine import HEAD_ROWS, Ask, Engine, Job, Limits
from evalsuite.models.modeling import EvalsuiteForCausalLM
from evalsuite.models.own import OwnModel
from evalsuite.models.tokenizer import build_tokenizer
from evalsuite.records import Sample

TOKENIZER = build_tokenizer(256)
VOCAB = len(TOKENIZER)
MIXED = ["KKKF", "LSAF", "MGNC", "RPSK"]
DESIGNS = [*(letter for letter in LETTERS if letter != "X"), *MIXED]
WORDS = range(370, VOCAB)  # lexicon words: no eos, no special


def tiny(pattern: str, dtype: torch.dtype = torch.float64, **changes: object) -> EvalsuiteForCausalLM:
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "vocab_size": VOCAB, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "intermediate_size": 48, "window": 5, "pattern": pattern, "max_position_embeddings": 256,
    }  # fmt: skip
    model = EvalsuiteForCausalLM(EvalsuiteConfig(**{**settings, **changes})).to(dtype).eval()
    with torch.no_grad():
        for p in model.parameters():  # zero-initialised projections would hide every fault
            if p.dim() >= 2:
                torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5)
    return model


def ragged(lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[1, *draw.choices(WORDS, k=n - 1)] for n in lengths]


def engine(model: EvalsuiteForCausalLM, **limits: int) -> Engine:
    return Engine(model, TOKENIZER, Limits(**limits))


def continued(
    runner: Engine, prompts: list[list[int]], new: int = 6, sampling: Sampling | None = None
) -> list[list[int]]:
    jobs = [Job(prompt, new, key=str(i)) for i, prompt in enumerate(prompts)]
    found = dict(runner.generate(jobs, sampling))
    assert sorted(found) == list(range(len(prompts)))
    return [found[i].tokens for i in range(len(prompts))]


def scored(runner: Engine, asks: list[Ask]) -> list[list[float]]:
    found = dict(runner.score(asks))
    assert sorted(found) == list(range(len(asks)))
    return [found[i] for i in range(len(asks))]


@torch.no_grad()
def greedy_by_prefill(model: EvalsuiteForCausalLM, prompt: list[int], new: int) -> list[int]:
    """The definition: the whole sequence again for every token."""
    seen = list(prompt)
    for _ in range(new):
        seen.append(int(model(torch.tensor([seen]), use_cache=False).logits[0, -1].argmax()))
        if seen[-1] == 2:
            break
    return seen[len(prompt) :]


@torch.no_grad()
def brute_force(model: EvalsuiteForCausalLM, context: list[int], continuation: list[int]) -> float:
    """The definition: softmax over the full logits of the whole sequence."""
    whole = torch.tensor([[*context, *continuation]])
    logp = model(whole, use_cache=False).logits[0].double().log_softmax(-1)
    return sum(float(logp[len(context) + i - 1, token]) for i, token in enumerate(continuation))


LENGTHS = (3, 41, 1, 17, 8, 2, 29)
SHARED = [[1, *range(400, 440), *tail] for tail in ([500], [501, 502], [503, 504, 505], [500])]
CHOICES = [[600], [601, 602], [603, 604, 605, 606], [601], [601, 602, 603]]


@pytest.mark.parametrize("pattern", DESIGNS)
def test_a_ragged_batch_answers_as_each_prompt_alone(pattern: str) -> None:
    model = tiny(pattern)
    prompts = ragged(LENGTHS)
    assert continued(engine(model), prompts) == [greedy_by_prefill(model, prompt, 6) for prompt in prompts]


@pytest.mark.parametrize("pattern", DESIGNS)
def test_log_likelihoods_equal_brute_force(pattern: str) -> None:
    model = tiny(pattern)
    asks = [Ask(prompt, CHOICES) for prompt in [*ragged((5, 19, 1)), *SHARED]]
    for runner in (engine(model), engine(model, tokens=13, share=0), engine(model, memory=1)):
        for ask, values in zip(asks, scored(runner, asks), strict=True):
            assert values == pytest.approx([brute_force(model, list(ask.context), c) for c in CHOICES], abs=1e-9)


@pytest.mark.parametrize("pattern", MIXED)
def test_log_likelihoods_in_fp32(pattern: str) -> None:
    model = tiny(pattern, torch.float32)
    exact = tiny(pattern, torch.float32).double()
    asks = [Ask(prompt, CHOICES) for prompt in [*ragged((5, 60)), *SHARED]]
    for ask, values in zip(asks, scored(engine(model), asks), strict=True):
        assert values == pytest.approx([brute_force(exact, list(ask.context), c) for c in CHOICES], abs=2e-4)


@pytest.mark.parametrize("pattern", MIXED)
@pytest.mark.parametrize("budget", [1, 2, 7, 64])
def test_chunked_prefill_equals_one_shot(pattern: str, budget: int) -> None:
    model = tiny(pattern)
    prompts = [*ragged((9, 1, 23)), *SHARED[:2]]
    whole, chunked = engine(model), engine(model, tokens=budget)
    groups = share(prompts, 32)
    arranged = [[prompts[i] for i in group.members] for group in groups]
    shared = [group.shared for group in groups]
    with torch.no_grad():
        _, one = whole._prefill(arranged, shared, 64)
        _, many = chunked._prefill(arranged, shared, 64)
    assert torch.allclose(one, many, atol=1e-11, rtol=1e-11)
    assert continued(chunked, prompts) == continued(whole, prompts)


@pytest.mark.parametrize("pattern", DESIGNS)
def test_sharing_changes_no_result(pattern: str) -> None:
    prompts = [*SHARED, *ragged((7, 50))]
    single = tiny(pattern, torch.float32)
    apart = scored(engine(single, share=0), [Ask(p, CHOICES) for p in prompts])
    together = scored(engine(single), [Ask(p, CHOICES) for p in prompts])
    for a, b in zip(apart, together, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    double = tiny(pattern)
    assert continued(engine(double, share=0), prompts) == continued(engine(double), prompts)


def test_shared_tokens_are_prefilled_once() -> None:
    runner = engine(tiny("KF"))
    continued(runner, SHARED, new=3)
    tails = sum(len(prompt) - 41 for prompt in SHARED)
    assert runner.speed.prefill_tokens == 41 + tails
    assert runner.speed.decode_tokens <= 2 * len(SHARED)
    assert runner.speed.prefill_seconds > 0
    assert runner.speed.decode_seconds > 0


def test_identical_prompts_and_one_that_is_a_prefix_of_another() -> None:
    model = tiny("KSF")
    prompts = [SHARED[0], SHARED[0], SHARED[0][:-1], [*SHARED[0], 700, 701]]
    assert continued(engine(model), prompts) == [greedy_by_prefill(model, prompt, 6) for prompt in prompts]


@pytest.mark.parametrize("memory", [1, 60_000, 2**30])
def test_memory_bounds_the_batch_and_no_result(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("KF")
    runner = engine(model, memory=memory)
    held, new_cache = [], model.model.new_cache

    def watched(batch: int) -> object:
        held.append(batch)
        return new_cache(batch)

    prompts = ragged((40, 30, 20, 40, 10, 40))
    expected = [greedy_by_prefill(model, prompt, 4) for prompt in prompts]
    monkeypatch.setattr(model.model, "new_cache", watched)
    assert continued(runner, prompts, new=4) == expected
    fit = max(1, min(6, memory // runner.size(44)))
    assert held[0] == fit, "the first batch holds the longest prompts, as many as fit"
    assert sum(held) == 6


def test_reserved_cache_never_grows_past_the_longest_sequence() -> None:
    model = tiny("FSD")
    runner = engine(model)
    with torch.inference_mode():
        cache, _ = runner._prefill([[prompt] for prompt in ragged((9, 21))], [0, 0], 30)
        for _ in range(9):
            model.model(torch.tensor([[400], [401]]), cache=cache)
    assert cache.mixers[0].kept[0].shape[1] == 30
    assert cache.mixers[1].kept[0].shape[1] == 5
    held = sum(x.nbytes for mixer in cache.mixers for x in mixer.kept) + sum(tail.nbytes for tail in cache.tails)
    assert held == 2 * runner.size(30)


def test_the_vocabulary_never_meets_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("KF")
    rows: list[int] = []
    forward = model.lm_head.forward

    def watched(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(hidden.numel() // hidden.shape[-1])
        return forward(hidden)

    monkeypatch.setattr(model.lm_head, "forward", watched)
    prompts = ragged((200, 150, 180))
    scored(engine(model), [Ask(prompt, [[400], [401]]) for prompt in prompts])
    assert sum(rows) == 3, "single-token choices take one row of logits a prompt"
    rows.clear()
    continued(engine(model), prompts, new=2)
    assert rows[0] == 3
    assert sum(rows) <= 6
    rows.clear()
    long = [400 + i % 300 for i in range(2 * HEAD_ROWS + 10)]
    scored(engine(model), [Ask([1], [long])])
    assert sum(rows) == len(long)
    assert max(rows) <= HEAD_ROWS


def test_single_and_multi_token_choices_agree() -> None:
    """log P(ab) - log P(a) must be log P(b | a), taken from another prefill."""
    runner = engine(tiny("KSGF"))
    (prompt,) = ragged((12,))
    a, ab = scored(runner, [Ask(prompt, [[500], [500, 501]])])[0]
    (b,) = scored(runner, [Ask([*prompt, 500], [[501]])])[0]
    assert ab - a == pytest.approx(b, abs=1e-10)


def test_probabilities_of_all_tokens_sum_to_one() -> None:
    (values,) = scored(engine(tiny("LF")), [Ask([1, 400], [[token] for token in range(VOCAB)])])
    assert math.fsum(map(math.exp, values)) == pytest.approx(1, abs=1e-9)


def test_exact_head_in_fp32() -> None:
    model = tiny("KF", torch.bfloat16)
    hidden = torch.randn(4, 32).bfloat16()
    exact = Engine(model, TOKENIZER, exact_head=True).head(hidden)
    assert torch.equal(exact, hidden.float() @ model.lm_head.weight.float().T)
    assert exact.dtype == torch.float32
    assert engine(model).head(hidden).dtype == torch.bfloat16


def test_max_new_tokens_is_exact_and_may_differ_in_one_batch() -> None:
    model = tiny("KF")
    runner = engine(model)
    runner.eos = frozenset()
    prompts = ragged((5, 9, 3, 30))
    answers = dict(runner.generate([Job(p, n) for p, n in zip(prompts, (1, 7, 0, 4), strict=True)]))
    assert [len(answers[i].tokens) for i in range(4)] == [1, 7, 0, 4]
    assert {answer.finish for answer in answers.values()} == {"length"}
    assert answers[1].tokens[:4] == continued(runner, prompts, new=4)[1]


def test_eos_ends_its_own_sequence_only() -> None:
    model = tiny("KF")
    runner = engine(model)
    runner.eos = frozenset()
    prompts = ragged((5, 9, 3))
    free = continued(runner, prompts, new=8)
    end = free[1][2]
    runner.eos = frozenset({end})
    ended = dict(runner.generate([Job(p, 8) for p in prompts]))
    for i, tokens in enumerate(free):
        until = tokens.index(end) + 1 if end in tokens else 8
        assert ended[i].tokens == tokens[:until]
        assert ended[i].finish == ("stop" if end in tokens else "length")


def test_every_eos_of_config_and_tokenizer_counts_and_none_reaches_the_text() -> None:
    model = tiny("F", eos_token_id=[2, 777])
    runner = engine(model)
    assert runner.eos == {2, 777}
    text, _ = runner.text.cut([*TOKENIZER.encode("grass sky", add_special_tokens=False), 2], ())
    assert text == "grass sky"


def word(text: str) -> int:
    (token,) = TOKENIZER.encode(text, add_special_tokens=False)
    return token


def forced(monkeypatch: pytest.MonkeyPatch, runner: Engine, script: list[int]) -> None:
    """Make the head say the script, one token a step, whatever the prompt."""
    steps = iter(script)

    def head(hidden: torch.Tensor) -> torch.Tensor:
        logits = hidden.new_zeros(len(hidden), VOCAB)
        logits[:, next(steps)] = 1
        return logits

    monkeypatch.setattr(runner, "head", head)


@pytest.mark.parametrize(
    ("stop", "text", "used"),
    [
        (("y s",), "grass sk", 3),  # spans two tokens and the space between them
        ((" sky",), "grass", 2),
        (("nope", "cloud"), "grass sky sun ", 4),
        (("sun", "sky"), "grass ", 2),  # the one that comes first in the text, not in the list
        ((" ",), "", 1),  # the space before the first word is text, too
        (("",), "grass sky sun cloud wind", 5),  # an empty string stops nothing
        ((), "grass sky sun cloud wind", 5),
    ],
)
def test_stop_strings(monkeypatch: pytest.MonkeyPatch, stop: tuple[str, ...], text: str, used: int) -> None:
    runner = engine(tiny("C"))
    forced(monkeypatch, runner, [word(w) for w in ("grass", "sky", "sun", "cloud", "wind")])
    ((_, answer),) = runner.generate([Job([1, 400], 5, stop)])
    assert answer.text == text
    assert len(answer.tokens) == used
    assert answer.finish == ("stop" if used < 5 else "length")


def test_a_stop_string_of_many_byte_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    script = TOKENIZER.encode("grass 日本語!", add_special_tokens=False)
    runner = engine(tiny("C"))
    forced(monkeypatch, runner, script)
    ((_, answer),) = runner.generate([Job([1], len(script) + 5, ("日本語",))])
    assert (answer.text, answer.finish, len(answer.tokens)) == ("grass ", "stop", len(script) - 1)


def test_a_stop_string_far_into_a_long_answer() -> None:
    text = Detokenizer(TOKENIZER)
    ids = [word("grass")] * 500 + [word("sky"), 2, word("sun")]
    assert text.reached(ids, ("sky sun",))
    assert not text.reached(ids, ("sun sky",))
    assert text.cut(ids, ("sky sun",)) == ("grass " * 500, True)


def test_an_indentation_is_kept_whole() -> None:
    """Decoders like Llama's take away a text's first space: the one before a word, but none of a line's indentation."""
    pieces = {piece: i for i, piece in enumerate(["<unk>", "▁▁▁", "▁return", "▁x", "x"])}
    plain = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    plain.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    text = Detokenizer(PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>"))
    assert text.cut([1, 2, 3], ()) == ("    return x", False)
    assert text.cut([2, 3], ()) == ("return x", False)


SAMPLED = Sampling(temperature=1.3, top_k=200, top_p=0.95, seed=7)


def test_sampled_text_does_not_depend_on_the_companions() -> None:
    model = tiny("KSF")
    prompts = [*ragged((5, 18, 9)), *SHARED]
    together = continued(engine(model), prompts, 8, SAMPLED)
    for i, prompt in enumerate(prompts):
        ((_, alone),) = engine(model, tokens=5).generate([Job(prompt, 8, key=str(i))], SAMPLED)
        assert alone.tokens == together[i]
    assert continued(engine(model), prompts, 8, SAMPLED) == together
    other = Sampling(temperature=1.3, top_k=200, top_p=0.95, seed=8)
    assert continued(engine(model), prompts, 8, other) != together
    assert together[3] != together[6], "the same prompt with another key is another draw"


def test_sampling_draws_from_the_distribution_that_it_names() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0, 3.0]])
    draws = [random.Random(f"{i}") for i in range(6000)]
    cases = [(Sampling(1.0), [0, 1, 2, 3, 4]), (Sampling(0.7, top_k=3), [4, 0, 2]), (Sampling(1.0, top_p=0.7), [4, 0])]
    for sampling, kept in cases:
        picked = torch.tensor(sampling.pick(logits.expand(6000, -1), draws)).bincount(minlength=5) / 6000
        weights = torch.zeros(5)
        weights[kept] = (logits[0, kept] / sampling.temperature).softmax(-1)
        assert torch.allclose(picked, weights, atol=0.03)
        assert not picked[weights == 0].any()
    assert Sampling(5.0, top_k=1).pick(logits, draws[:1]) == [4]
    assert Sampling(5.0, top_p=1e-9).pick(logits, draws[:1]) == [4]


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}])
def test_senseless_sampling_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sampling needs"):
        Sampling(**bad)


def test_a_model_of_nans_says_so_instead_of_answering() -> None:
    model = tiny("F")
    with torch.no_grad():
        model.lm_head.weight[5] = math.nan
    with pytest.raises(UserError, match="not finite"):
        continued(engine(model), ragged((3,)))


def test_share_saves_the_most() -> None:
    header, first, second = list(range(40)), list(range(100, 600)), list(range(1000, 1500))
    prompts = [[*header, *text, q] for q in (1, 2, 3) for text in (first, second)]
    groups = share(prompts, 32)
    assert sorted((group.shared, sorted(group.members)) for group in groups) == [(540, [0, 2, 4]), (540, [1, 3, 5])]
    assert share(prompts, 600) == [Group(0, (i,)) for group in groups for i in group.members]
    unrelated = [[*header, i] for i in range(5)]
    assert [group.shared for group in share(unrelated, 32)] == [40]


@pytest.mark.parametrize("seed", range(20))
def test_share_and_slices_lose_no_prompt(seed: int) -> None:
    draw = random.Random(seed)
    prompts = [draw.choices(range(2), k=draw.randint(1, 12)) for _ in range(draw.randint(1, 30))]
    groups = share(prompts, draw.randint(1, 4))
    assert sorted(i for group in groups for i in group.members) == list(range(len(prompts)))
    for group in groups:
        for i in group.members:
            assert group.shared < len(prompts[i])
            assert common_prefix(prompts[i], prompts[group.members[0]]) >= group.shared
    lengths = [len(prompt) for prompt in prompts]
    rows = [draw.randint(1, 3) for _ in prompts]
    batches = slices(groups, lengths, rows, lambda n: 10 * n, memory=300)
    assert sorted(i for batch in batches for group in batch for i in group.members) == list(range(len(prompts)))
    for batch in batches:
        members = [i for group in batch for i in group.members]
        assert members
        cost = 10 * max(lengths[i] for i in members) * sum(rows[i] for i in members)
        assert cost <= 300 or len(members) == 1


def test_share_of_a_thousand_nested_prefixes() -> None:
    groups = share([list(range(n)) for n in range(1, 1200)], 32)
    assert sum(len(group.members) for group in groups) == 1199


def sample(name: str, prompt: str, **changes: object) -> Sample:
    return Sample(name, "test", prompt, ("x",), **changes)  # type: ignore[arg-type]


def test_over_context_is_an_error_and_the_neighbours_never_notice() -> None:
    model = OwnModel("tiny", tiny("KF", max_position_embeddings=32), TOKENIZER)
    good = sample("good", "grass sky sun", max_new_tokens=5)
    exact = sample("exact", " ".join(["grass"] * 26), max_new_tokens=5)  # 27 with <s>
    brim = sample("brim", " ".join(["grass"] * 27), max_new_tokens=5)
    over = sample("over", " ".join(["grass"] * 31), max_new_tokens=5)
    chosen = sample("chosen", " ".join(["grass"] * 31), choices=(" sky", " sun"))
    found = {completion.sample_id: completion for completion in model.answer([over, good, exact, brim, chosen])}
    assert set(found) == {"good", "exact", "brim", "over", "chosen"}
    assert found["over"].error == "prompt of 32 tokens + 5 new > context 32"
    assert found["over"].finish == "error"
    assert found["over"].text == ""
    assert found["chosen"].error == "prompt of 32 tokens + 1 new > context 32"
    assert found["brim"].error == "prompt of 28 tokens + 5 new > context 32"
    assert found["exact"].error == ""
    (alone,) = model.answer([good])
    assert found["good"] == alone


def test_choices_are_scored_on_the_joined_text() -> None:
    lm = tiny("KSF")
    model = OwnModel("tiny", lm, TOKENIZER)
    plain = sample("plain", "grass sky sun", choices=(" cloud", " wind rain", " A"))
    spaced = sample("spaced", "grass sky sun ", choices=("cloud", "wind rain", "A"))
    found = {completion.sample_id: completion for completion in model.answer([plain, spaced])}
    context = TOKENIZER.encode("grass sky sun")
    expected = [brute_force(lm, context, TOKENIZER.encode(c, add_special_tokens=False)) for c in plain.choices]
    assert found["plain"].choice_logprobs == pytest.approx(expected, abs=1e-9)
    assert found["plain"].text == plain.choices[expected.index(max(expected))]
    assert found["plain"].prompt_tokens == 4
    # a space at the prompt's end joins the word: the tokens scored are the same
    assert found["spaced"].choice_logprobs == pytest.approx(expected, abs=1e-9)


def test_choices_that_share_no_honest_boundary_keep_one_context() -> None:
    """`gras` + `s` is one word, `gras` + `!` is characters: both sums must start from the same tokens."""
    lm = tiny("KF")
    model = OwnModel("tiny", lm, TOKENIZER)
    (found,) = model.answer([sample("split", "sky gras", choices=("s", "!"))])
    start = TOKENIZER.encode("sky")
    expected = [brute_force(lm, start, TOKENIZER.encode(f"sky gras{c}")[len(start) :]) for c in "s!"]
    assert found.choice_logprobs == pytest.approx(expected, abs=1e-9)


def test_an_empty_choice_is_an_error_for_it_would_always_win() -> None:
    model = OwnModel("tiny", tiny("F"), TOKENIZER)
    (found,) = model.answer([sample("empty", "grass", choices=("", " sky"))])
    assert (found.finish, found.error, found.choice_logprobs) == ("error", "a choice is empty", ())


def test_the_answer_prefix_is_read_and_special_tokens_in_a_prompt_stay_text() -> None:
    model = OwnModel("tiny", tiny("KF"), TOKENIZER)
    split, joined = sample("a", "grass sky", answer_prefix=" sun"), sample("b", "grass sky sun")
    a, b = sorted(model.answer([split, joined]), key=lambda completion: completion.sample_id)
    assert (a.text, a.prompt_tokens) == (b.text, b.prompt_tokens)
    assert 2 not in model.encode("grass </s> sky")
    assert model.encode("grass <s>").count(1) == 1


def test_what_the_model_says_of_itself() -> None:
    lm = tiny("KS F")
    model = OwnModel("tiny", lm, TOKENIZER)
    assert model.count("grass sky") == 3
    assert model.count("") == 1
    assert model.context == 256
    rows = lm.state_bytes(100)
    assert model.cost(100) == {kind: sum(row[kind] for row in rows) for kind in ("kv", "index", "state")}
    before = dict(model.identity())
    assert before == dict(OwnModel("other name", tiny("KSF"), TOKENIZER).identity())
    assert (before["pattern"], before["dtype"]) == ("KSF", "float64")
    operators = (
        "full_attention", "linear_attention", "delta_rule", "short_convolution", "lightning_index", "sparse_attention",
        "block_attention",
    )  # fmt: skip
    assert before["kernels"] == dict.fromkeys(operators, "chunked")
    assert model.versions() == {}
    assert model.ran() == {}
    list(model.answer([sample("a", "grass sky")]))
    assert model.ran() == {name: ["chunked"] for name in ("delta_rule", "full_attention", "short_convolution")}
    with torch.no_grad():
        lm.lm_head.weight[0, 0] += 1
    assert dict(OwnModel("tiny", lm, TOKENIZER).identity())["weights"] != before["weights"]
    wider = OwnModel("tiny", tiny("KSF", window=6), TOKENIZER).identity()
    assert wider["weights"] == before["weights"]
    assert wider["config"] != before["config"]
    assert OwnModel("t", tiny("KSF"), TOKENIZER, sampling=SAMPLED).identity() != before


def test_nothing_to_do() -> None:
    model = OwnModel("tiny", tiny("F"), TOKENIZER)
    assert list(model.answer([])) == []
    assert list(engine(tiny("F")).score([Ask([1, 400], [])])) == [(0, [])]
