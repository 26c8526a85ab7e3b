"""Few queries of an indexer, whose keys are scored and sifted at once: on a GPU, or in Triton's interpreter."""

import pytest
import torch

from evalsuite_kernels.sparse import indexer as indexing
from evalsuite_kernels.sparse import lightning_index
from no_gpu import printed
from test_sparse_triton import DEVICE, SMALL, indexer, sampled

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
        x[sampled(S)] += 100
    elif kind == "seen low":
        x[sampled(S)] = 0.0
    elif kind == "a crowd":  # more of the largest than a part has room for
        x[130:190] += 10
    elif kind == "not numbers":
        x[::7], x[3::11], x[5::13] = torch.nan, torch.inf, -torch.inf
    elif kind == "zeros of both signs":
        x, sign = torch.where(torch.rand_like(x) < 0.5, -x, x * 0.0), -1.0
        x[S // 2 :: 5] = 1.0
    return x.view(1, S, 1), torch.full((1, 1, 1), sign, device=DEVICE)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("kind", KEYS)
def test_programs_that_sift_what_they_score(kind, monkeypatch):
    """Whatever the sample says."""
    small = {"SAMPLE": 16, "PART": 64, "SIFTING": SMALL}
    for name, value in small.items():
        monkeypatch.setattr(indexing, name, value)
    S = 300
    k, w = keyed(kind, S)
    q = torch.ones(1, 1, 1, 1, device=DEVICE)
    for topk in (1, 60, 250):
        got, want = (lightning_index(q, k, w, topk, impl=impl) for impl in ("triton", "chunked"))
        assert torch.equal(got, want), topk


@pytest.mark.parametrize("count", [0, 1, 32, 63, 64, 65, 129, 200])
def test_lengths_around_the_bounds_of_parts_and_tiles(count, monkeypatch):
    """Of a row beside another, over a cache that holds anything beyond its keys."""
    small = {"SAMPLE": 16, "PART": 64, "SIFTING": SMALL}
    for name, value in small.items():
        monkeypatch.setattr(indexing, name, value)
    q, k, w = (torch.randn_like(x) for x in indexer(1, 200, B=2))
    k[1, count:] = torch.nan
    lengths = torch.tensor([120, count], device=DEVICE)
    got, want = (
        lightning_index(*(x.to(dtype) for x in (q, k, w)), 5, key_lengths=lengths, impl=impl)
        for impl, dtype in (("triton", torch.float32), ("chunked", torch.float64))
    )
    assert torch.equal(got, want)


def test_few_rows_and_many_score_alike(monkeypatch):
    """To the bit: with as many queries as meet keys one by one, and with more, which meet them 64 at a time."""
    monkeypatch.setattr(indexing, "SAMPLE", 16)
    q, k, w = (torch.randn_like(x) for x in indexer(9, 100, HI=5))
    whole = lightning_index(q, k, w, 7, impl="triton")
    assert torch.equal(lightning_index(q[:, 7:], k, w[:, 7:], 7, impl="triton"), whole[:, 7:])
    monkeypatch.setattr(indexing, "FEW", 0)
    assert torch.equal(lightning_index(q[:, 8:], k, w[:, 8:], 7, impl="triton"), whole[:, 8:])


STEP = """
import sys

import torch

from evalsuite_kernels import launches
from evalsuite_kernels.full import descriptors
from evalsuite_kernels.sparse import triton as kernels

launches.Launches.run = no_gpu.compiled
descriptors._hopper = no_gpu.is_hopper
HI, D, S = map(int, sys.argv[1:4])
dtype = getattr(torch, sys.argv[4])
kernels.index(torch.zeros(1, 1, HI, D, dtype=dtype), torch.zeros(1, S, D, dtype=dtype), torch.zeros(1, 1, HI), 64, 1.0,
              None)
"""


@pytest.mark.parametrize(("HI", "S", "count"), [(4, 16384, 4), (4, 8192, 2), (64, 16384, 4)])
def test_every_launch_of_a_step_compiles(HI, S, count, tmp_path):
    """With a sample of many keys, without one of fewer, and for heads that meet keys side by side."""
    shared = printed(STEP, tmp_path, HI, 128, S, "bfloat16")
    assert len(shared) == count
    assert max(shared) <= 227 << 10
