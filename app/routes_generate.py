"""POST /generate: images of one prompt under one codebook version."""

from __future__ import annotations

from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, BackgroundTasks, Depends, Header, Request, Response

from app.accept import preferred
from app.access import Caller, ServiceOf, check_caller
from app.connection import while_connected
from app.drawing import Picture, chosen_seed, draw_many
from app.schemas import Generate, Images
from app.traffic import review
from codebook.errors import BadInput
from engine.model import ModelFacts, Sampling

router = APIRouter(tags=["generate"], dependencies=[Depends(check_caller)])

JSON, PNG = "application/json", "image/png"


@router.post("/generate", response_model=Images, responses={200: {"content": {PNG: {}}}})
async def generate(
    asked: Generate,
    request: Request,
    service: ServiceOf,
    caller: Caller,
    later: BackgroundTasks,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """Draw n images; with `Accept: image/png` and n = 1 the answer is the PNG itself."""
    wanted = preferred(accept, (JSON, PNG))
    if wanted == PNG and asked.n != 1:
        raise BadInput("n", asked.n, f"1 where the answer is to be {PNG}")
    facts = service.engine.facts
    sampling = _sampling(asked, facts)
    work = draw_many(service, caller, asked.prompt, asked.codebook, sampling, asked.n)
    pictures = await while_connected(request, work)
    later.add_task(review, service, pictures)
    version = pictures[0].request.codebook.version
    headers = {"X-Codebook-Version": version, "Vary": "Accept"}
    if wanted == PNG:
        own = {"X-Seed": str(sampling.seed), "X-Image-Id": pictures[0].id}
        return Response(pictures[0].png, headers=headers | own, media_type=PNG, background=later)
    body = _body(facts.model_id, version, sampling, pictures)
    return Response(body.model_dump_json(), headers=headers, media_type=JSON, background=later)


def _sampling(asked: Generate, facts: ModelFacts) -> Sampling:
    return Sampling(
        seed=chosen_seed(asked.seed),
        guidance=facts.guidance if asked.guidance_scale is None else asked.guidance_scale,
        temperature=facts.temperature if asked.temperature is None else asked.temperature,
        top_k=asked.top_k,
    )


def _body(model_id: str, version: str, sampling: Sampling, pictures: list[Picture]) -> Images:
    return Images(
        id=uuid4().hex,
        model=model_id,
        codebook=version,
        seed=sampling.seed,
        guidance_scale=sampling.guidance,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        images=[picture.told() for picture in pictures],
    )
