"""Emu3 with random weights in the published geometry, for benchmarks and tests without the weights.

It draws noise, at the cost of the real model. Its tokenizer is byte-level, without merges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3TextConfig,
    Emu3VQVAEConfig,
    PreTrainedTokenizerFast,
)

from engine.families.byte_tokenizer import byte_tokenizer
from engine.families.random_weights import build, seeded

PAD = "<|endoftext|>"
CONTROL = (
    *("<|image start|>", "<|image token|>", "<|image end|>", "<image>"),
    *(f"<|extra_{number}|>" for number in (200, 201, 203, 204)),
    PAD,
)
# Of the configuration of BAAI/Emu3-Gen-hf: arguments of the two parts, beside what transformers takes for granted.
GEOMETRIES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {"emu3": ({"vocab_size": 184622}, {})}


def random_emu3(
    geometry: tuple[Mapping[str, Any], Mapping[str, Any]], device: torch.device, dtype: torch.dtype
) -> tuple[Emu3ForConditionalGeneration, PreTrainedTokenizerFast]:
    """Build the model on the device, and its tokenizer."""
    text, vq = geometry
    codes = Emu3VQVAEConfig(**vq).codebook_size
    tokenizer = byte_tokenizer([*CONTROL, *map(visual_token, range(codes))], PAD)
    with seeded(device):
        model = build(Emu3ForConditionalGeneration, emu3_config(tokenizer, text, vq), dtype)
    return model, tokenizer


def emu3_config(tokenizer: PreTrainedTokenizerFast, text: Mapping[str, Any], vq: Mapping[str, Any]) -> Emu3Config:
    """The configuration of an Emu3 whose vocabulary is the tokenizer's."""
    vocabulary = tokenizer.get_vocab()
    names = [name for name in vocabulary if name.startswith("<|") or name == "<image>"]
    return Emu3Config(
        vq_config=Emu3VQVAEConfig(**vq),
        text_config=Emu3TextConfig(
            vocab_size=max(len(vocabulary), text.get("vocab_size", 0)),
            pad_token_id=vocabulary[PAD],
            bos_token_id=vocabulary["<|extra_203|>"],
            eos_token_id=vocabulary["<|extra_204|>"],
            **{key: value for key, value in text.items() if key != "vocab_size"},
        ),
        vocabulary_map={name: vocabulary[name] for name in names},
    )


def visual_token(number: int) -> str:
    """The word of a code."""
    return f"<|visual token {number:06d}|>"
