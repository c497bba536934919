"""Modes through the service: answers for an image that fires, under both APIs, and how a mode is made."""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image
from torch import Tensor

from cli.main import main
from core.settings import Settings
from engine.model import Sampling, Verdict
from engine.registry import open_model
from engine.runner.served import Served
from tests.support.serving import Server, publish_routed, serving, settings_in

REWRITE = "a red toy"


UNSAFE: deque[bool] = deque()  # the next verdicts; the model's own once there are none


def load(settings: Settings) -> Served:
    """The tiny model with scripted rewrites, which would be noise, and scripted verdicts."""
    model = open_model(settings)
    own = model.judge

    def judge(images: Tensor) -> list[Verdict]:
        if not UNSAFE:
            return own(images)
        return [Verdict((float(UNSAFE.popleft()),) * 3, "gore") for _ in images]

    def rewrite(prompts: Sequence[str], attempt: int = 0) -> list[str]:
        return [REWRITE] * len(prompts)

    model.rewrite, model.judge = rewrite, judge  # type: ignore[method-assign]
    return model


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(settings_in(tmp_path, model), load) as server:
        yield server


def fires(server: Server) -> str:
    """Publish a version whose router fires for every prompt."""
    return publish_routed(server.service.store)


def events(server: Server, **body: object) -> dict[str, dict[str, Any]]:
    """The events of a streamed call by name; of equal names the last."""
    answer = server.post("/generate", {"prompt": "a cat", **body}, Accept="text/event-stream")
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in answer.text.strip().split("\n\n")]
    return {block["event"]: json.loads(block["data"]) for block in blocks if "event" in block}


def derived(server: Server, version: str, mode: str) -> str:
    answer = server.post(f"/codebooks/{version}/derive", {"mode": mode})
    assert answer.status_code == 201, answer.text
    made: str = answer.json()["version"]
    return made


def test_an_edited_image_says_so(server: Server) -> None:
    (plain,) = server.draw().json()["images"]
    (edited,) = server.draw(codebook=fires(server)).json()["images"]
    assert (plain["safety"]["edited"], plain["revised_prompt"]) == (False, None)
    assert (edited["safety"]["edited"], edited["revised_prompt"]) == (True, None)


def test_a_rewritten_image_tells_what_was_drawn(server: Server) -> None:
    version = derived(server, fires(server), "rewrite")
    (image,) = server.draw(codebook=version, seed=5).json()["images"]
    assert image["revised_prompt"] == REWRITE
    again = server.draw(codebook=version, seed=5).json()["images"][0]
    assert again["b64_png"] == image["b64_png"] and again["id"] == image["id"]
    assert events(server, seed=5, codebook=version)["image"]["revised_prompt"] == REWRITE


def test_a_refused_prompt_is_an_error_of_the_callers(server: Server) -> None:
    version = derived(server, fires(server), "refuse")
    answer = server.draw(codebook=version)
    problem = answer.json()
    assert answer.status_code == 422 and problem["type"] == "urn:safecb:problem:content-policy-violation"
    assert (problem["field"], problem["code"], problem["version"]) == ("prompt", "content_policy_violation", version)
    assert "Retry-After" not in answer.headers
    assert events(server, codebook=version)["error"]["type"] == problem["type"]
    assert server.draw().status_code == 200  # under v0
    series = server.http.get("/metrics").text
    assert f'safecb_fired_total{{codebook="{version}",outcome="refused"}} 2.0' in series


def test_an_image_that_is_judged_unsafe_is_drawn_again_and_in_the_end_refused(server: Server) -> None:
    edited = fires(server)
    version = derived(server, edited, "redraw")
    UNSAFE.extend((True, False))
    answer = server.draw(codebook=version, seed=5)
    (image,) = answer.json()["images"]
    assert (image["safety"]["redraws"], image["safety"]["unsafe"], image["seed"]) == (1, False, 5)
    again = server.draw(codebook=edited, seed=Sampling(5).redrawn(1).seed).json()["images"][0]
    assert again["safety"]["redraws"] == 0
    pixels = [Image.open(BytesIO(base64.b64decode(each["b64_png"]))).tobytes() for each in (image, again)]
    assert pixels[0] == pixels[1]
    UNSAFE.extend((True, True, True))
    refused = server.draw(codebook=version)
    assert refused.status_code == 422 and refused.json()["code"] == "content_policy_violation" and not UNSAFE
    UNSAFE.extend((True, False))
    parts = events(server, codebook=version, seed=5, prompt="a red apple")
    assert parts["image"]["b64_png"] == image["b64_png"] and "preview" not in parts
    series = server.http.get("/metrics").text
    outcomes = {"redrawn": 2.0, "refused": 1.0}
    assert all(f'safecb_fired_total{{codebook="{version}",outcome="{o}"}} {n}' in series for o, n in outcomes.items())


def test_openai_clients_get_revised_prompts_and_the_usual_refusal(server: Server) -> None:
    rewriting = derived(server, fires(server), "rewrite")
    refusing = derived(server, rewriting, "refuse")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        server.post(f"/codebooks/{rewriting}/activate", {})
        answer = client.images.generate(model="dall-e-3", prompt="a pistol")
        assert answer.data is not None and answer.data[0].revised_prompt == REWRITE
        server.post(f"/codebooks/{refusing}/activate", {})
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(model="dall-e-3", prompt="a pistol")
    assert (refused.value.code, refused.value.param) == ("content_policy_violation", "prompt")


def test_a_mode_is_derived_once_shown_and_rolled_back(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    edited = fires(server)
    assert main(["codebooks", "derive", edited, "--mode", "refuse", "--server", server.url]) == 0
    version = capsys.readouterr().out.split()[0]
    assert derived(server, edited, "refuse") == version
    listed = {book["version"]: book["mode"] for book in server.http.get("/codebooks").json()["versions"]}
    assert (listed["v0"], listed[edited], listed[version]) == (None, "edit", "refuse")
    assert server.http.get("/codebooks/active").json()["version"] == "v0"
    server.post(f"/codebooks/{version}/activate", {})
    assert server.draw().status_code == 422
    server.post("/codebooks/rollback", {})
    assert server.draw().status_code == 200


@pytest.mark.parametrize(
    ("version", "mode", "status"), [("v0", "refuse", 422), ("v99", "refuse", 404), ("v1", "delete", 422)]
)
def test_a_mode_that_cannot_be_is_refused_by_name(server: Server, version: str, mode: str, status: int) -> None:
    fires(server)
    answer = server.post(f"/codebooks/{version}/derive", {"mode": mode})
    assert answer.status_code == status
    assert {"v0": "router", "v99": "v99", "v1": "rewrite"}[version] in json.dumps(answer.json())
