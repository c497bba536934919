"""VQGAN of Chameleon, which Anole and Liquid draw with: its decoder, which transformers lacks, and its encoder.

The decoder is a taming one, as is VILA-U's; transformers' class for Janus has the same layers in another order, with
attention at the lowest level. Knows tensors by name. Knows nothing of language models.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import JanusVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.janus.modeling_janus import JanusVQVAEAttnBlock, JanusVQVAEDecoder

from core.errors import BadModel
from engine.families.checkpoints import check_weights, load_strictly, read_tensors
from engine.families.code_rows import nearest
from engine.families.fast_norms import use_fast_norms

PREFIXES = ("model.vqmodel.decoder.", "vqmodel.decoder.", "decoder.")  # of its tensors, by who has written them
_LEVEL = re.compile(r"^up\.(\d+)\.")


class Vqgan(nn.Module):
    """A VQ model of transformers with a decoder beside it, both on one device.

    folder: of the decoder's tensors; None where no file holds them.
    """

    def __init__(self, vq: ChameleonVQVAE, decoder: nn.Module, folder: Path | None) -> None:
        super().__init__()
        self.vq, self.decoder, self.folder = vq.train(False).requires_grad_(False), decoder, folder
        self.side = codes_a_side(vq.config)
        self.size = self.side * 2 ** (len(vq.config.channel_multiplier) - 1)  # pixels a side
        use_fast_norms(decoder)

    @classmethod
    def of_folder(cls, vq: ChameleonVQVAE, folder: Path) -> Vqgan:
        """Add to a VQ model the decoder in a folder's safetensors files. Raises BadModel where it is not there."""
        tensors, levels = read_decoder(folder), len(vq.config.channel_multiplier)
        decoder = make_decoder(vq.config)
        load_strictly(decoder, {ours(key, levels): tensor for key, tensor in tensors.items()}, folder, "image decoder")
        decoder.to(vq.post_quant_conv.weight)
        check_weights(folder, decoder)
        return cls(vq, decoder, folder)

    @classmethod
    def random(cls, vq: ChameleonVQVAE) -> Vqgan:
        """Add to a VQ model a decoder with random weights."""
        return cls(vq, make_decoder(vq.config).to(vq.post_quant_conv.weight), None)

    @property
    def table(self) -> Tensor:
        """The model's own pixel table [K, D]."""
        table: Tensor = self.vq.quantize.embedding.weight
        return table

    def decode_one(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Decode one image: tokens [N] int64, a table [K, D] -> [1, 3, H, W], to be clamped; differentiable."""
        convolution = self.vq.post_quant_conv
        looked_up = table[tokens].to(convolution.weight.dtype)  # [N, D]
        grid = looked_up.view(1, self.side, self.side, -1).permute(0, 3, 1, 2).contiguous()
        image: Tensor = self.decoder(convolution(grid))
        return image

    def encode_one(self, image: Tensor) -> Tensor:
        """Encode one image [1, 3, H, W] in [-1, 1] by the model's own table: tokens [N] int64."""
        weight = self.vq.quant_conv.weight
        latent = self.vq.quant_conv(self.vq.encoder(image.to(weight)))
        return nearest(latent[0].flatten(1).T, self.table)


def codes_a_side(config: Any) -> int:  # noqa: ANN401  (a ChameleonVQVAEConfig)
    """Return the codes a side of an image."""
    side: int = config.resolution // 2 ** (len(config.channel_multiplier) - 1)
    return side


def make_decoder(config: Any, attending: Collection[int] = ()) -> nn.Module:  # noqa: ANN401  (a ChameleonVQVAEConfig)
    """Return the decoder of a configuration, without weights of any use; attending: levels, 0 being the lowest."""
    decoder: nn.Module = JanusVQVAEDecoder(  # type: ignore[no-untyped-call]
        JanusVQVAEConfig(
            base_channels=config.base_channels,
            channel_multiplier=list(config.channel_multiplier),
            num_res_blocks=config.num_res_blocks,
            latent_channels=config.latent_channels,
            out_channels=config.in_channels,
        )
    )
    for number, multiplier in enumerate(reversed(config.channel_multiplier)):
        level: Any = decoder.get_submodule(f"up.{number}")
        blocks = config.num_res_blocks + 1 if number in attending else 0
        channels = config.base_channels * multiplier
        level.attn = nn.ModuleList(
            JanusVQVAEAttnBlock(channels)  # type: ignore[no-untyped-call]
            for _ in range(blocks)
        )
    return decoder.train(False).requires_grad_(False)


def read_decoder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a decoder in a folder's safetensors files, by taming's names. Raises BadModel without any."""
    if tensors := read_tensors(folder, PREFIXES):
        return tensors
    raise BadModel(
        f"{folder}: holds no weights of an image decoder (decoder.*): it can judge and not draw; for Anole take a "
        "checkpoint that has them, such as leloy/Anole-7b-v0.1-hf, or put the file of leloy/Anole-7b-v0.1-vqvae-hf "
        "beside its weights, as decoder.safetensors"
    )


def ours(name: str, levels: int) -> str:
    """A name in taming's order of levels, lowest last, in that of the class, lowest first."""
    return _LEVEL.sub(lambda match: f"up.{levels - 1 - int(match.group(1))}.", name)
