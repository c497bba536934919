"""A tiny random Emu3 checkpoint on disk: transformers' classes, 4 x 4 codes of K = 64, 8 x 8 pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Emu3ForConditionalGeneration, PreTrainedTokenizerFast

from engine.families.byte_tokenizer import byte_tokenizer
from engine.families.emu3.random_model import CONTROL, PAD, emu3_config
from tests.support.tiny import SAFECB

SIDE, CODES = 4, 64
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 768,
}
VQ: dict[str, Any] = {
    "codebook_size": CODES,
    "base_channels": 32,
    "channel_multiplier": (1, 1),
    "num_res_blocks": 1,
    "attn_resolutions": (1,),
    "hidden_size": 32,
}


def tiny_model(seed: int = 0) -> tuple[Emu3ForConditionalGeneration, PreTrainedTokenizerFast]:
    """The model and its tokenizer; weights are drawn wide, so that prompts and single codes visibly matter."""
    # The codes' names in another order than their numbers: a map by position would be wrong.
    names = [f"<|visual token {number:06d}|>" for number in range(CODES)]
    tokenizer = byte_tokenizer([*CONTROL, *names[::-1]], PAD)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Emu3ForConditionalGeneration(emu3_config(tokenizer, TEXT, VQ))
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "vqmodel" not in name:
                weight.data.normal_(0, 0.15)
        model.model.vqmodel.quantize.embedding.weight.data.normal_(0, 1)
    return model.train(False), tokenizer


def build_tiny_emu3(folder: Path, *, reader: bool = False) -> Path:
    """Write the checkpoint into `folder` and return it; with `reader` another one that reads, beside it."""
    model, tokenizer = tiny_model()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "safecb.json").write_text(json.dumps({**SAFECB, "image_size": 2 * SIDE}), encoding="utf-8")
    if reader:
        tiny_model(seed=1)[0].save_pretrained(folder / "chat")
    return folder
