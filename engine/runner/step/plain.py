"""The step of one token an image: sample by the hidden states of all rows, and let them read. CUDA graphs record it.

Knows tensors and their layout; knows no image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.runner.batch_layout import BatchLayout
from engine.runner.cuda_graphs import ByWidth, Record
from engine.runner.decoder import blocks
from engine.runner.image_lm import DepthHead, ImageLM
from engine.runner.sampling import apply_cfg, sample
from engine.runner.script import ScriptTensors
from engine.runner.step.tensors import BatchTensors


class PlainStep:
    """One token of every image of a batch, or the codes of one cell where the model draws several in a step."""

    def __init__(self, image_lm: ImageLM, tensors: BatchTensors, layout: BatchLayout, record: Record | None) -> None:
        """Compute on these tensors; `record` is the recorder of a GPU."""
        self._image_lm, self._tensors, self._layout = image_lm, tensors, layout
        self._script = ScriptTensors(image_lm.script, image_lm.codes) if image_lm.script.kinds else None
        self._recorded = record is not None
        self._sample, self._forward = ByWidth(record), ByWidth(record)

    def record(self, width: int) -> None:
        """Record the step of `width` rows."""
        self._layout.write((), (), width, width)
        self._sample(self._sample_tokens, width)
        self._forward(self._read_tokens, width)

    def sample(self, width: int) -> None:
        """Sample a token of every image of the layout, whose rows are the first `width`."""
        layout, tensors = self._layout, self._tensors
        if layout.recordable:
            self._sample(self._sample_tokens, width)
        else:
            self._sample_tokens(width)
        if layout.probed:
            summed = tensors.features[:width]
            if self._script is not None:
                summed = summed * self._script.is_drawn[layout.steps[layout.owners]][:, None]
            tensors.sums[:width] += summed
        layout.steps.add_(1)

    def read(self, width: int) -> None:
        """Let the first `width` rows read the token that their image has just got."""
        self._forward(self._read_tokens, width)

    def _sample_tokens(self, width: int) -> Tensor:
        """Sample by the hidden states of the first `width` rows; return what they read next, [width, H]."""
        layout, image_lm, tensors = self._layout, self._image_lm, self._tensors
        if image_lm.depth is not None:
            return self._sample_deep(image_lm.depth, width)
        tokens = self._sample_code(image_lm.head_input(tensors.hidden[:width]), layout.steps)
        if self._script is None:
            tensors.tokens[layout.token_rows, layout.steps] = tokens
        else:
            tensors.tokens[layout.token_rows, self._script.columns[layout.steps]] = tokens
            tokens = self._script.read(tokens, layout.steps)
        return torch.index_select(image_lm.codes, 0, tokens[layout.owners], out=tensors.next[:width])

    def _sample_deep(self, head: DepthHead, width: int) -> Tensor:
        """As `_sample_tokens`, of a model that draws several codes a step, each given those before it."""
        layout, tensors, depth = self._layout, self._tensors, self._image_lm.script.depth
        step, sums = head.begin(tensors.hidden[:width]), torch.zeros_like(tensors.features[:width])
        drawn: list[Tensor] = []  # of each row
        for level in range(depth):
            features, column = step(drawn[-1] if drawn else None), layout.steps * depth + level
            sums += features
            tokens = self._sample_code(features, column)
            tensors.tokens[layout.token_rows, column] = tokens
            drawn.append(tokens[layout.owners])
        tensors.features[:width] = sums
        return tensors.next[:width].copy_(head.read(torch.stack(drawn, 1)))

    def _sample_code(self, features: Tensor, counter: Tensor) -> Tensor:
        """Sample a code of every image [n] by the features [R, M] of all rows; counter: [n], of its noise."""
        layout, edited = self._layout, self._tensors.features[: features.shape[0]].copy_(features)
        guided = apply_cfg(self._image_lm.logits(edited, layout.routed), layout.cfg_rows)
        self._tensors.logit_sums.index_add_(0, layout.token_rows, guided.sum(1))
        return sample(guided, layout.sampling, counter)

    def _read_tokens(self, width: int) -> Tensor:
        """Let the first `width` rows read; return their hidden states."""
        cache, tensors = self._tensors.cache, self._tensors
        # A recording must do for every length; elsewhere the positions that no row has reached are left out.
        bound = cache.keys.shape[3] if self._recorded else blocks(cache.longest + 1)
        hidden = self._image_lm.decoder.forward(tensors.next[:width, None], cache, bound)
        return tensors.hidden[:width].copy_(hidden[:, 0])
