"""One image that is being drawn. Knows nothing of the others."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from codebook.value import NO_EXPERT, HalfwayProbe
from engine.model import ImageRequest


@dataclass(eq=False)
class ImageSequence:
    """An image being drawn. place: its row of the token table; prompt: its tokens; step: tokens drawn so far.

    rows: the rows of the context that read for it, the conditional one first, then the unconditional one, if any.
    began: the hidden states [H] from which they began.
    """

    request: ImageRequest
    place: int
    prompt: int
    expert: int
    rows: list[int] = field(default_factory=list)
    began: list[Tensor] = field(default_factory=list)
    step: int = 0

    @property
    def look(self) -> HalfwayProbe | None:
        """The look that its edit takes at it, if none of its experts applies yet."""
        edit = self.request.codebook.output
        return edit.look if edit is not None and self.expert == NO_EXPERT else None

    @property
    def guidance(self) -> float:
        """Its classifier-free guidance scale: the request's, or what its edit leaves of it."""
        asked, edit = self.request.sampling.guidance, self.request.codebook.output
        return asked if edit is None or self.expert == NO_EXPERT else 1 + edit.guidance * (asked - 1)


def rows_of(request: ImageRequest) -> int:
    """How many rows an image takes: one, and one more if it is guided."""
    return 1 if request.sampling.guidance == 1.0 else 2
