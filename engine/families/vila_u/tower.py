"""Vision tower of VILA-U: SigLIP, the residual codebook, the decoder and the depth transformer, from one folder.

Knows the names of the published files. Knows nothing of the language model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ChameleonVQVAEConfig, SiglipVisionConfig, SiglipVisionModel

from codebook.tensors import is_finite
from core.errors import BadModel
from engine.families.checkpoints import check_weights, load_strictly, read_tensors
from engine.families.vila_u.depth_head import DepthModules
from engine.families.vila_u.picture import ResidualVq
from engine.families.vqgan import make_decoder, ours

VQ, HEAD = "rqvaesiglip.", "rqtransformer."  # prefixes of tensors
SIGLIP = VQ + "siglip_model.vision_model."
HEADS = {"google/siglip-large-patch16-256": 16, "google/siglip-so400m-patch14-384": 16}  # which no tensor shows
PREFIXES = (SIGLIP, VQ + "quantizer.codebooks.", VQ + "post_quant_conv.", VQ + "decoder.", HEAD)


@dataclass(frozen=True)
class Tower:
    """The modules of a tower. side: cells a side; size: pixels a side; heads: of the depth transformer."""

    vq: ResidualVq
    modules: DepthModules
    heads: int
    side: int
    size: int

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """All of its modules."""
        return self.vq.eyes, self.vq.post_quant_conv, self.vq.decoder, self.modules

    def to(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """Return the tower on a device and in a dtype; its table stays as exact as it is, since codes depend on it."""
        for module in self.parts:
            nn.Module.to(module, device=device, dtype=dtype).train(False).requires_grad_(False)
        vq = self.vq
        moved = ResidualVq(vq.eyes, vq.table.to(device).float(), vq.depth, vq.post_quant_conv, vq.decoder, vq.latent)
        return Tower(moved, self.modules, self.heads, self.side, self.size)


def load_tower(folder: Path) -> Tower:
    """Load the tower of a folder. Raises BadModel."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        files = {prefix: read_tensors(folder, [prefix]) for prefix in PREFIXES}
        eyes = {name: tensor for name, tensor in files[SIGLIP].items() if not name.startswith("head.")}
        siglip = _siglip_config(eyes, config["rqvaesiglip"].get("pretrained_model", next(iter(HEADS))))
        tower = make_tower(config, siglip)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(
            f"{folder}: its config.json or weights are not VILA-U's: {type(error).__name__} {error}"
        ) from error
    last = f"encoder.layers.{siglip.num_hidden_layers}."
    load_strictly(tower.vq.eyes, {k: v for k, v in eyes.items() if not k.startswith(last)}, folder, "SigLIP")
    load_strictly(tower.vq.post_quant_conv, files[PREFIXES[2]], folder, "post_quant_conv")
    levels = len(config["rqvaesiglip"]["ddconfig"]["ch_mult"])
    decoder = {ours(name, levels): tensor for name, tensor in files[PREFIXES[3]].items()}
    load_strictly(tower.vq.decoder, decoder, folder, "image decoder")
    load_strictly(tower.modules, files[HEAD], folder, "depth transformer")
    tower.vq.table.copy_(_shared_table(folder, files[PREFIXES[1]], tower.vq.table))
    for module in tower.parts:
        check_weights(folder, module)
    return tower


def read_side(folder: Path) -> int:
    """The cells a side of the tower of a folder, by its config.json. Raises BadModel."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return int(config["rqvaesiglip"]["code_shape"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BadModel(f"{folder}: its config.json is not VILA-U's: {type(error).__name__} {error}") from error


def make_tower(config: Mapping[str, Any], siglip: SiglipVisionConfig) -> Tower:
    """Make the tower of a configuration, without weights of any use. Raises BadModel for one that is not known."""
    vq, head = config["rqvaesiglip"], config["rqtransformer"]
    (rows, columns, depth), pixels = vq["code_shape"], vq["ddconfig"]
    if rows != columns or list(vq["latent_shape"][:2]) != [rows, columns]:
        raise BadModel(f"its vision tower has codes of {vq['code_shape']} for latents of {vq['latent_shape']}")
    if not vq["shared_codebook"]:
        raise BadModel("its vision tower has a codebook of its own for each depth; one that all share is known")
    if head["vocab_size"] != vq["n_embed"]:
        raise BadModel(f"its depth transformer draws {head['vocab_size']} codes, and its codebook has {vq['n_embed']}")
    multipliers = pixels["ch_mult"]
    lowest = pixels["resolution"] // 2 ** (len(multipliers) - 1)
    attending = [level for level in range(len(multipliers)) if lowest * 2**level in pixels["attn_resolutions"]]
    decoder = ChameleonVQVAEConfig(
        base_channels=pixels["ch"],
        channel_multiplier=list(multipliers),
        num_res_blocks=pixels["num_res_blocks"],
        latent_channels=pixels["z_channels"],
        in_channels=pixels["out_ch"],
    )
    shape = vq.get("decoder_latent_shape")
    latent = None if shape is None else (int(shape[0]), int(shape[1]))
    size = (rows if latent is None else latent[0]) * 2 ** (len(multipliers) - 1)
    if size // siglip.patch_size != rows:
        raise BadModel(f"it draws {size} pixels a side, of which its SigLIP makes no {rows} x {rows} cells")
    siglip.image_size = size
    residual = ResidualVq(
        SiglipVisionModel(siglip),
        torch.zeros(vq["n_embed"], vq["embed_dim"]),
        depth,
        nn.Conv2d(vq["embed_dim"], pixels["z_channels"], 1),
        make_decoder(decoder, attending),
        latent,
    )
    layers, heads = head["head"]["n_layer"], head["head"]["block"]["n_head"]
    sizes = head["input_embed_dim_1"], head["input_embed_dim_2"], head["embed_dim"], head["vocab_size"]
    return Tower(residual, DepthModules(*sizes, depth, layers), heads, rows, size)


def _siglip_config(tensors: Mapping[str, Tensor], name: str) -> SiglipVisionConfig:
    """The configuration of SigLIP without its last layer, by the shapes of its tensors."""
    if name not in HEADS:
        raise BadModel(f"its vision tower reads with {name!r}; known are {', '.join(HEADS)}")
    width, _, patch, _ = tensors["embeddings.patch_embedding.weight"].shape
    layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layers.")}
    return SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=len(tensors["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=len(layers) - 1,
        num_attention_heads=HEADS[name],
        patch_size=patch,
        vision_use_head=False,
    )


def _shared_table(folder: Path, codebooks: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """The one table of all depths [K, D] without its padding row: files may hold it once, or for each depth."""
    tables: Sequence[Tensor] = [tensor[:-1] for name, tensor in codebooks.items() if name.endswith(".weight")]
    if not all(map(is_finite, tables)):
        raise BadModel(f"{folder}: a codebook holds NaN or infinity")
    if not tables or tables[0].shape != like.shape or not all(torch.equal(tables[0], table) for table in tables):
        raise BadModel(f"{folder}: its codebooks are not one table {tuple(like.shape)} and a row of padding")
    return tables[0]
