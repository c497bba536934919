"""Parts of a unified model: what a family makes of a checkpoint, and all that the project needs to serve it.

Knows modules and functions. Knows nothing of families.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from engine.backbone import Backbone
from engine.instructions import Instructions
from engine.model import ModelFacts
from engine.runner.image_lm import ImageHead
from engine.runner.script import Script
from engine.unified.chat import Chat


@dataclass(frozen=True)
class Language:
    """A language model with its chat format.

    text_head: hidden states -> logits of what may be written. longest: positions that it may read in a row. see: images
    [B, 3, H, W] in [-1, 1] -> what the language model reads at their places, [B, V, H]; batch-invariant.
    """

    backbone: Backbone
    text_head: nn.Linear
    chat: Chat
    longest: int
    see: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Parts:
    """One checkpoint, or two of which one draws and one reads.

    drawing: the language model that draws. head: through which codes enter and leave it. table: [K, D], the model's own
    pixel table. picture: tokens [N] int64 of one image and a table [K, D] -> [1, 3, H, W], to be clamped to [-1, 1];
    differentiable in the table. reading: the language model that judges and rewrites, where it is another one. encode:
    an image [1, 3, H, W] in [-1, 1] -> its codes [N] by the model's own table, where there is an encoder.
    """

    facts: ModelFacts
    instructions: Instructions
    drawing: Language
    head: ImageHead
    script: Script
    table: Tensor
    picture: Callable[[Tensor, Tensor], Tensor]
    reading: Language | None = None
    encode: Callable[[Tensor], Tensor] | None = None
