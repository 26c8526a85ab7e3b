"""The fused decode step against the recurrence in fp64, token by token, and its fused parts against plain torch."""

import pytest
import torch
import torch.nn.functional as F

from evalsuite_kernels import decode
from evalsuite_kernels.delta.reference import step as delta_step
from evalsuite_kernels.linear.reference import step as linear_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GATES = ("none", "head", "scalar", "vector")


def make(gate="vector", *, T=3, B=2, H=1, HV=2, K=16, V=16, delta=True, dtype=torch.float32, seed=0):
    """Inputs of T tokens {q, k, v, g, beta} [T, B, ...]: keys of length 1, beta up to 2, spikes of -200."""
    r = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=r)

    shape = {"none": (0,), "head": (T, HV), "scalar": (T, B, HV), "vector": (T, B, HV, K)}[gate]
    g = -(2.0 ** (-10 * torch.rand(shape, generator=r)))
    g = g.masked_fill(torch.rand(shape, generator=r) < 0.1, -200.0)
    if gate == "head":
        g = g[:1].expand(T, HV)
    x = {
        "q": normal(T, B, H, K),
        "k": F.normalize(normal(T, B, H, K), dim=-1),
        "v": normal(T, B, HV, V),
        "g": None if gate == "none" else g,
        "beta": 2 * normal(T, B, HV).sigmoid() if delta else None,
    }
    return {name: None if t is None else t.to(DEVICE, dtype) for name, t in x.items()}


def at(x, t):
    return [None if y is None else y[t] for y in x.values()]


def state(B=2, HV=2, K=16, V=16):
    return torch.randn(B, HV, K, V, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def recur(S, q, k, v, g, beta, scale=None):
    """One token in fp64: (o, S)."""
    q, k, v, g, beta = (None if x is None else x.double() for x in (q, k, v, g, beta))
    group = v.shape[1] // q.shape[1]
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    q, k = q.repeat_interleave(group, 1), k.repeat_interleave(group, 1)
    g = g[None] if g is not None and g.dim() == 1 else g
    return linear_step(S, q, k, v, g) if beta is None else delta_step(S, q, k, v, g, beta)


def assert_close(got, want, relative=1e-5):
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    error = ((got.double() - want).norm() / want.norm()).item()
    assert error <= relative, f"{error:.1e}"


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("K", "V"), [(16, 16), (24, 80)])
def test_steps_are_the_recurrence(delta, gate, K, V):
    x = make(gate, delta=delta, K=K, V=V)
    S = state(K=K, V=V)
    want_S, place = S.double(), S.data_ptr()
    for t in range(3):
        want, want_S = recur(want_S, *at(x, t))
        assert_close(decode.decode_step(*at(x, t), S), want)
        assert_close(S, want_S)
    assert S.data_ptr() == place


@pytest.mark.parametrize("gate", ["none", "vector"])
@pytest.mark.parametrize(("K", "V"), [(128, 128), (256, 64)])
def test_model_sizes_in_one_tile_and_in_several(gate, K, V):
    x, weight = make(gate, T=1, B=1, HV=1, K=K, V=V), torch.rand(V, device=DEVICE)
    for options in ({}, {"norm_weight": weight}):
        S = state(1, 1, K, V)
        want, want_S = recur(S.double(), *at(x, 0))
        if options:
            want = F.rms_norm(want, (V,), weight.double(), 1e-6)
        assert_close(decode.decode_step(*at(x, 0), S, **options), want)
        assert_close(S, want_S)


def test_identical_keys_and_mirrors():
    x = make("scalar", T=12)
    x["k"] = x["k"][:1].expand_as(x["k"]).contiguous()
    x["beta"].fill_(2.0)
    x["g"].fill_(-1e-5)
    S = state()
    want_S = S.double()
    for t in range(12):
        want, want_S = recur(want_S, *at(x, t))
        assert_close(decode.decode_step(*at(x, t), S), want)
    assert_close(S, want_S)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype):
    x, S = make(dtype=dtype), state()
    want_S = S.double()
    for t in range(3):
        want, want_S = recur(want_S, *at(x, t))
        o = decode.decode_step(*at(x, t), S)
        assert o.dtype == dtype
        assert_close(o, want, 8e-3)  # the interpreter cuts bf16 off instead of rounding it
        assert_close(S, want_S)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_states_in_a_pool(dtype):
    x, pool = make(B=3), state(5)
    untouched, want_S = pool.clone(), pool[[4, 1]].double()
    slots = torch.tensor([4, -1, 1], dtype=dtype, device=DEVICE)
    for t in range(3):
        real = [None if y is None else y[t][[0, 2]] for y in x.values()]
        want, want_S = recur(want_S, *real)
        o = decode.decode_step(*at(x, t), pool, state_indices=slots)
        assert_close(o[[0, 2]], want)
        assert not o[1].any()
    assert_close(pool[[4, 1]], want_S)
    assert torch.equal(pool[[0, 2, 3]], untouched[[0, 2, 3]])


def convolved(x, tail, taps, residual):
    """x [B, D], tail [B, D, W - 1] -> conv (+ x) [B, D] and the tail after."""
    window = torch.cat([tail, x[..., None]], -1)
    return (window * taps).sum(-1) + (x if residual else 0), window[..., 1:]


@pytest.mark.parametrize(("residual", "W", "K", "V"), [(True, 4, 16, 16), (False, 4, 20, 12), (False, 2, 16, 80)])
def test_short_convolution(residual, W, K, V):
    x, S = make(K=K, V=V, HV=4, H=2), state(3, 4, K, V)
    D, r = 2 * 2 * K + 4 * V, torch.Generator().manual_seed(2)
    taps, tails = torch.randn(D, W, generator=r).to(DEVICE), torch.randn(3, D, W - 1, generator=r).to(DEVICE)
    slots = torch.tensor([2, 0], device=DEVICE)
    want_S, want_tail, other = S[slots].double(), tails[slots].double(), tails[1].clone()
    for t in range(3):
        q, k, v, g, beta = at(x, t)
        flat = torch.cat([y.flatten(1) for y in (q, k, v)], 1).double()
        y, want_tail = convolved(flat, want_tail, taps.double(), residual)
        mixed = [part.view(z.shape) for part, z in zip(y.split([2 * K, 2 * K, 4 * V], 1), (q, k, v), strict=True)]
        mixed[1] = mixed[1] / mixed[1].norm(dim=-1, keepdim=True)  # else the state grows without bound
        want, want_S = recur(want_S, mixed[0] / mixed[0].norm(dim=-1, keepdim=True), *mixed[1:], g, beta)
        options = {"conv_state": tails, "taps": taps, "residual": residual, "l2norm": True, "state_indices": slots}
        assert_close(decode.decode_step(q, k, v, g, beta, S, **options), want)
    assert_close(S[slots], want_S)
    assert torch.equal(tails[slots].double(), want_tail)
    assert torch.equal(tails[1], other)


@pytest.mark.parametrize("gate", ["scalar", "vector"])
@pytest.mark.parametrize("bias", [True, False])
def test_gate_activation(gate, bias):
    x, S = make(gate), state()
    x["g"] = 10 * torch.randn_like(x["g"]) - 8  # softplus from its linear part down to 1e-12
    A_log = torch.randn(2, device=DEVICE)
    dt_bias = torch.randn(32 if gate == "vector" else 2, device=DEVICE) if bias else None
    want_S = S.double()
    for t in range(3):
        q, k, v, g, beta = at(x, t)
        raw = g.double() if dt_bias is None else g.double() + dt_bias.double().view(g.shape[1:])
        rate = A_log.double().exp()
        active = -(rate[:, None] if gate == "vector" else rate) * torch.log1p(raw.exp())
        want, want_S = recur(want_S, q, k, v, active, beta)
        assert_close(decode.decode_step(q, k, v, g, beta, S, A_log=A_log, dt_bias=dt_bias), want)
    assert_close(S, want_S)


@pytest.mark.parametrize("most", [1.0, 2.0])
def test_activations_norms_and_gates_of_a_kda_layer(most):
    x, S = make("vector", HV=4, H=2), state(2, 4)
    weight, gate = torch.rand(16, device=DEVICE), torch.randn(3, 2, 4, 16, device=DEVICE)
    want_S = S.double()
    for t in range(3):
        q, k, v, g, beta = at(x, t)
        q2, k2, v2 = (F.silu(y.double()) for y in (q, k, v))
        q2, k2 = F.normalize(q2, dim=-1), F.normalize(k2, dim=-1)
        want, want_S = recur(want_S, q2, k2, v2, g, most * beta.double().sigmoid(), 0.7)
        want = F.rms_norm(want, (16,), weight.double(), 1e-5) * gate[t].double().sigmoid()
        options = {"silu": True, "l2norm": True, "beta_sigmoid": True, "beta_max": most, "scale": 0.7}
        options |= {"norm_weight": weight, "norm_eps": 1e-5, "gate": gate[t]}
        assert_close(decode.decode_step(q, k, v, g, beta, S, **options), want)
    assert_close(S, want_S)


def test_a_gate_without_a_norm_on_tiles_of_v():
    x, S, gate = make("none", V=80, T=1), state(V=80), torch.randn(2, 2, 80, device=DEVICE)
    want, _ = recur(S.double(), *at(x, 0))
    assert_close(decode.decode_step(*at(x, 0), S, gate=gate), want * gate.double().sigmoid())


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("fused", [True, False])
def test_a_sequence_keeps_its_bits_in_any_batch(gate, fused):
    x, S = make(gate, B=5, T=1), state(5)
    options = {"norm_weight": torch.rand(16, device=DEVICE), "l2norm": True, "silu": True} if fused else {}
    before = S.clone()
    together = decode.decode_step(*at(x, 0), S, **options)
    for b in range(5):
        alone = [y if y is None or y.dim() == 1 else y[b : b + 1] for y in at(x, 0)]
        own = before[b : b + 1].clone()
        assert torch.equal(decode.decode_step(*alone, own, **options)[0], together[b])
        assert torch.equal(own[0], S[b])


@pytest.mark.parametrize(
    ("gate", "H", "D"), [("vector", 2, 128), ("scalar", 2, 128), ("vector", 1, 64), ("scalar", 1, 20)]
)
def test_all_of_a_layer_in_a_pool_alone_and_in_a_batch(gate, H, D):
    x, r = make(gate, T=1, B=3, H=H, HV=2, K=D, V=D), torch.Generator().manual_seed(3)
    pool, slots = state(5, 2, D, D), torch.tensor([4, -1, 1], device=DEVICE)
    tails, taps, opening, weight, A_log, dt_bias = (
        torch.randn(n, generator=r).to(DEVICE)
        for n in (
            (5, (2 * H + 2) * D, 3),
            ((2 * H + 2) * D, 4),
            (3, 2, D),
            (D,),
            (2,),
            (2 * D if gate == "vector" else 2,),
        )
    )
    q, k, v, g, beta = at(x, 0)
    options = {"taps": taps, "silu": True, "l2norm": True, "A_log": A_log, "dt_bias": dt_bias, "norm_weight": weight}
    options |= {"beta_sigmoid": True, "conv_state": tails.clone(), "gate": opening, "state_indices": slots}
    S = pool.clone()
    together = decode.decode_step(q, k, v, g, beta, S, **options)

    real = torch.tensor([0, 2], device=DEVICE)
    flat = torch.cat([y[real].flatten(1) for y in (q, k, v)], 1).double()
    flat, want_tail = convolved(flat, tails[slots[real]].double(), taps.double(), False)
    flat = F.silu(flat)
    mixed = [part.unflatten(1, (-1, D)) for part in flat.split([H * D, H * D, 2 * D], 1)]
    raw = g[real].double() + dt_bias.double().view(g.shape[1:])
    rate = A_log.double().exp()
    active = -(rate[:, None] if gate == "vector" else rate) * torch.log1p(raw.exp())
    unit = [F.normalize(y, dim=-1) for y in mixed[:2]]
    want, want_S = recur(pool[slots[real]].double(), *unit, mixed[2], active, beta[real].double().sigmoid())
    want = F.rms_norm(want, (D,), weight.double(), 1e-6) * opening[real].double().sigmoid()
    assert_close(together[real], want)
    assert not together[1].any()
    assert_close(S[slots[real]], want_S)
    assert torch.equal(options["conv_state"][slots[real]].double(), want_tail)
    for untouched in (0, 2, 3):
        assert torch.equal(S[untouched], pool[untouched])
        assert torch.equal(options["conv_state"][untouched], tails[untouched])

    for b, slot in ((0, 4), (2, 1)):
        own, tail = pool[slot : slot + 1].clone(), tails[slot : slot + 1].clone()
        alone = options | {"conv_state": tail, "gate": opening[b : b + 1], "state_indices": None}
        assert torch.equal(
            decode.decode_step(*(y[b : b + 1] for y in (q, k, v, g, beta)), own, **alone)[0], together[b]
        )
        assert torch.equal(own[0], S[slot])
        assert torch.equal(tail[0], options["conv_state"][slot])


def test_slices_of_a_wider_projection():
    x, S = make("vector", T=1), state()
    want, _ = recur(S.double(), *at(x, 0))
    wide = torch.cat([y[0].flatten(1) for y in (x["q"], x["k"], x["v"])], 1)
    q, k, v = (y.unflatten(1, (-1, 16)) for y in wide.split([16, 16, 32], 1))
    assert_close(decode.decode_step(q, k, v, x["g"][0], x["beta"][0], S), want)


def test_the_operator_as_torch_sees_it():
    q, k, v, g, beta = at(make(), 0)
    none = [None] * 3
    arguments = (q, k, v, g, beta, state(), 0.25, *none, False, False, True, None, None, True, 2.0, None, 1e-6, None)
    torch.library.opcheck(decode._decode_step, arguments, test_utils=("test_schema", "test_faketensor"))


def test_nothing_to_do():
    x = make(B=0, T=1)
    assert decode.decode_step(*at(x, 0), state(0)).shape == (0, 2, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": torch.zeros(2, 1, 8)}, r"k must have shape \[2, 1, 16\]"),
        ({"v": torch.zeros(2, 2, 257)}, "up to 256"),
        ({"g": torch.zeros(2, 3)}, "g must be None"),
        ({"state": torch.zeros(2, 2, 16, 16).double()}, "contiguous fp32"),
        ({"state": torch.zeros(2, 2, 16, 16).mT}, "contiguous fp32"),
        ({"q": torch.zeros(2, 1, 16).double()}, "q must be bf16"),
        ({"taps": torch.zeros(64, 4)}, "both conv_state and taps"),
        ({"state_indices": torch.zeros(2)}, "int32 or int64"),
        ({"dt_bias": torch.zeros(2)}, "dt_bias needs A_log"),
        ({"g": None, "A_log": torch.zeros(2)}, "which is None"),
    ],
)
def test_mistakes_are_named(changes, message):
    arguments = dict(zip(("q", "k", "v", "g", "beta"), at(make(), 0), strict=True)) | {"state": state()}
    arguments |= {n: None if y is None else y.to(DEVICE) for n, y in changes.items()}
    with pytest.raises(ValueError, match=message):
        decode.decode_step(**arguments)
