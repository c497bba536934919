"""Image results as OpenAI's answers: files as base64 or links, true size, tokens used.

Knows shapes and file formats. Knows nothing of drawing.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.access.links import Links
from app.drawing import to_response
from app.formats import QUALITY, Format, converted
from app.openai.schemas import (
    CompletedEvent,
    ImageData,
    ImagesRequest,
    ImagesResponse,
    InputDetails,
    Origin,
    OutputDetails,
    PartialImageEvent,
    Usage,
)
from app.routes.images import path_of
from engine.image_result import ImageResult
from engine.model import ModelFacts


def size_of(facts: ModelFacts) -> str:
    """Return the size of the model's images as WIDTHxHEIGHT."""
    return f"{facts.image_size}x{facts.image_size}"


@dataclass(frozen=True)
class Answers:
    """The answers to one request. prompt_tokens: of its prompt. base_url: of the server, as the caller named it."""

    request: ImagesRequest
    facts: ModelFacts
    prompt_tokens: int
    base_url: str
    links: Links

    def whole(self, results: Sequence[ImageResult]) -> ImagesResponse:
        """The answer with all images. Slow: not for an event loop."""
        return ImagesResponse(
            created=_now(),
            data=[self._data(result) for result in results],
            output_format=self._format,
            size=size_of(self.facts),
            safety_identifier=self.request.identifier,
            usage=self._usage(len(results)),
        )

    def partial(self, index: int, png: bytes) -> PartialImageEvent:
        """The event of a part of the image. Slow, as above."""
        return PartialImageEvent(
            partial_image_index=index,
            b64_json=self._b64(png),
            created_at=_now(),
            output_format=self._format,
            size=size_of(self.facts),
        )

    def completed(self, result: ImageResult) -> CompletedEvent:
        """The event of the finished image. Slow, as above."""
        return CompletedEvent(
            **_origin(result),
            b64_json=self._b64(result.png),
            created_at=_now(),
            output_format=self._format,
            size=size_of(self.facts),
            safety_identifier=self.request.identifier,
            usage=self._usage(1),
        )

    @property
    def _format(self) -> Format:
        return self.request.output_format or "png"

    def _data(self, result: ImageResult) -> ImageData:
        if self.request.response_format == "url":
            return ImageData(url=self._link(result.id), **_origin(result))
        return ImageData(b64_json=self._b64(result.png), **_origin(result))

    def _b64(self, png: bytes) -> str:
        return base64.b64encode(converted(png, self._format, self.request.output_compression)).decode()

    def _link(self, id: str) -> str:
        compression = self.request.output_compression
        quality = QUALITY if compression is None else compression
        query = self.links.query(path_of(id), format=self._format, quality=quality)
        return f"{self.base_url.rstrip('/')}{path_of(id)}?{query}"

    def _usage(self, images: int) -> Usage:
        drawn = images * self.facts.tokens
        return Usage(
            input_tokens=self.prompt_tokens,
            input_tokens_details=InputDetails(text_tokens=self.prompt_tokens),
            output_tokens=drawn,
            output_tokens_details=OutputDetails(image_tokens=drawn),
            total_tokens=self.prompt_tokens + drawn,
        )


def _origin(result: ImageResult) -> dict[str, Any]:
    return to_response(result).model_dump(include=set(Origin.model_fields))


def _now() -> int:
    return int(time.time())
