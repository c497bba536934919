"""/images: recent images, decoded again from their tokens, under the version that drew them or under another."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.access.key_ring import Scope
from app.access.keys import CallerOf, Keys, ServiceOf, check_caller, check_version, needs
from app.drawing import decode
from app.formats import Format, converted
from app.schemas import RedecodeRequest
from app.service import Service
from codebook.store import codebook_hash
from engine.image_result import provenance
from engine.png import encode_png
from records.image_log import KeptImage

router = APIRouter(prefix="/images", tags=["images"])

FILES: dict[int | str, dict[str, Any]] = {200: {"content": {f"image/{kind}": {} for kind in ("png", "webp", "jpeg")}}}


def path_of(id: str) -> str:
    """Return the path of an image."""
    return f"/images/{id}"


async def check_reader(
    id: str,
    request: Request,
    service: ServiceOf,
    keys: Keys,
    sec_fetch_site: Annotated[str, Header(include_in_schema=False)] = "none",
    sec_fetch_mode: Annotated[str, Header(include_in_schema=False)] = "",
    expires: Annotated[int | None, Query(description="End of a signed link, Unix seconds.")] = None,
    sig: Annotated[str | None, Query(description="Signature of a link; it stands in for a key.")] = None,
) -> None:
    """Let a caller with a key read, and whoever has a signed link, on whatever page it stands; others get a 403."""
    if sig is None:
        await check_caller(request, service, keys, sec_fetch_site, sec_fetch_mode)
    elif not await run_in_threadpool(service.links.holds, path_of(id), request.query_params):
        raise HTTPException(403, "the link's signature is wrong, or it has expired")


@router.get(
    "/{id}",
    summary="Get an image",
    response_class=Response,
    responses=FILES,
    dependencies=[Depends(check_reader)],
)
async def image(
    id: str,
    service: ServiceOf,
    format: Annotated[Format, Query(description="File format.")] = "png",
    quality: Annotated[int, Query(ge=0, le=100, description="Quality of WebP and JPEG.")] = 100,
) -> Response:
    """Get an image that is still in the image log, decoded from its tokens under the version that drew it."""
    image = await run_in_threadpool(service.images.get, id)
    return await _file(service, image, image.version, format, quality)


@router.post(
    "/{id}/redecode",
    summary="Decode an image again",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
    dependencies=needs(Scope.GENERATE),
)
async def redecode(id: str, body: RedecodeRequest, service: ServiceOf, caller: CallerOf) -> Response:
    """Decode the tokens of an image that is still in the image log under the pixel table of another version."""
    check_version(service, caller, body.codebook, "codebook")
    image = await run_in_threadpool(service.images.get, id)
    return await _file(service, image, body.codebook, "png", None)


async def _file(service: Service, image: KeptImage, version: str, kind: Format, quality: int | None) -> Response:
    codebook, pixels = await decode(service, image.tokens, version, version == image.version)
    text = provenance(codebook, image.seed, service.engine.facts)
    if codebook.version != image.version:
        text["tokens_drawn_under"] = image.version
    headers = {
        "X-Codebook-Version": codebook.version,
        "X-Codebook-Hash": codebook_hash(codebook),
        "X-Seed": str(image.seed),
        "X-Image-Id": image.id,
        "X-Tokens-Drawn-Under": image.version,
        "Cache-Control": "private",
    }
    content = await run_in_threadpool(lambda: converted(encode_png(pixels, text), kind, quality))
    return Response(content, headers=headers, media_type=f"image/{kind}")
