"""The result of one image request, whole or in part. Knows tensors and PNG; knows nothing of queues and HTTP."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from torch import Tensor

from codebook.tensors import codebook_hash
from codebook.value import Codebook
from engine.model import ImageRequest, ModelFacts, Verdict
from engine.png import encode_png


@dataclass(frozen=True, eq=False)
class PartialImage:
    """The first tokens [n] int64, on the CPU, of image `index` of a call."""

    index: int
    request: ImageRequest
    tokens: Tensor


@dataclass(frozen=True, eq=False)
class ImageResult:
    """One finished image: tokens [N] int64 and image [H, W, 3] uint8, both on the CPU, and the model's own verdict.

    verdict: None for an image that was not judged; facts: of the model; experts: those of the version's HeadEdit that
    applied, in order; png: its PNG file, where `encoded` made it; revised: the model's rewrite of the prompt, where
    that was drawn; redraws: how often it was drawn again, since the model judged it unsafe.
    """

    facts: ModelFacts
    request: ImageRequest
    tokens: Tensor
    image: Tensor
    verdict: Verdict | None
    experts: tuple[int, ...]
    png: bytes = b""
    revised: str | None = None
    redraws: int = 0

    @property
    def id(self) -> str:
        """See image_id."""
        return image_id(self.facts, self.request)

    @property
    def is_unsafe(self) -> bool:
        """Whether it was judged, and unsafe."""
        return self.verdict is not None and self.verdict.unsafe

    def encoded(self) -> ImageResult:
        """Return the result with its PNG file, which says how it was made. Slow: not for an event loop."""
        text = provenance(self.request.codebook, self.request.sampling.seed, self.facts)
        return replace(self, png=encode_png(self.image, text))


def image_id(facts: ModelFacts, request: ImageRequest) -> str:
    """The sha256, shortened, of model, codebook, prompt and sampling: drawn again, the image has the same id."""
    sampling, codebook = request.sampling, request.codebook
    content = codebook_hash(codebook)
    inputs = [facts.model_hash, codebook.version, content, request.prompt, *astuple(sampling)]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]


def is_in_share(id: str, share: float) -> bool:
    """Whether the image of an id is in a share of all, in [0, 1]: on any server the same ones are."""
    return int(id[:16], 16) < share * 2**64


def first_judged(results: Sequence[ImageResult]) -> tuple[ImageResult, Verdict] | None:
    """The first of several images that was judged, and its verdict; None where none was."""
    return next(((result, result.verdict) for result in results if result.verdict is not None), None)


def provenance(codebook: Codebook, seed: int, facts: ModelFacts) -> dict[str, str]:
    """The text chunks of an image's file: codebook, codebook_hash, seed, model."""
    made_by = {"codebook": codebook.version, "codebook_hash": codebook_hash(codebook)}
    return made_by | {"seed": str(seed), "model": facts.title}
