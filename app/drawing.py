"""From a prompt to finished pictures: the codebook leased, the batcher asked, the PNG written.

The event loop stays free: files are read and written in threads. Knows the service's parts; knows nothing of routes
and status codes.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from starlette.concurrency import run_in_threadpool

from app.schemas import SEEDS, Image, Safety
from app.service import Engine, Service
from codebook.errors import BadInput, Busy, NotFound, Unavailable
from codebook.live import LiveCodebooks
from codebook.value import Codebook
from engine.batcher import Drawn
from engine.model import ImageRequest, Sampling
from engine.png import encode_png


@dataclass(frozen=True)
class Picture:
    """One finished image: what was asked, under which codebook, what came of it, and its PNG file."""

    request: ImageRequest
    drawn: Drawn
    png: bytes

    def told(self) -> Image:
        """Return the picture as the contract's JSON."""
        verdict = self.drawn.verdict
        return Image(
            b64_png=base64.b64encode(self.png).decode(),
            seed=self.request.sampling.seed,
            codebook=self.request.codebook.version,
            safety=Safety(unsafe=verdict.unsafe, score=verdict.score, category=verdict.category),
        )


def chosen_seed(seed: int | None) -> int:
    """Return `seed`, or a fresh one where there is none: small enough for a JavaScript reader to keep its digits."""
    return secrets.randbelow(2**32) if seed is None else seed


def nth_seed(seed: int, index: int) -> int:
    """Return the seed of image `index` of a request; past the largest seed it goes on from 0."""
    return (seed + index) % SEEDS


@asynccontextmanager
async def leased(live: LiveCodebooks, version: str, field: str) -> AsyncIterator[Codebook]:
    """Hold a version from admission to the end. Raises BadInput, naming `field`, for an unknown one."""
    with ExitStack() as lease:
        try:
            codebook = await run_in_threadpool(lease.enter_context, live.lease(version))
        except NotFound:
            raise BadInput(field, version, 'a version listed by GET /codebooks, or "active"') from None
        yield codebook


async def draw(service: Service, prompt: str, versions: Sequence[tuple[str, str]], sampling: Sampling) -> list[Picture]:
    """Draw `prompt` with one sampling under each version, given as (version, field that named it)."""
    engine = service.engine
    async with AsyncExitStack() as leases:
        codebooks = [await leases.enter_async_context(leased(service.live, *version)) for version in versions]
        return await finish(engine, [ImageRequest(prompt, sampling, codebook) for codebook in codebooks])


async def draw_many(service: Service, prompt: str, version: str, sampling: Sampling, n: int) -> list[Picture]:
    """Draw `prompt` n times under one version, image i with seed + i."""
    engine = service.engine
    if sampling.top_k > engine.facts.codes:
        raise BadInput("top_k", sampling.top_k, f"a whole number from 0 to {engine.facts.codes}")
    async with leased(service.live, version, "codebook") as codebook:
        each = [replace(sampling, seed=nth_seed(sampling.seed, i)) for i in range(n)]
        return await finish(engine, [ImageRequest(prompt, one, codebook) for one in each])


async def finish(engine: Engine, requests: list[ImageRequest]) -> list[Picture]:
    """Wait for the batcher's images and write their files.

    Raises BadInput for a prompt that the model cannot read, Busy where the batcher takes nothing more.
    """
    try:
        future = engine.batcher.submit_draw(requests)
    except Unavailable as full:
        raise Busy(str(full), full.retry_after) from None
    drawn = await asyncio.wrap_future(future)
    return await run_in_threadpool(_pictures, engine.facts.model_id, requests, drawn)


def _pictures(model_id: str, requests: list[ImageRequest], drawn: list[Drawn]) -> list[Picture]:
    pictures = []
    for request, image in zip(requests, drawn, strict=True):
        facts = {"codebook": request.codebook.version, "seed": str(request.sampling.seed), "model": model_id}
        pictures.append(Picture(request, image, encode_png(image.image, facts)))
    return pictures
