"""One image from admission to its result, and the future of several. Knows nothing of queues, callers and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from codebook.mode import Mode
from codebook.router import HalfwayProbe
from core.errors import BadNumber, Refused
from engine.image_result import ImageResult, PartialImage
from engine.model import ImageRequest, Sampling


@dataclass(eq=False)
class ImageSequence:
    """The state of one image. `future` is its result; once that is settled or cancelled, nobody waits for the image.

    prompt_ids: the tokens of the prompt; index: the image's number in its call; on_part: is called a few times on the
    way; experts: of its version's HeadEdit, in order; step: steps of its script so far; token_row: its row of the
    batch's token table; kv_rows: its rows of the KV cache, the conditional one first, then the unconditional one, if
    any; prompt_lengths, first_hidden: of each of them, the tokens of its prompt and the hidden state [H] after it;
    stops: the steps that no lookahead skips, since somebody looks at the image there; guesses: its next tokens, as its
    rows have read them; is_guessed: whether there may be any; noise: [K], by step, of its next steps; tokens: [N]
    int64, set when all are sampled; ready: on a GPU, the event after which `tokens` can be read. revised: the rewrite
    of the prompt that is drawn in its place; is_revised: whether the model was asked for one. redraws: how often it
    began again, since the model judged it unsafe.
    """

    request: ImageRequest
    prompt_ids: Sequence[int]
    index: int = 0
    on_part: Callable[[PartialImage], None] | None = None
    future: Future[ImageResult] = field(default_factory=Future)
    experts: tuple[int, ...] = ()
    step: int = 0
    token_row: int = -1
    kv_rows: list[int] = field(default_factory=list)
    first_hidden: list[Tensor] = field(default_factory=list)
    prompt_lengths: list[int] = field(default_factory=list)
    stops: Sequence[int] = ()
    guesses: list[int] = field(default_factory=list)
    is_guessed: bool = True
    noise: dict[int, Tensor] = field(default_factory=dict)
    tokens: Tensor = field(init=False)
    ready: torch.cuda.Event | None = None
    revised: str | None = None
    is_revised: bool = False
    redraws: int = 0

    @property
    def mode(self) -> Mode | None:
        """What becomes of it as its edit fires; None where none does."""
        edit = self.request.codebook.output
        return edit.mode if edit is not None and self.experts else None

    @property
    def begins(self) -> bool:
        """Whether it is drawn now: neither refused nor to be rewritten first."""
        return self.mode != "refuse" and (self.mode != "rewrite" or self.is_revised)

    @property
    def probe(self) -> HalfwayProbe | None:
        """The halfway probe of its edit, while no expert applies."""
        edit = self.request.codebook.output
        return edit.probe if edit is not None and not self.experts else None

    @property
    def awaits_verdict(self) -> bool:
        """Whether nobody gets it before the model judges it safe."""
        return self.request.codebook.mode == "redraw"

    @property
    def sampling(self) -> Sampling:
        """The request's sampling; drawn again, with another seed."""
        return self.request.sampling.redrawn(self.redraws)

    @property
    def guidance(self) -> float:
        """Its classifier-free guidance scale: the request's, or the share of it that its edit leaves."""
        scale, edit = self.request.sampling.guidance, self.request.codebook.output
        return scale if edit is None or not self.experts else 1 + edit.guidance * (scale - 1)

    def refuse(self) -> None:
        """Settle the future with the refusal of its version, unless it is settled."""
        self.fail(Refused(self.request.codebook.version))

    def finish(self, result: ImageResult) -> None:
        """Settle the future, unless it is settled."""
        with suppress(InvalidStateError):
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Settle the future with an error, unless it is settled. A BadNumber gets the image's seed and version."""
        if isinstance(error, BadNumber):
            seed, version = self.request.sampling.seed, self.request.codebook.version
            error = BadNumber(error.part, f"{error.detail} in the image of seed {seed} under {version}", version)
        with suppress(InvalidStateError):
            self.future.set_exception(error)


def kv_rows_of(request: ImageRequest) -> int:
    """KV rows that an image takes: one, and one more if it is guided."""
    return 1 if request.sampling.guidance == 1.0 else 2


def results_of(sequences: Sequence[ImageSequence]) -> Future[list[ImageResult]]:
    """One future of all results, in order. An error of one settles it; the others are cancelled then.

    It stays pending until the end, so that it can be cancelled at any time, and all images with it.
    """
    results: Future[list[ImageResult]] = Future()

    def settle(_: Future[ImageResult]) -> None:
        done = [sequence.future for sequence in sequences if sequence.future.done()]
        with suppress(InvalidStateError, CancelledError):  # settled or cancelled a moment ago
            error = next(filter(None, (future.exception() for future in done)), None)
            if error is not None:
                results.set_exception(error)
            elif len(done) == len(sequences):
                results.set_result([future.result() for future in done])

    def cancel(_: Future[list[ImageResult]]) -> None:
        for sequence in sequences:
            sequence.future.cancel()

    for sequence in sequences:
        sequence.future.add_done_callback(settle)
    results.add_done_callback(cancel)
    return results
