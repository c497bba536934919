"""A tiny random VILA-U checkpoint on disk, in the published layout: 4 x 4 cells of 4 codes of K = 64, 8 x 8 pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, SiglipVisionConfig

from engine.families.vila_u.random_model import vila_u_config, vila_u_tokenizer
from engine.families.vila_u.tower import Tower, make_tower
from tests.support.tiny import SAFECB

SIDE, DEPTH, CODES, CODE_DIM, WIDTH, HEADS = 4, 4, 64, 32, 32, 2
TEXT: dict[str, Any] = {
    "vocab_size": 280,
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
}
SIGLIP: dict[str, Any] = {
    "hidden_size": CODE_DIM,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "patch_size": 2,
}
TOWER: dict[str, Any] = {
    "model_type": "rqvaesigliptransformer_model",
    "hidden_size": CODE_DIM,
    "rqvaesiglip": {
        "embed_dim": CODE_DIM,
        "n_embed": CODES,
        "latent_shape": [SIDE, SIDE, CODE_DIM],
        "code_shape": [SIDE, SIDE, DEPTH],
        "shared_codebook": True,
        "pretrained_model": "google/siglip-large-patch16-256",
        "ddconfig": {
            "ch": 32,
            "out_ch": 3,
            "ch_mult": [1, 2],
            "num_res_blocks": 1,
            "attn_resolutions": [SIDE],
            "resolution": 2 * SIDE,
            "z_channels": 32,
        },
    },
    "rqtransformer": {
        "block_size": [SIDE, SIDE, DEPTH],
        "input_embed_dim_1": CODE_DIM,
        "input_embed_dim_2": TEXT["hidden_size"],
        "embed_dim": WIDTH,
        "vocab_size": CODES,
        "head": {"n_layer": 2, "block": {"n_head": HEADS}},
    },
}


def tiny_model() -> tuple[LlamaForCausalLM, Tower, Sequence[nn.Linear], PreTrainedTokenizerFast]:
    """The model, its tower, its projector and its tokenizer; weights are drawn wide, so that single codes matter."""
    tokenizer = vila_u_tokenizer(TEXT["vocab_size"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(vila_u_config(tokenizer, TEXT))
        tower = make_tower(TOWER, SiglipVisionConfig(**SIGLIP, vision_use_head=False))
        projector = [nn.Linear(CODE_DIM, TEXT["hidden_size"]), nn.Linear(TEXT["hidden_size"], TEXT["hidden_size"])]
        for part in (model, tower.modules, *projector):
            for weight in part.parameters():
                if weight.dim() > 1:
                    weight.data.normal_(0, 0.15)
        tower.vq.table.normal_()
    return model.train(False), tower.to(torch.device("cpu"), torch.float32), projector, tokenizer


def build_tiny_vila_u(folder: Path, *, shared: bool = True) -> Path:
    """Write the checkpoint into `folder` and return it; `shared`: whether the codebook is in its file once."""
    model, tower, projector, tokenizer = tiny_model()
    model.save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    _write(folder / "vision_tower", TOWER, tower_tensors(tower, 1 if shared else DEPTH))
    layers = {f"layers.{2 * n}.{k}": v for n, layer in enumerate(projector) for k, v in layer.state_dict().items()}
    _write(folder / "mm_projector", {"mm_projector_type": "mlp2x_gelu", "model_type": "v2l_projector"}, layers)
    (folder / "config.json").write_text(json.dumps({"model_type": "vila_u_llama"}), encoding="utf-8")
    (folder / "safecb.json").write_text(json.dumps(SAFECB), encoding="utf-8")
    return folder


def tower_tensors(tower: Tower, codebooks: int) -> dict[str, Tensor]:
    """A tower's tensors under their published names, with what serving does not need."""
    vq, prefix = tower.vq, "rqvaesiglip."
    seeing = {f"{prefix}siglip_model.vision_model.{k}": v for k, v in vq.eyes.state_dict().items()}
    last = {k.replace("layers.1.", "layers.2."): torch.zeros_like(v) for k, v in seeing.items() if "layers.1." in k}
    unused = {f"{prefix}siglip_model.{name}": torch.zeros(1) for name in ("logit_scale", "vision_model.head.probe")}
    padded = torch.cat([vq.table, torch.zeros(1, CODE_DIM)])
    tables = {f"{prefix}quantizer.codebooks.{n}.weight": padded.clone() for n in range(codebooks)}
    averages = {f"{prefix}quantizer.codebooks.0.embed_ema": vq.table.clone()}
    swapped = {"up.0.": "up.1.", "up.1.": "up.0."}
    pixels = {f"{prefix}decoder.{swapped.get(k[:5], k[:5])}{k[5:]}": v for k, v in vq.decoder.state_dict().items()}
    convolution = {f"{prefix}post_quant_conv.{k}": v for k, v in vq.post_quant_conv.state_dict().items()}
    head = {f"rqtransformer.{k}": v for k, v in tower.modules.state_dict().items()}
    return seeing | last | unused | tables | averages | pixels | convolution | head


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
