"""VILA-U with random weights in the published geometry, for benchmarks and tests without the weights.

It draws noise, at the cost of the real model. Its tokenizer is byte-level, without merges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, SiglipVisionConfig

from engine.families.byte_tokenizer import byte_tokenizer
from engine.families.random_weights import build, seeded
from engine.families.vila_u.tokenizer import MARKS
from engine.families.vila_u.tower import Tower, make_tower

PAD, CONTROL = "<unk>", ("<unk>", "<s>", "</s>")


@dataclass(frozen=True)
class Geometry:
    """Sizes: arguments of the language model and of SigLIP, and the tower's config.json."""

    text: Mapping[str, Any]
    siglip: Mapping[str, Any]
    tower: Mapping[str, Any] = field(default_factory=dict)


# Of mit-han-lab/vila-u-7b-256; the depth transformer's width and the decoder's channels are the defaults of its code
# and of RQ-VAE, which fit the size of its files.
GEOMETRIES: Mapping[str, Geometry] = {
    "vila-u-7b": Geometry(
        {"vocab_size": 32004, "max_position_embeddings": 4096},
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "patch_size": 16,
        },
        {
            "rqvaesiglip": {
                "embed_dim": 1024,
                "n_embed": 16384,
                "latent_shape": [16, 16, 1024],
                "code_shape": [16, 16, 4],
                "shared_codebook": True,
                "ddconfig": {
                    "ch": 128,
                    "out_ch": 3,
                    "ch_mult": [1, 1, 2, 2, 4],
                    "num_res_blocks": 2,
                    "attn_resolutions": [16],
                    "resolution": 256,
                    "z_channels": 256,
                },
            },
            "rqtransformer": {
                "input_embed_dim_1": 1024,
                "input_embed_dim_2": 4096,
                "embed_dim": 2560,
                "vocab_size": 16384,
                "head": {"n_layer": 6, "block": {"n_head": 40}},
            },
        },
    )
}


def random_vila_u(
    geometry: Geometry, device: torch.device, dtype: torch.dtype
) -> tuple[LlamaForCausalLM, Tower, Sequence[nn.Linear], PreTrainedTokenizerFast]:
    """Build model, tower and projector on the device, and a tokenizer."""
    tokenizer = vila_u_tokenizer(geometry.text["vocab_size"])
    with seeded(device):
        model = build(LlamaForCausalLM, vila_u_config(tokenizer, geometry.text), dtype)
        tower = make_tower(geometry.tower, SiglipVisionConfig(**geometry.siglip, vision_use_head=False))
        tower.vq.table.normal_()
        width, hidden = tower.vq.table.shape[1], model.config.hidden_size
        projector = [nn.Linear(width, hidden), nn.Linear(hidden, hidden)]
    return model, tower.to(device, dtype), [layer.requires_grad_(False) for layer in projector], tokenizer


def vila_u_tokenizer(words: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose last words, of so many, are VILA-U's own tokens."""
    bytes_ = len(byte_tokenizer(CONTROL, PAD))
    unused = [f"<unused{number}>" for number in range(words - bytes_ - len(MARKS))]
    return byte_tokenizer([*CONTROL, *unused, *MARKS], PAD)


def vila_u_config(tokenizer: PreTrainedTokenizerFast, text: Mapping[str, Any]) -> LlamaConfig:
    """The configuration of a Llama whose control tokens are the tokenizer's."""
    vocabulary, names = tokenizer.get_vocab(), {"bos": "<s>", "eos": "</s>", "pad": PAD}
    ids: dict[str, Any] = {f"{name}_token_id": vocabulary[token] for name, token in names.items()}
    return LlamaConfig(**ids, **text)
