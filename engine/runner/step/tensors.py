"""The tensors of a batch: what its KV rows have read, and what its images have drawn.

They stay at their addresses, so that CUDA graphs can read them. Knows rows; knows no image and no step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codebook.tensors import is_finite
from engine.runner.image_lm import ImageLM, PrefillResult


class BatchTensors:
    """The tensors of R KV rows, and of as many images at most.

    cache: keys and values; hidden: [R, H], of each row's last token; ahead: [R, W - 1, H], of the guesses that it read
    after that one; next: [R, H], the embeddings that rows read next; features: [R, M], of the step; sums: [R, M], of an
    image's features so far, for the halfway probe.
    tokens: the token table, [R + 1, N] int64 and a last column for steps that draw no code; its last row is for padded
    images. logit_sums: [R + 1], the sum of all logits of the image at a row of the token table. NaN and infinity stay
    in it, so that a step need not wait for a GPU to report them.
    """

    def __init__(self, image_lm: ImageLM, kv_rows: int, positions: int, most: int) -> None:
        """Reserve `kv_rows` KV rows of `positions` positions; a row reads at most `most` tokens in a step, W."""
        device = image_lm.codes.device
        self.cache = image_lm.decoder.new_cache(kv_rows, positions)
        self.hidden = image_lm.codes.new_zeros(kv_rows, image_lm.decoder.width)
        self.ahead = image_lm.codes.new_zeros(kv_rows, most - 1, image_lm.decoder.width)
        self.next = torch.zeros_like(self.hidden)
        self.features = torch.zeros(kv_rows, image_lm.width, device=device)
        self.sums = torch.zeros_like(self.features)
        columns = image_lm.tokens + (not image_lm.script.is_plain and image_lm.script.depth == 1)
        self.tokens = torch.zeros(kv_rows + 1, columns, dtype=torch.int64, device=device)
        self.logit_sums = torch.zeros(kv_rows + 1, device=device)

    def begin(self, row: int, prefill: PrefillResult) -> None:
        """Let a KV row hold a prompt."""
        self.cache.copy_row(row, prefill.cache, prefill.row)
        self.hidden[row], self.sums[row] = prefill.hidden, 0.0

    def begin_again(self, row: int, length: int, hidden: Tensor) -> None:
        """Let a KV row hold its prompt alone again: of `length` tokens, with the hidden state [H] after it."""
        self.cache.lengths[row], self.hidden[row] = length, hidden

    def move(self, row: int, last: int) -> None:
        """Move the KV row `last` to `row`."""
        self.cache.copy_row(row, self.cache, last)
        for tensor in (self.hidden, self.ahead, self.next, self.sums):
            tensor[row] = tensor[last]

    def scrub(self, token_row: int, kv_rows: Sequence[int]) -> None:
        """Leave no NaN of an image in KV rows that it leaves: on a CPU the next one reads past its end, and masks."""
        sound = self.tokens.is_cuda or (is_finite(self.logit_sums[token_row]) and is_finite(self.hidden[kv_rows]))
        if not sound:
            for cache in (self.cache.keys, self.cache.values):
                cache[:, kv_rows] = 0.0
