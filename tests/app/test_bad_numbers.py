"""Numbers that are none, through the running service: they stop its start, or are an error of their image alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.background import housekeeping as upkeep
from app.routes.generate import _event
from codebook.value import HeadEdit
from core.errors import BadModel
from core.settings import Settings
from engine.registry import open_model
from engine.runner.served import Served
from engine.unified.served_model import ServedModel
from tests.support.serving import Server, serving, settings_in, tiny_model, wait_for
from tests.support.supervised import Supervised
from tests.support.tiny import FEATURE_DIM

VISION, NORM, DECODER, HEAD = (
    "model.vision_model.encoder.layers.0.self_attn.q_proj.weight",
    "model.language_model.norm.weight",
    "model.vqmodel.decoder.conv_out.weight",
    "model.generation_head.vision_head.weight",
)
ALIGNER = "model.aligner.fc1.weight"
LARGEST = torch.finfo(torch.float32).max


def changed(folder: Path, key: str, change: Callable[[torch.Tensor], object]) -> Path:
    """The tiny model in `folder`, one of its weights changed in place."""
    model = tiny_model(folder)
    weights = load_file(model / "model.safetensors")
    change(weights[key])
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    return model


def plant(weight: torch.Tensor) -> None:
    weight.flatten()[3] = math.nan


@pytest.mark.fault("F01")
@pytest.mark.parametrize("key", [VISION, NORM, DECODER])
def test_a_weight_that_is_no_number_stops_the_start(key: str, tmp_path: Path, runs: list[Supervised]) -> None:
    model = changed(tmp_path / "a model", key, plant)
    run = Supervised(tmp_path / "home", model)
    runs.append(run)
    wait_for("the start is over", lambda: bool(run.addresses()) or run.process.poll() is not None)
    assert run.process.poll() == 2, run.output
    last = run.output.splitlines()[-1]
    assert "holds NaN or infinity" in last
    assert key in last and str(model) in last
    assert "Traceback" not in run.output


@pytest.mark.fault("F01")
@pytest.mark.parametrize(
    ("key", "part", "judge"),
    [(HEAD, "logits", "all"), (DECODER, "pixels", "all"), (ALIGNER, "verdict", "all"), (ALIGNER, "verdict", "off")],
)
def test_a_model_that_overflows_is_not_ready(key: str, part: str, judge: str, tmp_path: Path) -> None:
    """All its weights are finite, and its first image is not, or its verdict, which improve jobs need in any case."""
    model = changed(tmp_path / "a model", key, lambda weight: weight.fill_(LARGEST))
    with serving(settings_in(tmp_path / "home", model, SAFECB_JUDGE=judge), ready=False) as server:
        wait_for("the start is over", lambda: server.service.failure or server.service.is_open)
        failure = server.service.failure
        assert isinstance(failure, BadModel)
        assert part in str(failure) and str(model) in str(failure)
        assert server.http.get("/health/ready").status_code == 503


@pytest.fixture
def falling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, ServedModel]]:
    """A server, and its model: the tests plant NaN in it while it serves."""
    loaded: list[Served] = []

    def load(settings: Settings) -> Served:
        loaded.append(open_model(settings))
        return loaded[0]

    monkeypatch.setattr(upkeep, "EVERY_S", 0.05)
    with serving(settings_in(tmp_path / "a home", tiny_model(tmp_path / "a model")), load) as server:
        yield server, cast(ServedModel, loaded[0])


def break_vision(model: ServedModel) -> None:
    plant(cast(Any, model._parts.drawing.see).model.get_parameter(VISION))


def break_decoder(model: ServedModel) -> None:
    plant(cast(Any, model._parts.picture).args[0].decoder.conv_out.weight)


def strict(text: str) -> Any:  # noqa: ANN401 - JSON
    """The JSON in `text`; NaN and infinity, which Python would read, are none."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON: {text}")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.fault("F01")
@pytest.mark.parametrize(("broken", "part"), [(break_vision, "verdict"), (break_decoder, "pixels")])
@pytest.mark.parametrize("accept", ["application/json", "image/png", "text/event-stream"])
def test_an_image_that_comes_to_no_number_is_an_error(
    broken: Callable[[ServedModel], None],
    part: str,
    accept: str,
    falling: tuple[Server, ServedModel],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, model = falling
    before = server.draw(seed=1)
    assert before.status_code == 200 and not server.http.get("/traffic").json()["alert"]
    with torch.inference_mode():
        broken(model)
    answer = server.post("/generate", {"prompt": "a red apple", "seed": 2}, Accept=accept)
    if answer.headers["content-type"].startswith("text/event-stream"):
        events = [block.split("\n") for block in answer.text.strip().split("\n\n")]
        named = [lines[0].removeprefix("event: ") for lines in events]
        body = strict(events[-1][1].removeprefix("data: "))
        assert named[-1] == "error" and "image" not in named
    else:
        body = strict(answer.text)
        assert answer.status_code == 500
    assert (body["status"], body["type"]) == (500, "urn:safecb:problem:bad-number")
    assert part in body["detail"] and "seed 2" in body["detail"]
    traffic = strict(server.http.get("/traffic").text)
    assert (traffic["bad_numbers"], traffic["rest"], traffic["alert"]) == (1, 1, True)
    assert strict(server.http.get("/health/ready").text)["bad_numbers"] == 1
    wait_for("the alert is logged", lambda: "live traffic alert raised: 1 refused for NaN or infinity" in caplog.text)
    assert server.http.get("/flags").json() == []


@pytest.mark.fault("F01")
def test_a_version_that_overflows_fails_its_own_images_alone(falling: tuple[Server, ServedModel]) -> None:
    server, _ = falling
    base = server.service.store.load("v0")
    expected = server.png()
    away = torch.full((1, 1, FEATURE_DIM), LARGEST)
    edit = HeadEdit(torch.zeros(1, FEATURE_DIM, 1), torch.zeros(FEATURE_DIM), torch.ones(1, FEATURE_DIM, 1), away)
    store = server.service.store
    version = store.publish(
        replace(base, version="draft", output=edit), parent="v0", job="test", round=1, figures={}, gates={}, report={},
        images={}, fence=1,
    ).version  # fmt: skip
    refused = server.draw(codebook=version)
    assert refused.json()["type"] == "urn:safecb:problem:bad-number" and "logits" in refused.json()["detail"]
    assert not server.http.get("/traffic").json()["alert"]  # of another version than the active one
    compared = server.post("/codebooks/compare", {"prompt": "a red apple", "seed": 7, "versions": ["v0", version]})
    assert compared.status_code == 500 and version in compared.json()["detail"]
    assert server.png() == expected
    server.post(f"/codebooks/{version}/activate", {})
    assert server.http.get("/traffic").json()["alert"]


def test_an_event_is_json_or_no_event() -> None:
    with pytest.raises(ValueError, match="JSON"):
        _event("image", {"safety": {"score": math.nan}})
