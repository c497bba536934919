"""A tiny random Anole checkpoint on disk: transformers' classes and a decoder, 4 x 4 codes of K = 64, 8 x 8 pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from engine.families.anole.random_model import CONTROL, anole_config, letters
from engine.families.byte_tokenizer import byte_tokenizer
from engine.families.vqgan import make_decoder
from tests.support.tiny import SAFECB

SIDE, CODES = 4, 64
WIDE = 1.0  # of the convolution behind the encoder, or every image would be of one code
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 768,
}
VQ: dict[str, Any] = {
    "num_embeddings": CODES,
    "embed_dim": 16,
    "latent_channels": 16,
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "resolution": 2 * SIDE,
}


def tiny_model() -> tuple[ChameleonForConditionalGeneration, nn.Module, PreTrainedTokenizerFast]:
    """The model, its decoder and its tokenizer, whose codes stand in another order than their numbers."""
    tokenizer = byte_tokenizer([*CONTROL, *(letters(number) for number in reversed(range(CODES)))], "<pad>")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ChameleonForConditionalGeneration(anole_config(tokenizer, TEXT, VQ))
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "vqmodel" not in name and "_norm" not in name:
                weight.data.normal_(0, 0.15)
        model.model.vqmodel.quantize.embedding.weight.data.normal_(0, 1)
        model.model.vqmodel.quant_conv.weight.data.normal_(0, WIDE)
        decoder = make_decoder(model.config.vq_config)
    return model.train(False), decoder, tokenizer


def build_tiny_anole(folder: Path, *, decoder: bool = True) -> Path:
    """Write the checkpoint into `folder` and return it; its decoder in taming's order of levels, or left out."""
    model, layers, tokenizer = tiny_model()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if decoder:
        tensors = load_file(folder / "model.safetensors")
        swapped = {"up.0.": "up.1.", "up.1.": "up.0."}
        for key, tensor in layers.state_dict().items():
            taming = swapped.get(key[:5], key[:5]) + key[5:] if key.startswith("up.") else key
            tensors[f"model.vqmodel.decoder.{taming}"] = tensor.contiguous()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "safecb.json").write_text(json.dumps(SAFECB), encoding="utf-8")
    return folder
