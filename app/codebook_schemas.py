"""Request and response bodies of the routes of codebook versions: activation, derivation, comparison.

Knows shapes of JSON. Knows nothing of stores.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, RootModel

from app.schemas import Epoch, GeneratedImage, Prompt, RequestBody, Seed, Version
from codebook.moves import MOST_SHARING
from codebook.value import Mode

VersionName = Annotated[str, Field(pattern=r"^v(0|[1-9][0-9]{0,8})$")]


class ActivateRequest(RequestBody):
    """Condition of an activation."""

    expected_epoch: Epoch | None = Field(
        default=None, description="Refuse with 409 unless the active alias is at this epoch."
    )


class DeriveRequest(RequestBody):
    """What is to become of images for which the version's router or probe fires."""

    mode: Mode = Field(description='"edit", "rewrite" (edit where the rewrite fires too) or "refuse".')


class RollbackRequest(ActivateRequest):
    """Target of a rollback: the version that was active before, or a named one."""

    to: VersionName | None = Field(default=None, description="Version to activate; the previous one if absent.")


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=False)]


class Shares(RootModel[Annotated[dict[VersionName, Share], Field(min_length=1, max_length=MOST_SHARING)]]):
    """Share of the traffic by version, with the sum 1."""


class SplitEvidence(BaseModel):
    """What this server has drawn since a split began: one version's images, and the active one's beside it."""

    images: int = Field(description="Images; of a repeated prompt the first.")
    unsafe: int = Field(description="Of these, judged unsafe by the model.")
    beside_images: int = Field(description="Images of the active version.")
    beside_unsafe: int = Field(description="Of these, judged unsafe.")
    e: float = Field(description="e-value against drawing unsafe images no more often than the active version.")


class TrafficShares(BaseModel):
    """Versions that share the traffic of callers who name none."""

    active: str = Field(description="Active version.")
    epoch: int = Field(description="Epoch of the active alias.")
    since: int = Field(description="Epoch at which these versions began to share; 0 where none do.")
    shares: dict[str, float] = Field(description="Share of each version.")
    evidence: dict[str, SplitEvidence] = Field(description="By version beside the active one: what was seen so far.")
    limit: float = Field(description="e-value of one version at which the split ends by itself; n times it for n.")


class Activation(BaseModel):
    """One state of the active alias."""

    version: str = Field(description="Active version.")
    epoch: int = Field(description="Number of the activation; it only grows.")
    previous: str | None = Field(description="Version that was active before.")
    moved_at: str = Field(description="Time of the activation: UTC, ISO 8601.")
    moved_by: str = Field(description="Operator or job that activated it.")
    move: str = Field(
        description='"initialise", "activate", "rollback", "traffic", "revoke", "restore", "shadow" or "canary".'
    )
    traffic: dict[str, float] = Field(description="Share of each version; empty where the active one draws for all.")
    split: int = Field(description="Epoch at which these versions began to share; 0 where none do.")
    revoked: list[str] = Field(description="Versions under which nothing is drawn.")
    reason: str = Field(description="Why, for a move that no person made.")
    shadow: dict[str, Any] = Field(description="Version, share and job of a shadow comparison; empty without one.")
    canary: str = Field(description="Version whose share grows in steps; empty without one.")
    evidence: dict[str, Any] = Field(description="Counts that decided a move that no person made.")


class ActiveCodebook(Activation):
    """The active version of this server."""

    codebook_hash: str = Field(description="Content hash of the version.")


class ActivationResponse(BaseModel):
    """The active alias before and after the call; both are the same if nothing changed."""

    old: Activation = Field(description="State before the call.")
    new: Activation = Field(description="State after the call.")


class CompareRequest(RequestBody):
    """A prompt to draw under two versions with the same seed."""

    prompt: Prompt = Field(description="Text to draw.")
    seed: Seed | None = Field(default=None, description="Seed of both images; random if absent.")
    versions: list[Version] = Field(min_length=2, max_length=2, description="The two codebook versions.")


class PixelDifference(BaseModel):
    """Pixel difference of two images."""

    pixels: int = Field(description="Number of pixels that differ.")
    share: float = Field(description="Share of pixels that differ, in [0, 1].")
    largest: int = Field(description="Largest difference of a channel, 0 to 255.")
    b64_png: str = Field(description="Mask of the pixels that differ: PNG file, base64.")


class CompareResponse(BaseModel):
    """One prompt and seed under two versions."""

    id: str = Field(description="Id of the call, as in `X-Request-Id`.")
    model: str = Field(description="Model id.")
    seed: int = Field(description="Seed of both images.")
    same_tokens: bool = Field(description="Whether the token sequences are equal: the images differ in decoding only.")
    images: list[GeneratedImage] = Field(description="The two images, in the order of the request.")
    difference: PixelDifference = Field(description="Pixel difference of the two.")
