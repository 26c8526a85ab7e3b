"""The Triton kernels of sparse attention against `chunked` in fp64: on a GPU, or in Triton's interpreter."""

import pytest
import torch

from evalsuite_kernels.arguments import listening
from evalsuite_kernels.sparse import block_attention, lightning_index, sparse_attention
from evalsuite_kernels.sparse import indexer as indexing
from evalsuite_kernels.sparse import triton as kernels
from no_gpu import printed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LISTS = [(1, 1, None), (4, 4, 4), (6, 2, None), (6, 2, 2), (6, 2, 6), (4, 1, 2)]  # HQ, H, G; heads share lists or keys
SMALL = {
    True: indexing.Sifting((4, 2.0, 4), (None, 32, 4), (32, 4)),
    False: indexing.Sifting((4, 2.0, 4), (4, 32, 1), (32, 4)),
}
LIMITS = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-3}


def make(T, S=None, HQ=4, H=2, K=16, V=16, B=1, dtype=torch.float32):
    shapes = ((B, T, HQ, K), (B, S or T, H, K), (B, S or T, H, V))
    return [torch.randn(shape, device=DEVICE).to(dtype).requires_grad_() for shape in shapes]


def drawn(T, N, G=None, B=1, of=None, holes=True):
    """Lists of N of the first `of` tokens or blocks, each once, in any order, with -1 here and there."""
    shape = (B, T) if G is None else (B, T, G)
    found = torch.rand(*shape, of or T, device=DEVICE).argsort(-1)[..., :N].int()
    return found.masked_fill(torch.rand(found.shape, device=DEVICE) < 0.2, -1) if holes else found


def close(a, b, relative=1e-5):
    return a.shape == b.shape and bool((a.double() - b).norm() <= relative * b.norm() + 1e-6 * b.numel() ** 0.5)


def agree(attention, q, k, v, *lists, relative=None, **options):
    """Output and gradients are those of `chunked` in fp64."""
    limit = relative or LIMITS[q.dtype]
    leaves, exact = [q, k, v], [x.detach().double().requires_grad_() for x in (q, k, v)]
    with listening() as heard:
        o = attention(*leaves, *lists, impl="triton", **options)
        weight = torch.randn_like(o)
        got = torch.autograd.grad(o, leaves, weight)
    assert set(heard) == {attention.__name__, f"{attention.__name__} backward"}
    assert set.union(*heard.values()) == {"triton"}
    want = attention(*exact, *lists, impl="chunked", **options)
    assert o.dtype == q.dtype
    assert close(o, want, limit)
    wanted = torch.autograd.grad(want, exact, weight.double())
    assert [close(a, b, 1.2 * limit) for a, b in zip(got, wanted, strict=True)] == [True] * 3
    assert all(a.dtype == x.dtype for a, x in zip(got, leaves, strict=True))
    return o, got


@pytest.mark.parametrize("few", [0, 16])
@pytest.mark.parametrize(("HQ", "H", "G"), LISTS)
def test_lists_of_tokens(HQ, H, G, few, monkeypatch):
    monkeypatch.setattr(kernels, "DECODE", few)
    lists = drawn(7, 9, G, B=2, of=11)
    lists[:, 3] = -1
    o, _ = agree(sparse_attention, *make(7, 11, HQ, H, B=2), lists)
    assert (o[:, 3] == 0).all()


@pytest.mark.parametrize("few", [0, 16])
@pytest.mark.parametrize(("HQ", "H", "G"), LISTS)
def test_lists_of_blocks(HQ, H, G, few, monkeypatch):
    """Some begin after the query; the last one is cut short."""
    monkeypatch.setattr(kernels, "DECODE", few)
    lists = drawn(7, 3, G, B=2, of=4)
    lists[:, 3] = -1
    o, _ = agree(block_attention, *make(7, 55, HQ, H, B=2), lists, 16)
    assert (o[:, 3] == 0).all()


@pytest.mark.parametrize("size", [0, 16, 48])
def test_few_queries_read_their_lists_in_parts(size, monkeypatch):
    """Lists of several parts, one without any key, and one whose last parts have none."""
    monkeypatch.setattr(kernels, "SPLIT", 128)
    S, N = (400, 300) if not size else (8 * size, 6)
    q, k, v = make(3, S, 4, 2)
    lists = drawn(3, N, 2, of=S // max(size, 1), holes=False)
    lists[:, 1] = -1
    lists[:, 2, :, N // 3 :] = -1
    read = sparse_attention if not size else block_attention
    options = (lists,) if not size else (lists, size)
    o, _ = agree(read, q, k, v, *options)
    assert (o[:, 1] == 0).all()
    with torch.no_grad():
        twice = read(*(x.repeat(2, 1, 1, 1) for x in (q, k, v, lists)), *options[1:], impl="triton")
    assert torch.equal(twice[1:], o)


@pytest.mark.parametrize("size", [16, 48, 64, 256])
def test_block_sizes(size):
    T = 2 * size + 5
    agree(block_attention, *make(3, T, 2, 1), drawn(3, 2, of=3, holes=False).long(), size)


@pytest.mark.parametrize(("K", "V"), [(16, 32), (24, 8), (64, 48), (256, 5)])
def test_head_dims(K, V):
    agree(sparse_attention, *make(4, 40, 2, 1, K, V), drawn(4, 35, of=40))
    agree(block_attention, *make(4, 40, 2, 1, K, V), drawn(4, 2, of=3, holes=False), 16)


def test_more_heads_than_a_tile_has_rows():
    q, k, v = make(3, 6, 40, 1)
    agree(sparse_attention, q, k, v, drawn(3, 4, of=6))
    agree(block_attention, q, k, v, torch.zeros(1, 3, 1, dtype=torch.int32, device=DEVICE), 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16])
@pytest.mark.parametrize("D", [64, 128, 256] if DEVICE == "cuda" else [32])
def test_half_precision(dtype, D):
    agree(sparse_attention, *make(5, 90, 4, 2, D, D, dtype=dtype), drawn(5, 80, 2, of=90))
    agree(block_attention, *make(6, 150, 8, 2, D, D, dtype=dtype), drawn(6, 2, 2, of=3, holes=False), 64)


def test_mixed_dtypes_are_computed_in_fp32():
    q, k, v = make(5)
    q = q.detach().half().requires_grad_()
    for lists in (drawn(5, 4, 2), drawn(5, 4)):  # followed key by key, and as a mask
        o, _ = agree(sparse_attention, q, k, v, lists, relative=1e-3)
        assert o.dtype == torch.float16


@pytest.mark.parametrize("scale", [0.0, -0.7])
def test_scales(scale):
    for lists in (drawn(6, 4, 2), drawn(6, 4)):
        agree(sparse_attention, *make(6), lists, scale=scale)
    agree(block_attention, *make(6), torch.zeros(1, 6, 1, dtype=torch.int32, device=DEVICE), 16, scale=scale)


def bounds(*lengths):
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0)


def test_packed_sequences_read_their_own_keys():
    """Several may lie in one slot of a block's size, and their blocks begin anywhere."""
    q, k, v = make(16, 42)
    cu = {"cu_seqlens": bounds(3, 0, 2, 9, 2), "cu_seqlens_k": bounds(3, 0, 4, 33, 2)}
    blocks = torch.tensor([2, 0, 1], dtype=torch.int32, device=DEVICE).expand(1, 16, 2, 3).clone()
    blocks[:, 5:14, 1, 1] = -1
    o, _ = agree(block_attention, q, k, v, blocks, 16, **cu)
    tokens = drawn(16, 3, of=3, holes=False)
    tokens[:, :3].masked_fill_(tokens[:, :3] > torch.arange(3, device=DEVICE)[None, :, None], -1)
    tokens[:, 14:].masked_fill_(tokens[:, 14:] > 1, -1)
    agree(sparse_attention, q, k, v, tokens, **cu)
    # alone, bit for bit
    part = [x.detach().clone().requires_grad_() for x in (q[:, 5:14], k[:, 7:40], v[:, 7:40])]
    alone = block_attention(*part, blocks[:, 5:14], 16, impl="triton")
    assert torch.equal(alone, o[:, 5:14])


def test_padded_caches():
    """What lies beyond a row's keys is nobody's business and gets no gradient."""
    q, k, v = make(3, 60, B=3)
    lengths = torch.tensor([60, 0, 21], device=DEVICE)
    blocks = drawn(3, 3, B=3, of=4, holes=False)
    o, gradients = agree(block_attention, q, k, v, blocks, 16, key_lengths=lengths)
    assert (o[1] == 0).all()
    with torch.no_grad():
        for x in (k, v):
            x[1], x[2, 21:] = torch.nan, torch.nan
    again = block_attention(q, k, v, blocks, 16, key_lengths=lengths, impl="triton")
    assert torch.equal(again, o)
    for a in torch.autograd.grad(again.sum(), (q, k, v)):
        assert a.isfinite().all()
    assert all((a[2, 21:] == 0).all() for a in gradients[1:])


def test_strided_inputs():
    packed = torch.randn(2, 9, 3, 2, 16, device=DEVICE)
    q, k, v = (x.detach().requires_grad_() for x in packed.unbind(2))
    agree(sparse_attention, q, k, v, drawn(9, 6, 4, B=2)[:, :, ::2])
    k, v = (torch.randn(2, 25, 16, 2, device=DEVICE).mT.requires_grad_() for _ in range(2))
    agree(block_attention, q, k, v, drawn(9, 2, B=2, of=2, holes=False).repeat(1, 1, 2)[..., ::2], 16)


@pytest.mark.parametrize("size", [0, 16])
def test_no_neighbour_and_no_room_at_the_end_touches_a_bit(size):
    attention, extra = (block_attention, (size,)) if size else (sparse_attention, ())
    leaves = make(3, 40, 2, 1)
    twice = [torch.cat([torch.randn_like(x), x.detach()]).requires_grad_() for x in leaves]
    lists, other = (drawn(3, 3 if size else 35, of=3 if size else 40) for _ in range(2))
    longer = [torch.nn.functional.pad(x, (0, 40), value=-1) for x in (other, lists)]
    o = attention(*leaves, lists, *extra, impl="triton")
    both = attention(*twice, torch.cat(longer), *extra, impl="triton")
    assert torch.equal(both[1:], o)
    g = torch.randn_like(o)
    got = torch.autograd.grad(both, twice, torch.cat([g, g]))
    for a, b in zip(torch.autograd.grad(o, leaves, g), got, strict=True):
        assert torch.equal(a, b[1:])


def test_nothing_to_do():
    q, k, v = make(4)
    none = torch.empty(1, 4, 0, dtype=torch.int32, device=DEVICE)
    for o in (sparse_attention(q, k, v, none, impl="triton"), block_attention(q, k, v, none, 16, impl="triton")):
        assert (o == 0).all()
        assert all((x == 0).all() for x in torch.autograd.grad(o.sum(), (q, k, v)))
    assert sparse_attention(q[:, :0], k, v, none[:, :0], impl="triton").shape == (1, 0, 4, 16)
    assert lightning_index(*indexer(4, B=0), 2, impl="triton").shape == (0, 4, 2)


def indexer(T, S=None, B=1, HI=3, DI=16, dtype=torch.float32):
    """Small integers, whose scores have no rounding and many equals."""
    shapes = ((B, T, HI, DI), (B, S or T, DI), (B, T, HI))
    return [torch.randint(-2, 3, shape, device=DEVICE).to(dtype) for shape in shapes]


def same_choice(q, k, w, topk, **options):
    with listening() as heard:
        got = lightning_index(q, k, w, topk, impl="triton", **options)
    assert heard == {"lightning_index": {"triton"}}
    assert got.dtype == torch.int32
    assert torch.equal(got, lightning_index(q.double(), k.double(), w.double(), topk, impl="chunked", **options))
    return got


@pytest.mark.parametrize("programs", [1, 4096])
@pytest.mark.parametrize(("T", "S", "topk"), [(1, 1, 1), (9, 9, 4), (5, 90, 7), (9, 9, 100), (1, 70, 70), (9, 150, 40)])
def test_the_choice(T, S, topk, programs, monkeypatch):
    """By programs that score a tile of keys or many."""
    monkeypatch.setattr(indexing, "PROGRAMS", programs)
    monkeypatch.setattr(indexing, "SIFTING", SMALL)
    same_choice(*indexer(T, S, B=2), topk, scale=0.5)


@pytest.mark.parametrize(("HI", "DI"), [(1, 8), (5, 24), (70, 16), (2, 256)])
def test_index_heads(HI, DI):
    same_choice(*indexer(3, 40, HI=HI, DI=DI), 6, scale=1.0)


def test_a_choice_by_scores_that_differ_in_all_bits():
    q, k, w = indexer(6, 80)
    k, w = k + torch.rand_like(k), torch.randn_like(w)
    for scale in (None, 1e-30, -1e4):
        same_choice(q, k, w, 9, scale=scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16])
def test_16_bit_indexers(dtype):
    q, k, w = indexer(7, 50, DI=32, dtype=dtype)
    assert torch.equal(same_choice(q, k, w, 6, scale=0.25), same_choice(q, k, w.float(), 6, scale=0.25))


def test_nan_counts_as_the_largest():
    q, k, w = indexer(12, 40)
    k[0, 17], w[0, 5], q[0, 7] = torch.nan, torch.nan, -torch.nan
    got, want = (lightning_index(q, k, w, 6, impl=impl) for impl in ("triton", "reference"))
    assert torch.equal(got, want)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's, of NaN masked out
def test_a_head_that_is_not_there_scores_nothing():
    """Tiles hold a power of two of heads: those past HI would make NaN of an infinite key, which is the largest."""
    q, k, w = (torch.rand(shape, device=DEVICE) + 0.1 for shape in ((1, 3, 9, 8), (1, 40, 8), (1, 3, 9)))
    k[0, 5] = -torch.inf  # ReLU makes 0 of it
    got, want = (lightning_index(q, k, w, 6, impl=impl) for impl in ("triton", "reference"))
    assert torch.equal(got, want)
    assert not (got == 5).any()


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_of_equal_scores_the_earlier_keys_are_taken(sign):
    """ReLU makes a plateau of zeros, of -0.0 under negative weights, and here all scores are on it but three."""
    q, k, w = (torch.ones(1, 40, 2, 4), -torch.ones(1, 40, 4), torch.full((1, 40, 2), sign))
    k[0, [3, 11, 30]] = 1.0
    last = same_choice(q.to(DEVICE), k.to(DEVICE), w.to(DEVICE), 5)[0, -1].tolist()
    assert last == {1.0: [0, 1, 3, 11, 30], -1.0: [0, 1, 2, 4, 5], 0.0: [0, 1, 2, 3, 4]}[sign]


def test_order_of_numbers():
    """-0.0 is 0.0, and infinities and the smallest numbers have their places."""
    x = torch.tensor([-torch.inf, -3e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1e-30, 2.0, torch.inf], device=DEVICE)
    place = torch.zeros(1, 1, dtype=torch.int32, device=DEVICE), torch.full((1, 1), 9, device=DEVICE)
    for order in (list(range(10)), list(range(9, -1, -1)), [3, 9, 0, 5, 4, 8, 1, 2, 6, 7]):
        for count in range(1, 10):
            want = x[order].sort(descending=True, stable=True).indices[:count].sort().values
            assert chosen(x[order], *place, count) == want.tolist()


def chosen(scores, first, position, topk):
    """Of the scores [S] of one query."""
    found = torch.empty(1, 1, topk, dtype=torch.int32, device=DEVICE)
    sift(scores, (first, position), found)
    return found[0, 0].tolist()


def sift(scores, place, found):
    """Launched as `sparse_index` does it."""
    launches, S = kernels.Launches(), len(scores)
    sieve = indexing.Sieve.of(S, found)
    indexing.sift(launches, sieve, (padded(scores), *place), found, (0, 1, 1, S))
    launches.run(("chosen", S, found.shape[-1]), found.device)
    return sieve


def padded(scores):
    """What stands behind them is nobody's business."""
    return torch.nn.functional.pad(scores, (0, -len(scores) % 4), value=torch.nan)


def sampled(S, COUNT=16, RUN=4):
    """Where `sample` looks."""
    return [i // RUN * S // COUNT * RUN + i % RUN for i in range(COUNT)]


@pytest.mark.parametrize("few", [0, 512])
@pytest.mark.parametrize("kind", ["random", "equal", "few values", "rising", "seen high", "seen low", "infinite"])
def test_what_a_sample_says_changes_nothing(kind, few, monkeypatch):
    """Right, misled either way, or by a plateau that holds all that could be kept."""
    small = {"SAMPLE": 16, "FEW": few, "PART": 64, "SIFTING": SMALL}
    for name, value in small.items():
        monkeypatch.setattr(indexing, name, value)
    S = 300
    x = torch.randn(S, device=DEVICE)
    if kind == "equal":
        x = torch.zeros_like(x)
    elif kind == "few values":
        x = x.round()
    elif kind == "rising":
        x = x.sort().values
    elif kind == "infinite":
        x[::3], x[1::3] = torch.inf, -torch.inf
    elif kind != "random":
        x[sampled(S)] += 100 if kind == "seen high" else -100
    place = torch.zeros(1, 1, dtype=torch.int32, device=DEVICE), torch.full((1, 1), S - 1, device=DEVICE)
    for topk in (1, 5, 60, 250, 299, 300):
        want = x.sort(descending=True, stable=True).indices[:topk].sort().values
        assert chosen(x, *place, topk) == want.tolist(), (kind, topk)


def test_both_ways_to_choose_are_taken(monkeypatch):
    """By what the sample lets through, and by all where that misled: not one of them always."""
    small = {"SAMPLE": 16, "PART": 64, "SIFTING": SMALL}
    for name, value in small.items():
        monkeypatch.setattr(indexing, name, value)
    S, reached = 300, {}
    place = torch.zeros(1, 1, dtype=torch.int32, device=DEVICE), torch.full((1, 1), S - 1, device=DEVICE)
    for kind, shift in (("random", 0.0), ("seen high", 100.0)):
        x = torch.randn(S, device=DEVICE)
        x[sampled(S)] += shift
        found = torch.empty(1, 1, 40, dtype=torch.int32, device=DEVICE)
        sieve = sift(x, place, found)
        reached[kind] = int(sieve.sizes[0, :, 1].sum())
        assert (sieve.sizes[0, :, 0] >= 0).all()
    assert 40 <= reached["random"] < S
    assert reached["seen high"] < 40


def test_packed_padded_and_cached_sequences_choose_for_themselves(monkeypatch):
    q, k, w = indexer(20, 65)
    cu = {"cu_seqlens": bounds(5, 0, 9, 1, 5), "cu_seqlens_k": bounds(5, 0, 50, 1, 9)}
    packed = same_choice(q, k, w, 4, **cu)
    alone = same_choice(q[:, 5:14], k[:, 5:55], w[:, 5:14], 4)
    assert torch.equal(packed[:, 5:14], alone)
    monkeypatch.setattr(indexing, "ROOM", 7 * 65)  # of seven queries at a time
    assert torch.equal(same_choice(q, k, w, 4, **cu), packed)
    cache = torch.cat([k, torch.full_like(k[:, :6], torch.nan)], 1).repeat(3, 1, 1)
    lengths = torch.tensor([65, 0, 8], device=DEVICE)
    whole = lightning_index(q, k, w, 4, impl="triton")
    padded = lightning_index(*(q.repeat(3, 1, 1, 1), cache, w.repeat(3, 1, 1)), 4, key_lengths=lengths, impl="triton")
    assert torch.equal(padded[:1], whole)
    assert (padded[1] == -1).all()
    assert torch.equal(padded[2, 12:], lightning_index(q[:, 12:], k[:, :8], w[:, 12:], 4, impl="triton")[0])
    for cut in (1, 19):
        assert torch.equal(lightning_index(q[:, cut:], k, w[:, cut:], 4, impl="triton"), whole[:, cut:])


def test_a_row_alone_is_the_row_in_a_batch():
    q, k, w = (torch.randn_like(x) for x in indexer(12, 40, B=3))
    whole = lightning_index(q, k, w, 7, impl="triton")
    assert torch.equal(lightning_index(q, k, w, 7, impl="triton"), whole)
    for b, t in ((0, 11), (2, 3)):
        row = lightning_index(
            q[b : b + 1, t : t + 1], k[b : b + 1, : t + 29], w[b : b + 1, t : t + 1], 7, impl="triton"
        )
        assert torch.equal(row[0, 0], whole[b, t])


def test_the_ops_compile_without_a_break():
    q, k, v = make(6)
    blocks = torch.zeros(1, 6, 1, dtype=torch.int32, device=DEVICE)
    x = indexer(6)
    place = torch.zeros(1, 6, dtype=torch.long, device=DEVICE), torch.arange(6, device=DEVICE)[None]
    only = {"test_utils": ("test_schema", "test_faketensor")}
    torch.library.opcheck(kernels.sparse_index, (*x, *place, 3, 0.5), **only)
    torch.library.opcheck(kernels.sparse_forward, (q, k, v, blocks[:, :, None], *place, 16, 0.5), **only)

    def step(q, k, v):
        chosen = lightning_index(*x, 3, impl="triton")
        return sparse_attention(q, k, v, chosen, impl="triton") + block_attention(q, k, v, blocks, 16, impl="triton")

    o = torch.compile(step, fullgraph=True, backend="aot_eager")(q, k, v)
    assert torch.equal(o, step(q, k, v))
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), (q, k, v)) for y in (o, step(q, k, v))), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_run_is_named():
    q, k, v = make(4)
    blocks = torch.zeros(1, 4, 1, dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match=r"triton.*cannot run.*multiple of 16, not 24"):
        block_attention(q, k, v, blocks, 24, impl="triton")
    with listening() as heard:
        block_attention(q, k, v, blocks, 24)
    assert heard == {"block_attention": {"chunked"}}
    with pytest.raises(ValueError, match="head dims may reach 256, not 257"):
        sparse_attention(*make(4, K=257), blocks, impl="triton")
    with pytest.raises(ValueError, match=r"triton.*cannot run.*fp"):
        lightning_index(*indexer(4, dtype=torch.float64), 2, impl="triton")


COMPILE = """
import sys

import torch

from evalsuite_kernels import launches
from evalsuite_kernels.sparse import indexer as indexing
from evalsuite_kernels.sparse import triton as kernels
from evalsuite_kernels.sparse.places import Places

launches.Launches.run = no_gpu.compiled
T, HQ, H, K, topk, size = map(int, sys.argv[1:7])
dtype = getattr(torch, sys.argv[7])
q, k, v = (torch.zeros(1, T, n, K, dtype=dtype) for n in (HQ, H, H))
where = Places(torch.zeros(1, T, dtype=torch.long), torch.arange(T)[None], torch.full((1, T), T))
kernels.index(torch.zeros(1, T, 64, K, dtype=dtype), k[:, :, 0], torch.zeros(1, T, 64), topk, 1.0, where)
for lists, block_size in ((torch.zeros(1, T, 1, 16), 0), (torch.zeros(1, T, H, topk // size), size)):
    lists = lists.int()
    o, lse = kernels.sparse_forward(q, k, v, lists, *where[:2], block_size, 1.0)
    kernels.sparse_backward(o, q, k, v, o, lse, lists, *where[:2], block_size, 1.0)
"""


@pytest.mark.parametrize(("K", "dtype"), [(128, "bfloat16"), (256, "float32")])
def test_every_launch_compiles(K, dtype, tmp_path):
    """For Hopper without one, as it is called, within its shared memory."""
    T = 4096 if K == 128 else 256
    shared = printed(COMPILE, tmp_path, T, 32, 2, K, min(T, 2048), 64, dtype)
    assert len(shared) == 10
    assert max(shared) <= 227 << 10
