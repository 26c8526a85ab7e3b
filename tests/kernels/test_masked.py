"""Attention over lists under a mask, in Triton: against `reference` and `chunked` in fp64 and against the gather form;
on a GPU, or in Triton's interpreter."""

import pytest
import torch

from evalsuite_kernels.arguments import listening
from evalsuite_kernels.full.descriptors import pad
from evalsuite_kernels.sparse import chunked, reference, sparse_attention
from evalsuite_kernels.sparse import masked_run as kernels
from evalsuite_kernels.sparse import triton as door
from evalsuite_kernels.sparse.masked_run import attend_masked, fits, sparse_masked_backward, sparse_masked_forward
from evalsuite_kernels.sparse.places import places
from no_gpu import printed

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
LIMITS = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
HALVES = [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(
    not CUDA, reason="the interpreter's bf16 is wrong"))]  # fmt: skip


def make(T, B=1, HQ=2, H=2, K=16, V=16, dtype=torch.float32):
    shapes = (B, T, HQ, K), (B, T, H, K), (B, T, H, V)
    return [torch.randn(shape, device=DEVICE).to(dtype).requires_grad_() for shape in shapes]


def drawn(q, N, cu=None, causal=True):
    """Lists [B, T, 1, N] of positions in the query's sequence, in any order, with -1 here and there and empty ones."""
    B, T = q.shape[:2]
    where = places(q, T, cu, None, None)
    last = (where.position if causal else where.keys - 1).expand(B, T)[..., None]
    order = torch.rand(B, T, T, device=DEVICE)
    order = order.masked_fill(torch.arange(T, device=DEVICE) > last, 2.0).argsort(-1)[..., :N]
    holes = (order > last) | (torch.rand(order.shape, device=DEVICE) < 0.2)
    holes[:, 4::5] = True
    return order.masked_fill(holes, -1).int()[:, :, None]


def close(a, b, relative):
    return a.shape == b.shape and bool((a.double() - b).norm() <= relative * b.norm() + 1e-6 * b.numel() ** 0.5)


def learn(form, leaves, lists, weight=None, scale=0.3, where=None):
    """What a form gives, and what it owes to q, k and v."""
    o = form(*leaves, lists, scale, where)
    weight = torch.linspace(-1, 2, o.numel(), device=DEVICE).view(o.shape).to(o.dtype) if weight is None else weight
    return o.detach(), *torch.autograd.grad(o, leaves, weight)


def agree(leaves, lists, exact=chunked, cu=None, relative=None, scale=0.3):
    """Output and gradients are those of fp64."""
    limit = relative or LIMITS[leaves[0].dtype]
    weight = torch.randn(*leaves[0].shape[:3], leaves[2].shape[-1], device=DEVICE).to(leaves[0].dtype)
    where = None if cu is None else places(leaves[0], leaves[0].shape[1], cu, None, None)
    with listening() as heard:
        got = learn(attend_masked, leaves, lists, weight, scale, where)
    assert heard == {"sparse_attention": {"triton"}, "sparse_attention backward": {"triton"}}
    double = [x.detach().double().requires_grad_() for x in leaves]
    known = places(leaves[0], leaves[0].shape[1], cu, None, None)
    want = learn(exact.attend, double, lists, weight.double(), scale, known)
    assert [a.dtype for a in got] == [leaves[0].dtype] * 4
    assert [close(a, b, limit) for a, b in zip(got, want, strict=True)] == [True] * 4
    assert (got[0][(lists < 0).all(-1).expand(leaves[0].shape[:3])] == 0).all()
    return got


@pytest.mark.parametrize(("T", "B", "HQ", "H", "K", "V", "N"), [
    (5, 2, 6, 2, 16, 16, 3), (37, 1, 3, 3, 16, 16, 5), (37, 1, 3, 1, 24, 8, 40), (34, 1, 2, 1, 16, 40, 70),
    (130, 1, 1, 1, 8, 16, 20),
])  # fmt: skip
def test_output_and_gradients(T, B, HQ, H, K, V, N):
    """Of heads that share keys, dims that fill no tile, T that fills none, and lists longer than T."""
    leaves = make(T, B, HQ, H, K, V)
    agree(leaves, drawn(leaves[0], N).long())


def test_the_definition():
    """Query by query, in fp64."""
    leaves = make(37, 1, 3, 1, 16, 24)
    agree(leaves, drawn(leaves[0], 9), reference)


@pytest.mark.parametrize("packed", [False, True])
def test_the_gather_form(packed):
    """Within rounding; without names, and of sequences."""
    leaves = make(21, 1, 2, 1, 16, 24)
    cu = torch.tensor([0, 0, 11, 21], device=DEVICE) if packed else None
    where = places(leaves[0], 21, cu, None, None) if packed else None
    lists = drawn(leaves[0], 9, cu)
    both = [learn(form, leaves, lists, where=where) for form in (attend_masked, door.attend_gathered)]
    assert [close(a, b.double(), 1e-6) for a, b in zip(*both, strict=True)] == [True] * 4


@pytest.mark.parametrize(("K", "V"), [(100, 64), (64, 130), (256, 256)])
def test_wide_heads(K, V):
    leaves = make(34, 1, 2, 1, K, V)
    agree(leaves, drawn(leaves[0], 9), scale=K**-0.5)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("D", [64, 128, 256] if CUDA else [64])
def test_16_bits(D, dtype):
    leaves = make(130 if CUDA else 70, 1, 3 if CUDA else 1, 1, D, D, dtype)
    agree(leaves, drawn(leaves[0], 40), scale=D**-0.5)


@pytest.mark.parametrize("causal", [True, False])
def test_packed_sequences(causal):
    """One is empty, and they begin anywhere in a tile."""
    cu = torch.tensor([0, 0, 20, 20, 97, 105], device=DEVICE)
    leaves = make(105, HQ=1, H=1)
    agree(leaves, drawn(leaves[0], 9, cu, causal), cu=cu)


def test_what_is_causal_is_the_list_s_to_say():
    leaves = make(37, HQ=1, H=1)
    agree(leaves, drawn(leaves[0], 9, causal=False))
    agree(leaves, torch.full((1, 37, 1, 1), 36, device=DEVICE))  # of one key, the last


def test_units_and_words_that_are_read_in_parts(monkeypatch):
    """Spans over more units of queries, and words, than are read at once; most tiles hold nothing."""
    monkeypatch.setattr(kernels, "UNIT", 16)
    monkeypatch.setattr(kernels, "WORDS", 2)
    leaves = make(80, HQ=1, H=1)
    position = torch.arange(80, device=DEVICE)[:, None]
    lists = (position // 3 - torch.arange(4, device=DEVICE)).clamp(min=-1)[None, :, None]
    agree(leaves, lists)
    monkeypatch.setitem(kernels.SETTINGS, ("keys", 4, 64), (32, 64, 4, 1))
    monkeypatch.setitem(kernels.SETTINGS, ("forward", 4, 64), (16, 64, 4, 1))
    agree(leaves, lists)


def test_nothing_named_and_nothing_at_all():
    leaves = make(37)
    for N in (0, 3):
        got = learn(attend_masked, leaves, torch.full((1, 37, 1, N), -1, device=DEVICE))
        assert all((x == 0).all() for x in got)
    for shape in ((0, 5), (2, 0)):
        none = [torch.zeros(*shape, *x.shape[2:], device=DEVICE, requires_grad=True) for x in leaves]
        got = learn(attend_masked, none, torch.zeros(*shape, 1, 2, dtype=torch.int32, device=DEVICE))
        assert [x.shape for x in got] == [none[0].shape, *(x.shape for x in none)]


def test_views():
    """As a projection of queries, keys and values is split; a gradient that is spread out."""
    packed = torch.randn(2, 9, 3, 2, 16, device=DEVICE)
    leaves = [x.detach().requires_grad_() for x in packed.unbind(2)]
    lists = drawn(leaves[0], 6)
    agree(leaves, lists)
    agree([torch.randn(2, 9, 16, 2, device=DEVICE).mT.requires_grad_() for _ in range(3)], lists)
    got = learn(attend_masked, leaves, lists, torch.ones((), device=DEVICE).expand(2, 9, 2, 16))
    want = learn(attend_masked, leaves, lists, torch.ones(2, 9, 2, 16, device=DEVICE))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_replays_and_any_order_of_a_list_have_the_same_bits():
    leaves = make(37, 1, 2, 1)
    lists = drawn(leaves[0], 9)
    one, *others = (learn(attend_masked, leaves, x) for x in (lists, lists, lists, lists.flip(-1)))
    assert all(torch.equal(a, b) for other in others for a, b in zip(one, other, strict=True))


def test_rows_of_a_batch_know_nothing_of_each_other():
    leaves = make(37, 2, 1, 1)
    lists = drawn(leaves[0], 9)
    lists[0] = lists[0].flip(0)  # whose lists meet other tiles
    weight = torch.randn(2, 37, 1, 16, device=DEVICE)
    whole = learn(attend_masked, leaves, lists, weight)
    for b in range(2):
        one = [x.detach()[b : b + 1].requires_grad_() for x in leaves]
        alone = learn(attend_masked, one, lists[b : b + 1], weight[b : b + 1])
        assert all(torch.equal(x[b : b + 1], y) for x, y in zip(whole, alone, strict=True))


@pytest.mark.parametrize("packed", [False, True])
def test_nothing_leaks(packed):
    """Keys that no list names, and those after a query, change no bit of it and are owed exactly nothing."""
    cu = torch.tensor([0, 11, 45], device=DEVICE) if packed else None
    leaves = make(45, HQ=1, H=1)
    where = places(leaves[0], 45, cu, None, None) if packed else None
    first = 11 if packed else 0
    lists = drawn(leaves[0], 30, cu)
    unnamed = [first + 3, 30]
    for row in unnamed:
        lists[:, first:].masked_fill_(lists[:, first:] == row - first, -1)
    got = learn(attend_masked, leaves, lists, where=where)
    assert all((x[:, unnamed] == 0).all() for x in got[2:])
    weight = torch.zeros_like(got[0])
    weight[:, :35] = torch.randn_like(weight[:, :35])  # so that only queries before row 35 ask
    early = learn(attend_masked, leaves, lists, weight, where=where)
    assert all((x[:, 35:] == 0).all() for x in early[1:])
    with torch.no_grad():
        for x in leaves:
            x[:, 35:] = 100 * torch.randn_like(x[:, 35:])
        for x in leaves[1:]:
            x[:, unnamed] = 1e4 * torch.randn_like(x[:, unnamed])
    later = learn(attend_masked, leaves, lists, weight, where=where)
    assert torch.equal(later[0][:, :35], got[0][:, :35])
    assert all(torch.equal(a, b) for a, b in zip(early[1:], later[1:], strict=True))


def test_strong_scores():
    """Of hundreds, and of 1e4: softmaxes that are one number, and no NaN."""
    leaves = make(20)
    lists = drawn(leaves[0], 9)
    agree([(c * x.detach()).requires_grad_() for x, c in zip(leaves, (10, 10, 1), strict=True)], lists, relative=1e-3)
    got = learn(attend_masked, leaves, lists, scale=1e4)
    assert all(x.isfinite().all() for x in got)


def launched(*given, **options):
    """Which form `sparse_attention` takes."""
    taken = []

    with pytest.MonkeyPatch.context() as patch:
        for name in ("attend_masked", "attend_gathered"):
            patch.setattr(door, name, lambda q, *_, name=name: (taken.append(name), q)[1])
        sparse_attention(*given, impl="triton", **options)
    return taken


def test_which_form_is_taken():
    leaves = make(40)
    lists = drawn(leaves[0], 4)[:, :, 0]
    masked, gathered = ["attend_masked"], ["attend_gathered"]
    for i in range(3):  # one that learns is enough
        some = [x if i == j else x.detach() for j, x in enumerate(leaves)]
        assert launched(*some, lists) == masked
    assert launched(*leaves, lists[:, :, None]) == masked
    assert launched(*leaves, lists, cu_seqlens=torch.tensor([0, 40, 40], device=DEVICE)) == masked
    with torch.no_grad():
        assert launched(*leaves, lists) == gathered
    assert launched(*(x.detach() for x in leaves), lists) == gathered
    assert launched(*leaves, lists[:, :, None].expand(1, 40, 2, 4)) == gathered  # each head its own
    assert launched(leaves[0][:, 5:], *leaves[1:], lists[:, 5:]) == gathered  # behind a cache
    pack = {"cu_seqlens": [0, 30, 35], "cu_seqlens_k": [0, 33, 40]}
    pack = {name: torch.tensor(x, device=DEVICE) for name, x in pack.items()}
    assert launched(leaves[0][:, 5:], *leaves[1:], lists[:, 5:].clamp(max=0), **pack) == gathered


def test_how_many_keys_are_too_many():
    (q, k, v), lists = make(33), torch.zeros(1, 33, 1, 2, dtype=torch.int32, device=DEVICE)
    assert kernels.DENSE == 16
    assert fits(q[:, 1:], k[:, 1:], v[:, 1:], lists[:, 1:])
    assert not fits(q, k, v, lists)


def test_both_forms_are_one_operator():
    """Through the door, with gradients and without."""
    leaves = make(10)
    lists = drawn(leaves[0], 4)
    o = sparse_attention(*leaves, lists[:, :, 0], scale=0.3, impl="triton")
    assert torch.equal(o, attend_masked(*leaves, lists, 0.3, None))
    with torch.no_grad():
        plain = sparse_attention(*leaves, lists[:, :, 0], scale=0.3, impl="triton")
    assert torch.equal(plain, door.attend_gathered(*leaves, lists, 0.3, None))
    torch.testing.assert_close(o, plain, rtol=1e-5, atol=1e-6)


def test_the_ops_compile_without_a_break():
    leaves = make(10, HQ=1, H=1)
    lists = drawn(leaves[0], 9)
    only = {"test_utils": ("test_schema", "test_faketensor")}
    given = *leaves, lists[:, :, 0].contiguous(), None, 0.5
    torch.library.opcheck(sparse_masked_forward, given, **only)
    with torch.no_grad():
        found = sparse_masked_forward(*given)
        torch.library.opcheck(sparse_masked_backward, (found[0], *leaves, *found, 0.5), **only)

    def step(q, k, v):
        return sparse_attention(q, k, v, lists[:, :, 0], impl="triton").sin()

    o = torch.compile(step, fullgraph=True, backend="aot_eager")(*leaves)
    assert torch.equal(o, step(*leaves))
    for a, b in zip(*(torch.autograd.grad(y.sum(), leaves) for y in (o, step(*leaves))), strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_a_recording():
    leaves = make(200, 2, 3, 3, 64, 64, torch.bfloat16)
    lists = drawn(leaves[0], 40)
    want = learn(attend_masked, leaves, lists)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = learn(attend_masked, leaves, lists)
    for _ in range(3):
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_tiles_hold_whole_words_of_a_set():
    for (_, size, widest), (BLOCK_M, BLOCK_N, *_) in kernels.SETTINGS.items():
        assert BLOCK_N in {32, 64}
        assert BLOCK_M in {16, 32, 64, 128}
        assert size in {2, 4}
        assert widest in {pad(n) for n in (64, 128, 256)}


COMPILE = """
import sys

import torch

from evalsuite_kernels import launches
from evalsuite_kernels.sparse.masked_run import sparse_masked_backward, sparse_masked_forward

launches.Launches.run = no_gpu.compiled
T, HQ, H, K = map(int, sys.argv[1:5])
q, k, v = (torch.zeros(1, T, n, K, dtype=getattr(torch, sys.argv[5])) for n in (HQ, H, H))
lists, first = torch.zeros(1, T, 16, dtype=torch.int32), torch.zeros(1, T, dtype=torch.long)
found = sparse_masked_forward(q, k, v, lists, first, 1.0)
sparse_masked_backward(found[0], q, k, v, *found, 1.0)
"""


def test_every_launch_compiles(tmp_path):
    """For Hopper without one, as it is called, within its shared memory."""
    shared = printed(COMPILE, tmp_path, 512, 3, 3, 256, "bfloat16")
    assert len(shared) == 5
    assert max(shared) <= 227 << 10
