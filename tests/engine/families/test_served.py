"""The tiny model of each family behind the whole server: streams of both APIs, previews, the halfway probe, compare."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from threading import Semaphore
from typing import Any

import pytest
import torch
from PIL import Image

from app import drawing
from app.server import chosen
from app.service import Engine
from codebook.router import HalfwayProbe, Router
from engine.image_result import PartialImage
from engine.registry import licence
from engine.runner.batch import RunningBatch
from tests.support.families.builders import BUILDERS
from tests.support.serving import PATIENCE_S, Server, publish_routed, serving, settings_in

PROMPT = {"prompt": "a red apple", "seed": 7}
PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"


@pytest.fixture(params=BUILDERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server whose images get a token a step: with lookahead, previews come in the order of right guesses."""
    torch.set_num_threads(1)
    model = BUILDERS[request.param](tmp_path / "ein Modell")
    with serving(settings_in(tmp_path / "home", model, SAFECB_LOOKAHEAD="1")) as server:
        assert server.service.engine.facts.family == request.param
        yield server


def streamed(
    server: Server, path: str, body: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, Any]]:
    """The events of a stream; the next part of the image waits until the one before is shown, so none is skipped."""
    scheduler, step, show = server.service.engine.scheduler, RunningBatch.step, drawing._preview
    allowed, left = Semaphore(scheduler._part), len(parts(server))

    def gated(batch: RunningBatch) -> object:
        assert allowed.acquire(timeout=PATIENCE_S)
        return step(batch)

    async def shown(engine: Engine, part: PartialImage) -> bytes | None:
        nonlocal left
        png, left = await show(engine, part), left - 1
        allowed.release(scheduler._part if left else 1000)
        return png

    with monkeypatch.context() as patch:
        patch.setattr(RunningBatch, "step", gated)
        patch.setattr(drawing, "_preview", shown)
        answer = server.post(path, body, Accept="text/event-stream")
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in answer.text.strip().split("\n\n")]
    return [(block["event"], json.loads(block["data"])) for block in blocks if "event" in block]


def parts(server: Server) -> range:
    """The steps after which an image on its way is shown."""
    scheduler = server.service.engine.scheduler
    return range(scheduler._part, scheduler._batch.steps, scheduler._part)


def opened(b64_png: str) -> Image.Image:
    image = Image.open(BytesIO(base64.b64decode(b64_png)))
    image.load()
    return image


def publish_probed(server: Server, routed: str) -> str:
    """A version that edits as `routed` does, not by its prompt but by a probe that fires halfway for every image."""
    store = server.service.store
    codebook = store.load(routed)
    edit = codebook.output
    assert edit is not None and edit.router is not None
    deaf = replace(edit.router, bias=torch.tensor([-99.0]))
    probes = Router(torch.zeros(1, edit.basis.shape[1]), torch.tensor([99.0]), torch.tensor([0]))
    probe = HalfwayProbe(server.service.engine.facts.tokens // 2, probes)
    draft = replace(codebook, version="draft", output=replace(edit, router=deaf, probe=probe))
    facts: dict[str, Any] = {"figures": {}, "gates": {}, "report": {}}
    return store.publish(draft, parent="v0", job="probed", round=1, fence=1, **facts).version


def test_a_family_is_served_as_any_other(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its licence is printed at the start; an image is previewed and streamed by both APIs."""
    assert any(licence(server.service.engine.facts.family) in line for line in chosen(server.service))
    side, (whole,) = server.service.engine.facts.image_size, server.draw().json()["images"]
    events = streamed(server, "/generate", PROMPT, monkeypatch)
    assert [name for name, _ in events] == ["queued", *["progress", "preview"] * len(parts(server)), "image"]
    assert events[-1][1] == whole
    shown = [opened(event["b64_png"]) for name, event in events if name == "preview"]
    assert {image.size for image in shown} == {opened(whole["b64_png"]).size} == {(side, side)}
    assert len({image.tobytes() for image in [*shown, opened(whole["b64_png"])]}) == len(shown) + 1
    body = PROMPT | {"stream": True, "partial_images": 3}
    events = streamed(server, "/v1/images/generations", body, monkeypatch)
    assert [name for name, _ in events] == [PARTIAL, PARTIAL, PARTIAL, COMPLETED]
    assert events[-1][1]["b64_json"] == whole["b64_png"]
    assert {opened(event["b64_json"]).tobytes() for _, event in events[:3]} <= {image.tobytes() for image in shown}
    check_versions(server, whole)


def check_versions(server: Server, whole: Mapping[str, Any]) -> None:
    """An edit of either table is compared, and a halfway probe has the image begin again under its expert."""
    pixel, routed = server.publish(1), publish_routed(server.service.store)
    probed = publish_probed(server, routed)
    for version, same in ((pixel, True), (routed, False)):
        body = server.post("/codebooks/compare", PROMPT | {"versions": ["v0", version]}).json()
        assert body["images"][0]["b64_png"] == whole["b64_png"]
        assert body["same_tokens"] == same and body["difference"]["pixels"] > 0
    edited, halfway = (server.draw(codebook=version).json()["images"][0] for version in (routed, probed))
    assert halfway["safety"]["edited"] and not whole["safety"]["edited"]
    assert opened(halfway["b64_png"]).tobytes() == opened(edited["b64_png"]).tobytes()
