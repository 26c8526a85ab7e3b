"""Steps of decoding whose keys are scored, sifted and read without a list: on a GPU, or in Triton's interpreter."""

from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch

from evalsuite_kernels.arguments import listening
from evalsuite_kernels.sparse import block_attention, indexed_attention, lightning_index, sparse_attention, step_run
from evalsuite_kernels.sparse import indexer as indexing
from no_gpu import printed
from test_sparse_triton import DEVICE, indexer, sampled

KEYS = [
    "random",
    "equal",
    "few values",
    "rising",
    "seen high",
    "seen low",
    "a crowd",
    "not numbers",
    "zeros of both signs",
]


def keyed(kind, S):
    """Keys and weights of one head of dim 1, whose scores are as `kind` says."""
    x, sign = torch.randn(S, device=DEVICE).abs() + 0.1, 1.0
    if kind == "equal":
        x.fill_(2.0)
    elif kind == "few values":
        x = x.round()
    elif kind == "rising":
        x = x.sort().values
    elif kind == "seen high":
        x[sampled(S, RUN=1)] += 100
    elif kind == "seen low":
        x[sampled(S, RUN=1)] = 0.0
    elif kind == "a crowd":  # more of the largest than a part has room for
        x[130:190] += 10
    elif kind == "not numbers":
        x[::7], x[3::11], x[5::13] = torch.nan, torch.inf, -torch.inf
    elif kind == "zeros of both signs":
        x, sign = torch.where(torch.rand_like(x) < 0.5, -x, x * 0.0), -1.0
        x[S // 2 :: 5] = 1.0
    return x.view(1, S, 1), torch.full((1, 1, 1), sign, device=DEVICE)


SMALLER = {"SAMPLE": 16, "PART": 64, "LIMIT": 256, "MOST": 256, "TILE": 64}


@pytest.fixture
def small(monkeypatch):
    """Steps of a few hundred keys."""
    for name, value in SMALLER.items():
        monkeypatch.setattr(step_run, name, value)


def read(B, S, T=1, HQ=4, H=2, K=16, V=16):
    return [torch.randn(shape, device=DEVICE) for shape in ((B, T, HQ, K), (B, S, H, K), (B, S, H, V))]


def agrees(given, topk, exact=True, **options):
    """That o is what `chunked` makes in fp64 of the same choice."""
    with listening() as heard:
        got = indexed_attention(*given, topk, impl="triton", **options)
    assert heard == {"lightning_index": {"triton"}, "sparse_attention": {"triton"}}
    x = [y.double() for y in given] if exact else given
    want = indexed_attention(*x, topk, impl="chunked", **options)
    assert (got - want).abs().max() < 1e-5
    return got


@contextmanager
def kept(monkeypatch):
    """How many numbers of each row of the steps within it were above the sample's threshold."""
    found, whole = [], step_run.Launches.run

    def run(self, kind, device):
        by_name = {kernel.fn.__name__: args for kernel, _, args, _ in self.waiting}
        whole(self, kind, device)
        found.extend((by_name["attend"][8] & 0xFFFFFF).tolist())

    with monkeypatch.context() as patch:
        patch.setattr(step_run.Launches, "run", run)
        yield found


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("kind", KEYS)
def test_steps_that_make_no_list(kind, small):
    """Whatever the sample says."""
    S = 300
    k, w = keyed(kind, S)
    index = torch.ones(1, 1, 1, 1, device=DEVICE), k, w
    for topk in (1, 60, 120, 250):
        agrees([*read(1, S), *index], topk, exact=kind != "not numbers")


def test_both_ways_are_taken(small, monkeypatch):
    """By what the sample lets through, and by all scores where that is too little or too much: not one of them always;
    and of candidates the last may be many equal ones."""
    S, reached = 300, {}
    for kind in ("random", "seen high", "seen low", "a crowd", "equal"):
        k, w = keyed(kind, S)
        with kept(monkeypatch) as reached[kind]:
            agrees([*read(1, S), torch.ones(1, 1, 1, 1, device=DEVICE), k, w], 40)
    assert 40 <= reached["random"][0] <= 256
    assert 40 <= reached["a crowd"][0] <= 256
    assert reached["seen high"][0] < 40
    assert reached["seen low"][0] > 256
    assert reached["equal"] == [0], "a plateau is the threshold's own"
    x = torch.arange(S, device=DEVICE).float() % 5 + 0.5
    x[7::11] = 9.0
    one = torch.ones(1, 1, 1, 1, device=DEVICE)
    with kept(monkeypatch) as ties:
        agrees([*read(1, S), one, x.view(1, S, 1), one[0]], 40)
    assert 40 < ties[0] <= 256


@pytest.mark.parametrize(("high", "topk"), [(39, 40), (40, 40), (41, 40), (256, 256), (256, 9), (257, 9)])
def test_as_many_candidates_as_are_wanted_or_fit(high, topk, small, monkeypatch):
    """Or one more or less, beside a crowd that is exactly the sample's threshold."""
    S = 400
    others = torch.ones(S, dtype=torch.bool)
    others[sampled(S, RUN=1)] = False
    x = torch.full((S,), 0.5, device=DEVICE)
    x[others.nonzero().flatten()[:high]] = 1 + torch.rand(high, device=DEVICE)
    one = torch.ones(1, 1, 1, 1, device=DEVICE)
    with kept(monkeypatch) as found:
        agrees([*read(1, S), one, x.view(1, S, 1), one[0]], topk)
    assert found == [high]


@pytest.mark.parametrize("count", [0, 1, 32, 63, 64, 65, 129, 200])
def test_lengths_around_the_bounds_of_parts_and_tiles(count, small):
    """Of a row beside another, over a cache that holds anything beyond its keys."""
    given = [*read(2, 200), *(torch.randn_like(x) for x in indexer(1, 200, B=2))]
    plain = [x.clone() for x in given]
    for x in (given[1], given[2], given[4]):
        x[1, count:] = torch.nan
    lengths = torch.tensor([120, count], device=DEVICE)
    got = indexed_attention(*given, 5, key_lengths=lengths, impl="triton")
    assert torch.equal(got, agrees(plain, 5, key_lengths=lengths))


@pytest.mark.parametrize("topk", [9, 90])
def test_a_sequence_alone_is_the_sequence_in_a_batch(topk, small, monkeypatch):
    """To the bit: whatever stands beside it, however many at a time, and however long the cache is."""
    B, T, S = 5, 3, 300
    given = [*read(B, S, T), *(torch.randn_like(x) for x in indexer(T, S, B=B))]
    whole = agrees(given, topk)
    for b in (0, 3):
        assert torch.equal(agrees([x[b : b + 1] for x in given], topk), whole[b : b + 1])
    monkeypatch.setattr(indexing, "FEW", 7)  # rows at a time, of two sequences
    assert torch.equal(indexed_attention(*given, topk, impl="triton"), whole)
    longer = [torch.cat([x, torch.full_like(x[:, :100], torch.nan)], 1) if x.shape[1] == S else x for x in given]
    lengths = torch.full((B,), S, device=DEVICE)
    assert torch.equal(indexed_attention(*longer, topk, key_lengths=lengths, impl="triton"), whole)


def test_a_short_sequence_in_a_batch_is_the_sequence_alone(small):
    """To the bit: alone it is no step over so few keys, and reads a list."""
    given = [*read(2, 300), *(torch.randn_like(x) for x in indexer(1, 300, B=2))]
    both = indexed_attention(*given, 12, key_lengths=torch.tensor([300, 30], device=DEVICE), impl="triton")
    alone = [x[1:, :30] for x in given]
    assert torch.equal(both[1:], indexed_attention(*alone, 12, impl="triton"))


def test_what_is_not_chosen_may_be_no_number(small):
    given = [*read(1, 300), *(torch.randn_like(x) for x in indexer(1, 300))]
    want = agrees(given, 20)
    others = torch.ones(300, dtype=torch.bool, device=DEVICE)
    others[lightning_index(*given[3:], 20).flatten().long()] = False
    for x in given[1:3]:
        x[:, others] = torch.nan
    assert torch.equal(indexed_attention(*given, 20, impl="triton"), want)
    assert not torch.equal(want, indexed_attention(*given, 21, impl="triton"))


def test_packed_sequences_have_steps_of_their_own(small):
    given = [*read(1, 300, 3), *(torch.randn_like(x) for x in indexer(3, 300))]
    cu = {"cu_seqlens": torch.tensor([0, 1, 3]), "cu_seqlens_k": torch.tensor([0, 100, 300])}
    agrees(given, 20, **{name: x.to(DEVICE, torch.int32) for name, x in cu.items()})


def test_who_learns_reads_a_list(small):
    given = [*read(1, 300), *(torch.randn_like(x) for x in indexer(1, 300))]
    plain = indexed_attention(*given, 20, impl="triton")
    given[0].requires_grad_()
    o = indexed_attention(*given, 20, impl="triton")
    assert (o - plain).abs().max() < 1e-5
    (got,) = torch.autograd.grad(o.sum(), given[0])
    (want,) = torch.autograd.grad(indexed_attention(*given, 20, impl="chunked").sum(), given[0])
    assert (got - want).abs().max() < 1e-5


def test_what_does_not_fit_is_told():
    q, k, v = read(2, 30)
    index = indexer(1, 30, B=2)
    for wrong, message in (
        ((q, k, v, index[0][:1], *index[1:], 4), "index_q"),
        ((q, k, v, index[0], index[1][:, :9], index[2], 4), "index_k"),
        ((q, k, v, *index, 0), "topk"), ((q, k, v[:, :9], *index, 4), "v must have"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            indexed_attention(*wrong)


def test_the_step_compiles_without_a_break(small):
    given = [*read(1, 300), *indexer(1, 300)]
    only = {"test_utils": ("test_schema", "test_faketensor")}
    torch.library.opcheck(step_run.sparse_step, (*given, None, None, 7, 0.5, 0.5), **only)
    one = partial(indexed_attention, topk=7, impl="triton")
    assert torch.equal(torch.compile(one, fullgraph=True, backend="aot_eager")(*given), one(*given))


def test_few_rows_and_many_score_alike(monkeypatch):
    """To the bit: with as many queries as meet keys one by one, and with more, which meet them 64 at a time."""
    monkeypatch.setattr(indexing, "SAMPLE", 16)
    q, k, w = (torch.randn_like(x) for x in indexer(9, 100, HI=5))
    whole = lightning_index(q, k, w, 7, impl="triton")
    assert torch.equal(lightning_index(q[:, 7:], k, w[:, 7:], 7, impl="triton"), whole[:, 7:])
    monkeypatch.setattr(indexing, "FEW", 0)
    assert torch.equal(lightning_index(q[:, 8:], k, w[:, 8:], 7, impl="triton"), whole[:, 8:])


@pytest.mark.parametrize("attention", [sparse_attention, block_attention, indexed_attention])
def test_heads_may_stand_a_whole_sequence_apart(attention, small):
    """As in the cache of a long text that keeps each head's keys together: the third one begins 2^31 numbers later. On
    a CPU memory that nobody writes to takes no room."""
    S, far = 80, 2**30
    flat = torch.from_numpy(np.zeros(4 * far + 32 * S, np.float16)).to(DEVICE)  # room for a sum that wrapped around
    both = flat.as_strided((1, S, 3, 32), (flat.numel(), 32, far, 1), 2 * far)
    both.copy_(torch.randn(1, S, 3, 32))
    q, lists = torch.randn(1, 1, 3, 16, device=DEVICE).half(), torch.tensor([[[0, 1, 3]]], device=DEVICE)
    more = {sparse_attention: [lists], block_attention: [lists, 16], indexed_attention: [*indexer(1, S), 20]}[attention]
    apart = [q, both[..., :16], both[..., 16:]]
    want = attention(*(x.clone(memory_format=torch.contiguous_format) for x in apart), *more, impl="triton")
    assert torch.equal(attention(*apart, *more, impl="triton"), want)
    if attention is not indexed_attention:
        ways = [[x.requires_grad_() for x in (q, *given)] for given in (
            [x.detach() for x in apart[1:]], [x.detach().contiguous() for x in apart[1:]]
        )]  # fmt: skip
        apart, together = (torch.autograd.grad(attention(*way, *more, impl="triton").sum(), way) for way in ways)
        assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))


STEP = """
import sys

import torch

from evalsuite_kernels.full import descriptors
from evalsuite_kernels.launches import Launches
from evalsuite_kernels.sparse import step_run


def run(self, kind, device):
    for kernel, grid, args, options in self.waiting:
        made = kernel.warmup(*args, grid=grid, **options)
        lines = made.asm["ptx"].splitlines()
        wait = next(i for i, line in enumerate(lines) if "griddepcontrol.wait" in line)
        loads = [line for line in lines[:wait] if "ld.global" in line or "cp.async.c" in line and ".global" in line]
        print(kernel.fn.__name__, made.metadata.shared)
        print(kernel.fn.__name__, sum(".cg" not in line for line in loads))


Launches.run, descriptors._hopper = run, no_gpu.is_hopper
HQ, H, D, B, HI, DI = map(int, sys.argv[1:7])
dtype = getattr(torch, sys.argv[7])
q, k = torch.zeros(B, 1, HQ, D, dtype=dtype), torch.zeros(1, 16384, H, D, dtype=dtype).expand(B, -1, -1, -1)
index = torch.zeros(B, 1, HI, DI, dtype=dtype), torch.zeros(1, 16384, 128, dtype=dtype)[..., :DI].expand(B, -1, -1)
step_run.sparse_step(q, k, k, *index, torch.zeros(B, 1, HI), None, None, 64, 1.0, 1.0)
"""


@pytest.mark.parametrize(("of", "own"), [  # HQ, H, D, B, HI, DI, dtype
    ((64, 8, 128, 1, 4, 64, "bfloat16"), 4), ((16, 1, 256, 2, 8, 68, "float16"), 0),
    ((64, 8, 64, 9, 1, 32, "float32"), 4),
])  # fmt: skip
def test_every_launch_of_a_step_compiles(of, own, tmp_path):
    """And reads before it waits by the cache that all share, since another launch may have written it a moment ago; but
    a program's own scores. A copy of 8 bytes, as rows of 68 numbers take, cannot ask for that cache: it waits."""
    numbers = printed(STEP, tmp_path, *of)
    assert numbers[1::2] == [0, 0, own, 0, 0, 0]
    assert max(numbers[::2]) <= 227 << 10
