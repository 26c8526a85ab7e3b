"""Layer by layer, what other kernels make of the same hidden states: where a difference begins, what comes of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evalsuite.models.own import OwnModel

# Relative error of a hidden state that rounding explains, measured between our own kernels (tests/models) with room.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
TAIL = 8  # tokens at a prompt's end that are read one by one, as in decoding


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far two kernels are apart behind one layer, over all tokens of one prompt.

    Relative errors are of the worst token: the norm of the difference of its hidden states, over the root mean square
    of all tokens' norms. Equal bits give exactly 0; a state that is not finite gives infinity.
    """

    layer: int
    letter: str
    own: float  # relative, where the layer reads the hidden states that the first kernels made: its own doing
    largest: float  # the same, of single numbers, not relative
    carried: float  # relative, where each kernel reads what it made itself: with all that came before


def tolerance(model: OwnModel) -> float:
    """The relative error of one layer that rounding in the weights' dtype explains."""
    return TOLERANCE[model.model.dtype]


@torch.inference_mode()
def layer_errors(one: OwnModel, other: OwnModel, prompt: Sequence[int]) -> list[LayerError]:
    """Every layer's errors on one prompt's tokens, read in two parts and then one token after the other."""
    inputs, states = _trace(one, prompt)
    _, alone = _trace(other, prompt, given=inputs)
    _, carried = _trace(other, prompt)
    return [
        LayerError(
            layer,
            one.model.config.pattern[layer],
            _relative(states[layer], alone[layer]),
            _finite((states[layer].double() - alone[layer].double()).abs().max()),
            _relative(states[layer], carried[layer]),
        )
        for layer in range(len(states))
    ]


def _relative(a: Tensor, b: Tensor) -> float:
    """States [T, hidden]."""
    apart = (a.double() - b.double()).norm(dim=-1).max()
    size = a.double().norm(dim=-1).square().mean().sqrt()
    return _finite(apart / size.clamp(min=1e-300)) if bool(apart != 0) else 0.0


def _finite(x: Tensor) -> float:
    return float(x.nan_to_num(torch.inf, torch.inf, torch.inf))


def _trace(model: OwnModel, prompt: Sequence[int], given: list[Tensor] | None = None) -> tuple[list[Tensor], ...]:
    """The hidden states [T, hidden] before and behind every layer; with `given`, layers read those instead."""
    net = model.model.model
    tokens = torch.tensor(list(prompt), dtype=torch.long, device=model.model.device)
    cache = net.new_cache(1)
    with _watched(net.layers, given) as seen, model.computing():
        for start, stop in _pieces(len(prompt), alone=model.kernels == "recurrent"):
            seen.start = start
            bounds = None if stop - start == 1 else torch.tensor([0, stop - start])
            net(tokens[None, start:stop], cu_seqlens=bounds, cache=cache)
    return [torch.cat(each) for each in seen.inputs], [torch.cat(each) for each in seen.outputs]


def _pieces(length: int, *, alone: bool) -> list[tuple[int, int]]:
    tail = 0 if alone else max(0, length - TAIL)
    cuts = [0, *([tail // 2] if tail > 1 else []), *range(tail, length)] if tail else list(range(length))
    return list(zip(cuts, [*cuts[1:], length], strict=True))


class _Seen:
    """What went in and out of each layer, and the place of the tokens that are on their way."""

    def __init__(self, layers: int) -> None:
        self.start = 0
        self.inputs: list[list[Tensor]] = [[] for _ in range(layers)]
        self.outputs: list[list[Tensor]] = [[] for _ in range(layers)]


@contextmanager
def _watched(layers: Any, given: list[Tensor] | None) -> Iterator[_Seen]:
    seen, handles = _Seen(len(layers)), []

    def before(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x, *rest = args
        if given is not None:
            x = given[layer.layer][seen.start : seen.start + x.shape[1]][None]
        seen.inputs[layer.layer].append(x[0])
        return (x, *rest)

    def behind(layer: Any, _: Any, output: Tensor) -> None:
        seen.outputs[layer.layer].append(output[0])

    for layer in layers:
        handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(behind)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
