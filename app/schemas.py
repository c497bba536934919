"""What callers may send, with every range that does not depend on the model, and what they get back.

Knows shapes of JSON. Knows nothing of how an answer comes about.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from records.flags import State

SEEDS = 2**63  # a seed is in [0, SEEDS)
MAX_IMAGES = 8


def _visible(text: str) -> str:
    if not text.strip():
        raise ValueError("text with at least one visible character")
    return text


def _whole(text: str) -> str:
    if "\0" in text:
        raise ValueError("text without the character NUL")
    return text


# Lengths come first: without one, pydantic lets half a character pass.
Prompt = Annotated[str, Field(min_length=1, max_length=4000), AfterValidator(_whole), AfterValidator(_visible)]
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
Version = Annotated[str, Field(pattern=r"^(active|v(0|[1-9][0-9]{0,8}))$")]
Epoch = Annotated[int, Field(ge=0, lt=SEEDS)]


class RequestBody(BaseModel):
    """A request body: unknown fields and converted types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class GenerateRequest(RequestBody):
    """Draw n images of one prompt; image i is drawn with seed + i."""

    prompt: Prompt
    n: int = Field(default=1, ge=1, le=MAX_IMAGES)
    seed: Seed | None = Field(default=None, description="chosen at random, and told, where it is absent")
    guidance_scale: float | None = Field(
        default=None, ge=1, le=20, allow_inf_nan=False, description="1 switches it off"
    )
    temperature: float | None = Field(default=None, ge=0, le=10, allow_inf_nan=False, description="0 is greedy")
    top_k: int = Field(default=0, ge=0, description="0 samples from all codes")
    codebook: Version = "active"


class ImproveBody(RequestBody):
    """Make the active codebook safer, in the background."""

    prompts: list[Prompt] | None = Field(
        default=None, min_length=1, max_length=1000, description="more prompts to learn from"
    )
    categories: list[str] | None = Field(default=None, min_length=1, max_length=100, description="only these harms")
    max_rounds: int | None = Field(default=None, ge=1, le=8)
    seed: Seed | None = None
    activate: bool = True


class ActivateRequest(RequestBody):
    """Make a version active."""

    expected_epoch: Epoch | None = Field(default=None, description="refuse the move where the pointer has moved on")


class RollbackRequest(ActivateRequest):
    """Go back to the version that was active before, or to a named one."""

    to: Annotated[str, Field(pattern=r"^v(0|[1-9][0-9]{0,8})$")] | None = None


class ActiveCodebook(BaseModel):
    """The version this server draws with: the move of the pointer it follows, and the hash of its content."""

    version: str
    epoch: int
    previous: str | None
    moved_at: str
    moved_by: str
    move: str
    codebook_hash: str


class CompareRequest(RequestBody):
    """Draw one prompt under two versions with the same seed."""

    prompt: Prompt
    seed: Seed | None = None
    versions: list[Version] = Field(min_length=2, max_length=2)


class Safety(BaseModel):
    """The model's own judgement of an image; `score` is its probability of "unsafe"."""

    unsafe: bool
    score: float
    category: str


class GeneratedImage(BaseModel):
    """One image and what is needed to draw it again."""

    id: str = Field(description="for POST /flags; the same image has the same one")
    b64_png: str
    seed: int
    codebook: str
    codebook_hash: str = Field(description="of the version's content; `content_hash` in GET /codebooks")
    safety: Safety


class GenerateResponse(BaseModel):
    """The answer to Generate."""

    id: str
    model: str
    codebook: str
    codebook_hash: str
    seed: int
    guidance_scale: float
    temperature: float
    top_k: int
    images: list[GeneratedImage]


class PixelDifference(BaseModel):
    """Where two images differ: how many pixels, which share of all, by how much at most (0-255), and a mask."""

    pixels: int
    share: float
    largest: int
    b64_png: str


class CompareResponse(BaseModel):
    """The answer to Compare; `same_tokens` says whether the images differ in the decoding only."""

    id: str
    model: str
    seed: int
    same_tokens: bool
    images: list[GeneratedImage]
    difference: PixelDifference


class FlagRequest(RequestBody):
    """Say that an image is unsafe."""

    image_id: str = Field(min_length=1, max_length=64, description="of an image of POST /generate")
    category: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_whole)] | None = Field(
        default=None, description="left to the model if absent"
    )
    note: Annotated[str, Field(max_length=1000), AfterValidator(_whole)] = ""


class ApproveRequest(RequestBody):
    """Let the next improve job learn from a flag."""

    category: str | None = Field(default=None, description="a category of the model, in place of the flag's own")


class FlagResponse(BaseModel):
    """One flag; made: UTC, ISO 8601; caller: who, as a hash; job: the improve job that used it."""

    id: str
    image_id: str
    prompt: str
    codebook: str
    category: str | None
    note: str
    caller: str
    state: State
    made: datetime
    job: str | None
    links: dict[str, str]


class JobResponse(BaseModel):
    """One background job as it stands."""

    id: str
    kind: str
    status: str
    created: str
    started: str | None
    ended: str | None
    request: dict[str, Any]
    progress: dict[str, Any]
    rounds: list[dict[str, Any]]
    result: dict[str, Any] | None
    error: str | None
    attempt: int
    cancel_requested: bool
    links: dict[str, str]
