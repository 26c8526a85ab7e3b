"""linear_attention and delta_rule: the chunked form against the recurrence, and the recurrence against closed forms."""

import math
from itertools import pairwise

import pytest
import torch

from evalsuite_kernels import delta_rule, lightning_slopes, linear_attention, retnet_slopes
from recurrence_cases import GATES, OPERATORS, assert_close, call, make, state, with_gradients


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("T", [1, 15, 16, 17, 63, 64, 65, 1000])
def test_chunks_are_the_recurrence(operator, gate, T):
    x = make(T, gate, B=1 if T == 1000 else 2)
    S = state(N=x["q"].shape[0])
    want = with_gradients(operator, x, S, "reference")
    assert_close(with_gradients(operator, x, S, "chunked"), want, 1e-10)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gate", GATES[1:])
@pytest.mark.parametrize("regime", ["long", "storm"])
def test_memory_of_a_hundred_thousand_tokens_and_storms_of_spikes(operator, gate, regime):
    x = make(130, gate, regime=regime)
    want = with_gradients(operator, x, state(), "reference")
    assert_close(with_gradients(operator, x, state(), "chunked"), want, 1e-10)
    x32 = {n: None if t is None else t.float() for n, t in x.items()}
    assert_close(with_gradients(operator, x32, state().float(), "chunked"), want, 2e-5)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gate", ["scalar", "vector"])
@pytest.mark.parametrize("spike", [-1e4, -1e30, -math.inf])
def test_gates_that_forget_everything_leave_the_next_gates_exact(operator, gate, spike):
    x = make(70, gate, regime="long", dtype=torch.float32)
    x["g"][:, [0, 5, 33, 63, 64]] = spike
    got, want = (call(operator, x, initial_state=state(dtype=torch.float32), impl=i) for i in ("chunked", "reference"))
    assert_close(got, want, 1e-5)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("strength", [0.999, 1.0, 2.0])
def test_identical_keys(gate, strength):
    """The case on which truncated inverse series lose every digit."""
    x = make(64, gate, regime="long")
    x["k"] = x["k"][:, :1].expand_as(x["k"]).contiguous()
    x["beta"] = torch.full_like(x["beta"], strength)
    want = with_gradients(delta_rule, x, state(), "reference")
    assert_close(with_gradients(delta_rule, x, state(), "chunked"), want, 1e-10)
    x32 = {n: None if t is None else t.float() for n, t in x.items()}
    # at beta = 2 every step mirrors the state and damps nothing, so that each rounding stays and sums up
    relative = 3e-5 if strength == 2 else 2e-6
    assert_close(call(delta_rule, x32, initial_state=state().float()), want[:2], relative)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gate", GATES)
def test_gradcheck(operator, gate):
    x = make(6, gate, B=1, H=1, HV=2, K=3, V=2, regime="long")
    names = [n for n, t in x.items() if t is not None and (n != "beta" or operator is delta_rule)]
    S = state(HV=2, K=3, V=2, N=1).requires_grad_()

    def f(S, *leaves):
        return call(operator, x | dict(zip(names, leaves, strict=True)), initial_state=S)

    assert torch.autograd.gradcheck(f, (S, *(x[n].clone().requires_grad_() for n in names)))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_future_token_touches_an_earlier_bit(operator, gate, dtype):
    x = make(100, gate, dtype=dtype)
    before, _ = call(operator, x)
    for t in (99, 70, 64, 45, 33, 17, 3):
        for name, tensor in x.items():
            if tensor is None or tensor.dim() == 1 or (name == "beta" and operator is linear_attention):
                continue
            changed = tensor.clone()
            changed[:, t:] = changed[:, t:] * 0.3 - (50.0 if name == "g" else 0.01)
            after, _ = call(operator, x | {name: changed})
            assert torch.equal(after[:, :t], before[:, :t]), (name, t)
            if name != "g" or t < 99:
                assert not torch.equal(after[:, t:], before[:, t:]), "the edit must be able to show"


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gate", GATES)
def test_state_hand_over_at_any_split(operator, gate):
    x = make(70, gate)
    want = call(operator, x, initial_state=state())
    for split in (1, 2, 16, 31, 32, 33, 64, 69):
        S, outputs = state(), []
        for part in (slice(0, split), slice(split, None)):
            piece = {n: t if t is None or t.dim() == 1 else t[:, part] for n, t in x.items()}
            o, S = call(operator, piece, initial_state=S)
            outputs.append(o)
        assert_close([torch.cat(outputs, 1), S], want, 1e-10)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gate", GATES)
def test_prefill_is_decoding_token_by_token(operator, gate):
    x = make(40, gate)
    want = call(operator, x)
    S, outputs = None, []
    for t in range(40):
        piece = {n: y if y is None or y.dim() == 1 else y[:, t : t + 1] for n, y in x.items()}
        o, S = call(operator, piece, initial_state=S)
        outputs.append(o)
    assert_close([torch.cat(outputs, 1), S], want, 1e-10)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_packed_sequences_are_separate_sequences(operator, gate, impl):
    lengths = [5, 0, 33, 1, 40, 7, 64, 0]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    x, S = make(int(bounds[-1]), gate, B=1), state(N=len(lengths))
    x = {n: None if t is None else t.requires_grad_() for n, t in x.items()}
    o, final = call(operator, x, initial_state=S, cu_seqlens=bounds, impl=impl)
    outputs, finals = [], []
    for n, (a, b) in enumerate(pairwise(bounds)):
        piece = {m: t if t is None or t.dim() == 1 else t[:, a:b] for m, t in x.items()}
        part, last = call(operator, piece, initial_state=S[n : n + 1], impl="reference")
        outputs.append(part)
        finals.append(last)
    want = [torch.cat(outputs, 1), torch.cat(finals)]
    assert_close([o, final], want, 1e-10)
    assert torch.equal(final[1], S[1])
    leaves = [x["q"], x["v"]] + ([] if x["g"] is None else [x["g"]])
    got, expected = (torch.autograd.grad(y.sin().sum() + s.sum(), leaves) for y, s in ((o, final), want))
    assert_close(got, expected, 1e-10)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gate", GATES)
def test_grouped_heads_read_their_own_key_head(operator, gate):
    x = make(33, gate, H=2, HV=6)
    got = call(operator, x)
    heads = []
    for h in range(6):
        one = {n: None if t is None else t[:, :, h : h + 1] for n, t in x.items() if n in ("v", "beta")}
        one |= {n: x[n][:, :, h // 3 : h // 3 + 1] for n in ("q", "k")}
        one["g"] = None if x["g"] is None else x["g"][h : h + 1] if gate == "head" else x["g"][:, :, h : h + 1]
        heads.append(call(operator, one, impl="reference"))
    assert_close(got, [torch.cat([o for o, _ in heads], 2), torch.cat([s for _, s in heads], 1)], 1e-10)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gate", GATES)
def test_a_sequence_keeps_its_values_in_any_batch(operator, gate):
    x = make(75, gate, B=5, dtype=torch.float32)
    together, _ = call(operator, x)
    for b in range(5):
        alone, _ = call(operator, {n: t if t is None or t.dim() == 1 else t[b : b + 1] for n, t in x.items()})
        assert_close([alone], [together[b : b + 1]], 1e-6)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("gate", GATES)
def test_segments_change_nothing(operator, gate, monkeypatch):
    from evalsuite_kernels import recurrent, vector

    x = make(300, gate)
    want = with_gradients(operator, x, state(), "chunked")
    monkeypatch.setitem(recurrent.SEGMENT, "cpu", 1)
    monkeypatch.setattr(vector, "CACHED", 1)
    assert_close(with_gradients(operator, x, state(), "chunked"), want, 1e-12)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_linear_attention_is_causal_qk_v(impl):
    x = make(50, "none", H=4)
    o, S = linear_attention(x["q"], x["k"], x["v"], scale=1.0, output_final_state=True, impl=impl)
    scores = torch.einsum("bihd,bjhd->bhij", x["q"], x["k"]).tril()
    want = torch.einsum("bhij,bjhv->bihv", scores, x["v"])
    assert_close([o, S], [want, torch.einsum("bjhd,bjhv->bhdv", x["k"], x["v"])], 1e-12)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_retention_is_a_geometric_sum(impl):
    x, g = make(50, "none", H=4), retnet_slopes(4).double()
    o, _ = linear_attention(x["q"], x["k"], x["v"], g, scale=1.0, impl=impl)
    age = torch.arange(50)[:, None] - torch.arange(50)
    decay = torch.where(age >= 0, (g[:, None, None] * age).exp(), 0)
    want = torch.einsum("bihd,bjhd,hij,bjhv->bihv", x["q"], x["k"], decay, x["v"])
    assert_close([o], [want], 1e-12)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_delta_rule_stores_and_overwrites(impl):
    K = 8
    k = torch.eye(K, dtype=torch.float64).repeat(2, 1)[None, :, None]  # each direction written twice
    v = torch.randn(1, 2 * K, 1, 5, dtype=torch.float64)
    beta = torch.ones(1, 2 * K, 1, dtype=torch.float64)
    o, S = delta_rule(k, k, v, beta, scale=1.0, output_final_state=True, impl=impl)
    assert_close([o, S[0, 0]], [v, v[0, K:, 0]], 1e-12)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_gated_deltanet_is_kda_with_tied_gates(impl):
    x = make(50, "scalar")
    tied = x | {"g": x["g"][..., None].expand(-1, -1, -1, 8)}
    assert_close(call(delta_rule, tied, impl=impl), call(delta_rule, x, impl=impl), 1e-10)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_the_decayed_state_is_what_is_read_and_corrected(impl):
    """beta = 1 makes the state hold v at k whatever the gate; writing first and decaying later would not."""
    x = make(20, "vector", H=4)
    x["beta"] = torch.ones_like(x["beta"])
    o, _ = delta_rule(x["k"], x["k"], x["v"], x["beta"], x["g"], scale=1.0, impl=impl)
    assert_close([o], [x["v"]], 1e-12)


def test_mamba2_needs_no_operator_of_its_own():
    B, T, heads, P, groups, N = 2, 37, 4, 5, 2, 8
    x, dt = torch.randn(B, T, heads, P).double(), torch.rand(B, T, heads).double()
    A, Bs, Cs = (
        -torch.rand(heads).double(),
        torch.randn(B, T, groups, N).double(),
        torch.randn(B, T, groups, N).double(),
    )
    o, _ = linear_attention(Cs, Bs, dt[..., None] * x, A * dt, scale=1.0)
    h, want = torch.zeros(B, heads, P, N).double(), []
    for t in range(T):
        Bt, Ct = (y[:, t].repeat_interleave(2, 1) for y in (Bs, Cs))
        h = (A * dt[:, t]).exp()[..., None, None] * h + torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], Bt)
        want.append(torch.einsum("bhpn,bhn->bhp", h, Ct))
    assert_close([o], [torch.stack(want, 1)], 1e-12)


def test_slopes():
    assert lightning_slopes(8, 0, 4).tolist() == pytest.approx([-(2.0 ** -(h + 1)) * (1 + 1e-5) for h in range(8)])
    assert lightning_slopes(64, 79, 80)[0].item() == pytest.approx(-(2**-0.125) * (1 - 79 / 79.00001 + 1e-5))
    assert (lightning_slopes(4, 3, 4) < 0).all()
    assert lightning_slopes(4, 0, 1).tolist() == pytest.approx([-(2.0 ** (-2 * h)) * (1 + 1e-5) for h in range(1, 5)])
    assert retnet_slopes(3).exp().tolist() == pytest.approx([1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128])
    with pytest.raises(ValueError, match="layer 4"):
        lightning_slopes(8, 4, 4)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_fp32(operator, dtype):
    x = make(65, "vector", dtype=dtype)
    exact = call(operator, {n: t.float() for n, t in x.items()}, impl="reference")
    for surrounding in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=surrounding):
            o, S = call(operator, x)
        assert o.dtype == dtype
        assert S.dtype == torch.float32
        assert_close([S], exact[1:], 1e-5)
        assert_close([o.float()], [exact[0].to(dtype).float()], 1e-3)


@pytest.mark.parametrize("operator", OPERATORS)
def test_nothing_to_do(operator):
    x, S = make(0, "vector"), state()
    o, final = call(operator, x, initial_state=S)
    assert o.shape == (2, 0, 4, 6)
    assert torch.equal(final, S)
    empty = {n: t[:1] for n, t in x.items()}
    o, final = call(operator, empty, initial_state=S, cu_seqlens=torch.tensor([0, 0, 0]))
    assert torch.equal(final, S)
    first = (x["q"], x["k"], x["v"]) + ((x["beta"],) if operator is delta_rule else ())
    assert operator(*first)[1] is None


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"impl": "fast"}, "unknown impl 'fast'"),
        ({"k": torch.zeros(2, 9, 2, 7)}, {}, r"k must have shape \[2, 9, 2, 8\]"),
        ({"v": torch.zeros(2, 9, 3, 6), "beta": torch.zeros(2, 9, 3)}, {}, "3 heads, which is no multiple of the 2"),
        ({"v": torch.zeros(2, 8, 4, 6)}, {}, "v must have shape"),
        ({"g": torch.zeros(2, 9, 2)}, {}, "g must be None"),
        ({}, {"initial_state": torch.zeros(2, 4, 6, 8)}, "initial_state must have shape"),
        ({}, {"cu_seqlens": torch.tensor([0, 9])}, "batch size must be 1, not 2"),
    ],
)
def test_mistakes_are_named(operator, changes, options, message):
    x = make(9, "vector", dtype=torch.float32) | changes
    with pytest.raises(ValueError, match=message):
        call(operator, x, **options)


@pytest.mark.parametrize("bounds", [[0, 8], [1, 9], [0, 5, 3, 9], [9], [0.0, 9.0], [[0, 9]]])
def test_wrong_bounds_are_named(bounds):
    x = make(9, "none", B=1)
    with pytest.raises(ValueError, match="cu_seqlens must"):
        call(linear_attention, x, cu_seqlens=torch.tensor(bounds))
