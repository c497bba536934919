"""The result of one image request, whole or in part. Knows tensors and PNG; knows nothing of queues and HTTP."""

from __future__ import annotations

import hashlib
import json
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

    facts: of the model; experts: those of the version's HeadEdit that applied, in order; png: its PNG file,
    where `encoded` made it; revised: the model's rewrite of the prompt, where that was drawn; redraws: how often it was
    drawn again, since the model judged it unsafe.
    """

    facts: ModelFacts
    request: ImageRequest
    tokens: Tensor
    image: Tensor
    verdict: Verdict
    experts: tuple[int, ...]
    png: bytes = b""
    revised: str | None = None
    redraws: int = 0

    @property
    def id(self) -> str:
        """The sha256, shortened, of model, codebook, prompt and sampling: drawn again, the image has the same id."""
        sampling, codebook = self.request.sampling, self.request.codebook
        content = codebook_hash(codebook)
        inputs = [self.facts.model_hash, codebook.version, content, self.request.prompt, *astuple(sampling)]
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]

    def encoded(self) -> ImageResult:
        """Return the result with its PNG file, which says how it was made. Slow: not for an event loop."""
        text = provenance(self.request.codebook, self.request.sampling.seed, self.facts)
        return replace(self, png=encode_png(self.image, text))


def provenance(codebook: Codebook, seed: int, facts: ModelFacts) -> dict[str, str]:
    """The text chunks of an image's file: codebook, codebook_hash, seed, model."""
    made_by = {"codebook": codebook.version, "codebook_hash": codebook_hash(codebook)}
    return made_by | {"seed": str(seed), "model": facts.title}
