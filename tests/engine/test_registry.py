"""Loading by name: Python's garbage collector rests meanwhile, and works again after a failure too."""

from __future__ import annotations

import gc

import pytest

from core.errors import BadModel
from engine import registry


def test_the_collector_rests_while_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[bool] = []

    def refuse(name: str) -> None:
        states.append(gc.isenabled())
        raise BadModel(name)

    monkeypatch.setattr(registry, "_random_family", refuse)
    for _ in range(2):
        with pytest.raises(BadModel):
            registry.load_model("random:nothing", "cpu", "float32")
    assert states == [False, False] and gc.isenabled()
