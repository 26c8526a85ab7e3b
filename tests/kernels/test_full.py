"""full_attention against a masked softmax written out in fp64."""

import pytest
import torch

from evalsuite_kernels import full_attention

IMPLS = ("reference", "chunked")


def naive(q, k, v, *, window=None, sinks=None, scale=None):
    """One dense masked softmax; queries are the last of the keys."""
    T, S, HQ = q.shape[1], k.shape[1], q.shape[2]
    k, v = (x.repeat_interleave(HQ // k.shape[2], 2) for x in (k, v))
    logits = torch.einsum("bihd,bjhd->bhij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    age = torch.arange(S - T, S)[:, None] - torch.arange(S)
    hidden = (age < 0) | (age >= (S if window is None else window))
    logits = logits.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        logits = torch.cat([logits, sinks[None, :, None, None].expand(q.shape[0], -1, T, 1)], -1)
    return torch.einsum("bhij,bjhv->bihv", logits.softmax(-1)[..., :S], v)


def make(T, S, B=2, HQ=4, H=2, K=8, V=6):
    return torch.randn(B, T, HQ, K).double(), torch.randn(B, S, H, K).double(), torch.randn(B, S, H, V).double()


def close(a, b, relative=1e-10):
    return a.shape == b.shape and (a - b).norm() <= relative * b.norm()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("T", "S"), [(1, 1), (17, 17), (300, 300), (1, 40), (5, 40), (270, 600)])
@pytest.mark.parametrize("window", [None, 1, 7, 256, 1000])
@pytest.mark.parametrize("sunk", [False, True])
def test_it_is_a_masked_softmax(impl, T, S, window, sunk):
    if impl == "reference" and T > 100:
        T, S = T // 10, S // 10
    q, k, v = make(T, S)
    sinks = torch.randn(4).double() if sunk else None
    assert close(
        full_attention(q, k, v, window=window, sinks=sinks, impl=impl), naive(q, k, v, window=window, sinks=sinks)
    )


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("sunk", [False, True])
def test_gradients(window, sunk):
    leaves = [x.requires_grad_() for x in (*make(280, 300, B=1), torch.randn(4).double())]
    sinks = leaves[3] if sunk else None
    got, want = (
        torch.autograd.grad(f(*leaves[:3], window=window, sinks=sinks).sin().sum(), leaves[: 3 + sunk])
        for f in (full_attention, naive)
    )
    assert all(close(a, b) for a, b in zip(got, want, strict=True))
    tiny = [x.requires_grad_() for x in (*make(3, 4, B=1, HQ=2, H=1, K=2, V=2), torch.randn(2).double())]
    assert (
        torch.autograd.gradcheck(
            lambda q, k, v, s: full_attention(q, k, v, window=window, sinks=s if sunk else None), tiny[:4]
        )
        if sunk
        else torch.autograd.gradcheck(lambda q, k, v: full_attention(q, k, v, window=window), tiny[:3])
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("sunk", [False, True])
def test_padded_caches_of_unlike_lengths(impl, window, sunk):
    q, k, v = make(3, 20, B=4)
    lengths = torch.tensor([20, 3, 11, 2])
    sinks = torch.randn(4).double() if sunk else None
    for x in (k, v):  # what lies beyond a row's length is nobody's business
        for b, n in enumerate(lengths):
            x[b, n:] = 1e6
    got = full_attention(q, k, v, window=window, sinks=sinks, key_lengths=lengths, impl=impl)
    for b, n in enumerate(lengths.tolist()):
        T = min(3, n)
        want = naive(q[b : b + 1, 3 - T :], k[b : b + 1, :n], v[b : b + 1, :n], window=window, sinks=sinks)
        assert close(got[b : b + 1, 3 - T :], want)
    assert (got[3, 0] == 0).all()


def test_a_blind_query_gives_no_nan_to_the_gradient():
    q, k, v = (x.requires_grad_() for x in make(3, 5, B=2))
    for sinks in (None, torch.randn(4).double()):
        o = full_attention(q, k, v, key_lengths=torch.tensor([0, 2]), sinks=sinks)
        assert (o[0] == 0).all()
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(o.sin().sum(), (q, k, v)))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("window", [None, 4])
def test_packed_sequences_are_separate_sequences(impl, window):
    lengths, cached = [5, 0, 30, 1, 9], [0, 3, 7, 20, 0]
    cu_q = torch.tensor([0, *lengths]).cumsum(0)
    cu_k = torch.tensor([0, *(a + b for a, b in zip(lengths, cached, strict=True))]).cumsum(0)
    for cu in (cu_q, cu_k):
        q, k, v = make(45, int(cu[-1]), B=1)
        got = full_attention(
            q, k, v, window=window, cu_seqlens=cu_q, cu_seqlens_k=None if cu is cu_q else cu_k, impl=impl
        )
        for a, b, c, d in zip(cu_q, cu_q[1:], cu, cu[1:], strict=False):
            if b > a:
                assert close(got[:, a:b], naive(q[:, a:b], k[:, c:d], v[:, c:d], window=window))


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("sunk", [False, True])
def test_no_future_token_touches_an_earlier_bit(window, sunk):
    q, k, v = (x.float() for x in make(300, 300, B=1))
    options = {"window": window, "sinks": torch.randn(4) if sunk else None}
    before = full_attention(q, k, v, **options)
    for t in (299, 256, 100, 3):
        for i in range(3):
            x = [q, k, v]
            x[i] = x[i].clone()
            x[i][:, t:] += 3
            after = full_attention(*x, **options)
            assert torch.equal(after[:, :t], before[:, :t])
            assert not torch.equal(after[:, t:], before[:, t:])


def test_prefill_is_decoding_and_prefill_by_chunks():
    q, k, v = make(50, 50)
    whole = full_attention(q, k, v, window=9)
    parts = [full_attention(q[:, a:b], k[:, :b], v[:, :b], window=9) for a, b in ((0, 20), (20, 21), (21, 50))]
    assert close(torch.cat(parts, 1), whole)


def test_a_window_costs_the_window():
    """Scores are never wider than a block and its window: a product over all keys would be seen here."""
    widths = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, *rest, **options):
        widths.append(k.shape[2])
        return real(q, k, *rest, **options)

    q, k, v = make(1500, 1500, B=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        full_attention(q, k, v, window=100)
    assert max(widths) <= 256 + 100


def test_half_precision():
    q, k, v = (x.bfloat16() for x in make(20, 30))
    want = naive(*(x.double() for x in (q, k, v)))
    for sinks in (None, torch.full((4,), -1e4)):
        o = full_attention(q, k, v, sinks=sinks)
        assert o.dtype == torch.bfloat16
        assert close(o.double(), want, 4e-3)


@pytest.mark.parametrize(
    ("T", "S", "options", "message"),
    [
        (9, 8, {}, "9 queries cannot be the last of 8 keys"),
        (8, 8, {"window": 0}, "at least 1"),
        (8, 8, {"sinks": torch.zeros(2)}, r"sinks must have shape \[4\]"),
        (8, 8, {"cu_seqlens": torch.tensor([0, 8])}, "batch size must be 1"),
        (8, 8, {"cu_seqlens_k": torch.tensor([0, 8])}, "needs cu_seqlens"),
        (8, 8, {"key_lengths": torch.tensor([8, 9])}, "0 .. 8"),
        (8, 8, {"key_lengths": torch.tensor([8])}, "key_lengths must have shape"),
        (8, 8, {"impl": "flash"}, "unknown impl"),
    ],
)
def test_mistakes_are_named(T, S, options, message):
    with pytest.raises(ValueError, match=message):
        full_attention(*make(T, S), **options)


def test_packed_mistakes_are_named():
    q, k, v = make(8, 9, B=1)
    cu = torch.tensor([0, 5, 8])
    for cu_k, message in (([0, 4, 9], "5 queries and only 4 keys"), ([0, 9], "2 sequences and cu_seqlens_k 1")):
        with pytest.raises(ValueError, match=message):
            full_attention(q, k, v, cu_seqlens=cu, cu_seqlens_k=torch.tensor(cu_k))
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to the 9"):
        full_attention(q, k, v, cu_seqlens=cu)
    with pytest.raises(ValueError, match="no multiple"):
        full_attention(q[:, :, :3], k, v)
