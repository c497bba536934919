"""From a prompt to image results: a lease on the codebook, the scheduler's call, the PNG files, the image memory.

Files are read and written in threads, so that the event loop stays free. Knows the service's parts; knows
nothing of routes and status codes.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from torch import Tensor

from app.access.keys import Caller
from app.schemas import SEEDS, GeneratedImage, Safety
from app.service import Engine, Service
from codebook.live import ACTIVE, LiveCodebooks
from codebook.store import codebook_hash
from codebook.value import Codebook
from core.errors import BadInput, BadNumber, NotFound, Refused, SafeCBError, Unavailable
from engine.image_result import ImageResult, PartialImage
from engine.model import ImageRequest, ModelFacts, Sampling
from engine.png import encode_png, to_bytes
from engine.runner.served import Served
from engine.scheduler.fair_queue import Place
from records.image_log import ImageLog, KeptImage

log = logging.getLogger(__name__)

Result = TypeVar("Result")

SILENT_S = 15.0  # after which a caller of a stream hears that nothing has come


@dataclass(frozen=True)
class Preview:
    """Image `index` of a call when `done` of its `total` tokens are drawn, and the PNG of that much of it."""

    index: int
    done: int
    total: int
    png: bytes


@dataclass(frozen=True)
class Silence:
    """No news for SILENT_S: the image still waits, or takes that long."""


News = Place | Preview | Silence | ImageResult


def to_response(result: ImageResult) -> GeneratedImage:
    """Return a result, encoded, as the contract's JSON."""
    verdict, request = result.verdict, result.request
    return GeneratedImage(
        id=result.id,
        b64_png=base64.b64encode(result.png).decode(),
        seed=request.sampling.seed,
        codebook=request.codebook.version,
        codebook_hash=codebook_hash(request.codebook),
        safety=Safety(
            unsafe=None if verdict is None else verdict.unsafe,
            score=None if verdict is None else verdict.score,
            category=None if verdict is None else verdict.category,
            edited=bool(result.experts),
            redraws=result.redraws,
        ),
        revised_prompt=result.revised,
    )


def to_kept(result: ImageResult) -> KeptImage:
    """Return the part of a result that the image memory keeps."""
    verdict, request = result.verdict, result.request
    version, seed = request.codebook.version, request.sampling.seed
    unsafe, category = (None, None) if verdict is None else (verdict.unsafe, verdict.category)
    return KeptImage(result.id, request.prompt, version, seed, unsafe, category, result.tokens)


def chosen_seed(seed: int | None) -> int:
    """Return `seed`, or a random one if None: small enough for a JavaScript number to hold it exactly."""
    return secrets.randbelow(2**32) if seed is None else seed


def chosen_sampling(
    facts: ModelFacts,
    seed: int | None,
    guidance: float | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
) -> Sampling:
    """Return the sampling that a request asks for; what is None is the model's own, and a seed is chosen."""
    return Sampling(
        seed=chosen_seed(seed),
        guidance=facts.guidance if guidance is None else guidance,
        temperature=facts.temperature if temperature is None else temperature,
        top_k=facts.top_k if top_k is None else top_k,
        top_p=facts.top_p if top_p is None else top_p,
    )


def nth_seed(seed: int, index: int) -> int:
    """Return the seed of image `index` of a request; past the largest seed it goes on from 0."""
    return (seed + index) % SEEDS


@asynccontextmanager
async def leased(
    live: LiveCodebooks, version: str, field: str, unit: str = "", is_drawn: bool = False
) -> AsyncIterator[Codebook]:
    """Hold a version from admission to the end; `unit` and `is_drawn` as LiveCodebooks.lease.

    Raises BadInput, naming `field`, for an unknown or revoked one.
    """
    with ExitStack() as lease:
        try:
            codebook = await run_in_threadpool(lease.enter_context, live.lease(version, unit, is_drawn))
        except NotFound:
            raise BadInput(field, version, 'a version listed by GET /codebooks, not revoked, or "active"') from None
        yield codebook


async def draw(
    service: Service, caller: Caller, prompt: str, versions: Sequence[tuple[str, str]], sampling: Sampling
) -> list[ImageResult]:
    """Draw `prompt` with one sampling under each version, given as (version, field that named it)."""
    engine = service.engine
    async with AsyncExitStack() as leases:
        codebooks = [await leases.enter_async_context(leased(service.live, *version)) for version in versions]
        requests = [ImageRequest(prompt, sampling, codebook) for codebook in codebooks]
        return await finish(engine, service, caller, requests)


async def draw_many(
    service: Service,
    caller: Caller,
    prompt: str,
    version: str,
    sampling: Sampling,
    n: int,
    on_news: Callable[[Place | PartialImage], None] | None = None,
) -> list[ImageResult]:
    """Draw `prompt` n times under one version, image i with seed + i."""
    engine, unit = service.engine, f"{caller.id}\n{prompt}"
    async with leased(service.live, version, "codebook", unit) as codebook:
        requests = _requests(engine.facts, prompt, codebook, sampling, n)
        results = await finish(engine, service, caller, requests, on_news)
    if version == ACTIVE:
        service.guard.note(results)
        service.shadow.note(unit, results)
        service.cusum.note(unit, results)
    return results


async def draw_in_parts(
    service: Service, caller: Caller, prompt: str, version: str, sampling: Sampling, n: int
) -> AsyncGenerator[News]:
    """As draw_many, but yield the place in the queue first, then previews of each image, and the results last.

    What fails after there is a place fails after the place is yielded, however fast.
    """
    engine, loop = service.engine, asyncio.get_running_loop()
    queue: asyncio.Queue[Place | PartialImage] = asyncio.Queue()

    def on_news(news: Place | PartialImage) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, news)

    drawing = asyncio.create_task(draw_many(service, caller, prompt, version, sampling, n, on_news))
    is_placed = False
    try:
        while not drawing.done():
            news = await _unless_done(queue.get(), drawing)
            if isinstance(news, PartialImage):
                png = await _unless_done(_preview(engine, news), drawing)
                if png is not None:
                    yield Preview(news.index, len(news.tokens), engine.facts.tokens, png)
            elif news is not None or not drawing.done():
                is_placed |= news is not None
                yield news or Silence()
        if not is_placed and not queue.empty() and isinstance(place := queue.get_nowait(), Place):
            yield place
        for result in await drawing:
            yield result
    finally:
        if not drawing.cancel() and not drawing.cancelled():
            drawing.exception()  # nobody waits for it any more, and the log need not say so


async def decode(service: Service, tokens: Tensor, version: str, is_drawn: bool) -> tuple[Codebook, Tensor]:
    """Decode kept tokens [N] under a version: the codebook, and the pixels [H, W, 3] uint8.

    is_drawn: whether it is the version that drew them, so that it may be revoked since.
    Raises BadInput naming `codebook` for an unknown version, BadNumber for pixels that are not finite.
    """
    engine = service.engine
    async with leased(service.live, version, "codebook", is_drawn=is_drawn) as codebook:
        decoding = engine.scheduler.submit(lambda model: to_bytes(model.decode(tokens[None], codebook.pixel)))
        return codebook, (await asyncio.wrap_future(decoding))[0]


async def finish(
    engine: Engine,
    service: Service,
    caller: Caller,
    requests: list[ImageRequest],
    on_news: Callable[[Place | PartialImage], None] | None = None,
) -> list[ImageResult]:
    """Wait for the scheduler's images, encode and remember them. `on_news` gets the place in the queue first.

    Raises BadInput for a prompt that the model cannot read, Refused for one that the version refuses, BadNumber for an
    image that comes to NaN or infinity, Busy and Unavailable as the scheduler does.
    """
    try:
        future = engine.scheduler.submit_draw(requests, caller.id, on_news, caller.holder.queue)
        if on_news is not None:
            on_news(engine.scheduler.place(future))
        drawn = await asyncio.wrap_future(future)
    except BadNumber as error:
        log.error("refused: %s", error)
        service.traffic.refused(error.version)
        service.counts.refused(error.version)
        raise
    except Refused as error:
        service.counts.declined(error.version, len(requests))
        raise
    results = await run_in_threadpool(lambda: [result.encoded() for result in drawn])
    await run_in_threadpool(_remember, service.images, results)
    service.counts.drew(results)
    return results


def _requests(facts: ModelFacts, prompt: str, codebook: Codebook, sampling: Sampling, n: int) -> list[ImageRequest]:
    if sampling.top_k > facts.codes:
        raise BadInput("top_k", sampling.top_k, f"a whole number from 0 to {facts.codes}")
    each = [replace(sampling, seed=nth_seed(sampling.seed, i)) for i in range(n)]
    return [ImageRequest(prompt, one, codebook) for one in each]


async def _unless_done(waiting: Coroutine[Any, Any, Result], work: asyncio.Task[list[ImageResult]]) -> Result | None:
    """The result of `waiting`, or None where `work` ends before it, or after SILENT_S."""
    task = asyncio.create_task(waiting)
    try:
        await asyncio.wait({task, work}, timeout=SILENT_S, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()


async def _preview(engine: Engine, part: PartialImage) -> bytes | None:
    """The PNG of a partial image; None where finished images keep the model busy, or its pixels are not finite."""

    def preview(model: Served) -> Tensor:
        return to_bytes(model.preview(part.tokens, part.request.codebook.pixel))[0]

    try:
        pixels = await asyncio.wrap_future(engine.scheduler.submit(preview))
    except (Unavailable, BadNumber):
        return None
    return await run_in_threadpool(encode_png, pixels, {})


def _remember(memory: ImageLog, results: Sequence[ImageResult]) -> None:
    """Keep the images for flags. A full disk or a damaged file costs the memory, not the answer."""
    try:
        memory.keep([to_kept(result) for result in results])
    except (SafeCBError, sqlite3.Error) as error:
        log.warning("%d images are not remembered: %s", len(results), error)
