"""POST /generate: images of one prompt under one codebook version."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Header, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from app.access.key_ring import Scope
from app.access.keys import CallerOf, ServiceOf, check_version, needs
from app.background.review import review
from app.drawing import News, Preview, Silence, chosen_sampling, draw_in_parts, draw_many, to_response
from app.http import problems
from app.http.disconnect import while_connected
from app.http.negotiation import preferred
from app.http.request_id import id_of
from app.schemas import GenerateRequest, GenerateResponse
from codebook.store import codebook_hash
from codebook.value import Codebook
from core.errors import BadInput, SafeCBError, Unavailable
from engine.image_result import ImageResult
from engine.model import Sampling
from engine.scheduler.fair_queue import Place

router = APIRouter(tags=["generate"], dependencies=needs(Scope.GENERATE))

JSON, PNG, EVENTS = "application/json", "image/png", "text/event-stream"
STREAM_HEADERS = {"Vary": "Accept", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # no proxy holds it back


@router.post(
    "/generate",
    summary="Generate images",
    response_model=GenerateResponse,
    responses={200: {"content": {PNG: {}, EVENTS: {}}}},
)
async def generate(
    body: GenerateRequest,
    request: Request,
    service: ServiceOf,
    caller: CallerOf,
    later: BackgroundTasks,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """Generate n images. `Accept: image/png` (n = 1) returns the PNG itself; `text/event-stream` streams progress."""
    media_type = preferred(accept, (JSON, PNG, EVENTS))
    if media_type == PNG and body.n != 1:
        raise BadInput("n", body.n, f"1 where the answer is to be {PNG}")
    check_version(service, caller, body.codebook, "codebook")
    facts = service.engine.facts
    sampling = chosen_sampling(facts, body.seed, body.guidance_scale, body.temperature, body.top_k, body.top_p)
    rates = await service.rates.take(caller.holder, body.n)
    if media_type == EVENTS:
        parts = draw_in_parts(service, caller, body.prompt, body.codebook, sampling, body.n)
        # An error comes before there is a place in the queue, and can still be answered with a status.
        first = await while_connected(request, _first(parts))
        finished: list[ImageResult] = []
        later.add_task(review, service, finished)
        events = _events(first, parts, finished)
        return StreamingResponse(events, media_type=EVENTS, headers=STREAM_HEADERS | rates, background=later)
    work = draw_many(service, caller, body.prompt, body.codebook, sampling, body.n)
    results = await while_connected(request, work)
    later.add_task(review, service, results)
    codebook = results[0].request.codebook
    headers = rates | {
        "X-Codebook-Version": codebook.version,
        "X-Codebook-Hash": codebook_hash(codebook),
        "Vary": "Accept",
    }
    if media_type == PNG:
        own = {"X-Seed": str(sampling.seed), "X-Image-Id": results[0].id}
        return Response(results[0].png, headers=headers | own, media_type=PNG, background=later)
    answer = _answer(id_of(request), facts.title, codebook, sampling, results)
    return Response(answer.model_dump_json(), headers=headers, media_type=JSON, background=later)


def _answer(
    id: str, model_id: str, codebook: Codebook, sampling: Sampling, results: list[ImageResult]
) -> GenerateResponse:
    return GenerateResponse(
        id=id,
        model=model_id,
        codebook=codebook.version,
        codebook_hash=codebook_hash(codebook),
        seed=sampling.seed,
        guidance_scale=sampling.guidance,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        images=[to_response(result) for result in results],
    )


async def _first(parts: AsyncGenerator[News]) -> News:
    return await anext(parts)


async def _events(first: News, rest: AsyncGenerator[News], finished: list[ImageResult]) -> AsyncIterator[bytes]:
    """`queued`, `progress` and `preview` on the way, at last an `image` each, as in the JSON answer; or an `error`."""
    async with aclosing(rest):  # a caller that hangs up ends the drawing
        news: News | None = first
        try:
            while news is not None:
                match news:
                    case Place(ahead, seconds):
                        yield _event("queued", {"ahead": ahead, "eta_s": round(seconds, 1)})
                    case Silence():
                        yield KEEPALIVE_COMMENT
                    case Preview(index, done, total, png):
                        yield _event("progress", {"index": index, "done": done, "total": total})
                        yield _event("preview", {"index": index, "b64_png": base64.b64encode(png).decode()})
                    case ImageResult():
                        finished.append(news)
                        yield _event("image", to_response(news).model_dump())
                news = await anext(rest, None)
        except SafeCBError as error:
            temporary = {"retry_after": error.retry_after} if isinstance(error, Unavailable) else {}
            yield _event("error", json.loads(bytes(problems.of(error).body)) | temporary)


def _event(name: str, data: dict[str, Any]) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(data, allow_nan=False))
