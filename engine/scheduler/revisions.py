"""Revisions under way: the model rewrites prompts in the postprocessor's thread, while others are drawn.

Knows the postprocessor and sequences. Knows nothing of the queue that they come back to.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from engine.runner.revision import revise
from engine.runner.sequence import ImageSequence
from engine.scheduler.postprocess import PostProcessor


class Revisions:
    """The images whose prompts are being rewritten: `running`, until they have been taken back."""

    def __init__(self, postprocessor: PostProcessor, rejoin: Callable[[list[ImageSequence]], None]) -> None:
        """rejoin: takes images back, revised or failed; called in the postprocessor's thread."""
        self._postprocessor, self._rejoin = postprocessor, rejoin
        self.running: set[ImageSequence] = set()

    def begin(self, sequences: list[ImageSequence]) -> None:
        """Rewrite the prompts of images, together. The scheduler's thread alone calls."""
        if not sequences:
            return
        self.running.update(sequences)
        revising = self._postprocessor.use(lambda model: revise(model, sequences), urgent=True)
        revising.add_done_callback(lambda revised: self._end(sequences, revised))

    def _end(self, sequences: list[ImageSequence], revised: Future[None]) -> None:
        if error := revised.exception():
            for sequence in sequences:
                sequence.fail(error)
        self._rejoin(sequences)
