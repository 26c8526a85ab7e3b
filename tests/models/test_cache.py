"""The cache of packed sequences against one that appends token by token."""

import random

import pytest
import torch

from evalsuite.models.cache import HybridCache, KVLayer, Layout


@pytest.mark.parametrize("window", [None, 1, 3, 5])
def test_packed_tokens_are_kept_and_read_in_their_order(window: int | None) -> None:
    draw = random.Random(7)
    for _ in range(60):
        N = draw.randint(1, 4)
        layer, seen = KVLayer(window), [list[float]() for _ in range(N)]
        cache = HybridCache([layer], N, torch.device("cpu"))
        for _ in range(3):
            new = [draw.choice([0, 0, 1, 2, 4, 9]) for _ in range(N)]
            new[draw.randrange(N)] += 1  # a pass has a token
            fresh = [[draw.random() for _ in range(n)] for n in new]
            tokens = torch.tensor([x for part in fresh for x in part], dtype=torch.float64).view(1, -1, 1, 1)
            cu_seqlens = torch.tensor([0, *torch.tensor(new).cumsum(0).tolist()])
            keys = layer.extend(tokens, -tokens, Layout(torch.empty(0), cu_seqlens, cache))
            expected = [
                (old if window is None else old[max(0, len(old) - window + 1) :]) + part if part else []
                for old, part in zip(seen, fresh, strict=True)
            ]
            assert keys.cu_seqlens is not None
            assert keys.cu_seqlens.diff().tolist() == [len(part) for part in expected]
            assert keys.k.flatten().tolist() == [x for part in expected for x in part]
            assert torch.equal(keys.k, -keys.v)
            for old, part in zip(seen, fresh, strict=True):
                old.extend(part)
            cache.lengths = torch.tensor([len(old) for old in seen])


def test_a_layer_that_keeps_less_reads_by_its_own_places() -> None:
    wide, ring = KVLayer(), KVLayer(2)
    cache = HybridCache([wide, ring], 1, torch.device("cpu"))
    for tokens in (torch.arange(4.0), torch.arange(4.0, 6.0)):
        x = tokens.view(1, -1, 1, 1)
        layout = Layout(torch.empty(0), torch.tensor([0, len(tokens)]), cache)
        read = [layer.extend(x, x, layout).k.flatten().tolist() for layer in (wide, ring)]
        cache.lengths = cache.lengths + len(tokens)
    assert read == [[0, 1, 2, 3, 4, 5], [3, 4, 5]]
