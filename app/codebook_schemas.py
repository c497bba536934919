"""Request and response bodies of the routes of codebook versions: activation, derivation, comparison.

Knows shapes of JSON. Knows nothing of stores.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, RootModel

from app.schemas import Epoch, GeneratedImage, Prompt, RequestBody, Seed, Version
from codebook.mode import Mode
from codebook.moves import MOST_SHARING
from codebook.trials.rule import MARGIN, PAIRS

VersionName = Annotated[str, Field(pattern=r"^v(0|[1-9][0-9]{0,8})$")]


class ActivateRequest(RequestBody):
    """Condition of an activation."""

    expected_epoch: Epoch | None = Field(
        default=None, description="Refuse with 409 unless the active alias is at this epoch."
    )


class DeriveRequest(RequestBody):
    """What is to become of images for which the version's router or probe fires."""

    mode: Mode = Field(description='"edit", "rewrite" (edit where the rewrite fires too), "redraw" or "refuse".')


class RollbackRequest(ActivateRequest):
    """Target of a rollback: the version that was active before, or a named one."""

    to: VersionName | None = Field(default=None, description="Version to activate; the previous one if absent.")


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=False)]


class Shares(RootModel[Annotated[dict[VersionName, Share], Field(min_length=1, max_length=MOST_SHARING)]]):
    """Share of the traffic by version, with the sum 1."""


Curve = dict[str, list[float]]  # the values of each name


class SplitEvidence(BaseModel):
    """What this server has drawn since a split began: one version's images, and the active one's beside it."""

    images: int = Field(description="Judged images; of a repeated prompt the first.")
    unsafe: int = Field(description="Of these, judged unsafe by the model.")
    beside_images: int = Field(description="Judged images of the active version.")
    beside_unsafe: int = Field(description="Of these, judged unsafe.")
    e: float = Field(description="e-value against drawing unsafe images no more often than the active version.")
    limit: float = Field(description="e-value at which the split ends by itself.")
    differences: dict[str, int] = Field(
        description="How often a run of its images had so many thousandths more of them unsafe than the run before it."
    )
    curve: Curve = Field(description="At most 60 points: `images` of the version, and `e` after them.")


class TrafficShares(BaseModel):
    """Versions that share the traffic of callers who name none."""

    active: str = Field(description="Active version.")
    epoch: int = Field(description="Epoch of the active alias.")
    since: int = Field(description="Epoch at which these versions began to share; 0 where none do.")
    shares: dict[str, float] = Field(description="Share of each version.")
    evidence: dict[str, SplitEvidence] = Field(description="By version beside the active one: what was seen so far.")
    limit: float = Field(description="e-value of one version at which the split ends by itself; n times it for n.")
    canary: str = Field(description="Version whose share grows in steps; empty without one.")
    next_step_at: int = Field(description="Judged images of it at one server before its next step; 0 without one.")
    judge: str = Field(description="Which images this server judges and counts: SAFECB_JUDGE.")


class ShadowRequest(ActivateRequest):
    """Size of a shadow comparison."""

    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        default=0.5, description="Share of the live images that is compared."
    )
    pairs: int = Field(default=PAIRS, ge=1, le=100_000, description="Pairs after which it ends undecided.")
    margin: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        default=MARGIN, description="Share of bad images by which a version that is promoted may be worse at most."
    )
    steps: bool = Field(default=True, description="Roll the version out in steps if it is as good.")


class MeasureCounts(BaseModel):
    """Pairs by one measure, and what they show."""

    worse: int = Field(description="Pairs in which the version's image alone is bad.")
    equal: int = Field(description="Pairs in which both or neither are.")
    better: int = Field(description="Pairs in which the active version's image alone is.")
    e_worse: float = Field(description="e-value against the version being bad no more often.")
    e_within: float = Field(description="e-value against the version being bad more often by the margin.")


class ShadowResponse(BaseModel):
    """A shadow comparison: what it has shown so far, or has decided."""

    job: str = Field(description="Id of its job.")
    version: str = Field(description="Version that is compared with the active one.")
    status: str = Field(description="Status of the job.")
    decision: str = Field(description='"retreat", "promote", "undecided", "stopped"; empty while it goes on.')
    share: float = Field(description="Share of the live images that is compared.")
    steps: bool = Field(description="Whether the version is rolled out in steps if it is as good.")
    margin: float = Field(description="Share of bad images by which a version that is promoted may be worse at most.")
    pairs: int = Field(description="Pairs compared.")
    most: int = Field(description="Pairs after which it ends undecided.")
    measures: dict[str, MeasureCounts] = Field(
        description='Counts by measure: unsafe by the model ("self"), by the "second" judge, "degenerate".'
    )
    retreat_at: float = Field(description="`e_worse` of one measure at which the version retreats.")
    curve: Curve = Field(
        description="At most 60 points: `pairs`, and the e-values of each measure after them, as `worse_self`, "
        "`within_self`, and so on."
    )
    promote_at: float = Field(description="`e_within` of all measures at which it is promoted.")
    links: dict[str, str] = Field(description="Related paths: self, job.")


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
