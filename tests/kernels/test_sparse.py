"""Sparse attention: what is chosen against brute force, what is read against masked full attention."""

import math

import pytest
import torch

from evalsuite_kernels import full_attention
from evalsuite_kernels.sparse import (
    NSA,
    block_attention,
    compressed_attention,
    index_blocks,
    index_loss,
    lightning_index,
    moba_blocks,
    nsa_blocks,
    selection_recall,
    sparse_attention,
)
from evalsuite_kernels.sparse import chunked as by_blocks

IMPLS = ["reference", "chunked"]
HEADS = [(1, 1), (4, 4), (6, 2)]  # of queries and of keys


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Of queries, so that several are walked over."""
    monkeypatch.setitem(by_blocks.ROOM, "cpu", 4000)


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


def indexer(T, S=None, B=1, HI=3, DI=8, dtype=torch.float64):
    return draw(B, T, HI, DI, dtype=dtype), draw(B, S or T, DI, dtype=dtype), draw(B, T, HI, dtype=dtype)


def attention(T, S=None, B=1, HQ=4, H=2, K=8, V=8, dtype=torch.float64):
    return draw(B, T, HQ, K, dtype=dtype), draw(B, S or T, H, K, dtype=dtype), draw(B, S or T, H, V, dtype=dtype)


def brute(q, k, w, topk, shift):
    """Plain Python over every pair: score, then the earlier key."""
    found = []
    for t in range(q.shape[0]):
        scores = []
        for s in range(t + shift + 1):
            total = sum(float(w[t, j]) * max(0.0, float(q[t, j] @ k[s])) for j in range(q.shape[1]))
            scores.append((-total, s))
        found.append({s for _, s in sorted(scores)[:topk]})
    return found


def sets(indices):
    return [{int(i) for i in row if i >= 0} for row in indices]


def masked(q, k, v, allowed, scale=None):
    """Full attention with a mask [B, T, HQ, S]; a query that sees nothing gives zeros."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    logits = torch.einsum("bthd,bshd->bths", q, k) * (scale or q.shape[-1] ** -0.5)
    weights = logits.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("bths,bshd->bthd", weights, v)


def mask_of(indices, S, HQ):
    lists = indices if indices.dim() == 4 else indices[:, :, None]
    allowed = torch.zeros(*lists.shape[:3], S + 1, dtype=torch.bool)
    allowed.scatter_(3, torch.where(lists >= 0, lists.long(), S), torch.tensor(True).expand(lists.shape))
    return allowed[..., :S].repeat_interleave(HQ // lists.shape[2], 2)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("T", "S", "topk"), [(1, 1, 1), (17, 17, 4), (5, 29, 7), (30, 30, 100), (1, 40, 8)])
def test_the_choice_is_that_of_brute_force(impl, T, S, topk):
    q, k, w = indexer(T, S)
    got = lightning_index(q, k, w, topk, impl=impl)
    assert got.shape == (1, T, min(topk, S))
    assert got.dtype == torch.int32
    assert sets(got[0]) == brute(q[0], k[0], w[0], topk, S - T)


@pytest.mark.parametrize("impl", IMPLS)
def test_lists_ascend_and_end_in_none(impl):
    got = lightning_index(*indexer(20), 6, impl=impl)[0]
    for t, row in enumerate(got.tolist()):
        there = [i for i in row if i >= 0]
        assert there == sorted(set(there))
        assert row == there + [-1] * (6 - len(there))
        assert len(there) == min(6, t + 1)
        assert max(there) <= t


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_of_equal_scores_the_earlier_keys_are_taken(impl, sign):
    """ReLU makes a plateau of zeros (of -0.0 under negative weights), and here all scores are on it but three."""
    q, k, w = torch.ones(1, 40, 2, 4), -torch.ones(1, 40, 4), torch.full((1, 40, 2), sign)
    k[0, [3, 11, 30]] = 1.0
    got = sets(lightning_index(q, k, w, 5, impl=impl)[0])
    assert got == brute(q[0], k[0], w[0], 5, 0)
    if sign > 0:
        assert got[39] == {0, 1, 3, 11, 30}
    elif sign < 0:
        assert got[39] == {0, 1, 2, 4, 5}
    else:
        assert got[39] == {0, 1, 2, 3, 4}


def test_a_thousand_replays_choose_the_same():
    q, k, w = indexer(24, dtype=torch.float32)
    k[0, 4:20] = k[0, 3]
    first = lightning_index(q, k, w, 6)
    assert all(torch.equal(lightning_index(q, k, w, 6), first) for _ in range(1000))


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_and_padded_sequences_choose_for_themselves(impl):
    lengths, q, k, w = [5, 0, 9, 1], *indexer(15)
    cu = torch.tensor([0, 5, 5, 14, 15])
    packed = lightning_index(q, k, w, 4, cu_seqlens=cu, impl=impl)
    for a, n in zip(cu.tolist(), lengths, strict=False):
        part = slice(a, a + n)
        if n:
            alone = lightning_index(q[:, part], k[:, part], w[:, part], 4, impl=impl)
            assert torch.equal(packed[:, part, : alone.shape[-1]], alone)
            assert (packed[:, part, alone.shape[-1] :] == -1).all()
    cache = torch.cat([k, torch.full((1, 6, 8), torch.nan, dtype=k.dtype)], 1)  # nobody has written there yet
    padded = lightning_index(q[:, -1:], cache, w[:, -1:], 4, key_lengths=torch.tensor([15]), impl=impl)
    assert torch.equal(padded, lightning_index(q, k, w, 4, impl=impl)[:, -1:])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_cached_prefix_changes_nothing(impl):
    """Chunked prefill, at any border, is the prefill at once; a decoded token is the prefill's last."""
    q, k, w = indexer(21)
    whole = lightning_index(q, k, w, 5, impl=impl)
    for cut in (1, 7, 20):
        assert torch.equal(lightning_index(q[:, cut:], k, w[:, cut:], 5, impl=impl), whole[:, cut:])
    later = k.clone()
    later[:, 12:] = 100 * torch.randn_like(later[:, 12:])
    assert torch.equal(lightning_index(q, later, w, 5, impl=impl)[:, :12], whole[:, :12])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("HQ", "H"), HEADS)
@pytest.mark.parametrize("G", [None, "H", "HQ"])
def test_it_is_full_attention_masked(impl, HQ, H, G):
    q, k, v = (x.requires_grad_() for x in attention(13, 19, 2, HQ, H))
    shape = (2, 13) if G is None else (2, 13, H if G == "H" else HQ)
    order = torch.rand(*shape, 19).argsort(-1)[..., :6].int()
    order[:, 3] = -1  # reads nothing
    order[:, 4, ..., 2:] = -1
    got = sparse_attention(q, k, v, order, impl=impl)
    want = masked(q, k, v, mask_of(order, 19, HQ))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert (got[:, 3] == 0).all()
    d = torch.randn_like(got)
    for a, b in zip(torch.autograd.grad(got, (q, k, v), d), torch.autograd.grad(want, (q, k, v), d), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_gradients_by_finite_differences():
    q, k, v = (x.requires_grad_() for x in attention(5, K=4, V=4))
    indices = lightning_index(*indexer(5), 3)
    assert torch.autograd.gradcheck(lambda q, k, v: sparse_attention(q, k, v, indices), (q, k, v))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_choice_of_everything_is_full_attention(impl):
    q, k, v = attention(23, dtype=torch.float32)
    everything = lightning_index(*indexer(23, dtype=torch.float32), 23, impl=impl)
    torch.testing.assert_close(
        sparse_attention(q, k, v, everything, impl=impl), full_attention(q, k, v, impl=impl), rtol=1e-5, atol=1e-6
    )


def test_packed_sequences_read_their_own_keys():
    q, k, v = attention(14)
    cu = torch.tensor([0, 6, 6, 14])
    x = indexer(14)
    got = sparse_attention(q, k, v, lightning_index(*x, 3, cu_seqlens=cu), cu_seqlens=cu)
    for part in (slice(0, 6), slice(6, 14)):
        alone = lightning_index(*(t[:, part] for t in x), 3)
        assert torch.equal(got[:, part], sparse_attention(q[:, part], k[:, part], v[:, part], alone))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("G", [None, 2, 4])
def test_blocks_are_their_causal_tokens(impl, G):
    q, k, v = attention(21, 27)
    shape = (1, 21) if G is None else (1, 21, G)
    blocks = torch.rand(*shape, 6).argsort(-1)[..., :3].int()  # of 5 tokens; some begin after the query
    blocks[:, 2, ..., 1:] = -1
    got = block_attention(q, k, v, blocks, 5, impl=impl)
    tokens = torch.arange(27)
    lists = blocks if G else blocks[:, :, None]
    allowed = (lists[..., None, :] == (tokens // 5)[:, None]).any(-1)
    allowed &= (tokens <= torch.arange(6, 27)[:, None])[None, :, None]
    torch.testing.assert_close(got, masked(q, k, v, allowed.repeat_interleave(4 // lists.shape[2], 2)))


def by_hand(scores, own, topk, forced):
    """scores of blocks 0 .. own; the forced ones, then the best, of equal ones the earlier."""
    forced = {n for n in forced if 0 <= n <= own}
    rest = sorted((-float(scores[n]), n) for n in range(own + 1) if n not in forced)
    return forced | {n for _, n in rest[: topk - len(forced)]}


def test_moba_reads_its_own_block_and_the_best_means():
    q, k, _ = attention(26)
    got = moba_blocks(q, k, 4, 3)
    for t in range(26):
        for h in range(4):
            means = [k[0, n * 4 : (n + 1) * 4, h // 2].mean(0) @ q[0, t, h] for n in range(t // 4)] + [0.0]
            assert sets(got[0, t])[h] == by_hand(means, t // 4, 3, {t // 4})


def test_an_indexer_of_blocks_takes_their_best_token():
    q, k = draw(1, 26, 2, 8), draw(1, 26, 8)
    got = index_blocks(q, k, 4, 4, initial=1, local=1)
    for t in range(26):
        for h in range(2):
            best = [
                max(float(k[0, s] @ q[0, t, h]) for s in range(n * 4, min(n * 4 + 4, t + 1))) for n in range(t // 4 + 1)
            ]
            assert sets(got[0, t])[h] == by_hand(best, t // 4, 4, {0, t // 4})


def test_nsa_sums_what_compressed_keys_were_given():
    T, length, stride, size = 40, 4, 2, 8
    M = (T - length) // stride + 1
    weights, position = torch.rand(1, T, 2, M, dtype=torch.float64), torch.arange(T)[None]
    got = nsa_blocks(weights, position, T, NSA(length, stride, size, topk=4))
    for t in range(T):
        for h in range(2):
            score = [
                sum(
                    float(weights[0, t, h, m])
                    for m in range(M)
                    for s in range(m * stride, m * stride + length)
                    if s // size == n
                )
                for n in range(t // size + 1)
            ]
            assert sets(got[0, t])[h] == by_hand(score, t // size, 4, {0, t // size, t // size - 1})


def test_compressed_keys_are_seen_when_their_last_token_is():
    T, length, stride, size = 26, 6, 3, 6
    M = (T - length) // stride + 1
    q, _, _ = attention(T)
    _, k, v = attention(M)
    leaves, position = [x.requires_grad_() for x in (q, k, v)], torch.arange(T)[None]
    sizes = NSA(length, stride, size, topk=4)
    o, blocks = compressed_attention(*leaves, position, T, sizes)
    seen = torch.arange(M) * stride + length - 1 <= torch.arange(T)[:, None]
    want = masked(*leaves, seen[None, :, None])
    torch.testing.assert_close(o, want)
    assert (o[:, : length - 1] == 0).all()
    logits = torch.einsum("bthd,bmhd->bthm", q, k.repeat_interleave(2, 2)) * 8**-0.5
    weights = logits.masked_fill(~seen[None, :, None], -torch.inf).softmax(-1).nan_to_num(0.0)
    assert torch.equal(blocks, nsa_blocks(weights.unflatten(2, (2, 2)).sum(3), position, T, sizes))
    d = torch.randn_like(o)
    for a, b in zip(torch.autograd.grad(o, leaves, d), torch.autograd.grad(want, leaves, d), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("choose", [moba_blocks, lambda q, k, *a, **o: index_blocks(q, k[:, :, 0], *a, **o)])
def test_blocks_of_packed_padded_and_continued_sequences(choose):
    q, k, _ = attention(22)
    cu = torch.tensor([0, 9, 9, 22])
    whole = choose(q, k, 4, 3, cu_seqlens=cu)
    for part in (slice(0, 9), slice(9, 22)):
        alone = choose(q[:, part], k[:, part], 4, 3)
        assert torch.equal(whole[:, part, :, : alone.shape[-1]], alone)
        assert torch.equal(choose(q[:, part][:, 5:], k[:, part], 4, 3), alone[:, 5:])
    cache = torch.cat([k, torch.full((1, 5, *k.shape[2:]), 1e3, dtype=k.dtype)], 1)
    last = choose(q[:, -1:], cache, 4, 3, key_lengths=torch.tensor([22]))
    assert torch.equal(last, choose(q, k, 4, 3)[:, -1:])


def divergence(q, k, iq, ik, w, indices=None):
    """`index_loss` of one unpacked sequence, written out."""
    T, group = q.shape[1], q.shape[2] // k.shape[2]
    seen = torch.ones(q.shape[0], T, T, dtype=torch.bool).tril()
    if indices is not None:
        seen = mask_of(indices, T, 1)[:, :, 0]
    logits = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(group, 2)) * q.shape[-1] ** -0.5
    p = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1).mean(1)
    scores = torch.einsum("bth,bths->bts", w, torch.einsum("bthd,bsd->bths", iq, ik).relu())
    scores = scores / math.sqrt(iq.shape[2] * iq.shape[3])
    logs = scores.masked_fill(~seen, -torch.inf).log_softmax(-1)
    return torch.where(seen, torch.xlogy(p, p) - p * logs.masked_fill(~seen, 0), 0).sum() / (p.shape[0] * T)


@pytest.mark.parametrize("sparse", [False, True])
def test_what_an_indexer_is_taught(sparse):
    q, k, _ = attention(17, B=2)
    leaves = [x.requires_grad_() for x in indexer(17, B=2)]
    indices = lightning_index(*leaves, 5) if sparse else None
    got, want = index_loss(q, k, *leaves, indices), divergence(q, k, *leaves, indices)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(3 * got, leaves), torch.autograd.grad(3 * want, leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_attention_owes_the_indexer_nothing():
    q, k, _ = (x.requires_grad_() for x in attention(9))
    loss = index_loss(q, k, *(x.requires_grad_() for x in indexer(9)))
    assert torch.autograd.grad(loss, (q, k), allow_unused=True) == (None, None)


def test_an_indexer_learns_what_attention_reads():
    """From chance to nearly all of it, by its own loss alone."""
    torch.manual_seed(0)
    q, k, _ = attention(64, HQ=1, H=1, K=4, dtype=torch.float32)
    q = 3 * q
    iq, ik, w = (x.requires_grad_() for x in indexer(64, HI=2, DI=8, dtype=torch.float32))
    before = selection_recall(q, k, lightning_index(iq, ik, w, 8)).mean()
    optimizer = torch.optim.Adam([iq, ik, w], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        index_loss(q, k, iq, ik, w).backward()
        optimizer.step()
    after = selection_recall(q, k, lightning_index(iq, ik, w, 8)).mean()
    assert before < 0.7
    assert after > 0.9


def test_recall_is_the_mass_that_is_covered():
    q, k, _ = attention(12)
    assert (selection_recall(q, k, lightning_index(*indexer(12), 12)) - 1).abs().max() < 1e-12
    alone = torch.arange(12, dtype=torch.int32)[None, :, None]
    p = torch.einsum("bthd,bshd->bths", q, k.repeat_interleave(2, 2)) * 8**-0.5
    p = p.masked_fill(~torch.ones(12, 12, dtype=torch.bool).tril()[:, None], -torch.inf).softmax(-1).mean(2)
    torch.testing.assert_close(selection_recall(q, k, alone)[0], p[0].diagonal())


@pytest.mark.parametrize("impl", IMPLS)
def test_nan_is_the_largest_and_hides_nothing(impl):
    q, k, w = torch.ones(1, 6, 1, 1), torch.arange(1.0, 7.0)[None, :, None], torch.ones(1, 6, 1)
    k[0, 2] = torch.nan
    got = sets(lightning_index(q, k, w, 2, impl=impl)[0])
    assert got == [{0}, {0, 1}, {1, 2}, {2, 3}, {2, 4}, {2, 5}]
    w[0, 5] = torch.nan
    assert sets(lightning_index(q, k, w, 2, impl=impl)[0])[5] == {0, 1}


def test_no_score_is_as_good_as_what_is_always_chosen():
    q, k = torch.full((1, 8, 1, 2), 100.0), torch.full((1, 8, 1, 2), 3e38)
    for choice in (moba_blocks(q, k, 2, 2), index_blocks(q, k[:, :, 0], 2, 2)):
        assert all(t // 2 in found for t, found in enumerate(sets(choice[0, :, 0])))
    q[0, 5] = torch.nan
    assert sets(moba_blocks(q, k, 2, 2)[0, 5])[0] == {0, 2}


def test_a_list_names_keys_of_its_own_sequence():
    q, k, v = attention(20)
    cu = torch.tensor([0, 10, 20])
    with pytest.raises(ValueError, match=r"indices of query 3 must lie in -1 .. 9, and one is 12"):
        sparse_attention(q, k, v, torch.full((1, 20, 1), -1).index_fill(1, torch.tensor(3), 12), cu_seqlens=cu)
    x, later = indexer(20), torch.full((1, 20, 1), 4)
    for run in (lambda: index_loss(q, k, *x, later), lambda: selection_recall(q, k, later)):
        with pytest.raises(ValueError, match=r"indices of query 0 must lie in -1 .. 0, and one is 4"):
            run()


def test_nothing_is_owed_where_nobody_learns():
    q, k, _ = attention(9)
    x = indexer(9)
    want = index_loss(q, k, *x)
    with torch.inference_mode():
        assert torch.equal(index_loss(q, k, *x), want)
    assert index_loss(q[:, :0], k[:, :0], *(t[:, :0] for t in x)) == 0
    o, blocks = compressed_attention(q[:, :0], k, k, torch.empty(1, 0, dtype=torch.long), 9, NSA(4, 2, 4, 4))
    assert o.shape == (1, 0, 4, 8)
    assert blocks.shape == (1, 0, 2, 4)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_keys_have_equal_scores_wherever_they_stand(impl, dtype):
    """A matrix product rounds its last columns otherwise, and would break the tie."""
    for S in (17, 101, 251):
        q, k, w = indexer(3, S, HI=4, DI=32, dtype=dtype)
        got = lightning_index(q, k[:, :1].expand_as(k), w, 7, impl=impl)
        assert got.tolist() == [[list(range(7))] * 3]


def test_nothing_is_chosen_for_nobody():
    assert lightning_index(*indexer(3, B=0), 2).shape == (0, 3, 2)


TOKENS = torch.zeros(1, 6, 2, dtype=torch.int32)


@pytest.mark.parametrize(("run", "message"), [
    (lambda q, k: lightning_index(*indexer(6), True), "topk must be a whole number"),
    (lambda q, k: lightning_index(*indexer(6, DI=0), 2), "index heads of dim 0"),
    (lambda q, k: lightning_index(*indexer(6), 2, cu_seqlens=[0, 6]), "cu_seqlens must be an integer tensor"),
    (lambda q, k: lightning_index(*indexer(6), 2, key_lengths=torch.tensor([2.5])), "key_lengths must be an integer"),
    (lambda q, k: full_attention(q, k, k, cu_seqlens=[0, 6]), "cu_seqlens must be an integer tensor"),
    (lambda q, k: full_attention(q, k, k, key_lengths=[6]), "key_lengths must be an integer tensor"),
    (lambda q, k: full_attention(q[..., :0], k[..., :0], k), "heads of dim 0"),
    (lambda q, k: sparse_attention(q[..., :0], k[..., :0], k, TOKENS), "heads of dim 0"),
    (lambda q, k: sparse_attention(q, k, k, None), "indices must be int32 or int64, not None"),
    (lambda q, k: block_attention(q, k, k, TOKENS, 2.5), "block_size must be a whole number"),
    (lambda q, k: block_attention(q, k, k, TOKENS + 3, 2), r"blocks of query 0 must lie in -1 .. 2, and one is 3"),
    (lambda q, k: moba_blocks(q, k, 2, 2.0), "topk must be a whole number"),
    (lambda q, k: index_blocks(q, k[:, :, 0], 2.0, 2), "block_size must be a whole number"),
    (lambda q, k: nsa_blocks(draw(1, 6, 2), torch.zeros(1, 6), 6, NSA()), r"weights must have shape \[B, T, H, M\]"),
    (lambda q, k: nsa_blocks(draw(1, 6, 2, 1), torch.zeros(6), 6, NSA()), r"position must have shape \[1, 6\]"),
    (lambda q, k: index_loss(q, k, *indexer(6, HI=0)), "index_q has 0 heads"),
    (lambda q, k: index_loss(q, k, *indexer(6), TOKENS.float()), "indices must be an integer tensor"),
    (lambda q, k: selection_recall(q, k, TOKENS.float()), "indices must be an integer tensor"),
    (lambda q, k: selection_recall(q, k, TOKENS[0]), r"indices must have shape \[1, 6, N\]"),
    (lambda q, k: selection_recall(q[:, :, :3], k, TOKENS), "no multiple of the 2 heads"),
])  # fmt: skip
def test_an_argument_that_does_not_fit_is_named(run, message):
    q, k, _ = attention(6)
    with pytest.raises(ValueError, match=message):
        run(q, k)


def test_mistakes_are_told():
    q, k, v = attention(6)
    with pytest.raises(ValueError, match=r"indices of query 0 must lie in -1 .. 5, and one is 6"):
        sparse_attention(q, k, v, torch.full((1, 6, 2), 6))
    with pytest.raises(ValueError, match="int32 or int64"):
        sparse_attention(q, k, v, torch.zeros(1, 6, 2))
    with pytest.raises(ValueError, match="3 lists"):
        sparse_attention(q, k, v, torch.zeros(1, 6, 3, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match="at least 1, not 0"):
        lightning_index(*indexer(6), 0)
    with pytest.raises(ValueError, match="topk = 2 must be at least 1 and hold 2 first and 1 last"):
        index_blocks(draw(1, 6, 2, 8), draw(1, 6, 8), 2, 2, initial=2, local=1)
    with pytest.raises(ValueError, match="cannot be the last of"):
        lightning_index(*indexer(6, 3), 2)
    with pytest.raises(ValueError, match="cannot run here"):
        sparse_attention(q, k, v, torch.zeros(1, 6, 2, dtype=torch.int32), impl="triton")
    with pytest.raises(ValueError, match="whole number"):
        lightning_index(*indexer(6), 2.5)
    with pytest.raises(ValueError, match="0 index heads"):
        lightning_index(*indexer(6, HI=0), 2)
    with pytest.raises(ValueError, match="block_size must be a whole number and at least 1"):
        moba_blocks(q, k, 0, 2)
    for run in (lambda x: moba_blocks(x, k, 2, 2), lambda x: index_loss(x, k, *indexer(6))):
        with pytest.raises(ValueError, match="no multiple of the 2 heads"):
            run(draw(1, 6, 3, 8))
    with pytest.raises(ValueError, match="NSA's stride must be"):
        nsa_blocks(draw(1, 6, 2, 3), torch.arange(6)[None], 6, NSA(4, 0, 4, 4))
