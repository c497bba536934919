"""Random weights in the published geometry: the right sizes, the whole path, and an honest label."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import JanusForConditionalGeneration

from codebook.store import CodebookStore
from core.errors import BadCodebook, BadModel
from engine.families.anole import random_model as anole_models
from engine.families.anole.random_model import random_anole
from engine.families.emu3 import random_model as emu3_models
from engine.families.emu3.random_model import random_emu3
from engine.families.janus import random_model
from engine.families.janus.random_model import GEOMETRIES, janus_config
from engine.families.liquid import random_model as liquid_models
from engine.families.liquid.random_model import random_liquid
from engine.families.vila_u import random_model as vila_u_models
from engine.families.vila_u.random_model import random_vila_u
from engine.families.vqgan import Vqgan
from engine.registry import find_model, load_model
from tests.support.families import tiny_anole
from tests.support.families.small_janus import shrink
from tests.support.serving import serving, settings_in, texts


@pytest.mark.parametrize(("name", "billions"), [("janus-pro-1b", 2.08), ("janus-pro-7b", 7.41)])
def test_the_geometry_is_the_published_one(name: str, billions: float) -> None:
    with torch.device("meta"):
        model = JanusForConditionalGeneration(janus_config(GEOMETRIES[name], random_model._processor()))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)


def billions(*modules: nn.Module) -> float:
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e9


def files_of(name: str) -> float:
    """Gigabytes of the published files by the geometry's count, each part in the precision that it has there."""
    meta, half = torch.device("meta"), torch.bfloat16
    if name == "emu3":  # without its VQ model
        emu3 = random_emu3(emu3_models.GEOMETRIES[name], meta, half)[0]
        return 4 * billions(emu3.model.text_model, emu3.lm_head)
    if name == "anole-7b":
        words = random_anole(anole_models.GEOMETRIES[name], meta, half)
        vq = words.model.model.vqmodel
        assert isinstance(words.pixels, Vqgan)
        return 2 * (billions(words.model) - billions(vq)) + 4 * billions(words.pixels)
    if name == "liquid-7b":
        return 2 * billions(random_liquid(liquid_models.GEOMETRIES[name], meta, half).model)
    return 2 * billions(random_vila_u(vila_u_models.GEOMETRIES[name], meta, half)[0])


@pytest.mark.parametrize(
    ("name", "gigabytes"), [("emu3", 34.0), ("anole-7b", 14.30), ("liquid-7b", 2 * 8.56), ("vila-u-7b", 13.5)]
)
def test_a_geometry_has_the_size_of_the_published_files(name: str, gigabytes: float) -> None:
    """See docs/results/geometries.md; of VILA-U its language model."""
    assert files_of(name) == pytest.approx(gigabytes, rel=0.01)


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


@pytest.mark.parametrize("changed", [{"num_hidden_layers": 3}, {"max_position_embeddings": 800}])
def test_a_store_of_another_geometry_s_weights_is_refused(
    changed: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = CodebookStore(tmp_path)
    monkeypatch.setitem(anole_models.GEOMETRIES, "anole-7b", (tiny_anole.TEXT, tiny_anole.VQ))
    for _ in range(2):
        model = load_model("random:anole-7b", "cpu", "float32")
        stored.initialise(model.base_codebook(), model.facts.shown())
    monkeypatch.setitem(anole_models.GEOMETRIES, "anole-7b", (tiny_anole.TEXT | changed, tiny_anole.VQ))
    other = load_model("random:anole-7b", "cpu", "float32")
    with pytest.raises(BadCodebook, match="another model needs another store"):
        stored.initialise(other.base_codebook(), other.facts.shown())
