"""/v1: OpenAI's Images API and list of models."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Path, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from app.access.key_ring import Scope
from app.access.keys import CallerOf, ServiceOf, check_caller, check_version, needs
from app.background.review import review
from app.drawing import chosen_sampling, draw_in_parts, draw_many
from app.http.disconnect import while_connected
from app.openai.answers import Answers, size_of
from app.openai.names import card, cards, version_of
from app.openai.schemas import ErrorResponse, ImagesRequest, ImagesResponse, ModelCard, ModelList
from app.openai.stream import events
from app.routes.generate import EVENTS, STREAM_HEADERS
from app.service import Service
from core.errors import BadInput
from engine.image_result import ImageResult

ERRORS: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorResponse, "description": "An error, as OpenAI's"}}
AUTO = "auto"

router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[Depends(check_caller)], responses=ERRORS)


@router.post(
    "/images/generations",
    summary="Generate images (OpenAI)",
    response_model=ImagesResponse,
    responses={200: {"content": {EVENTS: {}}}},
    dependencies=needs(Scope.GENERATE),
)
async def generations(
    body: ImagesRequest,
    request: Request,
    service: ServiceOf,
    caller: CallerOf,
    later: BackgroundTasks,
) -> Response:
    """Generate images as OpenAI's Images API does. Every size is taken; images have the model's own."""
    facts, n = service.engine.facts, body.n or 1
    _check(body, service)
    version = await run_in_threadpool(version_of, service, body.model)
    check_version(service, caller, version, "model")
    sampling = chosen_sampling(facts, body.seed, body.guidance_scale, body.temperature, body.top_k, body.top_p)
    answers = Answers(body, facts, len(service.engine.tokenize(body.prompt)), str(request.base_url), service.links)
    rates = await service.rates.take(caller.holder, n)
    if body.stream:
        parts = draw_in_parts(service, caller, body.prompt, version, sampling, n)
        # An error comes before there is a place in the queue, and can still be answered with a status.
        await while_connected(request, anext(parts))
        finished: list[ImageResult] = []
        later.add_task(review, service, finished)
        stream = events(parts, answers, body.partial_images or 0, finished)
        return StreamingResponse(stream, media_type=EVENTS, headers=STREAM_HEADERS | rates, background=later)
    results = await while_connected(request, draw_many(service, caller, body.prompt, version, sampling, n))
    later.add_task(review, service, results)
    answer = await run_in_threadpool(answers.whole, results)
    content = answer.model_dump_json(exclude_none=True)
    return Response(content, headers=rates, media_type="application/json", background=later)


@router.get("/models", summary="List models (OpenAI)")
def models(service: ServiceOf, caller: CallerOf) -> ModelList:
    """List the names that `model` may have in POST /v1/images/generations."""
    return ModelList(data=cards(service, caller))


@router.get("/models/{model:path}", summary="Get a model (OpenAI)")
def model(
    model: Annotated[str, Path(description="A name, or an alias.")], service: ServiceOf, caller: CallerOf
) -> ModelCard:
    """Get one name that `model` may have in POST /v1/images/generations."""
    return card(service, caller, model)


def _check(body: ImagesRequest, service: Service) -> None:
    """Raise BadInput for what cannot be done, and in strict mode for what would have no effect."""
    if body.stream and (body.n or 1) != 1:
        raise BadInput("n", body.n, "1 where stream is true")
    if body.stream and body.response_format == "url":
        raise BadInput("response_format", body.response_format, "b64_json where stream is true")
    if body.partial_images and not body.stream:
        raise BadInput("partial_images", body.partial_images, "0 where stream is not true")
    if body.response_format == "url" and not (service.settings.keep_images and service.settings.keep_hours):
        raise BadInput("response_format", body.response_format, "b64_json: this server keeps no images")
    if not service.settings.openai_strict:
        return
    own = size_of(service.engine.facts)
    if body.size not in (None, AUTO, own):
        raise BadInput("size", body.size, f"{AUTO} or {own}")
    for field in ("quality", "style"):
        if getattr(body, field) not in (None, AUTO):
            raise BadInput(field, getattr(body, field), "no value: the model has one alone")
