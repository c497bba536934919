"""The running batch: images of one model, each at its own step, that join at any step and leave when complete.

An image's tokens follow from its request alone: decoding is batch-invariant. Knows tensors and sequences; knows nothing
of queues, callers and time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codebook.router import HalfwayProbe
from codebook.tensors import is_finite
from core.errors import BadNumber
from engine.model import REFUSED
from engine.runner.batch_layout import BatchLayout
from engine.runner.cuda_graphs import ByWidth, bucket, recorder
from engine.runner.decoder import blocks
from engine.runner.image_lm import DepthHead, ImageLM, PrefillResult
from engine.runner.sampling import apply_cfg, sample
from engine.runner.script import ScriptTensors
from engine.runner.sequence import ImageSequence

NO_TOKEN = -1  # in place of all tokens of an image whose logits were NaN or infinite


class RunningBatch:
    """The images being drawn with one model, in at most `kv_rows` KV rows. One caller at a time."""

    def __init__(self, image_lm: ImageLM, kv_rows: int, positions: int) -> None:
        """Reserve `kv_rows` KV rows of `positions` positions each."""
        self._image_lm, self._kv_rows = image_lm, kv_rows
        self._cache = image_lm.decoder.new_cache(kv_rows, positions)
        self._hidden = image_lm.codes.new_zeros(kv_rows, image_lm.decoder.width)  # of each row's last token
        self._next = torch.zeros_like(self._hidden)  # the embeddings that the rows read next
        self._features = torch.zeros(kv_rows, image_lm.width, device=image_lm.codes.device)
        self._sums = torch.zeros_like(self._features)  # of an image's features so far, for the halfway probe
        self._script = ScriptTensors(image_lm.script, image_lm.codes) if image_lm.script.kinds else None
        # The last row of the token table is for padded images, a last column for steps that draw no code.
        columns = image_lm.tokens + (self._script is not None)
        self._tokens = torch.zeros(kv_rows + 1, columns, dtype=torch.int64, device=image_lm.codes.device)
        # The sum of all logits of the image at a row of the token table. NaN and infinity stay in it, so that a step
        # need not wait for a GPU to report them.
        self._logit_sums = torch.zeros(kv_rows + 1, device=image_lm.codes.device)
        self._free_token_rows = list(range(kv_rows))
        self._sequences: list[ImageSequence] = []
        self._owners: list[ImageSequence] = []  # of each KV row in use: these are the first ones, without a gap
        record = recorder(image_lm.codes.device)
        self._recorded = record is not None
        self._sample, self._forward = ByWidth(record), ByWidth(record)
        codes = image_lm.codes.shape[0] - image_lm.script.kinds
        self._layout = BatchLayout(kv_rows, codes, image_lm.codes.device, self._recorded)
        self._laid_out = False  # whether the layout is that of the images now
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

        An image whose halfway probe fires begins again: its step is 0 then; or leaves, if its version refuses it: all
        its tokens are REFUSED. The tokens of an image whose logits were NaN or infinite are NO_TOKEN.
        """
        with torch.inference_mode():
            self._sample_next()
            complete = [sequence for sequence in self._sequences if sequence.step == self._image_lm.script.steps]
            for sequence in complete:
                self._remove(sequence)
            if self._sequences:
                self._read_next()
            refused = self._run_probes()
        self._pace()
        for sequence in complete:  # outside inference mode, so that autograd may later index with the tokens
            row = sequence.token_row
            drawn = self._tokens[row, : self._image_lm.tokens]
            sequence.tokens = torch.where(self._logit_sums[row].isfinite(), drawn, NO_TOKEN)
        return complete + refused

    def tokens_so_far(self, sequence: ImageSequence) -> Tensor:
        """The tokens [n] int64 of an image that are drawn, on the CPU."""
        return self._tokens[sequence.token_row, : self.drawn(sequence)].to("cpu", copy=True)

    def drawn(self, sequence: ImageSequence) -> int:
        """Number of tokens of an image that are drawn."""
        return self._image_lm.script.drawn(sequence.step)

    def drop(self, sequence: ImageSequence) -> None:
        """Stop drawing an image."""
        with torch.inference_mode():
            self._remove(sequence)

    def warm(self) -> None:
        """Warm up and record all that a step may need, with as many threads as the caller has now."""
        with torch.inference_mode():
            self._image_lm.warm(self._kv_rows)
            if self._recorded:
                for width in sorted({self._width(rows) for rows in range(1, self._kv_rows + 1)}):
                    self._layout.write((), (), width, width)
                    self._sample(self._sample_tokens, width)
                    self._forward(self._read_tokens, width)

    def clear(self) -> None:
        """Stop drawing all images."""
        for sequence in self._sequences:
            self._scrub(sequence, sequence.kv_rows)
        self._owners.clear()
        self._sequences.clear()
        self._free_token_rows, self._laid_out = list(range(self._kv_rows)), False

    def _pace(self) -> None:
        """Keep the host one step ahead of a GPU, no more: so that images join and leave, and time is taken, in step."""
        if self._tokens.is_cuda:
            if self._last_step is not None:
                self._last_step.synchronize()
            self._last_step = torch.cuda.current_stream().record_event()

    def _width(self, kv_rows: int) -> int:
        """Number of rows computed for `kv_rows` rows in use."""
        return bucket(kv_rows, self._kv_rows) if self._recorded else kv_rows

    def _sample_next(self) -> None:
        """Sample the tokens of one step of every image, by the layout."""
        layout, width = self._layout, self._width(len(self._owners))
        if not self._laid_out:
            layout.write(self._sequences, self._owners, width if self._recorded else len(self._sequences), width)
            self._laid_out = True
        if layout.recordable:
            self._sample(self._sample_tokens, width)
        else:
            self._sample_tokens(width)
        if layout.probed:
            summed = self._features[:width]
            if self._script is not None:
                summed = summed * self._script.is_drawn[layout.steps[layout.owners]][:, None]
            self._sums[:width] += summed
        layout.steps.add_(1)
        for sequence in self._sequences:
            sequence.step += 1

    def _sample_tokens(self, width: int) -> Tensor:
        """Sample by the hidden states of the first `width` rows; return what they read next, [width, H]."""
        layout, image_lm = self._layout, self._image_lm
        if image_lm.depth is not None:
            return self._sample_deep(image_lm.depth, width)
        tokens = self._sample_code(image_lm.head_input(self._hidden[:width]), layout.steps)
        if self._script is None:
            self._tokens[layout.token_rows, layout.steps] = tokens
        else:
            self._tokens[layout.token_rows, self._script.columns[layout.steps]] = tokens
            tokens = self._script.read(tokens, layout.steps)
        return torch.index_select(self._image_lm.codes, 0, tokens[layout.owners], out=self._next[:width])

    def _sample_deep(self, head: DepthHead, width: int) -> Tensor:
        """As `_sample_tokens`, of a model that draws several codes a step, each given those before it."""
        layout, depth = self._layout, self._image_lm.script.depth
        step, sums = head.begin(self._hidden[:width]), torch.zeros_like(self._features[:width])
        drawn: list[Tensor] = []  # of each row
        for level in range(depth):
            features, column = step(drawn[-1] if drawn else None), layout.steps * depth + level
            sums += features
            tokens = self._sample_code(features, column)
            self._tokens[layout.token_rows, column] = tokens
            drawn.append(tokens[layout.owners])
        self._features[:width] = sums
        return self._next[:width].copy_(head.read(torch.stack(drawn, 1)))

    def _sample_code(self, features: Tensor, counter: Tensor) -> Tensor:
        """Sample a code of every image [n] by the features [R, M] of all rows; counter: [n], of its noise."""
        layout, edited = self._layout, self._features[: features.shape[0]].copy_(features)
        guided = apply_cfg(self._image_lm.logits(edited, layout.routed), layout.cfg_rows)
        self._logit_sums.index_add_(0, layout.token_rows, guided.sum(1))
        return sample(guided, layout.sampling, counter)

    def _read_next(self) -> None:
        """Let every row read the token that its image has just got."""
        kv_rows, cache = len(self._owners), self._cache
        cache.longest = max(max(sequence.prompt_lengths) + sequence.step - 1 for sequence in self._sequences)
        self._forward(self._read_tokens, self._width(kv_rows))
        cache.advance(kv_rows, 1)

    def _read_tokens(self, width: int) -> Tensor:
        """Let the first `width` rows read; return their hidden states."""
        # A recording must do for every length; elsewhere the positions that no row has reached are left out.
        bound = self._cache.keys.shape[3] if self._recorded else blocks(self._cache.longest + 1)
        hidden = self._image_lm.decoder.forward(self._next[:width, None], self._cache, bound)
        return self._hidden[:width].copy_(hidden[:, 0])

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
        return torch.full_like(self._tokens[0, : self._image_lm.tokens], REFUSED)

    def _run_probe(self, sequence: ImageSequence, probe: HalfwayProbe) -> None:
        """Begin an image again under its experts, if its halfway probe fires."""
        edit = sequence.request.codebook.output
        groups = None if edit is None else edit.groups
        try:
            (sequence.experts,) = probe.experts(self._sums[sequence.kv_rows[0]][None] / self.drawn(sequence), groups)
        except BadNumber:  # of this image alone: the others of the batch are drawn on
            self._logit_sums[sequence.token_row] = torch.nan
        if sequence.experts:
            sequence.step, self._laid_out = 0, False
            beginnings = zip(sequence.kv_rows, sequence.prompt_lengths, sequence.first_hidden, strict=True)
            for row, length, hidden in beginnings:
                self._cache.lengths[row], self._hidden[row] = length, hidden

    def _add(self, sequence: ImageSequence, conditional: PrefillResult, unconditional: PrefillResult | None) -> None:
        sequence.step, sequence.token_row = 0, self._free_token_rows.pop()
        self._sequences.append(sequence)
        self._laid_out, self._logit_sums[sequence.token_row] = False, 0.0
        for prefill in (conditional,) if unconditional is None else (conditional, unconditional):
            row = len(self._owners)
            sequence.kv_rows.append(row)
            sequence.first_hidden.append(prefill.hidden)
            sequence.prompt_lengths.append(prefill.length)
            self._owners.append(sequence)
            self._cache.copy_row(row, prefill.cache, prefill.row)
            self._hidden[row], self._sums[row] = prefill.hidden, 0.0

    def _remove(self, sequence: ImageSequence) -> None:
        """Free the rows of an image; the last KV rows in use move to where they were."""
        self._scrub(sequence, sequence.kv_rows)
        for row in sorted(sequence.kv_rows, reverse=True):
            last = len(self._owners) - 1
            mover = self._owners.pop()
            if row != last:
                self._cache.copy_row(row, self._cache, last)
                for tensor in (self._hidden, self._next, self._sums):
                    tensor[row] = tensor[last]
                self._scrub(mover, [last])
                self._owners[row] = mover
                mover.kv_rows[mover.kv_rows.index(last)] = row
            self._cache.lengths[last] = 0  # padded rows attend to nothing of it
        sequence.kv_rows, sequence.first_hidden, sequence.prompt_lengths = [], [], []
        self._sequences.remove(sequence)
        self._free_token_rows.append(sequence.token_row)
        self._laid_out = False

    def _scrub(self, sequence: ImageSequence, kv_rows: Sequence[int]) -> None:
        """Leave no NaN of an image in KV rows that it leaves: on a CPU the next one reads past its end, and masks."""
        sound = self._tokens.is_cuda or (
            is_finite(self._logit_sums[sequence.token_row]) and is_finite(self._hidden[sequence.kv_rows])
        )
        if not sound:
            for cache in (self._cache.keys, self._cache.values):
                cache[:, kv_rows] = 0.0


def check_drawn(tokens: Tensor) -> Tensor:
    """Return tokens [B, N]. Raises BadNumber where an image has none."""
    if bool((tokens == NO_TOKEN).any()):
        raise BadNumber("logits")
    return tokens
