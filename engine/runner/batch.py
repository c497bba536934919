"""The images that are being drawn, each at its own step: they join at any step and leave when they are complete.

What is drawn of an image follows from its request alone, whoever else is being drawn. Knows tensors and requests;
knows nothing of queues, callers and time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from codebook.tensors import is_finite
from codebook.value import NO_EXPERT, HalfwayProbe
from core.errors import BadNumber
from engine.model import ImageModel, ImageRequest
from engine.runner.batch_layout import BatchLayout
from engine.runner.cuda_graphs import ByWidth, bucket, recorder
from engine.runner.decoder import blocks
from engine.runner.image_lm import ImageLM, PrefillResult
from engine.runner.sampling import apply_cfg, sample
from engine.runner.sequence import ImageSequence

NO_TOKEN = -1  # in place of all tokens of an image whose logits were NaN or infinite


class RunningBatch:
    """The images being drawn with one model, in at most `rows` rows. One caller at a time."""

    def __init__(self, drawer: ImageLM, rows: int, places: int) -> None:
        """Reserve `rows` rows of `places` tokens each."""
        self._drawer, self._rows = drawer, rows
        self._context = drawer.language.context(rows, places)
        self._hidden = drawer.codes.new_zeros(rows, drawer.codes.shape[1])  # of each row's last token
        self._next = torch.zeros_like(self._hidden)  # what each row reads next
        self._features = torch.zeros(rows, drawer.width, device=drawer.codes.device)
        self._sums = torch.zeros_like(self._features)  # of an image's features so far, for a look
        # The last row is for padded images.
        self._tokens = torch.zeros(rows + 1, drawer.tokens, dtype=torch.int64, device=drawer.codes.device)
        # The sum of all logits of the image at a row of the token table: NaN and infinity stay in it, so that a step
        # need not wait for a GPU to say so.
        self._logits = torch.zeros(rows + 1, device=drawer.codes.device)
        self._places = list(range(rows))  # free rows of the token table
        self._slots: list[ImageSequence] = []
        self._owners: list[ImageSequence] = []  # of each row in use: these are the first ones, without a gap
        record = recorder(drawer.codes.device)
        self._recorded = record is not None
        self._draw, self._read = ByWidth(record), ByWidth(record)
        self._plan = BatchLayout(rows, drawer.codes.shape[0], drawer.codes.device)
        self._planned = False  # not since an image has joined or left
        self._drawn_event: torch.cuda.Event | None = None  # of the last step, on a GPU

    @property
    def drawing(self) -> Sequence[ImageSequence]:
        """The images being drawn, in the order in which they joined."""
        return tuple(self._slots)

    @property
    def free(self) -> int:
        """How many rows are free."""
        return self._rows - len(self._owners)

    def admit(self, requests: Sequence[ImageRequest]) -> list[ImageSequence]:
        """Read prompts and begin their images, for which there must be room. Raises BadInput for a bad prompt."""
        with torch.inference_mode():
            read = self._drawer.prefill(requests)
            joined: list[ImageSequence] = []
            try:
                for request, prefills in zip(requests, read, strict=True):
                    self._join(joined, request, *prefills)
            except BaseException:
                for sequence in joined:
                    self._leave(sequence)
                raise
            return joined

    def step(self) -> list[tuple[ImageSequence, Tensor]]:
        """Draw one more token of every image; those that are complete leave, each with its tokens [N] int64.

        An image that shows a harm at its look begins again: its step is 0 then. The tokens of an image whose logits
        were NaN or infinite are NO_TOKEN.
        """
        with torch.inference_mode():
            self._draw_next()
            done = [sequence for sequence in self._slots if sequence.step == self._drawer.tokens]
            for sequence in done:
                self._leave(sequence)
            if self._slots:
                self._read_next()
            for sequence in self._slots:
                if sequence.look is not None and sequence.step == sequence.look.after:
                    self._look(sequence, sequence.look)
        self._pace()
        # Made outside inference mode, so that autograd may later index with them.
        return [(sequence, self._complete(sequence.place)) for sequence in done]

    def drawn(self, sequence: ImageSequence) -> Tensor:
        """The tokens [step] int64 of an image so far, on the CPU."""
        return self._tokens[sequence.place, : sequence.step].to("cpu", copy=True)

    def drop(self, sequence: ImageSequence) -> None:
        """Stop drawing an image."""
        with torch.inference_mode():
            self._leave(sequence)

    def warm(self) -> None:
        """Prepare all that a step may need, before the first image, with as many threads as the caller has now."""
        with torch.inference_mode():
            self._drawer.warm(self._rows)
            if self._recorded:
                for width in sorted({self._width(rows) for rows in range(1, self._rows + 1)}):
                    self._plan.write((), (), width, width)
                    self._draw(self._draw_tokens, width)
                    self._read(self._read_tokens, width)

    def clear(self) -> None:
        """Stop drawing all images."""
        for sequence in self._slots:
            self._wipe(sequence, sequence.rows)
        self._owners.clear()
        self._slots.clear()
        self._places, self._planned = list(range(self._rows)), False

    def _pace(self) -> None:
        """Let the host be one step ahead of a GPU, no more: so that it joins, drops and tells the time in step."""
        if self._tokens.is_cuda:
            if self._drawn_event is not None:
                self._drawn_event.synchronize()
            self._drawn_event = torch.cuda.current_stream().record_event()

    def _width(self, rows: int) -> int:
        """How many rows are computed for so many."""
        return bucket(rows, self._rows) if self._recorded else rows

    def _draw_next(self) -> None:
        """Draw a token of every image, by the plan."""
        plan, width = self._plan, self._width(len(self._owners))
        if not self._planned:
            plan.write(self._slots, self._owners, width if self._recorded else len(self._slots), width)
            self._planned = True
        if plan.recordable:
            self._draw(self._draw_tokens, width)
        else:
            self._draw_tokens(width)
        if plan.looks:
            self._sums[:width] += self._features[:width]
        plan.steps.add_(1)
        for sequence in self._slots:
            sequence.step += 1

    def _draw_tokens(self, width: int) -> Tensor:
        """Draw by the hidden states of the first `width` rows; returns what they read next, [width, H]."""
        plan, features = self._plan, self._features[:width]
        features.copy_(self._drawer.read_off(self._hidden[:width]))
        logits = self._drawer.logits(features, plan.routed)
        guided = apply_cfg(logits, plan.guides)
        self._logits.index_add_(0, plan.places, guided.sum(1))
        drawn = sample(guided, plan.draws, plan.steps)
        self._tokens[plan.places, plan.steps] = drawn
        return torch.index_select(self._drawer.codes, 0, drawn[plan.owners], out=self._next[:width])

    def _read_next(self) -> None:
        """Let every row read the token that its image has just got."""
        rows, context = len(self._owners), self._context
        context.longest = max(sequence.prompt + sequence.step - 1 for sequence in self._slots)
        self._read(self._read_tokens, self._width(rows))
        context.grow(rows, 1)

    def _read_tokens(self, width: int) -> Tensor:
        """Let the first `width` rows read; returns their hidden states."""
        # A recording must do for every length; elsewhere the places that nobody has come to are left out.
        places = self._context.keys.shape[3] if self._recorded else blocks(self._context.longest + 1)
        hidden = self._drawer.language.layers(self._next[:width, None], self._context, places)
        return self._hidden[:width].copy_(hidden[:, 0])

    def _complete(self, place: int) -> Tensor:
        """The tokens [N] at a row of the token table, or NO_TOKEN in place of each."""
        return torch.where(self._logits[place].isfinite(), self._tokens[place], NO_TOKEN)

    def _look(self, sequence: ImageSequence, look: HalfwayProbe) -> None:
        """Begin an image again under an expert, if what is drawn of it calls for one."""
        try:
            sequence.expert = int(look.choose(self._sums[sequence.rows[0]][None] / look.after))
        except BadNumber:  # the image's own fault: its batch mates are drawn on
            self._logits[sequence.place] = torch.nan
        if sequence.expert != NO_EXPERT:
            sequence.step, self._planned = 0, False
            for row, hidden in zip(sequence.rows, sequence.began, strict=True):
                self._context.lengths[row], self._hidden[row] = sequence.prompt, hidden

    def _join(
        self, joined: list[ImageSequence], request: ImageRequest, read: PrefillResult, twin: PrefillResult | None
    ) -> None:
        sequence = ImageSequence(request, self._places.pop(), read.length, read.expert)
        self._slots.append(sequence)
        joined.append(sequence)
        self._planned, self._logits[sequence.place] = False, 0.0
        for prefill in (read,) if twin is None else (read, twin):
            row = len(self._owners)
            sequence.rows.append(row)
            sequence.began.append(prefill.hidden)
            self._owners.append(sequence)
            self._context.put(row, prefill.context, prefill.row)
            self._hidden[row], self._sums[row] = prefill.hidden, 0.0

    def _leave(self, sequence: ImageSequence) -> None:
        """Free the rows of an image; the last rows in use move to where they were."""
        self._wipe(sequence, sequence.rows)
        for row in sorted(sequence.rows, reverse=True):
            last = len(self._owners) - 1
            mover = self._owners.pop()
            if row != last:
                self._context.put(row, self._context, last)
                for kept in (self._hidden, self._next, self._sums):
                    kept[row] = kept[last]
                self._wipe(mover, [last])
                self._owners[row] = mover
                mover.rows[mover.rows.index(last)] = row
            self._context.lengths[last] = 0  # whoever reads padded rows reads nothing of it
        self._slots.remove(sequence)
        self._places.append(sequence.place)
        self._planned = False

    def _wipe(self, sequence: ImageSequence, rows: Sequence[int]) -> None:
        """Leave no NaN of an image in rows that it leaves: on a CPU the next one reads past its end, and masks that."""
        sound = self._tokens.is_cuda or (
            is_finite(self._logits[sequence.place]) and is_finite(self._hidden[sequence.rows])
        )
        if not sound:
            for cache in (self._context.keys, self._context.values):
                cache[:, rows] = 0.0


def check_drawn(tokens: Tensor) -> Tensor:
    """Return tokens [B, N]. Raises BadNumber where an image has none."""
    if bool((tokens == NO_TOKEN).any()):
        raise BadNumber("logits")
    return tokens


class Served(ImageModel, Protocol):
    """A model whose images can join and leave at any step."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def slots(self, rows: int) -> RunningBatch:
        """Reserve `rows` rows in which images of any readable prompt can be drawn."""

    def preview(self, tokens: Tensor, pixel: Tensor) -> Tensor:
        """An image [1, 3, H, W] in [-1, 1] of its first tokens [n], n >= 1, grey where none are."""

    def rows(self) -> int:
        """How many rows fit this model's device. Raises BadModel where there is no room for an image."""
