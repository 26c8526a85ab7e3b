"""Fixtures of the operators' tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    """Memory that was never written reads as NaN, so that nobody lives off what a fresh page happens to hold."""

    def poison(place, name):
        make = getattr(place, name)

        def poisoned(*args, **kwargs):
            x = make(*args, **kwargs)
            return x.fill_(torch.nan) if x.is_floating_point() and not x.requires_grad else x

        monkeypatch.setattr(place, name, poisoned)

    for place, name in ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty")):
        poison(place, name)
    torch.manual_seed(0)
