"""Request and response bodies of the HTTP API, with every range that does not depend on the model.

Knows shapes of JSON. Knows nothing of how a response comes about.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from app.plan_schemas import PlanResponse
from core.wire import DEFAULT_ROUNDS
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


def _no_number(value: object) -> object:
    if type(value) in (int, float):  # 1 would pass for true
        raise ValueError('true, false or "canary"')
    return value


Activate = Annotated[Literal[True, False, "canary"], BeforeValidator(_no_number)]
# Lengths come first: without one, pydantic lets half a character pass.
Prompt = Annotated[str, Field(min_length=1, max_length=4000), AfterValidator(_whole), AfterValidator(_visible)]
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
Version = Annotated[str, Field(pattern=r"^(active|v(0|[1-9][0-9]{0,8}))$")]
Epoch = Annotated[int, Field(ge=0, lt=SEEDS)]


class RequestBody(BaseModel):
    """A request body: unknown fields and converted types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class GenerateRequest(RequestBody):
    """Prompt and sampling parameters of n images; image i is sampled with seed + i."""

    prompt: Prompt = Field(description="Text to draw.")
    n: int = Field(default=1, ge=1, le=MAX_IMAGES, description="Number of images.")
    seed: Seed | None = Field(default=None, description="Seed of the first image; random if absent.")
    guidance_scale: float | None = Field(
        default=None, ge=1, le=20, allow_inf_nan=False, description="Classifier-free guidance scale; 1 disables it."
    )
    temperature: float | None = Field(
        default=None, ge=0, le=10, allow_inf_nan=False, description="Sampling temperature; 0 is greedy."
    )
    top_k: int | None = Field(
        default=None,
        ge=0,
        description="Sample from the k likeliest codes, 0 from all; the model's own if absent.",
    )
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Sample from the likeliest of those with this probability together; the model's own if absent.",
    )
    codebook: Version = Field(default="active", description='Codebook version, or "active".')


class Budget(RequestBody):
    """Limits of a round of an improve job; the tighter one counts."""

    images: int | None = Field(default=None, ge=100, le=1_000_000, description="Images that a round may draw, about.")
    minutes: int | None = Field(
        default=None, ge=1, le=1440, description="Minutes a round may take, by the speed measured at its start."
    )


class ImproveBody(RequestBody):
    """Parameters of an improve job, which makes the active codebook safer in the background."""

    prompts: list[Prompt] | None = Field(
        default=None, min_length=1, max_length=1000, description="Additional training prompts."
    )
    categories: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="Harm categories of the policy to reduce; all if absent.",
    )
    policy: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="Policy that gives the prompts, as in GET /policies; the model's usual one if absent."
    )
    second_judge: Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_whole)] | None = Field(
        default=None, description="Name of the independent judge; that of SAFECB_SECOND_JUDGE if absent."
    )
    accept_self_judged: bool = Field(
        default=False, description="Activate versions though the second judge does not know every category."
    )
    budget: Budget | None = Field(default=None, description="Size of a round; about 12,000 images if absent.")
    dry_run: bool = Field(default=False, description="Answer with the plan of the job and begin none.")
    max_rounds: int | None = Field(
        default=None, ge=1, le=8, description=f"Maximum number of rounds; {DEFAULT_ROUNDS} if absent."
    )
    seed: Seed | None = Field(default=None, description="Seed of the job; derived from its id if absent.")
    activate: Activate = Field(
        default=True, description='Activate each accepted version; "canary" rolls the last one out in steps.'
    )


class PolicyResponse(BaseModel):
    """One policy: a source of all prompts of an improve job."""

    name: str = Field(description="Name, for POST /improve.")
    version: str = Field(description="Hash of its prompts; empty with a fault.")
    categories: list[str] = Field(description="Harm categories.")
    prompts: dict[str, int | None] | None = Field(
        description="Number of prompts by group; null where it writes as many as a job takes, and with a fault."
    )
    ships: bool = Field(description="Whether it comes with Safe-CB, or with another package, and cannot be changed.")
    usual: bool = Field(description="Whether a job takes it that names none; false while the model loads.")
    fault: str | None = Field(description="Why its file cannot be used, or null.")
    links: dict[str, str] = Field(description="Related paths: self.")


class JudgesResponse(BaseModel):
    """Names that the second judge of an improve job may have."""

    usual: str = Field(description="The second judge of a job that names none.")
    names: list[str] = Field(description="Judges that this server could use as they are.")
    shapes: list[str] = Field(description="Shapes of all other names.")


class Safety(BaseModel):
    """The model's own verdict on an image: three nulls where SAFECB_JUDGE leaves it unjudged."""

    unsafe: bool | None = Field(default=None, description="Whether the image is judged unsafe; null: not judged.")
    score: float | None = Field(default=None, description="Probability of unsafe, in [0, 1]; null: not judged.")
    category: str | None = Field(default=None, description="Harm category of the image; null: not judged.")
    edited: bool = Field(description="Whether the version's edit of the image head applied: its router or probe fired.")
    redraws: int = Field(description="How often it was drawn again under a mode that redraws, since it was unsafe.")


class GeneratedImage(BaseModel):
    """One image and the parameters that reproduce it."""

    id: str = Field(description="Image id, for POST /flags; the same image always has the same id.")
    b64_png: str = Field(description="PNG file, base64.")
    seed: int = Field(description="Seed of this image.")
    codebook: str = Field(description="Codebook version.")
    codebook_hash: str = Field(description="Content hash of the version; `content_hash` in GET /codebooks.")
    safety: Safety = Field(description="The model's own verdict.")
    revised_prompt: str | None = Field(
        description="The model's rewrite of the prompt, which was drawn in its place; null for the prompt itself."
    )


class GenerateResponse(BaseModel):
    """The images of one call and its effective sampling parameters."""

    id: str = Field(description="Id of the call, as in `X-Request-Id`.")
    model: str = Field(description="Model id.")
    codebook: str = Field(description="Codebook version.")
    codebook_hash: str = Field(description="Content hash of the version.")
    seed: int = Field(description="Seed of the first image.")
    guidance_scale: float = Field(description="Classifier-free guidance scale.")
    temperature: float = Field(description="Sampling temperature.")
    top_k: int = Field(description="Number of candidate codes; 0 is all.")
    top_p: float = Field(description="Probability of the candidate codes together; 1 is all.")
    images: list[GeneratedImage] = Field(description="The images, in the order of their seeds.")


class RedecodeRequest(RequestBody):
    """A version to decode a kept image under."""

    codebook: Version = Field(description='Codebook version, or "active".')


class FlagRequest(RequestBody):
    """A report that an image is unsafe."""

    image_id: str = Field(min_length=1, max_length=64, description="Id of an image of POST /generate.")
    category: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_whole)] | None = Field(
        default=None, description="Harm category; decided by the model's judge if absent."
    )
    note: Annotated[str, Field(max_length=1000), AfterValidator(_whole)] = Field(
        default="", description="Free text for the reviewer."
    )


class ApproveRequest(RequestBody):
    """Correction of a flag on its approval."""

    category: str | None = Field(default=None, description="A category of the model, in place of the flag's own.")


class FlagResponse(BaseModel):
    """One flag."""

    id: str = Field(description="Flag id.")
    image_id: str = Field(description="Id of the flagged image.")
    prompt: str = Field(description="Prompt of the image.")
    codebook: str = Field(description="Codebook version of the image.")
    category: str | None = Field(description="Harm category; null leaves it to the model's judge.")
    note: str = Field(description="Free text of the caller.")
    caller: str = Field(description="Hash of the caller's key or address.")
    state: State = Field(description='"accepted" joins the next job, "review" waits for an operator.')
    made: datetime = Field(description="Time of the flag: UTC.")
    job: str | None = Field(description="Improve job that used the flag.")
    links: dict[str, str] = Field(description="Related paths: self, image, approve, reject.")


class JobResponse(BaseModel):
    """One background job and its progress."""

    id: str = Field(description="Job id.")
    kind: str = Field(description='"improve" for improve jobs, "shadow" for comparisons of a version.')
    status: str = Field(description='"queued", "running", "finished", "failed" or "cancelled".')
    created: str = Field(description="Time of creation: UTC, ISO 8601.")
    started: str | None = Field(description="Start of the first attempt.")
    ended: str | None = Field(description="End of the job.")
    request: dict[str, Any] = Field(description="Body of POST /improve, or of the comparison.")
    progress: dict[str, Any] = Field(description="phase, done, total, round, message.")
    plan: PlanResponse | None = Field(description="Phases with their price; null before the job has one.")
    rounds: list[dict[str, Any]] = Field(
        description="Outcome of each round: figures, gates, reason, decision, fault, version."
    )
    result: dict[str, Any] | None = Field(
        description="Result of a finished job: version, start, reason, policy, second_judge, covered, self_judged, "
        "assessment; of a cancelled or failed one that had published: version, start, reason."
    )
    error: str | None = Field(description="Error of a failed job.")
    attempt: int = Field(description="Number of attempts begun.")
    cancel_requested: bool = Field(description="Whether DELETE /jobs/{id} was called.")
    links: dict[str, str] = Field(description="Related paths: self, events, and the report of its version.")


class CusumState(BaseModel):
    """Verdicts on what callers who named no version got, since the active version carries all traffic."""

    images: int = Field(description="Judged images that counted on all servers; of a caller's same prompt the first.")
    unsafe: int = Field(description="Of these, judged unsafe.")
    sum: float = Field(description="What speaks for the alert, or for its end while it stands.")
    alert: bool = Field(description="Whether it raises the alert.")


class TrafficResponse(BaseModel):
    """Verdicts on the live images of the active version, by window, and the alert on them."""

    version: str = Field(description="Active version.")
    windows: list[float] = Field(description="Share of images judged unsafe, per full window, oldest first.")
    rest: int = Field(description="Judged images after the last full window.")
    judge: str = Field(description='Which images this server judges: SAFECB_JUDGE: "all", "sample:0.1", "off".')
    judged: int = Field(description="Images of the version in the image log that were judged.")
    unjudged: int = Field(description="Images of the version in the image log that SAFECB_JUDGE left unjudged.")
    alert: bool = Field(description="Whether an alert is raised.")
    raised_above: float = Field(description="Share above which `patience` windows in a row raise the alert.")
    cleared_below: float = Field(description="Share below which `patience` windows in a row clear it.")
    patience: int = Field(description="Windows in a row that raise or clear the alert.")
    window: int = Field(description="Judged images per window.")
    bad_numbers: int = Field(description="Calls refused for NaN or infinity since the server started; any is an alert.")
    cusum: CusumState = Field(
        description="Sum of evidence that unsafe images have become frequent; sooner than windows."
    )
    cusum_limit: float = Field(description="Sum at which its alert is raised or cleared.")
