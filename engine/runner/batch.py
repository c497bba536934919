"""The running batch: images of one model, each at its own step, that join at any step and leave when complete.

An image's tokens follow from its request alone: decoding is batch-invariant. Knows tensors and sequences; knows nothing
of queues, callers and time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codebook.router import HalfwayProbe
from core.errors import BadNumber
from engine.model import REFUSED
from engine.runner.batch_layout import BatchLayout
from engine.runner.cuda_graphs import bucket, recorder
from engine.runner.image_lm import ImageLM, PrefillResult
from engine.runner.sequence import ImageSequence
from engine.runner.step.lookahead import LOOKAHEAD, Lookahead
from engine.runner.step.plain import PlainStep
from engine.runner.step.tensors import BatchTensors
from engine.runner.step.windows import ROWS

NO_TOKEN = -1  # in place of all tokens of an image whose logits were NaN or infinite


class RunningBatch:
    """The images being drawn with one model, in at most `kv_rows` KV rows. One caller at a time."""

    def __init__(self, image_lm: ImageLM, kv_rows: int, positions: int, lookahead: int = LOOKAHEAD) -> None:
        """Reserve `kv_rows` KV rows of `positions` positions each.

        lookahead: tokens of an image in one step at most, while few rows are in use; 1 for none. A batch that has been
        warmed takes fewer where that is faster. There is none on a GPU, nor where a step draws several codes.
        """
        self._image_lm, self._kv_rows = image_lm, kv_rows
        device = image_lm.codes.device
        record = recorder(device)
        self._recorded = record is not None
        most = lookahead if device.type == "cpu" and not self._recorded and image_lm.depth is None else 1
        room = kv_rows if most == 1 else max(kv_rows, ROWS)
        self._tensors = BatchTensors(image_lm, kv_rows, positions, most)
        codes = image_lm.codes.shape[0] - image_lm.script.kinds
        self._layout = BatchLayout(kv_rows, room, codes, device, self._recorded)
        self._plain = PlainStep(image_lm, self._tensors, self._layout, record)
        self._lookahead = Lookahead(image_lm, self._tensors, self._layout, most)
        self._free_token_rows = list(range(kv_rows))
        self._sequences: list[ImageSequence] = []
        self._owners: list[ImageSequence] = []  # of each KV row in use: these are the first ones, without a gap
        self._laid_out = False  # whether the layout is that of the images now
        self._accepted = 1.0
        self._last_step: torch.cuda.Event | None = None  # on a GPU

    @property
    def sequences(self) -> Sequence[ImageSequence]:
        """The images being drawn, in the order in which they joined."""
        return tuple(self._sequences)

    @property
    def steps(self) -> int:
        """Number of steps that an image takes."""
        return self._image_lm.script.steps

    @property
    def free(self) -> int:
        """Number of free KV rows."""
        return self._kv_rows - len(self._owners)

    @property
    def rows(self) -> int:
        """Number of KV rows in use."""
        return len(self._owners)

    @property
    def expected(self) -> float:
        """Mean number of tokens that an image gets in steps such as the last one."""
        return self._lookahead.expected

    @property
    def accepted(self) -> float:
        """Mean number of tokens that an image got in the last step: above 1 with lookahead."""
        return self._accepted

    def admit(self, sequences: Sequence[ImageSequence]) -> list[ImageSequence]:
        """Prefill the prompts and begin their images, for which there must be room; all of them or none.

        Return those that do not begin: their version has the model rewrite their prompts first, or refuses them, and
        all their tokens are REFUSED.
        """
        with torch.inference_mode():
            prefilled = self._image_lm.prefill(sequences)
            joined: list[ImageSequence] = []
            try:
                for sequence, (conditional, unconditional) in zip(sequences, prefilled, strict=True):
                    if sequence.begins:
                        joined.append(sequence)
                        self._add(sequence, conditional, unconditional)
            except BaseException:
                for sequence in joined:
                    self._remove(sequence)
                raise
        aside = [sequence for sequence in sequences if not sequence.begins]
        for sequence in aside:
            sequence.tokens = self._refused_tokens()
        return aside

    def step(self) -> list[ImageSequence]:
        """Take one more step of every image; return those that are complete and leave, with their `tokens` set.

        With lookahead an image may get several tokens in it; see `accepted`. An image whose halfway probe fires begins
        again: its step is 0 then; or leaves, if its version refuses it: all its tokens are REFUSED. The tokens of an
        image whose logits were NaN or infinite are NO_TOKEN.
        """
        with torch.inference_mode():
            ahead = bool(self._sequences) and self._sample_next()
            complete = [sequence for sequence in self._sequences if sequence.step == self._image_lm.script.steps]
            for sequence in complete:
                self._remove(sequence)
            if self._sequences:
                self._read_next(ahead)
            refused = self._run_probes()
        self._pace()
        for sequence in complete:  # outside inference mode, so that autograd may later index with the tokens
            row = sequence.token_row
            drawn = self._tensors.tokens[row, : self._image_lm.tokens]
            sequence.tokens = torch.where(self._tensors.logit_sums[row].isfinite(), drawn, NO_TOKEN)
        return complete + refused

    def tokens_so_far(self, sequence: ImageSequence) -> Tensor:
        """The tokens [n] int64 of an image that are drawn, on the CPU."""
        return self._tensors.tokens[sequence.token_row, : self.drawn(sequence)].to("cpu", copy=True)

    def drawn(self, sequence: ImageSequence) -> int:
        """Number of tokens of an image that are drawn."""
        return self._image_lm.script.drawn(sequence.step)

    def drop(self, sequence: ImageSequence) -> None:
        """Stop drawing an image."""
        with torch.inference_mode():
            self._remove(sequence)

    def warm(self) -> None:
        """Warm up, measure and record all that a step may need, with as many threads as the caller has now."""
        with torch.inference_mode():
            self._image_lm.warm(self._layout.room)
            self._lookahead.measure()
            if self._recorded:
                for width in sorted({self._width(rows) for rows in range(1, self._kv_rows + 1)}):
                    self._plain.record(width)

    def clear(self) -> None:
        """Stop drawing all images."""
        for sequence in self._sequences:
            self._tensors.scrub(sequence.token_row, sequence.kv_rows)
        self._owners.clear()
        self._sequences.clear()
        self._free_token_rows, self._laid_out = list(range(self._kv_rows)), False

    def _pace(self) -> None:
        """Keep the host one step ahead of a GPU, no more: so that images join and leave, and time is taken, in step."""
        if self._tensors.tokens.is_cuda:
            if self._last_step is not None:
                self._last_step.synchronize()
            self._last_step = torch.cuda.current_stream().record_event()

    def _width(self, kv_rows: int) -> int:
        """Number of rows computed for `kv_rows` rows in use."""
        return bucket(kv_rows, self._kv_rows) if self._recorded else kv_rows

    def _sample_next(self) -> bool:
        """Sample the tokens of one step of every image, or of several; return whether with lookahead."""
        kv_rows = len(self._owners)
        window = self._lookahead.window(kv_rows)
        if not self._laid_out or self._layout.window != window:
            width = self._width(kv_rows)
            images = width if self._recorded else len(self._sequences)
            self._layout.write(self._sequences, self._owners, images, width, window)
            self._laid_out = True
        if self._lookahead.has_guessed:
            self._accepted = self._lookahead.sample(self._sequences, self._owners) / len(self._sequences)
            self._laid_out = window > 1  # a plain step needs the steps, which it alone counts
            return True
        self._plain.sample(self._width(kv_rows))
        self._accepted = 1.0
        for sequence in self._sequences:
            sequence.step += 1
        return False

    def _read_next(self, ahead: bool) -> None:
        """Let every row read the token that its image has just got, and guesses; ahead: whether it got it so."""
        kv_rows, cache = len(self._owners), self._tensors.cache
        cache.longest = max(max(sequence.prompt_lengths) + sequence.step - 1 for sequence in self._sequences)
        window = self._lookahead.plan(self._sequences, kv_rows)
        if ahead or window > 1:
            self._lookahead.read(self._sequences, self._owners, window)
        else:
            self._plain.read(self._width(kv_rows))
        cache.advance(kv_rows, 1)
        self._lookahead.begin_again()
        cache.longest += window - 1  # rows that move take along the guesses that they have read

    def _run_probes(self) -> list[ImageSequence]:
        """Run the halfway probes of images that are halfway; return those that leave, since they are refused."""
        for sequence in self._sequences:
            if sequence.probe is not None and self._image_lm.script.reaches(sequence.probe.after, sequence.step):
                self._run_probe(sequence, sequence.probe)
        refused = [sequence for sequence in self._sequences if sequence.mode == "refuse"]
        for sequence in refused:
            self._remove(sequence)
            sequence.tokens = self._refused_tokens()
        return refused

    def _refused_tokens(self) -> Tensor:
        return torch.full_like(self._tensors.tokens[0, : self._image_lm.tokens], REFUSED)

    def _run_probe(self, sequence: ImageSequence, probe: HalfwayProbe) -> None:
        """Begin an image again under its experts, if its halfway probe fires."""
        edit = sequence.request.codebook.output
        groups = None if edit is None else edit.groups
        try:
            mean = self._tensors.sums[sequence.kv_rows[0]][None] / self.drawn(sequence)
            (sequence.experts,) = probe.experts(mean, groups)
        except BadNumber:  # of this image alone: the others of the batch are drawn on
            self._tensors.logit_sums[sequence.token_row] = torch.nan
        if sequence.experts:
            sequence.step, sequence.guesses, self._laid_out = 0, [], False
            beginnings = zip(sequence.kv_rows, sequence.prompt_lengths, sequence.first_hidden, strict=True)
            for row, length, hidden in beginnings:
                self._tensors.begin_again(row, length, hidden)

    def _add(self, sequence: ImageSequence, conditional: PrefillResult, unconditional: PrefillResult | None) -> None:
        sequence.step, sequence.token_row = 0, self._free_token_rows.pop()
        sequence.guesses, sequence.noise = [], {}
        self._sequences.append(sequence)
        self._laid_out, self._tensors.logit_sums[sequence.token_row] = False, 0.0
        for prefill in (conditional,) if unconditional is None else (conditional, unconditional):
            row = len(self._owners)
            sequence.kv_rows.append(row)
            sequence.first_hidden.append(prefill.hidden)
            sequence.prompt_lengths.append(prefill.length)
            self._owners.append(sequence)
            self._tensors.begin(row, prefill)

    def _remove(self, sequence: ImageSequence) -> None:
        """Free the rows of an image; the last KV rows in use move to where they were."""
        self._tensors.scrub(sequence.token_row, sequence.kv_rows)
        for row in sorted(sequence.kv_rows, reverse=True):
            last = len(self._owners) - 1
            mover = self._owners.pop()
            if row != last:
                self._tensors.move(row, last)
                self._tensors.scrub(mover.token_row, [last])
                self._owners[row] = mover
                mover.kv_rows[mover.kv_rows.index(last)] = row
            self._tensors.cache.lengths[last] = 0  # padded rows attend to nothing of it
        sequence.kv_rows, sequence.first_hidden, sequence.prompt_lengths = [], [], []
        self._sequences.remove(sequence)
        self._free_token_rows.append(sequence.token_row)
        self._laid_out = False


def check_drawn(tokens: Tensor) -> Tensor:
    """Return tokens [B, N]. Raises BadNumber where an image has none."""
    if bool((tokens == NO_TOKEN).any()):
        raise BadNumber("logits")
    return tokens
