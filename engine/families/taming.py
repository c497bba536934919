"""The image decoder of taming-transformers over the tensors of a checkpoint, layer by layer: a reference, not served.

It shares nothing with the decoder that is served (see vqgan.py), neither classes nor an order of levels. Knows tensors
by taming's names. Knows nothing of language models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.families.vqgan import Vqgan, read_decoder


def published_decoder(vqgan: Vqgan) -> Callable[[Tensor], Tensor] | None:
    """Return tokens [N] -> pixels [1, 3, H, W] in [-1, 1] by the tensors of a VQGAN's decoder in its folder.

    None where no file holds them. The table and the convolution before the decoder are the VQ model's own.
    """
    if vqgan.folder is None:
        return None
    before: Any = vqgan.vq.post_quant_conv
    tensors = {name: tensor.to(before.weight) for name, tensor in read_decoder(vqgan.folder).items()}

    def decode(tokens: Tensor) -> Tensor:
        side = round(len(tokens) ** 0.5)
        with torch.no_grad():
            rows = vqgan.table[tokens.to(before.weight.device)]
            latent = before(rows.view(1, side, side, -1).permute(0, 3, 1, 2).contiguous())
            return TamingDecoder(tensors).decode(latent).float().clamp(-1, 1)

    return decode


class TamingDecoder:
    """The layers of taming's Decoder over its tensors."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def decode(self, latent: Tensor) -> Tensor:
        """Latents [1, C, rows, columns] -> pixels [1, 3, H, W]."""
        x = self._residual("mid.block_1", self._convolve("conv_in", latent))
        x = self._residual("mid.block_2", self._attend("mid.attn_1", x))
        for level in reversed(range(self._count("up"))):  # taming counts from the highest resolution
            for block in range(self._count(f"up.{level}.block")):
                x = self._residual(f"up.{level}.block.{block}", x)
                if self._has(f"up.{level}.attn.{block}"):
                    x = self._attend(f"up.{level}.attn.{block}", x)
            if self._has(f"up.{level}.upsample"):
                x = self._convolve(f"up.{level}.upsample.conv", F.interpolate(x, scale_factor=2.0))
        return self._convolve("conv_out", _swish(self._normalise("norm_out", x)))

    def _has(self, name: str) -> bool:
        return any(key.startswith(f"{name}.") for key in self._tensors)

    def _count(self, name: str) -> int:
        """Number of layers in a list of layers."""
        start = f"{name}."
        return len({key.removeprefix(start).partition(".")[0] for key in self._tensors if key.startswith(start)})

    def _convolve(self, name: str, x: Tensor) -> Tensor:
        weight = self._tensors[f"{name}.weight"]
        return F.conv2d(x, weight, self._tensors[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def _normalise(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"], 1e-6)

    def _residual(self, name: str, x: Tensor) -> Tensor:
        hidden = self._convolve(f"{name}.conv1", _swish(self._normalise(f"{name}.norm1", x)))
        hidden = self._convolve(f"{name}.conv2", _swish(self._normalise(f"{name}.norm2", hidden)))
        shortcut = f"{name}.nin_shortcut"
        return hidden + (self._convolve(shortcut, x) if self._has(shortcut) else x)

    def _attend(self, name: str, x: Tensor) -> Tensor:
        normal = self._normalise(f"{name}.norm", x)
        query, key, value = (self._convolve(f"{name}.{part}", normal).flatten(2) for part in "qkv")
        weights = (query.mT @ key * query.shape[1] ** -0.5).softmax(-1)
        return x + self._convolve(f"{name}.proj_out", (value @ weights.mT).view_as(x))


def _swish(x: Tensor) -> Tensor:
    """As taming writes it: torch's silu differs in last bits."""
    return x * torch.sigmoid(x)
