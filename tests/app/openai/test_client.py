"""OpenAI's own Python client against /v1: every call that it has for generated images, unchanged."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from concurrent.futures import Future
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import httpx2
import openai
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent
from PIL import Image

from core.errors import Busy
from engine.image_result import ImageResult
from tests.support.serving import Server, serving, settings_in, texts

PROMPT = "a red apple"
Format = Literal["png", "webp", "jpeg"]
Way = Literal["b64_json", "url"]


MADE: list[openai.OpenAI] = []


@pytest.fixture(scope="module", autouse=True)
def closed_clients() -> Iterator[None]:
    """End every client of this file: one that is left to the garbage collector warns in another test."""
    yield
    for client in MADE:
        client.close()
    MADE.clear()


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(settings_in(tmp_path_factory.mktemp("home"), model, SAFECB_API_KEYS="a-key")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return client_of(server)


def client_of(server: Server, key: str = "a-key", retries: int = 0) -> openai.OpenAI:
    MADE.append(openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=retries))
    return MADE[-1]


def opened(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


def test_ten_images_are_those_of_generate(client: openai.OpenAI, server: Server) -> None:
    answer = client.images.generate(prompt=PROMPT, model="gpt-image-1", n=10, extra_body={"seed": 7})
    assert answer.data is not None and len(answer.data) == 10
    own = server.post("/generate", {"prompt": PROMPT, "seed": 7, "n": 8}, **{"X-API-Key": "a-key"}).json()
    assert [image.b64_json for image in answer.data[:8]] == [image["b64_png"] for image in own["images"]]
    assert [image.id for image in answer.data[:8]] == [image["id"] for image in own["images"]]  # type: ignore[attr-defined]
    side = opened(base64.b64decode(answer.data[0].b64_json or "")).width
    assert answer.size == f"{side}x{side}" and answer.output_format == "png" and answer.background == "opaque"


def test_usage_counts_tokens(client: openai.OpenAI, server: Server) -> None:
    usage = client.images.generate(prompt=PROMPT, n=2).usage
    tokens = server.service.engine.facts.tokens
    assert usage is not None and usage.output_tokens_details is not None
    assert usage.input_tokens == usage.input_tokens_details.text_tokens == len(server.service.engine.tokenize(PROMPT))
    assert usage.output_tokens == usage.output_tokens_details.image_tokens == 2 * tokens
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


@pytest.mark.parametrize(("kind", "name"), [("png", "PNG"), ("webp", "WEBP"), ("jpeg", "JPEG")])
@pytest.mark.parametrize("by", ["b64_json", "url"])
def test_each_format_in_either_way(client: openai.OpenAI, kind: Format, name: str, by: Way) -> None:
    answer = client.images.generate(prompt=PROMPT, output_format=kind, response_format=by, output_compression=90)
    assert answer.data is not None and answer.output_format == kind
    image = answer.data[0]
    assert (image.url is None) == (by == "b64_json") != (image.b64_json is None)
    data = httpx2.get(image.url).content if image.url else base64.b64decode(image.b64_json or "")
    assert opened(data).format == name


def test_a_link_gives_the_file_itself_until_it_is_changed(client: openai.OpenAI) -> None:
    def generated(by: Way) -> openai.types.Image:
        answer = client.images.generate(prompt=PROMPT, response_format=by, extra_body={"seed": 3})
        assert answer.data is not None
        return answer.data[0]

    link, whole = generated("url").url or "", base64.b64decode(generated("b64_json").b64_json or "")
    assert httpx2.get(link, headers={"Sec-Fetch-Site": "cross-site"}).content == whole
    assert httpx2.get(link.replace("format=png", "format=webp")).status_code == 403
    assert httpx2.get(link.partition("?")[0]).status_code == 401


@pytest.mark.parametrize("partial_images", [0, 1, 2, 3])
def test_a_stream_has_true_partial_images_and_the_whole_one(client: openai.OpenAI, partial_images: int) -> None:
    stream = client.images.generate(
        prompt=PROMPT, stream=True, partial_images=partial_images, extra_body={"seed": 7, "output_format": "webp"}
    )
    *parts, last = list(stream)
    assert isinstance(last, ImageGenCompletedEvent) and last.usage.output_tokens > 0
    assert all(isinstance(part, ImageGenPartialImageEvent) for part in parts) and len(parts) <= partial_images
    assert [part.partial_image_index for part in parts] == list(range(len(parts)))  # type: ignore[union-attr]
    whole = client.images.generate(prompt=PROMPT, output_format="webp", extra_body={"seed": 7})
    assert whole.data is not None and last.b64_json == whole.data[0].b64_json
    pictures = [opened(base64.b64decode(event.b64_json)).tobytes() for event in (*parts, last)]
    assert len(set(pictures)) == len(pictures)


def test_some_stream_has_all_three_partial_images(client: openai.OpenAI) -> None:
    streams = (client.images.generate(prompt=PROMPT, stream=True, partial_images=3) for _ in range(20))
    assert any(len(list(stream)) == 4 for stream in streams)


def test_models_are_listed_and_found(client: openai.OpenAI, server: Server) -> None:
    served, version = server.service.engine.facts.title, server.publish(3)
    names = [model.id for model in client.models.list()]
    assert names[0] == served and {"gpt-image-1", "dall-e-3", f"{served}@v0", f"{served}@{version}"} <= set(names)
    for name in (*names, "gpt-image-2.5-flare"):
        found = client.models.retrieve(name)
        assert found.id == name and found.object == "model" and found.created > 1_700_000_000
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_a_name_pins_a_version(client: openai.OpenAI, server: Server) -> None:
    served, version = server.service.engine.facts.title, server.publish(5)
    pinned = client.images.generate(prompt=PROMPT, model=f"{served}@{version}", extra_body={"seed": 7})
    assert pinned.data is not None
    assert texts(base64.b64decode(pinned.data[0].b64_json or ""))["codebook"] == version
    plain = client.images.generate(prompt=PROMPT, model=served, extra_body={"seed": 7})
    assert plain.data is not None and plain.data[0].codebook == "v0"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("body", "kind", "param", "code"),
    [
        ({"prompt": "x" * 4001}, openai.BadRequestError, "prompt", "string_above_max_length"),
        ({"prompt": ""}, openai.BadRequestError, "prompt", "string_below_min_length"),
        ({"n": 11}, openai.BadRequestError, "n", "integer_above_max_value"),
        ({"n": 0}, openai.BadRequestError, "n", "integer_below_min_value"),
        ({"n": "two"}, openai.BadRequestError, "n", "invalid_type"),
        ({"size": "large"}, openai.BadRequestError, "size", "invalid_value"),
        ({"output_format": "gif"}, openai.BadRequestError, "output_format", "invalid_value"),
        ({"background": "transparent"}, openai.BadRequestError, "background", "invalid_value"),
        ({"stream": True, "n": 2}, openai.BadRequestError, "n", "invalid_value"),
        ({"extra_body": {"steps": 50}}, openai.BadRequestError, "steps", "unknown_parameter"),
        ({"extra_body": {"top_k": 10**6}}, openai.BadRequestError, "top_k", "invalid_value"),
        ({"model": "gpt-4o"}, openai.NotFoundError, "model", "model_not_found"),
        ({"model": "dall-e-3@v99"}, openai.NotFoundError, "model", "model_not_found"),
    ],
)
def test_an_error_is_openais(
    client: openai.OpenAI, body: dict[str, Any], kind: type[openai.APIStatusError], param: str, code: str
) -> None:
    with pytest.raises(kind) as caught:
        client.images.generate(**{"prompt": PROMPT} | body)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error" and caught.value.request_id


def test_a_wrong_key_is_an_authentication_error(server: Server) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client_of(server, "wrong").images.generate(prompt=PROMPT)
    assert caught.value.code == "invalid_api_key"


def test_what_is_not_offered_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.images.edit(image=b"x", prompt=PROMPT)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-image-1", messages=[{"role": "user", "content": "hi"}])


def test_its_own_retries_find_room(model: Path, tmp_path: Path) -> None:
    with serving(settings_in(tmp_path, model)) as server:
        scheduler, calls = server.service.engine.scheduler, itertools.count()
        usual = scheduler.submit_draw

        def full_once(*arguments: Any) -> Future[list[ImageResult]]:  # noqa: ANN401
            if next(calls) == 0:
                raise Busy("the queue is full", retry_after=1)
            return usual(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scheduler, "submit_draw", full_once)
            with pytest.raises(openai.RateLimitError) as caught:
                client_of(server).images.generate(prompt=PROMPT)
            assert caught.value.code == "rate_limit_exceeded" and caught.value.response.headers["Retry-After"] == "1"
            calls = itertools.count()
            assert client_of(server, retries=2).images.generate(prompt=PROMPT).data
        assert next(calls) == 2


def test_the_documented_code_runs(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "openai-clients.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    with serving(settings_in(tmp_path, model)) as server:
        names = dict[str, Any]()
        exec(code.replace("http://127.0.0.1:8000", server.url), names)
        names["client"].close()
    size, codebook, length = capsys.readouterr().out.split()
    assert codebook == "v0" and "x" in size and int(length) > 0
