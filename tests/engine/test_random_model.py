"""Random weights in the published geometry: the right sizes, the whole path, and an honest label."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import JanusForConditionalGeneration

from core.errors import BadModel
from engine.families.janus import random_model
from engine.families.janus.random_model import GEOMETRIES, janus_config
from engine.registry import find_model, load_model
from tests.support.families.small_janus import shrink
from tests.support.serving import serving, settings_in, texts


@pytest.mark.parametrize(("name", "billions"), [("janus-pro-1b", 2.08), ("janus-pro-7b", 7.41)])
def test_the_geometry_is_the_published_one(name: str, billions: float) -> None:
    with torch.device("meta"):
        model = JanusForConditionalGeneration(janus_config(GEOMETRIES[name], random_model._processor()))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)


def test_an_unknown_geometry_is_refused_by_name() -> None:
    with pytest.raises(BadModel, match="random:janus-pro-7b"):
        load_model("random:janus-pro-3b", "cpu", "float32")
    with pytest.raises(BadModel, match="no judges"):
        find_model("random:janus-pro-1b")


def test_a_server_of_random_weights_draws_and_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, "janus-pro-1b")
    with serving(settings_in(tmp_path, Path("random:janus-pro-1b"))) as server:
        assert server.http.get("/health/ready").json()["model"] == "random:janus-pro-1b"
        assert texts(server.png(guidance_scale=1.0))["model"] == "random:janus-pro-1b"


def test_the_same_name_gives_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, "janus-pro-1b")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    models = [load_model("random:janus-pro-1b", "cpu", "float32") for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(models[0].prompt_states(["a cat"])[0], models[1].prompt_states(["a cat"])[0])
    assert models[0].facts.model_hash == models[1].facts.model_hash
    assert models[0].kv_rows() >= 2
