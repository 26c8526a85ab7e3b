"""Faults as kernels have them, planted in the implementation "reference": all else of it stays right.

A comparison of `--kernels reference` with "chunked" then meets exactly one fault. The forms are patched where the
operators look them up, so that models, engine and runner run as always.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from evalsuite_kernels.delta import api as delta
from evalsuite_kernels.delta import chunked as delta_chunked
from evalsuite_kernels.linear import api as linear
from evalsuite_kernels.linear import chunked as linear_chunked
from evalsuite_kernels.sparse import api as sparse
from evalsuite_kernels.sparse import chunked as sparse_chunked

CHUNK = 64  # tokens between which a kernel keeps its state in memory
LETTER = {"state in bf16": "K", "gate off by one": "K", "topk one short": "D"}  # the layer type that each is in
FAULTS = tuple(LETTER)


def plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Make "reference" one of FAULTS, and otherwise the same as "chunked" in recurrences and sparse attention."""
    for api, right in ((delta, delta_chunked.chunked), (linear, linear_chunked.chunked)):
        monkeypatch.setitem(api.FORMS, "reference", _recurrence(right, fault))

    def index(q: Tensor, k: Tensor, weights: Tensor, topk: int, *rest: Any) -> Tensor:
        return sparse_chunked.index(q, k, weights, topk - (fault == "topk one short"), *rest)

    form = SimpleNamespace(index=index, attend=sparse_chunked.attend, attend_blocks=sparse_chunked.attend_blocks)
    monkeypatch.setitem(sparse.FORMS, "reference", form)


def _recurrence(right: Any, fault: str) -> Any:
    """The form, its state rounded between chunks, or each token with the gate of the one before."""

    def faulty(*tensors: Any) -> tuple[Tensor, Tensor]:
        *inputs, S = tensors
        g = inputs[3]
        if fault == "gate off by one" and g is not None and g.shape[1] > 1:
            inputs[3] = torch.cat([g[:, :1], g[:, :-1]], 1)
        if fault != "state in bf16":
            return right(*inputs, S)
        outputs = []
        for start in range(0, inputs[0].shape[1], CHUNK):
            part = [None if x is None else x[:, start : start + CHUNK] for x in inputs]
            o, S = right(*part, S.bfloat16().to(S.dtype))
            outputs.append(o)
        return torch.cat(outputs, 1), S.bfloat16().to(S.dtype)

    return faulty
