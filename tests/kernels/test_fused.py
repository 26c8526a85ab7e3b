"""The Triton kernels of both recurrences against their definition in fp64: on a GPU, or in Triton's interpreter."""

from itertools import pairwise, product

import pytest
import torch

from evalsuite_kernels import chunk_plan, chunk_run, delta_rule, fused, linear_attention
from recurrence_cases import GATES, OPERATORS, assert_close, call, make, state, with_gradients

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EVERY = list(product(OPERATORS, GATES))
SOME = [(delta_rule, "vector"), (linear_attention, "head")]
SHORT = {"B": 1, "H": 1, "HV": 1, "K": 16, "V": 16}


def on(x, dtype=torch.float32):
    return {n: None if t is None else t.to(DEVICE, dtype) for n, t in x.items()}


def small(T, gate, **options):
    return on(make(T, gate, **(SHORT | options)))


def begin(N=1, HV=1, K=16, V=16):
    return state(HV, K, V, N).to(DEVICE, torch.float32)


def agree(operator, x, S, relative=1e-5):
    """Output, final state and all gradients are those of the definition in fp64, on the numbers given.

    Where all gates forget everything a gate's gradient is 1e-87, and the difference of sums that it is computed as is
    rounding: `near` measures that by the largest tensor.
    """
    exact = {n: None if t is None else t.double() for n, t in x.items()}
    want = with_gradients(operator, exact, S.double(), "reference")
    near(with_gradients(operator, x, S, "triton"), want, relative)


def near(got, want, relative):
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        error, size = (a.double() - b).norm(), b.norm()
        allowed = relative * size if size > 1e-30 or not b.numel() else 1e-6 * max(w.norm() for w in want)
        assert a.shape == b.shape
        assert error <= allowed, f"tensor {i}: {error.item():.1e} of {size.item():.1e}"


def piece(x, part):
    return {n: t if t is None or t.dim() == 1 else t[:, part] for n, t in x.items()}


def ours(operator, x, **options):
    return call(operator, x, impl="triton", **options)


@pytest.mark.parametrize(("operator", "gate"), EVERY)
def test_it_is_the_recurrence(operator, gate):
    agree(operator, small(130, gate), begin())


@pytest.mark.parametrize(("case", "T"), list(zip(EVERY, [1, 63, 64, 16, 65, 15, 17, 64], strict=True)))
def test_lengths_around_a_block_and_a_chunk(case, T):
    agree(case[0], small(T, case[1]), begin())


@pytest.mark.parametrize("gate", GATES[1:])
@pytest.mark.parametrize(("operator", "regime"), [(delta_rule, "storm"), (linear_attention, "long")])
def test_memory_of_a_hundred_thousand_tokens_and_storms_of_spikes(operator, gate, regime):
    agree(operator, small(60, gate, regime=regime), begin())


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_identical_keys(gate, strength):
    """The case on which truncated inverse series lose every digit."""
    x = small(64, gate, regime="long")
    x["k"] = x["k"][:, :1].expand_as(x["k"]).contiguous()
    x["beta"] = torch.full_like(x["beta"], strength)
    want = call(delta_rule, {n: None if t is None else t.double() for n, t in x.items()}, impl="reference")
    # at beta = 2 every step mirrors the state and damps nothing, so that each rounding stays and sums up
    got = ours(delta_rule, x)
    assert_close([t.double() for t in got], want, 3e-5 if strength == 2 else 2e-6)


@pytest.mark.parametrize("gate", ["none", "scalar", "vector"])
def test_keys_that_resemble_each_other_in_half_precision(gate):
    """What tokens write then changes its sign from one to the next: rounded, its sums would lose three bits."""
    x = small(130, gate, regime="long")
    alike = torch.randn(1, 1, 1, 16) + 0.01 * torch.randn(1, 130, 1, 16)
    x["k"] = (alike / alike.norm(dim=-1, keepdim=True)).to(DEVICE)
    x["beta"] /= 2
    x = {n: None if t is None else t.half() for n, t in x.items()}
    agree(delta_rule, x, begin(), 1e-3)


@pytest.mark.parametrize(
    ("operator", "gate"), [*product([delta_rule], ["none", "scalar", "vector"]), (linear_attention, "vector")]
)
def test_heads_too_wide_for_shared_memory(operator, gate, monkeypatch):
    """Their states stay in memory: there are two blocks of channels, and two of columns."""
    monkeypatch.setattr(chunk_run, "WIDEST", 16)
    monkeypatch.setitem(chunk_run.SETTINGS, "wide", {"BK": 16, "BV": 16, "num_warps": 2, "num_stages": 1})
    agree(operator, small(70, gate, K=32, V=32), begin(K=32, V=32))


@pytest.mark.parametrize(("operator", "gate"), EVERY)
def test_odd_sizes(operator, gate):
    agree(operator, small(20, gate, K=20, V=24), begin(K=20, V=24))


@pytest.mark.parametrize(("operator", "gate"), [(delta_rule, "vector"), (linear_attention, "scalar")])
def test_grouped_heads_read_their_own_key_head(operator, gate):
    agree(operator, small(20, gate, H=2, HV=4), begin(1, 4))


@pytest.mark.parametrize(("K", "V"), [(128, 16), (16, 80)])
def test_heads_of_several_tiles(K, V):
    agree(delta_rule, small(20, "vector", K=K, V=V), begin(K=K, V=V))
    agree(linear_attention, small(20, "head", K=K, V=V), begin(K=K, V=V))


@pytest.mark.parametrize(("operator", "gate"), SOME)
def test_packed_sequences_are_separate_sequences(operator, gate):
    lengths = [5, 0, 66]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    x, S = small(71, gate), begin(3)
    leaves = [t.requires_grad_() for n, t in x.items() if t is not None and (n != "beta" or operator is delta_rule)]
    leaves.append(S.requires_grad_())
    o, final = ours(operator, x, initial_state=S, cu_seqlens=bounds.to(DEVICE))
    parts = [
        ours(operator, piece(x, slice(a, b)), initial_state=S[n : n + 1]) for n, (a, b) in enumerate(pairwise(bounds))
    ]
    want = torch.cat([p for p, _ in parts], 1), torch.cat([s for _, s in parts])
    assert torch.equal(o, want[0])
    assert torch.equal(final, want[1])
    assert torch.equal(final[1], S[1])
    got, wanted = (torch.autograd.grad(y.sin().sum() + s.cos().sum(), leaves) for y, s in ((o, final), want))
    assert_close(got, wanted, 1e-6)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gate", GATES)
def test_half_precision(operator, gate):
    x, S = on(make(40, gate, **SHORT), torch.float16), begin()
    exact = {n: None if t is None else t.double() for n, t in x.items()}
    want = with_gradients(operator, exact, S.double(), "reference")
    got = with_gradients(operator, x, S, "triton")
    assert got[0].dtype == torch.float16
    assert got[1].dtype == torch.float32
    leaves = 2 + len(got[2:]) - (gate != "none")
    near(got[:leaves], want[:leaves], 5e-3)
    near(got[leaves:], want[leaves:], 1e-2)  # a gate's gradient is a difference of sums


@pytest.mark.parametrize(("operator", "gate"), SOME)
def test_no_future_token_touches_an_earlier_bit(operator, gate):
    x = small(70, gate)
    before, _ = ours(operator, x)
    for t in (69, 64, 33):
        changed = {
            n: y
            if y is None or y.dim() == 1
            else torch.cat([y[:, :t], y[:, t:] * 0.3 - (50.0 if n == "g" else 0.01)], 1)
            for n, y in x.items()
        }
        after, _ = ours(operator, changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.equal(after[:, t:], before[:, t:]), "the edit must be able to show"


@pytest.mark.parametrize(("operator", "gate"), SOME)
def test_neither_neighbours_nor_repetition_change_a_bit(operator, gate):
    x, S = small(20, gate, B=2), begin(2)
    together, again = (with_gradients(operator, x, S, "triton") for _ in range(2))
    assert all(map(torch.equal, together, again))
    alone = {n: t if t is None or t.dim() == 1 else t[1:2] for n, t in x.items()}
    o, final, d_S, *gradients = with_gradients(operator, alone, S[1:2], "triton")
    for a, b in zip((o, final, d_S), together, strict=False):
        assert torch.equal(a, b[1:2])
    for a, b in zip(gradients, together[3:], strict=True):
        assert a.dim() == 1 or torch.equal(a, b[1:2])  # a fixed gate's gradient sums over the batch


@pytest.mark.parametrize(("operator", "gate"), SOME)
def test_handed_over_between_chunks_the_state_changes_no_bit(operator, gate):
    x = small(70, gate)
    want = ours(operator, x, initial_state=begin())
    S, outputs = begin(), []
    for part in (slice(0, 64), slice(64, None)):
        o, S = ours(operator, piece(x, part), initial_state=S)
        outputs.append(o)
    assert torch.equal(torch.cat(outputs, 1), want[0])
    assert torch.equal(S, want[1])


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_ops_as_torch_sees_them(operator):
    x, S = small(18, "vector"), begin()
    beta = x["beta"] if operator is delta_rule else None
    arguments = (x["q"], x["k"], x["v"], x["g"], beta, S, None, None, None, 0.25, False, False, 1.0, 0)
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    torch.library.opcheck(fused._recurrence, arguments, **checks)
    torch.library.opcheck(
        fused._recurrence_back, (*arguments, True, torch.ones_like(x["v"]), torch.ones_like(S)), **checks
    )


@pytest.mark.parametrize("operator", OPERATORS)
def test_it_compiles_without_a_break(operator):
    x = {n: t.requires_grad_() for n, t in small(18, "vector").items()}
    leaves = [t for n, t in x.items() if n != "beta" or operator is delta_rule]

    def step(x):
        return ours(operator, x)

    results = [f(x) for f in (torch.compile(step, fullgraph=True, backend="aot_eager"), step)]
    assert all(map(torch.equal, *results))
    gradients = [torch.autograd.grad(o.sin().sum() + S.cos().sum(), leaves) for o, S in results]
    assert all(map(torch.equal, *gradients))


RAW = {
    ("delta", "none"): {"l2norm": True, "beta_sigmoid": True},
    ("delta", "head"): {"l2norm": True},
    ("delta", "scalar"): {"l2norm": True, "A_log": 1, "dt_bias": 1, "beta_sigmoid": True, "beta_max": 2.0},
    ("delta", "vector"): {"l2norm": True, "A_log": 1, "dt_bias": 16, "beta_sigmoid": True, "beta_max": 2.0},
    ("linear", "scalar"): {"A_log": 1, "dt_bias": 1},
    ("linear", "vector"): {"A_log": 1},
}


def raw(T, family, gate, *, HV=2, K=16, V=16):
    """Inputs as a layer's projections give them, and the options that say so: keys of any length, 0 among them, and
    half-lives from less than a token to thousands."""
    r = torch.Generator().manual_seed(0)
    x = small(T, gate, H=1, HV=HV, K=K, V=V)
    options = dict(RAW[family, gate])
    if "l2norm" in options:
        x |= {n: x[n] * 10 ** torch.rand(1, T, 1, 1, generator=r).to(DEVICE) for n in "qk"}
        x["k"][:, 3] = 0.0
    if "beta_sigmoid" in options:
        x["beta"] = torch.randn(1, T, HV, generator=r).to(DEVICE)
    for name in {"A_log", "dt_bias"} & set(options):
        options[name] = torch.randn(HV * options[name], generator=r).to(DEVICE)
    if "A_log" in options:
        x["g"] = 3 * torch.randn(x["g"].shape, generator=r).to(DEVICE) - 3
    return x, options


def with_raw_gradients(operator, x, options, impl):
    leaves = {n: t.clone().requires_grad_() for n, t in (x | options).items() if isinstance(t, torch.Tensor)}
    if operator is linear_attention:
        del leaves["beta"]
    o, final = call(operator, x | leaves, **options | {n: leaves[n] for n in options if n in leaves}, impl=impl)
    return [o.detach(), final.detach(), *torch.autograd.grad(o.sin().sum() + final.cos().sum(), list(leaves.values()))]


@pytest.mark.parametrize(("family", "gate"), RAW)
def test_raw_inputs_are_activated_inside(family, gate):
    operator = {"delta": delta_rule, "linear": linear_attention}[family]
    x, options = raw(70, family, gate)
    exact = ({n: t.double() if isinstance(t, torch.Tensor) else t for n, t in y.items()} for y in (x, options))
    near(with_raw_gradients(operator, x, options, "triton"), with_raw_gradients(operator, *exact, "reference"), 1e-5)


def test_heads_too_wide_for_shared_memory_are_activated_too(monkeypatch):
    monkeypatch.setattr(chunk_run, "WIDEST", 16)
    monkeypatch.setitem(chunk_run.SETTINGS, "wide", {"BK": 16, "BV": 16, "num_warps": 2, "num_stages": 1})
    x, options = raw(66, "delta", "scalar", K=32, V=16)
    exact = ({n: t.double() if isinstance(t, torch.Tensor) else t for n, t in y.items()} for y in (x, options))
    near(
        with_raw_gradients(delta_rule, x, options, "triton"), with_raw_gradients(delta_rule, *exact, "reference"), 1e-5
    )


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # of what zero keys are owed
@pytest.mark.parametrize("gate", GATES)
def test_lengths_that_fp16_has_no_room_for(gate):
    """1 / |k| of a token beyond the end, of a zero and of a tiny key: what zero keys are owed alone may overflow."""
    x, options = raw(70, "delta", gate)
    x["q"][:, 5], x["k"][:, 4] = 0.0, 1e-3 * x["k"][:, 4]
    x = {n: t if n == "g" or t is None else t.half() for n, t in x.items()}
    exact = ({n: t.double() if isinstance(t, torch.Tensor) else t for n, t in y.items()} for y in (x, options))
    got = with_raw_gradients(delta_rule, x, options, "triton")
    want = with_raw_gradients(delta_rule, *exact, "reference")
    for part in (got, want):
        part[2][:, 5] = part[3][:, 3] = 0.0  # the gradients of q and of k
    near(got, want, 1e-2)


def test_options_in_any_layout():
    x, options = raw(70, "delta", "vector")
    spread = {n: torch.stack([options[n], options[n] + 9], 1)[:, 0] for n in ("A_log", "dt_bias")}
    assert_close(ours(delta_rule, x, **options | spread), ours(delta_rule, x, **options), 1e-6)
    alike = {"A_log": torch.tensor([0.3], device=DEVICE).expand(2)}
    want = ours(delta_rule, x, **options | {"A_log": alike["A_log"].clone()})
    assert_close(ours(delta_rule, x, **options | alike), want, 1e-6)


def test_one_raw_token_is_the_first_of_many():
    x, options = raw(70, "delta", "vector")
    many, _ = ours(delta_rule, x, **options)
    with torch.no_grad():
        one, _ = ours(delta_rule, piece(x, slice(0, 1)), **options)
    assert_close([one], [many[:, :1]], 1e-5)


@pytest.mark.parametrize(("operator", "gate"), [*product([delta_rule], GATES), (linear_attention, "vector")])
def test_segments_at_once_are_the_recurrence(operator, gate):
    """Of 128 tokens: three in the first sequence, none in the second, less than one in the third."""
    bounds = torch.tensor([0, 300, 300, 340], device=DEVICE)
    x, S = small(340, gate, regime="long"), begin(3)
    leaves = {n: t.requires_grad_() for n, t in x.items() if t is not None and (n != "beta" or operator is delta_rule)}

    def whole(segment, impl, dtype):
        given = {n: None if t is None else t.to(dtype) for n, t in x.items()}
        o, final = call(operator, given, initial_state=S.to(dtype), cu_seqlens=bounds, segment=segment, impl=impl)
        return [o, final, *torch.autograd.grad(o.sin().sum() + final.cos().sum(), list(leaves.values()))]

    got, at_once = whole(128, "triton", torch.float32), whole(None, "triton", torch.float32)
    near(got, whole(None, "chunked", torch.float64), 1e-5)
    assert torch.equal(got[0][:, :128], at_once[0][:, :128]), "nothing came before the first segment"
    assert not torch.equal(got[0][:, 128:300], at_once[0][:, 128:300]), "segments must be able to show"


def test_segments_know_neither_future_nor_neighbours_nor_a_split_between_them():
    x = small(300, "vector", B=2)
    together, _ = ours(delta_rule, x, segment=128)
    alone = {n: t[1:2] for n, t in x.items()}
    want, last = ours(delta_rule, alone, segment=128)
    assert torch.equal(together[1:2], want)
    part, S = ours(delta_rule, piece(alone, slice(0, 256)), segment=128)
    assert torch.equal(part, want[:, :256])
    rest, S = ours(delta_rule, piece(alone, slice(256, None)), segment=128, initial_state=S)
    assert torch.equal(rest, want[:, 256:])
    assert torch.equal(S, last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"A_log": torch.zeros(1), "g": None}, "A_log makes gates of g"),
        ({"A_log": torch.zeros(2)}, r"A_log must have shape \[1\]"),
        ({"dt_bias": torch.zeros(16)}, "dt_bias needs A_log"),
        ({"A_log": torch.zeros(1), "dt_bias": torch.zeros(1)}, r"dt_bias must have shape \[16\]"),
        ({"segment": 100}, "segment must be a multiple of 64 tokens, not 100"),
        ({"segment": 0}, "segment must be a multiple of 64"),
    ],
)
def test_senseless_options_are_named(options, message):
    x = small(2, "vector")
    x["g"] = options.pop("g", x["g"])
    with pytest.raises(ValueError, match=message):
        ours(delta_rule, x, **{n: t.to(DEVICE) if isinstance(t, torch.Tensor) else t for n, t in options.items()})


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gate", ["head", "scalar"])
def test_gates_that_are_owed_nothing_change_no_other_gradient(operator, gate):
    x = small(70, gate)
    leaves = {n: t.requires_grad_() for n, t in x.items() if n in "qkv"}

    def owed(g):
        o, final = ours(operator, {**x, "g": g}, initial_state=begin())
        return torch.autograd.grad(o.sin().sum() + final.cos().sum(), list(leaves.values()))

    assert_close(owed(x["g"]), owed(x["g"].clone().requires_grad_()), 1e-6)


def test_groups_of_chunks_fill_the_gpu():
    plan = chunk_plan.planned([0, 0, 1024, 3073, 3075], 1, torch.device("cpu"))
    assert plan.firsts.tolist() == [0, 0, 16, 49, 50]
    assert plan.size == 9
    assert plan.begins.tolist() == [0, 0, 9, 16, 25, 34, 43, 49, 50]
    assert plan.owners.tolist() == [0, 1, 1, 2, 2, 2, 2, 3]
    assert len(chunk_plan.even_plan(1, 8192, 64, torch.device("cpu")).owners) == 4  # of 64 programs each
    assert len(chunk_plan.even_plan(8, 8192, 64, torch.device("cpu")).owners) == 8


@pytest.mark.parametrize("operator", OPERATORS)
def test_nothing_to_do(operator):
    x, S = small(0, "vector"), begin()
    o, final = ours(operator, x, initial_state=S)
    assert o.shape == (1, 0, 1, 16)
    assert torch.equal(final, S)
    o, final = ours(operator, x, initial_state=begin(2), cu_seqlens=torch.tensor([0, 0, 0], device=DEVICE))
    assert torch.equal(final, begin(2))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("sizes", [{"K": 257}, {"V": 257}])
def test_too_large_heads_are_named(operator, sizes):
    with pytest.raises(ValueError, match="head dims may reach 256, not 257; use impl='auto' or 'chunked'"):
        ours(operator, small(2, "none", **sizes))


def test_more_sequences_than_a_launch_takes_are_one_clear_error():
    with pytest.raises(ValueError, match="a call has 65536 sequences or parts of them"):
        chunk_plan.planned(range(65_537), 1, torch.device("cpu"))
