"""The shapes of /v1 against the classes of OpenAI's client, and what other clients send."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types import Image, ImageGenCompletedEvent, ImageGenPartialImageEvent, Model
from openai.types.image_generate_params import ImageGenerateParamsBase
from openai.types.images_response import ImagesResponse as TheirResponse
from openai.types.images_response import Usage as TheirUsage

from app.openai.schemas import (
    CompletedEvent,
    ImageData,
    ImagesRequest,
    ImagesResponse,
    ModelCard,
    PartialImageEvent,
    Usage,
)
from tests.support.serving import Server, serving, settings_in

OURS = {"seed", "guidance_scale", "temperature", "top_k", "top_p"}
NOT_OFFERED = {"complexity", "frame_count", "frame_duration_ms", "svg"}  # moving and vector images
ABSENT = {TheirResponse: {"quality", "svg_usage"}}  # fields of theirs that have no true value here
CLIENTS: dict[str, dict[str, Any]] = {
    "Open WebUI": {"model": "dall-e-2", "prompt": "a red apple", "n": 1, "size": "512x512",
                   "response_format": "b64_json"},
    "LibreChat": {
        "model": "gpt-image-1", "prompt": "a red apple", "quality": "auto", "size": "1024x1024", "background": "auto",
        "n": 1,
    },
    "n8n": {"model": "dall-e-3", "prompt": "a red apple", "quality": "hd", "size": "1792x1024", "style": "natural",
            "response_format": "url"},
    "LangChain": {"model": "dall-e-3", "prompt": "a red apple", "n": 1, "size": "1024x1024", "style": "vivid",
                  "quality": "standard", "response_format": "url"},
    "LiteLLM": {"model": "gpt-image-1", "prompt": "a red apple", "n": 2, "user": "someone", "response_format": None},
    "Newelle": {"model": "gpt-image-1", "prompt": "a red apple", "size": "1024x1024", "output_format": "jpeg",
                "moderation": "low"},
}  # fmt: skip


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(settings_in(tmp_path_factory.mktemp("home"), model)) as server:
        yield server


def test_the_request_has_each_of_their_fields() -> None:
    theirs = set(typing.get_type_hints(ImageGenerateParamsBase)) | {"stream", "partial_images"}
    assert set(ImagesRequest.model_fields) == theirs - NOT_OFFERED | OURS


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ImagesResponse, TheirResponse),
        (ImageData, Image),
        (Usage, TheirUsage),
        (PartialImageEvent, ImageGenPartialImageEvent),
        (CompletedEvent, ImageGenCompletedEvent),
        (ModelCard, Model),
    ],
)
def test_an_answer_has_each_of_their_fields(ours: type[Any], theirs: type[Any]) -> None:
    optional = {"revised_prompt", "shutdown_date"} | ABSENT.get(theirs, set())
    assert set(theirs.model_fields) - optional <= set(ours.model_fields)
    for name, field in theirs.model_fields.items():
        if field.is_required():
            assert ours.model_fields[name].is_required() or ours.model_fields[name].default is not None, name


@pytest.mark.parametrize("client", CLIENTS)
def test_what_a_client_sends_draws(server: Server, client: str) -> None:
    body = CLIENTS[client]
    answer = server.post("/v1/images/generations", body, Authorization="Bearer sk-none")
    assert answer.status_code == 200, answer.text
    theirs = TheirResponse.model_validate(answer.json(), strict=True)
    assert theirs.data is not None and len(theirs.data) == body.get("n", 1)
    wanted = body.get("response_format") or "b64_json"
    assert all(getattr(image, wanted) for image in theirs.data)
    side = server.service.engine.facts.image_size
    assert theirs.size == f"{side}x{side}"  # the true one, whatever was asked for
    assert theirs.safety_identifier == body.get("user")


@pytest.mark.parametrize(
    ("body", "param"),
    [({"size": "1024x1024"}, "size"), ({"quality": "hd"}, "quality"), ({"style": "vivid"}, "style")],
)
def test_strict_mode_refuses_what_has_no_effect(model: Path, tmp_path: Path, body: dict[str, str], param: str) -> None:
    strict = {"SAFECB_OPENAI_STRICT": "on", "SAFECB_OPENAI_ALIASES": "off"}
    with serving(settings_in(tmp_path, model, **strict)) as server:
        facts = server.service.engine.facts
        own = {"prompt": "a red apple", "model": facts.title, "size": f"{facts.image_size}x{facts.image_size}"}
        assert server.post("/v1/images/generations", own).status_code == 200
        refused = server.post("/v1/images/generations", own | body)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == param
        assert server.post("/v1/images/generations", own | {"model": "gpt-image-1"}).status_code == 404
        assert {card["id"] for card in server.http.get("/v1/models").json()["data"]} == {
            facts.title,
            f"{facts.title}@v0",
        }


def test_every_error_under_v1_is_an_error_object(server: Server) -> None:
    long = b'{"prompt": "' + b"x" * (3 * 2**20) + b'"}'
    answers = [
        server.http.get("/v1/nothing"),
        server.http.delete("/v1/models"),
        server.http.post("/v1/images/generations", content=b"{", headers={"Content-Type": "application/json"}),
        server.http.post("/v1/images/generations", content=b"{}", headers={"Content-Type": "text/plain"}),
        server.http.post("/v1/images/generations", content=long, headers={"Content-Type": "application/json"}),
        server.http.get("/v1/models", headers={"Sec-Fetch-Site": "cross-site"}),
    ]
    assert [answer.status_code for answer in answers] == [404, 405, 400, 415, 413, 403]
    for answer in answers:
        assert answer.headers["Content-Type"] == "application/json"
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_caller_without_an_operators_key_sees_and_names_the_active_version_alone(model: Path, tmp_path: Path) -> None:
    with serving(settings_in(tmp_path, model, SAFECB_OPERATOR_KEYS="an-operators")) as server:
        served, version = server.service.engine.facts.title, server.publish(1)
        names = {card["id"] for card in server.http.get("/v1/models").json()["data"]}
        assert f"{served}@v0" in names and f"{served}@{version}" not in names
        body = {"prompt": "a red apple", "model": f"{served}@{version}"}
        assert server.post("/v1/images/generations", body).json()["error"]["type"] == "permission_error"
        assert server.post("/v1/images/generations", body, **{"X-API-Key": "an-operators"}).status_code == 200
