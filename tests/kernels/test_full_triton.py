"""The Triton kernels of softmax attention against its definition in fp64: on a GPU, or in Triton's interpreter."""

import types

import numpy as np
import pytest
import torch

from evalsuite_kernels import full_attention
from evalsuite_kernels.full import dispatch
from evalsuite_kernels.full import triton as kernels
from evalsuite_kernels.full.settings import settings

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def make(T, S, HQ=2, H=1, K=16, V=16, B=1, dtype=torch.float32):
    shapes = ((B, T, HQ, K), (B, S, H, K), (B, S, H, V))
    return [torch.randn(shape, device=DEVICE).to(dtype).requires_grad_() for shape in shapes]


def ours(q, k, v, **options):
    return full_attention(q, k, v, impl="triton", **options)


def close(a, b, relative=1e-5):
    """Of one shape, no further apart than rounding; where the truth is 0, of a number of order 1."""
    return a.shape == b.shape and bool((a.double() - b).norm() <= relative * b.norm() + 1e-6 * b.numel() ** 0.5)


def agree(q, k, v, sinks=None, gradients=True, relative=1e-5, **options):
    """Output and gradients are those of the definition in fp64."""
    leaves = [q, k, v] if sinks is None else [q, k, v, sinks.requires_grad_()]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    o = ours(q, k, v, sinks=sinks, **options)
    want = full_attention(*exact[:3], sinks=exact[3] if sinks is not None else None, impl="reference", **options)
    assert o.dtype == q.dtype
    assert close(o, want, relative)
    if gradients:
        weight = torch.randn_like(o)
        got = torch.autograd.grad((o * weight).sum(), leaves)
        wanted = torch.autograd.grad((want * weight.double()).sum(), exact)
        assert [close(a, b, relative) for a, b in zip(got, wanted, strict=True)] == [True] * len(leaves)
    return o


def sinks_of(HQ):
    return torch.randn(HQ, device=DEVICE)


@pytest.mark.parametrize("T", [1, 15, 16, 17, 63, 64, 65, 130])
def test_lengths(T):
    agree(*make(T, T))


@pytest.mark.parametrize(("HQ", "H"), [(2, 2), (4, 1), (4, 2)])
def test_grouped_heads(HQ, H):
    agree(*make(33, 33, HQ, H, B=2), sinks=sinks_of(HQ))


@pytest.mark.parametrize(("K", "V"), [(16, 32), (24, 8), (64, 48), (7, 5)])
def test_head_dims(K, V):
    agree(*make(34, 40, 1, 1, K, V))


@pytest.mark.parametrize(("T", "S"), [(70, 70), (40, 130), (3, 130)])
@pytest.mark.parametrize("window", [1, 20, 64, 1000])
def test_windows(T, S, window):
    agree(*make(T, S, 1), window=window, sinks=sinks_of(1) if window == 20 else None)


@pytest.mark.parametrize("T", [1, 16, 17, 64])
def test_queries_are_the_last_of_the_keys(T, monkeypatch):
    monkeypatch.setattr(kernels, "SPLIT", 64)
    agree(*make(T, 150), sinks=sinks_of(2) if T == 16 else None)


@pytest.mark.parametrize("window", [None, 12])
def test_packed_sequences(window):
    lengths, cached = [5, 0, 36, 1, 9], [0, 3, 7, 20, 0]
    cu_q = torch.tensor([0, *lengths], device=DEVICE).cumsum(0)
    cu_k = torch.tensor([0, *(a + b for a, b in zip(lengths, cached, strict=True))], device=DEVICE).cumsum(0)
    q, k, v = make(51, 81)
    o = agree(q, k, v, window=window, cu_seqlens=cu_q, cu_seqlens_k=cu_k)
    agree(q, k[:, :51], v[:, :51], window=window, cu_seqlens=cu_q.int(), sinks=sinks_of(2))
    alone = ours(q[:, 5:41], k[:, 8:51], v[:, 8:51], window=window)
    assert torch.equal(alone, o[:, 5:41])


@pytest.mark.parametrize("T", [3, 20])
@pytest.mark.parametrize("sunk", [False, True])
def test_padded_caches(T, sunk):
    """Rows without keys too; what lies beyond a row's keys is nobody's business and gets no gradient."""
    lengths = torch.tensor([50, 0, 2], device=DEVICE)
    q, k, v = make(T, 50, B=3)
    with torch.no_grad():
        for x in (k, v):
            for b, n in enumerate(lengths.tolist()):
                x[b, n:] = 1e6
    o = agree(q, k, v, key_lengths=lengths, sinks=sinks_of(2) if sunk else None)
    assert (o[1] == 0).all()
    for window in (None, 5):
        agree(q, k, v, key_lengths=lengths, window=window, gradients=False)


@pytest.mark.parametrize("scale", [0.7, 0.0, -0.3])
def test_scales(scale):
    agree(*make(20, 20), scale=scale, sinks=sinks_of(2))


def test_large_logits_and_closed_sinks():
    q, k, v = make(40, 40)
    q, k = (x.detach().mul(10).requires_grad_() for x in (q, k))  # products of 1e3, known to 1e-4
    agree(q, k, v, sinks=torch.tensor([-1e4, 300.0], device=DEVICE), relative=1e-3)


def test_strided_inputs():
    packed = torch.randn(2, 37, 3, 2, 16, device=DEVICE)
    q, k, v = (x.detach().requires_grad_() for x in packed.unbind(2))
    agree(q, k, v)
    agree(q, *(torch.randn(2, 37, 16, 2, device=DEVICE).mT.requires_grad_() for _ in range(2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16] if CUDA else [torch.float16])
@pytest.mark.parametrize("D", [64, 128, 256] if CUDA else [16])
@pytest.mark.parametrize(("T", "S"), [(65, 65), (65, 130), (1000, 1000), (640, 1111)] if CUDA else [(65, 65), (50, 90)])
@pytest.mark.parametrize("options", [{}, {"window": 300}, {"packed": True}] if CUDA else [{}])
def test_half_precision(dtype, D, T, S, options):
    """On a GPU at sizes that fill tiles, so that tensor descriptors are used too."""
    leaves = make(T, S, 4, 2, D, D, dtype=dtype)
    options = dict(options)
    if options.pop("packed", False):
        options["cu_seqlens"] = torch.tensor([0, T // 3, T], device=DEVICE)
        options["cu_seqlens_k"] = torch.tensor([0, T // 3 + (S - T) // 2, S], device=DEVICE)
    o = ours(*leaves, **options)
    assert o.dtype == dtype
    exact = [x.detach().double().requires_grad_() for x in leaves]
    want = full_attention(*exact, impl="chunked", **options)
    assert close(o, want, 5e-3)
    weight = torch.randn_like(o)
    got, wanted = torch.autograd.grad(o, leaves, weight), torch.autograd.grad(want, exact, weight.double())
    assert all(close(a, b, 6e-3) and a.dtype == dtype for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("window", [None, 30])
def test_no_future_token_touches_an_earlier_bit(window):
    q, k, v = (x.detach() for x in make(140, 140, 1))
    options = {"window": window, "sinks": sinks_of(1)}
    whole = ours(q, k, v, **options)
    for t in (1, 16, 63, 64, 100):
        assert torch.equal(ours(q[:, :t], k[:, :t], v[:, :t], **options), whole[:, :t])
    k, v = k.clone(), v.clone()
    k[:, 100:] += 3
    v[:, 100:] -= 5
    assert torch.equal(ours(q, k, v, **options)[:, :100], whole[:, :100])


@pytest.mark.parametrize(("T", "S"), [(50, 50), (2, 100)])
def test_no_neighbour_touches_a_bit(T, S, monkeypatch):
    monkeypatch.setattr(kernels, "SPLIT", 64)
    leaves = make(T, S, 1, 1, B=2)
    o = ours(*leaves)
    g = torch.randn_like(o)
    gradients = torch.autograd.grad(o, leaves, g)
    alone = [x.detach()[1:2].requires_grad_() for x in leaves]
    o1 = ours(*alone)
    assert torch.equal(o1, o[1:2])
    for a, b in zip(torch.autograd.grad(o1, alone, g[1:2]), gradients, strict=True):
        assert torch.equal(a, b[1:2])
    again = ours(*leaves)
    assert torch.equal(again, o)
    assert all(map(torch.equal, torch.autograd.grad(again, leaves, g), gradients))


@pytest.mark.parametrize("window", [None, 100])
def test_decoding_is_the_last_row_whatever_the_cache(window, monkeypatch):
    monkeypatch.setattr(kernels, "SPLIT", 64)
    q, k, v = (x.detach() for x in make(150, 150, 4, 2))
    sinks = sinks_of(4)
    options = {"window": window, "sinks": sinks}
    last = ours(q[:, -1:], k, v, **options)
    assert close(last, ours(q, k, v, **options)[:, -1:].double(), 1e-6)
    more = ours(q[:, -4:], k, v, **options)[:, -1:]
    assert torch.equal(more, last) if CUDA else close(more, last.double(), 1e-6)  # NumPy's sums know a row's place
    room = [torch.cat([x, torch.full_like(x, 1e4)], 1).repeat(2, 1, 1, 1) for x in (k, v)]
    lengths = torch.tensor([150, 70], device=DEVICE)
    padded = ours(q[:, -1:].repeat(2, 1, 1, 1), *room, key_lengths=lengths, **options)
    assert torch.equal(padded[:1], last)
    # the same cache in pages, shuffled; entries beyond a row's keys lead nowhere
    table = torch.full((2, 5), 10**6, dtype=torch.int32, device=DEVICE)
    table[0], table[1, :3] = torch.tensor([7, 2, 0, 5, 1]), torch.tensor([4, 6, 3])
    pages = [torch.full((8, 32, *x.shape[2:]), 1e4, device=DEVICE) for x in (k, v)]
    for b, n in enumerate((5, 3)):
        for i in range(n):
            for page, cache in zip(pages, room, strict=True):
                page[table[b, i]] = cache[b, 32 * i : 32 * (i + 1)]
    paged = kernels.paged_decode(q[:, -1:].repeat(2, 1, 1, 1), *pages, table, lengths, **options)
    assert torch.equal(paged, padded)


def test_nothing_to_do():
    q, k, v = make(0, 5)
    assert ours(q, k, v).shape == (1, 0, 2, 16)
    assert all((g == 0).all() for g in torch.autograd.grad(ours(q, k, v).sum(), (q, k, v)))
    assert ours(*make(0, 0)).shape == (1, 0, 2, 16)
    assert ours(*make(3, 3, B=0)).shape == (0, 3, 2, 16)
    q, k, v = make(2, 0)
    assert (ours(q, k, v, key_lengths=torch.tensor([0], device=DEVICE)) == 0).all()


def test_the_ops_compile_without_a_break():
    q, k, v = make(18, 18)
    sinks = sinks_of(2).requires_grad_()
    arguments = (sinks, None, None, None, 0.25, 0)
    for op, x in ((kernels.full_forward, q), (kernels.full_decode, q[:, -2:].detach().requires_grad_())):
        torch.library.opcheck(op, (x, k, v, *arguments), test_utils=("test_schema", "test_faketensor"))

    def step(q, k, v, sinks):
        return ours(q, k, v, sinks=sinks, window=9)

    o = torch.compile(step, fullgraph=True, backend="aot_eager")(q, k, v, sinks)
    assert torch.equal(o, step(q, k, v, sinks))
    leaves = (q, k, v, sinks)
    for a, b in zip(*(torch.autograd.grad(x.sin().sum(), leaves) for x in (o, step(*leaves))), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_run_is_named():
    q, k, _ = make(1, 4)
    with pytest.raises(ValueError, match="one dtype"):
        kernels.paged_decode(q, k, k.half(), torch.zeros(1, 1).int(), torch.ones(1).int())
    with pytest.raises(ValueError, match=r"triton.*cannot run.*fp"):
        ours(*make(4, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="head dims may reach 256, not 257"):
        ours(*make(4, 4, K=257))


@pytest.mark.parametrize(
    ("T", "S", "options", "kind"),
    [
        (8, 8, {}, "square"),
        (8, 8, {"window": 8}, "window"),
        (8, 8, {"window": 7}, "window"),
        (1, 8, {}, "cached"),
        (8, 8, {"sinks": True}, "sinks"),
        (1, 8, {"padded": True}, "padded"),
        (8, 8, {"packed": True, "window": 3}, "packed"),
    ],
)
def test_shape_classes(T, S, options, kind):
    options = {"window": None, "sinks": False, "padded": False, "packed": False, **options}
    assert dispatch.kind(T, S, **options) == kind


def options_of(which):
    bounds = torch.tensor([0, 3, 9], device=DEVICE)
    return {
        "plain": {},
        "window": {"window": 5},
        "sinks": {"sinks": sinks_of(2)},
        "packed": {"cu_seqlens": bounds},
        "padded": {"key_lengths": torch.tensor([9], device=DEVICE)},
    }[which]


@pytest.mark.parametrize("which", ["plain", "window", "sinks", "packed", "padded"])
@pytest.mark.parametrize("fits", [True, False])
def test_plain_calls_take_the_kernels_for_hopper_where_they_fit(which, fits, monkeypatch):
    """Stand-ins give numbers of their own, so that it shows who has run."""
    q, k, v = make(9, 9)
    o, lse = torch.full_like(q, 7).detach(), torch.zeros(1, 2, 9, device=DEVICE)
    there = types.SimpleNamespace(
        fits=lambda *_: fits,
        forward=lambda q, k, v, scale: (o.clone(), lse.clone()),
        backward=lambda g, q, k, v, o, lse, scale: tuple(torch.full_like(x, 5) for x in (q, k, v)),
    )
    monkeypatch.setattr(kernels, "_on_hopper", lambda name: there)
    monkeypatch.setattr(kernels, "_rehearse", lambda *_: None)  # as after a first call, whichever test made it
    got = ours(q, k, v, **options_of(which))
    grads = torch.autograd.grad(got.sum(), (q, k, v))
    own = which == "plain" and fits
    assert bool((got == 7).all()) is own
    assert [bool((g == 5).all()) for g in grads] == [own] * 3


def test_decoding_has_one_kernel_everywhere(monkeypatch):
    monkeypatch.setattr(kernels, "_on_hopper", lambda name: pytest.fail("decoding is no plain forward pass"))
    agree(*make(2, 20), gradients=False)


def test_a_triton_without_gluon_is_no_error(monkeypatch):
    def missing(name):
        raise ImportError(name)

    assert kernels._on_hopper("hopper").forward
    with monkeypatch.context() as patch:
        patch.setattr(kernels.importlib, "import_module", missing)
        kernels._on_hopper.cache_clear()
        assert kernels._on_hopper("hopper") is kernels._on_hopper("hopper_backward") is None
    kernels._on_hopper.cache_clear()


@pytest.mark.parametrize("T", [1, 80])
def test_heads_may_stand_a_whole_sequence_apart(T):
    """As in the cache of a long text that keeps each head's keys together: the third one begins 2^31 numbers later. On
    a CPU memory that nobody writes to takes no room."""
    S, far = 80, 2**30
    flat = torch.from_numpy(np.zeros(4 * far + 64 * S, np.float16)).to(DEVICE)  # room for a sum that wrapped around
    apart = flat.as_strided((1, S, 3, 64), (flat.numel(), 64, far, 1), 2 * far)
    apart.copy_(torch.randn(1, S, 3, 64))
    together, found = apart.clone(memory_format=torch.contiguous_format), []
    for x in (apart, together):
        q, k, v, g = (part.detach().requires_grad_() for part in x.split(16, -1))
        o = ours(q[:, S - T :], k, v)
        found.append([o, *(torch.autograd.grad(o, (q, k, v), g[:, S - T :]) if T > 1 else ())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_settings_name_all_tiles():
    for op in ("forward", "keys", "queries", "decode"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for D in (16, 64, 128, 256):
                BLOCK_M, BLOCK_N, _, _ = settings(op, dtype, D, 16)
                assert BLOCK_M >= 16
                assert kernels.SPLIT % BLOCK_N == 0
