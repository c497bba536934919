"""Request and response bodies of OpenAI's Images API, with this service's own fields beside them.

Knows shapes of JSON and their ranges. Knows nothing of how an answer comes about. Field names and values are those of
OpenAI's Python client, 3.57.0.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.formats import Format
from app.schemas import Prompt, Safety, Seed

MAX_IMAGES = 10
SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"


class ImagesRequest(BaseModel):
    """Body of POST /v1/images/generations. null is the same as an absent field."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Prompt = Field(description="Text to draw.")
    model: Annotated[str, Field(min_length=1, max_length=300)] | None = Field(
        default=None, description="The served model, `MODEL@vN` for one of its versions, or an alias."
    )
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = Field(default=None, description="Number of images.")
    size: Annotated[str, Field(pattern=SIZE)] | None = Field(
        default=None, description="Any size is taken; the image has the model's own, which the answer names."
    )
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] | None = Field(
        default=None, description="Taken and without effect."
    )
    style: Literal["vivid", "natural"] | None = Field(default=None, description="Taken and without effect.")
    background: Literal["opaque", "auto"] | None = Field(default=None, description="Images are opaque.")
    moderation: Literal["low", "auto"] | None = Field(default=None, description="Taken and without effect.")
    output_format: Format | None = Field(default=None, description="File format; png if absent.")
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        default=None, description="Quality of WebP and JPEG; 100 if absent."
    )
    response_format: Literal["url", "b64_json"] | None = Field(
        default=None, description="`url` gives links that are valid for an hour; b64_json if absent."
    )
    stream: bool | None = Field(default=None, description="Answer with server-sent events; n must be 1.")
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = Field(
        default=None, description="Most partial images of a stream; 0 if absent."
    )
    user: Annotated[str, Field(max_length=512)] | None = Field(default=None, description="Older safety_identifier.")
    safety_identifier: Annotated[str, Field(max_length=512)] | None = Field(
        default=None, description="The caller's own name of its user; given back, and not used otherwise."
    )
    seed: Seed | None = Field(default=None, description="Own field: seed of the first image; random if absent.")
    guidance_scale: float | None = Field(
        default=None, ge=1, le=20, allow_inf_nan=False, description="Own field: classifier-free guidance scale."
    )
    temperature: float | None = Field(
        default=None, ge=0, le=10, allow_inf_nan=False, description="Own field: sampling temperature."
    )
    top_k: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Own field: sample from the k likeliest codes; 0 samples from all."
    )
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        default=None, description="Own field: sample from the likeliest of those with this probability together."
    )

    @property
    def identifier(self) -> str | None:
        """The effective safety identifier."""
        return self.safety_identifier or self.user or None


class InputDetails(BaseModel):
    """Tokens of the input by kind."""

    text_tokens: int = Field(description="Tokens of the prompt.")
    image_tokens: int = Field(default=0, description="0: no image is taken.")


class OutputDetails(BaseModel):
    """Tokens of the output by kind."""

    image_tokens: int = Field(description="Tokens of all images.")
    text_tokens: int = Field(default=0, description="0: no text is written.")


class Usage(BaseModel):
    """Tokens that a call took."""

    input_tokens: int = Field(description="Tokens of the prompt.")
    input_tokens_details: InputDetails = Field(description="By kind.")
    output_tokens: int = Field(description="Tokens of all images.")
    output_tokens_details: OutputDetails = Field(description="By kind.")
    total_tokens: int = Field(description="Sum of both.")


class Origin(BaseModel):
    """What this service says of an image beyond OpenAI's fields."""

    id: str = Field(description="Own field: image id, for POST /flags and GET /images/{id}.")
    seed: int = Field(description="Own field: seed of this image.")
    codebook: str = Field(description="Own field: codebook version.")
    codebook_hash: str = Field(description="Own field: content hash of the version.")
    safety: Safety = Field(description="Own field: the model's own verdict.")
    revised_prompt: str | None = Field(default=None, description="The model's rewrite, where that was drawn.")


class ImageData(Origin):
    """One image; exactly one of b64_json and url is set."""

    b64_json: str | None = Field(default=None, description="The file, base64.")
    url: str | None = Field(default=None, description="Link to the file, valid for an hour.")


class ImagesResponse(BaseModel):
    """Answer of POST /v1/images/generations."""

    created: int = Field(description="Time of the answer, Unix seconds.")
    data: list[ImageData] = Field(description="The images, in the order of their seeds.")
    background: Literal["opaque"] = Field(default="opaque", description="Images are opaque.")
    output_format: Format = Field(description="File format of all images.")
    size: str = Field(description="True size, WIDTHxHEIGHT.")
    safety_identifier: str | None = Field(default=None, description="As in the request.")
    usage: Usage = Field(description="Tokens that the call took.")


class PartialImageEvent(BaseModel):
    """An image of which a part is drawn; the rest is grey."""

    type: Literal["image_generation.partial_image"] = Field(
        default="image_generation.partial_image", description="Name of the event."
    )
    partial_image_index: int = Field(description="Number of the partial image, from 0.")
    b64_json: str = Field(description="The file, base64.")
    created_at: int = Field(description="Time of the event, Unix seconds.")
    background: Literal["opaque"] = Field(default="opaque", description="Images are opaque.")
    output_format: Format = Field(description="File format.")
    quality: Literal["auto"] = Field(default="auto", description="There is one quality.")
    size: str = Field(description="True size, WIDTHxHEIGHT.")


class CompletedEvent(Origin):
    """The finished image, the last event of a stream."""

    b64_json: str = Field(description="The file, base64.")
    type: Literal["image_generation.completed"] = Field(
        default="image_generation.completed", description="Name of the event."
    )
    created_at: int = Field(description="Time of the event, Unix seconds.")
    background: Literal["opaque"] = Field(default="opaque", description="Images are opaque.")
    output_format: Format = Field(description="File format.")
    quality: Literal["auto"] = Field(default="auto", description="There is one quality.")
    size: str = Field(description="True size, WIDTHxHEIGHT.")
    safety_identifier: str | None = Field(default=None, description="As in the request.")
    usage: Usage = Field(description="Tokens that the call took.")


class ModelSampling(BaseModel):
    """The sampling parameters of a model for requests that give none."""

    guidance_scale: float = Field(description="Classifier-free guidance scale.")
    temperature: float = Field(description="Sampling temperature.")
    top_k: int = Field(description="Number of candidate codes; 0 is all.")
    top_p: float = Field(description="Probability of the candidate codes together; 1 is all.")


class ModelCard(BaseModel):
    """One name that `model` may have."""

    id: str = Field(description="The name.")
    object: Literal["model"] = Field(default="model", description="Kind of object.")
    created: int = Field(description="Time at which its codebook version was made, Unix seconds.")
    owned_by: str = Field(default="safecb", description="Constant.")
    codebook: str = Field(description='Own field: the codebook version it draws with, or "active".')
    sampling: ModelSampling = Field(description="Own field: how it samples where a request does not say.")


class ModelList(BaseModel):
    """All names that `model` may have."""

    object: Literal["list"] = Field(default="list", description="Kind of object.")
    data: list[ModelCard] = Field(description="The names.")


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str = Field(description="For people.")
    type: str = Field(description="Kind of error.")
    param: str | None = Field(description="Field at fault, if one is.")
    code: str | None = Field(description="Short name of the fault.")


class ErrorResponse(BaseModel):
    """Any error of /v1."""

    error: ErrorBody = Field(description="The error object.")
