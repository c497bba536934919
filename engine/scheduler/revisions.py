"""Revisions under way: the model rewrites prompts in the postprocessor's thread, while others are drawn.

Knows the postprocessor and sequences. Knows nothing of the queue that they come back to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.runner.revision import revise
from engine.runner.sequence import ImageSequence
from engine.runner.served import Served
from engine.scheduler.postprocess import PostProcessor, explained


class Revisions:
    """The images whose prompts are being rewritten: `running`, until they have been taken back."""

    def __init__(self, postprocessor: PostProcessor, rejoin: Callable[[list[ImageSequence]], None]) -> None:
        """rejoin: takes images back, revised or failed; called in the postprocessor's thread."""
        self._postprocessor, self._rejoin = postprocessor, rejoin
        self.running: set[ImageSequence] = set()

    def take(self, aside: Sequence[ImageSequence]) -> None:
        """Refuse images that do not begin, or rewrite their prompts, together. The scheduler's thread alone calls."""
        for sequence in aside:
            if sequence.mode == "refuse":
                sequence.refuse()
        sequences = [sequence for sequence in aside if sequence.mode == "rewrite"]
        if not sequences:
            return
        self.running.update(sequences)
        revising = self._postprocessor.use(lambda model: _revise(model, sequences), urgent=True)
        revising.add_done_callback(lambda _: self._rejoin(sequences))


def _revise(model: Served, sequences: list[ImageSequence]) -> None:
    """Revise images for which somebody waits; where that fails, one by one, so that an error is its image's alone."""
    awaited = [sequence for sequence in sequences if not sequence.future.done()]
    try:
        revise(model, awaited)
    except Exception as error:
        if len(awaited) == 1:
            awaited[0].fail(explained(error))
        else:
            for sequence in awaited:
                _revise(model, [sequence])
