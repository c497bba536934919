"""Image tokens to pixels and back by VILA-U's own layers: a cell is the sum of the rows of its codes.

Pure functions of their arguments: nothing here writes to the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionModel

from engine.families.code_rows import nearest


@dataclass(frozen=True)
class ResidualVq:
    """The modules of a residual VQ model.

    eyes: SigLIP up to its last layer but one; table: [K, D], shared by all `depth` codes of a cell; latent: rows and
    columns that the decoder reads, if not those of the cells.
    """

    eyes: SiglipVisionModel
    table: Tensor
    depth: int
    post_quant_conv: nn.Conv2d
    decoder: nn.Module
    latent: tuple[int, int] | None = None

    def decode_one(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Decode one image: tokens [N] int64, a table [K, D] -> [1, 3, H, W], to be clamped; differentiable."""
        cells = table[tokens].view(-1, self.depth, table.shape[1]).sum(1)
        side = round(len(cells) ** 0.5)
        grid = cells.view(1, side, side, -1).permute(0, 3, 1, 2).contiguous()
        if self.latent is not None:
            grid = F.interpolate(grid.float(), self.latent, mode="bilinear")
        image: Tensor = self.decoder(self.post_quant_conv(grid.to(self.post_quant_conv.weight)))
        return image

    def encode_one(self, image: Tensor) -> Tensor:
        """Encode one image [1, 3, H, W] in [-1, 1] by the model's own table: tokens [N] int64, cell by cell."""
        weight = self.post_quant_conv.weight
        # SigLIP's statistics are one half: its input is [-1, 1] too.
        rest = self.eyes.encoder(inputs_embeds=self.eyes.embeddings(image.to(weight))).last_hidden_state[0].float()
        codes = []
        for _ in range(self.depth):
            codes.append(nearest(rest, self.table))
            rest = rest - self.table[codes[-1]]
        return torch.stack(codes, 1).flatten()
