"""The Triton kernels of `index_loss` against `chunked` in fp64: on a GPU, or in Triton's interpreter."""

import pytest
import torch

from evalsuite_kernels.arguments import listening
from evalsuite_kernels.sparse import divergence_run as kernels
from evalsuite_kernels.sparse import index_loss
from evalsuite_kernels.sparse import training as door
from evalsuite_kernels.sparse.divergence_run import GROUPS, grouped, sparse_divergence
from evalsuite_kernels.sparse.places import names, places
from no_gpu import printed

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# of keys that a query does not see, whose infinite weights are taken for none
OVERFLOW = pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")
LIMITS = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


def make(T, B=1, HQ=2, H=2, K=16, HI=2, DI=8, dtype=torch.float32):
    """q and k; index queries, index keys and weights."""
    q, k = (torch.randn(B, T, n, K, device=DEVICE).to(dtype) for n in (HQ, H))
    shapes = (B, T, HI, DI), (B, T, DI), (B, T, HI)
    return [q, k], [torch.randn(shape, device=DEVICE).to(dtype).requires_grad_() for shape in shapes]


def drawn(q, N, cu=None):
    """Lists of N of the positions up to each query's own, in any order, with -1 here and there and empty ones."""
    B, T = q.shape[:2]
    position = places(q, T, cu, None, None).position.expand(B, T)
    order = torch.rand(B, T, T, device=DEVICE)
    order = order.masked_fill(torch.arange(T, device=DEVICE) > position[..., None], 2.0).argsort(-1)[..., :N]
    holes = (order > position[..., None]) | (torch.rand(order.shape, device=DEVICE) < 0.2)
    holes[:, ::5] = True
    return order.masked_fill(holes, -1).int()


def taught(impl, attention, indexer, *lists, **options):
    loss = index_loss(*attention, *indexer, *lists, impl=impl, **options)
    return loss.detach(), *torch.autograd.grad(3 * loss, indexer)


def close(a, b, relative):
    return a.shape == b.shape and bool((a.double() - b).norm() <= relative * b.norm() + 1e-7 * b.numel() ** 0.5)


def agree(attention, indexer, *lists, relative=None, **options):
    """Loss and gradients are those of `chunked` in fp64."""
    limit = relative or LIMITS[indexer[0].dtype]
    with listening() as heard:
        got = taught("triton", attention, indexer, *lists, **options)
    assert heard == {"index_loss": {"triton"}}
    exact = [x.double() for x in attention], [x.detach().double().requires_grad_() for x in indexer]
    want = taught("chunked", *exact, *lists, **options)
    assert got[0].dtype == torch.float32
    assert [a.dtype for a in got[1:]] == [x.dtype for x in indexer]
    assert [close(a, b, limit) for a, b in zip(got, want, strict=True)] == [True] * 4
    return got


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("T", "HQ", "H", "HI", "K", "DI"), [
    (1, 1, 1, 1, 16, 16), (37, 3, 3, 1, 8, 24), (37, 3, 1, 3, 40, 8), (40, 3, 3, 4, 16, 32), (9, 6, 2, 9, 80, 8),
])  # fmt: skip
def test_loss_and_gradient(T, HQ, H, HI, K, DI, sparse):
    """Of heads that share keys, dims that fill no tile, and more index heads than meet keys at once."""
    attention, indexer = make(T, 2, HQ, H, K, HI, DI)
    agree(attention, indexer, *([drawn(attention[0], 7)] if sparse else []), scale=0.4, index_scale=0.3)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(
    not CUDA, reason="the interpreter's bf16 is wrong"))])  # fmt: skip
def test_16_bits(dtype, sparse):
    attention, indexer = make(130, 1, 3, 3, 64, 2, 32, dtype)
    agree(attention, indexer, *([drawn(attention[0], 40)] if sparse else []))


@pytest.mark.parametrize("sparse", [False, True])
def test_packed_sequences(sparse):
    cu = torch.tensor([0, 0, 20, 20, 61, 70], device=DEVICE)
    attention, indexer = make(70)
    agree(attention, indexer, *([drawn(attention[0], 9, cu)] if sparse else []), cu_seqlens=cu)


def test_a_long_list_and_what_it_repeats(monkeypatch):
    """Sets of more words than are made at once, of lists longer than are read at once."""
    monkeypatch.setattr(kernels, "WORDS", 1)
    attention, indexer = make(36)
    position = torch.arange(36, device=DEVICE)
    lists = position.where((position <= position[:, None]) & (position[:, None] >= 30), -1)[None]
    want = agree(attention, indexer, lists)
    twice = taught("triton", attention, indexer, torch.cat([lists, lists.flip(-1)], -1))
    assert all(torch.equal(a, b) for a, b in zip(twice, want, strict=True))


def test_views_and_mixed_dtypes():
    """As a projection of queries, keys and values is split, and where autocast leaves some numbers wide."""
    (q, k), (iq, ik, w) = make(19, 2)
    q, k = torch.cat([q, k], -1).transpose(1, 2).contiguous().transpose(1, 2).split(16, -1)
    iq = torch.stack([iq.detach()] * 2, -1)[..., 1].requires_grad_()  # columns apart
    agree([q, k.half()], [iq, ik, w.detach().half().requires_grad_()], relative=1e-3)


def test_nothing_is_computed_that_nobody_learns_by():
    (q, k), indexer = make(37)
    want = index_loss(q, k, *indexer, impl="triton").detach()
    with torch.no_grad():
        assert torch.equal(index_loss(q, k, *indexer, impl="triton"), want)
    alone = index_loss(q, k, *(x.detach() for x in indexer), impl="triton")
    assert torch.equal(alone, want)
    assert not alone.requires_grad
    loss = index_loss(q.requires_grad_(), k, indexer[0], *(x.detach() for x in indexer[1:]), impl="triton")
    assert torch.autograd.grad(loss, (q, indexer[0]), allow_unused=True)[0] is None


def test_nothing_at_all():
    (q, k), indexer = make(6)
    none = torch.full((1, 6, 3), -1, device=DEVICE)
    for lists in (none, none[..., :0]):
        got = taught("triton", (q, k), indexer, lists)
        assert all((x == 0).all() for x in got)
    assert taught("triton", (q[:, :0], k[:, :0]), [x[:, :0] for x in indexer])[0] == 0


def test_rows_of_a_batch_know_nothing_of_each_other():
    attention, indexer = make(20, 2)
    lists = drawn(attention[0], 9)
    _, *whole = taught("triton", attention, indexer, lists)
    one = [x[1:] for x in attention], [x.detach()[1:].requires_grad_() for x in indexer]
    _, *alone = taught("triton", *one, lists[1:])
    assert all(torch.equal(2 * a[1:], b) for a, b in zip(whole, alone, strict=True))


@OVERFLOW
@pytest.mark.parametrize("packed", [False, True])
def test_queries_know_nothing_of_what_comes_later(packed):
    cu = torch.tensor([0, 11, 41], device=DEVICE) if packed else None
    attention, indexer = make(41)
    where = names(places(attention[0], 41, cu, None, None)) if packed else (None, None)
    ends = places(attention[0], 41, cu, None, None).keys if packed else None

    def of_queries():
        given = *attention, *(x.detach() for x in indexer)
        kl, diq, _, dw = sparse_divergence(*given, None, *where, ends, 0.5, 0.5, True)
        return [x[:, :33] for x in (kl, diq, dw)]

    before = of_queries()
    with torch.no_grad():
        for x in (*attention, *indexer):
            x[:, 33:] = 100 * torch.randn_like(x[:, 33:])
    assert all(torch.equal(a, b) for a, b in zip(before, of_queries(), strict=True))


def test_a_replay_has_the_same_bits():
    attention, indexer = make(37, HI=3)
    lists = drawn(attention[0], 9)
    first, *others = (taught("triton", attention, indexer, lists) for _ in range(3))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@OVERFLOW
def test_strong_scores():
    """Of 1e4: softmaxes that are one number, and no NaN."""
    (q, k), (iq, ik, w) = make(37, HI=3)
    indexer = [(x.detach() * c).requires_grad_() for x, c in ((iq, 50), (ik, 50), (w, 4))]
    loss, *owed = taught("triton", (50 * q, 50 * k), indexer, scale=1.0, index_scale=1.0)
    exact = [(50 * x).double() for x in (q, k)], [x.detach().double().requires_grad_() for x in indexer]
    want, *wanted = taught("chunked", *exact, scale=1.0, index_scale=1.0)
    assert want > 1e3
    torch.testing.assert_close(loss.double(), want, rtol=1e-4, atol=0)
    assert [close(a, b, 1e-2) for a, b in zip(owed, wanted, strict=True)] == [True] * 3


def test_nan_is_not_hidden():
    for place in range(5):
        attention, indexer = make(9)
        with torch.no_grad():
            [*attention, *indexer][place][0, 4] = torch.nan
        assert index_loss(*attention, *indexer, impl="triton").isnan()


def test_what_runs():
    attention, indexer = make(5)
    with listening() as heard:
        plain = taught("auto", attention, indexer)
    assert heard == {"index_loss": {"triton" if CUDA else "chunked"}}
    if not CUDA:
        for impl in ("chunked", "reference"):
            assert all(torch.equal(a, b) for a, b in zip(plain, taught(impl, attention, indexer), strict=True))
    with pytest.raises(ValueError, match="unknown impl"):
        index_loss(*attention, *indexer, impl="cuda")
    with pytest.raises(ValueError, match=r"triton.*cannot run.*float64"):
        index_loss(*attention, *(x.double() for x in indexer), impl="triton")
    with pytest.raises(ValueError, match="head dims may reach 256, not 257"):
        index_loss(*make(3, K=257)[0], *make(3)[1], impl="triton")


def test_many_wide_index_heads_are_left_to_blocks(monkeypatch):
    """By queries each group of heads makes all tiles again."""
    assert [grouped(*heads) for heads in ((1, 8), (2, 32), (3, 32), (4, 128), (9, 64), (64, 128))] == [
        (1, 1), (2, 1), (4, 1), (1, 4), (2, 5), (1, 64),
    ]  # fmt: skip
    monkeypatch.setattr(door, "choose", lambda impl, *_, **__: "triton")
    for HI, name in ((GROUPS, "triton"), (GROUPS + 1, "chunked")):
        (q, k), indexer = make(2, HI=HI, DI=128)
        assert door._form("auto", q, k, *indexer) == name
        assert door._form("triton", q, k, *indexer) == "triton"


def test_a_tracer_knows_its_shapes():
    attention, indexer = make(5)
    given = *attention, *(x.detach() for x in indexer), None, None, None, None, 0.5, 0.5
    for learned in (False, True):
        torch.library.opcheck(sparse_divergence, (*given, learned), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("sparse", [False, True])
def test_a_recording(sparse):
    attention, indexer = make(200, 2, 3, 3, 64, 4, 32, torch.bfloat16)
    lists = [drawn(attention[0], 40)] if sparse else []
    want = taught("triton", attention, indexer, *lists)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = taught("triton", attention, indexer, *lists)
    for _ in range(3):
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


COMPILE = """
import sys

import torch

from evalsuite_kernels import launches
from evalsuite_kernels.sparse.divergence_run import sparse_divergence

launches.Launches.run = no_gpu.compiled
T, HQ, H, K, HI, DI, sparse = map(int, sys.argv[1:8])
dtype = getattr(torch, sys.argv[8])
shapes = (1, T, HQ, K), (1, T, H, K), (1, T, HI, DI), (1, T, DI), (1, T, HI)
given = [torch.zeros(shape, dtype=dtype) for shape in shapes]
lists = [torch.zeros(1, T, 16, dtype=torch.int32), *[torch.zeros(1, T, dtype=torch.long)] * 3] if sparse else [None] * 4
sparse_divergence(*given, *lists, 1.0, 1.0, True)
"""


def test_every_launch_compiles(tmp_path):
    """For Hopper without one, as it is called, within its shared memory."""
    shared = printed(COMPILE, tmp_path, 512, 3, 3, 256, 4, 32, 1, "bfloat16")
    assert len(shared) == 5
    assert max(shared) <= 227 << 10
