"""Lookahead: several tokens of an image in one step, by Jacobi iteration, with the bits of one after the other.

A row reads its last token and guesses of those that follow, and all of them are sampled. Noise is a function of seed
and step, and products are batch-invariant: so as long as what is sampled equals what was guessed, the next sample is
what it would be alone. What differs is the next step's guess. Knows images and tensors; knows nothing of queues.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codebook.tensors import is_finite
from engine.runner.batch_layout import BatchLayout
from engine.runner.decoder import blocks
from engine.runner.image_lm import ImageLM
from engine.runner.sampling import apply_cfg, choose, gumbel
from engine.runner.sequence import ImageSequence
from engine.runner.step.tensors import BatchTensors
from engine.runner.step.windows import ROWS, Windows, tokens_of

LOOKAHEAD = 8  # tokens of an image in one step at most, unless a setting says otherwise
CONTEXT = 64  # positions that the rows of a measured step have read, where there are as many


class Lookahead:
    """Steps of a batch that sample a window of tokens of every image, and accept those that no guess has changed."""

    def __init__(self, image_lm: ImageLM, tensors: BatchTensors, layout: BatchLayout, most: int) -> None:
        """Compute on these tensors, on a CPU; `most` is the largest window, 1 for none."""
        self._image_lm, self._tensors, self._layout = image_lm, tensors, layout
        self._windows = Windows(most)
        self._spoilt: list[ImageSequence] = []
        self._read = 1  # tokens that rows have read in the last step

    @property
    def has_guessed(self) -> bool:
        """Whether rows have read guesses in the last step."""
        return self._read > 1

    @property
    def expected(self) -> float:
        """Tokens that an image gets, on average, from what rows have read in the last step."""
        return tokens_of(self._read)

    def measure(self) -> None:
        """Measure what steps of more rows cost with the current number of threads."""
        if self._windows.most > 1:
            self._windows.measure(torch.get_num_threads(), self._measured_step)

    def _measured_step(self, rows: int) -> None:
        """Compute a step of one image of two KV rows that come to so many rows, but for its choice of codes."""
        image_lm, (kv_rows, count) = self._image_lm, (2, rows // 2)
        context = min(CONTEXT, self._tensors.cache.keys.shape[3] // 2)
        cache = image_lm.decoder.new_cache(kv_rows, context + count)
        cache.lengths += context
        embeddings = image_lm.codes[torch.zeros(kv_rows, count, dtype=torch.int64)]
        hidden = image_lm.decoder.forward(embeddings, cache, blocks(context + count), apart=count > 1)
        image_lm.logits(image_lm.head_input(hidden.flatten(0, 1)).float(), ())
        gumbel(torch.zeros(count, dtype=torch.int64), torch.arange(count), self._layout.codes)

    def window(self, kv_rows: int) -> int:
        """Number of tokens of each of so many rows that can be sampled now. Rows that came since have read none."""
        return max(1, min(self._read, ROWS // max(1, kv_rows)))

    def sample(self, sequences: Sequence[ImageSequence], owners: Sequence[ImageSequence]) -> int:
        """Sample the window of the layout; return how many tokens are accepted, of all images together.

        owners: the image of each row.
        """
        kv_rows, image_lm, tensors, layout = len(owners), self._image_lm, self._tensors, self._layout
        window = layout.window
        states = torch.cat([tensors.hidden[:kv_rows, None], tensors.ahead[:kv_rows, : window - 1]], 1)
        features = image_lm.head_input(states.flatten(0, 1)).float()
        guided = apply_cfg(image_lm.logits(features, layout.routed), layout.cfg_rows)
        codes = choose(guided, layout.sampling, self._noise(sequences, window)).view(-1, window).tolist()
        sums, counts = guided.sum(1).view(-1, window), {}
        self._spoilt = [] if is_finite(sums) else self._spoilt_by_guesses(sequences, sums)
        for sequence, drawn, logit_sums in zip(sequences, codes, sums, strict=True):
            counts[sequence] = count = self._accept(sequence, drawn)
            tensors.logit_sums[sequence.token_row] += logit_sums[:count].sum()
            if sequence.probe is not None:
                self._sum_features(sequence, features.view(kv_rows, window, -1)[sequence.kv_rows[0], :count])
            sequence.step += count
        tensors.cache.lengths[:kv_rows] += torch.tensor([counts[owner] - 1 for owner in owners])
        return sum(counts.values())

    def plan(self, sequences: Sequence[ImageSequence], kv_rows: int) -> int:
        """Plan how many tokens each of so many rows reads next, as far as the load and the images leave room."""
        left = max(self._image_lm.script.steps - sequence.step for sequence in sequences)
        self._read = max(1, min(self._windows.of(kv_rows, torch.get_num_threads()), left))
        return self._read

    def read(self, sequences: Sequence[ImageSequence], owners: Sequence[ImageSequence], window: int) -> None:
        """Let every row read its last token and guesses, `window` tokens."""
        tensors, cache = self._tensors, self._tensors.cache
        tokens = {sequence: self._next(sequence, window) for sequence in sequences}
        embeddings = self._image_lm.codes[torch.tensor([tokens[owner] for owner in owners])]
        bound = min(blocks(cache.longest + window), cache.keys.shape[3])
        hidden = self._image_lm.decoder.forward(embeddings, cache, bound, apart=True)
        tensors.hidden[: len(owners)] = hidden[:, 0]
        tensors.ahead[: len(owners), : window - 1] = hidden[:, 1:]

    def _noise(self, sequences: Sequence[ImageSequence], window: int) -> Tensor:
        """Noise [n W, K] of the next steps; what a step before has needed is kept."""
        missing = []
        for number, sequence in enumerate(sequences):
            sequence.noise = {step: row for step, row in sequence.noise.items() if step >= sequence.step}
            if any(step not in sequence.noise for step in range(sequence.step, sequence.step + window)):
                ahead = range(sequence.step, sequence.step + 2 * window)  # many steps take little longer than one
                missing += [(number * window, step) for step in ahead if step not in sequence.noise]
        if missing:
            rows, steps = torch.tensor(missing).unbind(1)
            noise = gumbel(self._layout.sampling.seeds[rows], steps, self._layout.codes)
            for (first, step), row in zip(missing, noise, strict=True):
                sequences[first // window].noise[step] = row
        return torch.stack(
            [sequence.noise[sequence.step + offset] for sequence in sequences for offset in range(window)]
        )

    def _spoilt_by_guesses(self, sequences: Sequence[ImageSequence], sums: Tensor) -> list[ImageSequence]:
        """The images that have read guesses and whose sums of logits [n, W] are not all numbers, though they were."""
        return [
            sequence
            for sequence, row in zip(sequences, sums, strict=True)
            if sequence.guesses and not is_finite(row) and is_finite(self._tensors.logit_sums[sequence.token_row])
        ]

    def _accept(self, sequence: ImageSequence, drawn: list[int]) -> int:
        """Take the codes [W] of an image's next steps as far as they hold; return how many, at least one.

        None is taken beyond a step at which somebody looks at the image.
        """
        script, first = self._image_lm.script, sequence.step
        given = script.given[first : first + len(drawn)]
        tokens = [code if at is None else self._layout.codes + at for code, at in zip(drawn, given, strict=False)]
        most = min(len(tokens), len(sequence.guesses) + 1, self._next_stop(sequence) - first)
        most = 1 if sequence in self._spoilt else most
        count = 1
        while count < most and tokens[count - 1] == sequence.guesses[count - 1]:
            count += 1
        codes = [code for code, at in zip(drawn[:count], given, strict=False) if at is None]
        column = script.drawn(first)
        self._tensors.tokens[sequence.token_row, column : column + len(codes)] = torch.tensor(codes, dtype=torch.int64)
        sequence.guesses = tokens[count : len(sequence.guesses) + 1]
        return count

    def _next_stop(self, sequence: ImageSequence) -> int:
        """The next step at which a batch must stop with an image: a preview, the halfway probe, the end."""
        script = self._image_lm.script
        probes: Sequence[int] = () if sequence.probe is None else (script.step_after(sequence.probe.after),)
        return min(step for step in (*sequence.stops, *probes, script.steps) if step > sequence.step)

    def _sum_features(self, sequence: ImageSequence, features: Tensor) -> None:
        """Add the features [n, M] of the next steps of an image, one after the other as if each were alone."""
        for given, row in zip(self._image_lm.script.given[sequence.step :], features, strict=False):
            if given is None:
                self._tensors.sums[sequence.kv_rows[0]] += row

    def begin_again(self) -> None:
        """Begin those images again, without guesses, that a guess has brought to NaN: masked or not, tokens read it.

        After the last token has been read. Alone, an image might never have come to such a token.
        """
        for sequence in self._spoilt:
            sequence.step, sequence.guesses, sequence.is_guessed = 0, [], False
            self._tensors.logit_sums[sequence.token_row] = 0.0
            beginnings = zip(sequence.kv_rows, sequence.prompt_lengths, sequence.first_hidden, strict=True)
            for row, length, hidden in beginnings:
                self._tensors.begin_again(row, length, hidden)
                self._tensors.sums[row] = 0.0
                for cache in (self._tensors.cache.keys, self._tensors.cache.values):
                    cache[:, row, :, length:] = 0.0
        self._spoilt = []

    def _next(self, sequence: ImageSequence, window: int) -> list[int]:
        """What an image reads next: its last token, then guesses. The first guess of a step is the code before it."""
        script, first = self._image_lm.script, sequence.step
        code = int(self._tensors.tokens[sequence.token_row, max(0, script.drawn(first) - 1)])
        before = script.given[first - 1]
        end = min(first + window, script.steps) - 1  # nothing follows the last step's token
        guesses = sequence.guesses[: end - first]
        for at in script.given[first + len(guesses) : end] if sequence.is_guessed else ():
            codes = [guess for guess in (code, *guesses) if guess < self._layout.codes]
            guesses.append(codes[-1] if at is None else self._layout.codes + at)
        sequence.guesses = guesses
        padding = [code] * (window - 1 - len(guesses))  # of no use to the image
        return [code if before is None else self._layout.codes + before, *guesses, *padding]
