"""A tiny random Liquid checkpoint on disk: transformers' classes, a VQGAN beside it, 4 x 4 codes of K = 64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ChameleonVQVAEConfig, GemmaForCausalLM, PreTrainedTokenizerFast
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from engine.families.byte_tokenizer import byte_tokenizer
from engine.families.liquid.random_model import CONTROL, liquid_config
from engine.families.vqgan import make_decoder
from tests.support.families.tiny_anole import CODES, VQ, WIDE
from tests.support.tiny import SAFECB

TEXT: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 768,
}


def tiny_model() -> tuple[GemmaForCausalLM, ChameleonVQVAE, nn.Module, PreTrainedTokenizerFast]:
    """The model, its VQ model, its decoder and its tokenizer."""
    tokenizer = byte_tokenizer(CONTROL, "<pad>")
    assert len(tokenizer) + CODES < TEXT["vocab_size"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GemmaForCausalLM(liquid_config(tokenizer, TEXT))
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data.normal_(0, 0.15)
        vq = ChameleonVQVAE(ChameleonVQVAEConfig(**VQ))
        vq.quantize.embedding.weight.data.normal_(0, 1)
        vq.quant_conv.weight.data.normal_(0, WIDE)
        decoder = make_decoder(vq.config)
    return model.train(False), vq, decoder, tokenizer


def build_tiny_liquid(folder: Path) -> Path:
    """Write the checkpoint into `folder` and return it."""
    model, vq, decoder, tokenizer = tiny_model()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    vq.save_pretrained(folder / "vq")
    file = folder / "vq" / "model.safetensors"
    swapped = {"up.0.": "up.1.", "up.1.": "up.0."}
    tensors = {
        f"decoder.{swapped.get(key[:5], key[:5]) + key[5:] if key.startswith('up.') else key}": tensor.contiguous()
        for key, tensor in decoder.state_dict().items()
    }
    save_file(load_file(file) | tensors, file, {"format": "pt"})
    (folder / "safecb.json").write_text(json.dumps(SAFECB), encoding="utf-8")
    return folder
