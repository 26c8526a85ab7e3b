"""Where a run is computed: what one process does with several models."""

import weakref
from pathlib import Path
from typing import Any

import pytest

from evalsuite import executors
from evalsuite.progress import Silent
from evalsuite.ranks import World


class Named:
    wording = "terse"

    def __init__(self, name: str) -> None:
        self.name = name


def test_a_model_is_gone_before_the_next_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two large checkpoints need not fit side by side."""
    seen: list[weakref.ref[Any]] = []

    def load(spec: str, **_: str) -> Any:
        assert all(one() is None for one in seen)
        model = Named(spec)
        seen.append(weakref.ref(model))
        return model

    monkeypatch.setattr(executors.models, "load", load)
    monkeypatch.setattr(executors.runner, "run", lambda model, made, out, **_: model.name)
    asked = {"names": ["multihop.graph"], "lengths": (256,), "limit": 1, "seed": 0, "settings": [], "data": []}
    done = executors.local(executors.Order(["a", "b", "c"], asked, "", str(tmp_path)), Silent(), World())
    assert list(done.runs) == ["a", "b", "c"]
