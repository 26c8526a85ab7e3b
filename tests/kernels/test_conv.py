"""short_convolution against torch's conv1d, and its state."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from evalsuite_kernels import short_convolution

IMPLS = ("reference", "chunked")


def make(T, B=2, D=5, W=4):
    return torch.randn(B, T, D).double(), torch.randn(D, W).double(), torch.randn(B, D, W - 1).double()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("T", [1, 2, 3, 4, 50])
@pytest.mark.parametrize("W", [1, 2, 4])
def test_it_is_a_causal_depthwise_convolution(impl, T, W):
    x, weight, S = make(T, W=W)
    y, final = short_convolution(x, weight, initial_state=S, output_final_state=True, impl=impl)
    stream = torch.cat([S, x.mT], -1)
    torch.testing.assert_close(y, F.conv1d(stream, weight[:, None], groups=5).mT, rtol=1e-12, atol=1e-12)
    assert torch.equal(final, stream[..., stream.shape[-1] - W + 1 :])


@pytest.mark.parametrize("impl", IMPLS)
def test_state_hand_over_at_any_split(impl):
    x, weight, S = make(9)
    want, last = short_convolution(x, weight, initial_state=S, output_final_state=True, impl=impl)
    for split in range(1, 9):
        state, outputs = S, []
        for part in (x[:, :split], x[:, split:]):
            y, state = short_convolution(part, weight, initial_state=state, output_final_state=True, impl=impl)
            outputs.append(y)
        assert torch.equal(torch.cat(outputs, 1), want)
        assert torch.equal(state, last)


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_sequences_are_separate_sequences(impl):
    lengths = [2, 0, 1, 6, 3]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    x, weight, _ = make(12, B=1)
    for S in (torch.randn(5, 5, 3).double(), None):
        y, final = short_convolution(x, weight, initial_state=S, output_final_state=True, cu_seqlens=bounds, impl=impl)
        for n, (a, b) in enumerate(pairwise(bounds)):
            past = None if S is None else S[n : n + 1]
            want, last = short_convolution(x[:, a:b], weight, initial_state=past, output_final_state=True, impl=impl)
            assert torch.equal(y[:, a:b], want)
            assert torch.equal(final[n : n + 1], last)


def test_no_future_token_touches_an_earlier_bit():
    x, weight, _ = make(20)
    before, _ = short_convolution(x, weight)
    for t in range(1, 20):
        changed = x.clone()
        changed[:, t:] += 1
        after, _ = short_convolution(changed, weight)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.equal(after[:, t:], before[:, t:])


def test_gradients():
    leaves = tuple(t.requires_grad_() for t in make(6, D=2))

    def f(x, weight, S):
        return short_convolution(x, weight, initial_state=S, output_final_state=True)

    assert torch.autograd.gradcheck(f, leaves)
    bounds = torch.tensor([0, 1, 1, 6])
    x, weight, _ = (t.detach().requires_grad_() for t in make(6, B=1, D=2))
    assert torch.autograd.gradcheck(lambda x, w: short_convolution(x, w, cu_seqlens=bounds)[0], (x, weight))


def test_half_precision_is_summed_in_fp32():
    x, weight, _ = make(30)
    x, weight = x.bfloat16(), weight.bfloat16()
    y, S = short_convolution(x, weight, output_final_state=True)
    exact, _ = short_convolution(x.float(), weight.float())
    assert S.dtype == torch.bfloat16
    assert torch.equal(y, exact.bfloat16())


def test_nothing_to_do():
    x, weight, S = make(0)
    y, final = short_convolution(x, weight, initial_state=S, output_final_state=True)
    assert y.shape == (2, 0, 5)
    assert torch.equal(final, S)
    y, final = short_convolution(x[:1], weight, cu_seqlens=torch.tensor([0, 0]), output_final_state=True)
    assert final.shape == (1, 5, 3)


def test_mistakes_are_named():
    x, weight, _ = make(8)
    with pytest.raises(ValueError, match=r"weight must have shape \[5, W\]"):
        short_convolution(x, weight[:3])
    with pytest.raises(ValueError, match="initial_state must have shape"):
        short_convolution(x, weight, initial_state=torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="unknown impl"):
        short_convolution(x, weight, impl="cuda")
    with pytest.raises(ValueError, match="cannot run here"):
        short_convolution(x, weight, impl="triton")


def test_what_is_remembered_of_bounds_serves_a_gradient_too() -> None:
    x, w, cu = torch.randn(1, 5, 3), torch.randn(3, 4, requires_grad=True), torch.tensor([0, 2, 5])
    with torch.inference_mode():  # whose tensors no gradient may need
        first, _ = short_convolution(x, w, cu_seqlens=cu)
    y, _ = short_convolution(x, w, cu_seqlens=cu)
    y.sum().backward()
    assert torch.equal(first, y.detach())
    cu[1] = 3  # the same tensor with other bounds
    assert not torch.equal(short_convolution(x, w, cu_seqlens=cu)[0], y)
    ours, theirs = (short_convolution(x, w, cu_seqlens=cu, impl=impl)[0] for impl in ("auto", "reference"))
    torch.testing.assert_close(ours, theirs)
