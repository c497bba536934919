"""Anole with random weights in the published geometry, for benchmarks and tests without the weights.

It draws noise, at the cost of the real model. Its tokenizer is byte-level, without merges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    PreTrainedTokenizerFast,
)

from engine.families.byte_tokenizer import byte_tokenizer
from engine.families.random_weights import build, seeded
from engine.families.vqgan import Vqgan
from engine.families.word_family import WordModel

CONTROL = ("<pad>", "<s>", "</s>", "<image>", "<racm3:break>", "<eoss>", "<reserved08706>")
# Of the configuration of facebook/chameleon-7b: arguments of the two parts, beside what transformers takes for granted.
GEOMETRIES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {"anole-7b": ({"vocab_size": 65536}, {})}


def random_anole(
    geometry: tuple[Mapping[str, Any], Mapping[str, Any]], device: torch.device, dtype: torch.dtype
) -> WordModel:
    """Build the model and its image decoder on the device, and a tokenizer."""
    text, vq = geometry
    codes = ChameleonVQVAEConfig(**vq).num_embeddings
    tokenizer = byte_tokenizer([*CONTROL, *map(letters, range(codes))], "<pad>")
    with seeded(device):
        model = build(ChameleonForConditionalGeneration, anole_config(tokenizer, text, vq), dtype)
        vqgan = Vqgan.random(model.model.vqmodel)
    unmask(model)
    return WordModel(model, tokenizer, vqgan)


def unmask(model: ChameleonForConditionalGeneration) -> None:
    """Let transformers' `generate` write image words, which it forbids as a Chameleon does."""
    model.model.vocabulary_mapping.__dict__["image_tokens"] = []


def anole_config(tokenizer: PreTrainedTokenizerFast, text: Mapping[str, Any], vq: Mapping[str, Any]) -> ChameleonConfig:
    """The configuration of an Anole whose vocabulary is the tokenizer's."""
    vocabulary = tokenizer.get_vocab()
    names = [name for name in vocabulary if name.startswith("IMGIMG") or name in CONTROL]
    return ChameleonConfig(
        vocab_size=max(len(vocabulary), text.get("vocab_size", 0)),
        pad_token_id=vocabulary["<pad>"],
        bos_token_id=vocabulary["<s>"],
        eos_token_id=vocabulary["</s>"],
        vq_config=dict(vq),
        vocabulary_map={name: vocabulary[name] for name in names},
        tie_word_embeddings=False,
        **{key: value for key, value in text.items() if key != "vocab_size"},
    )


def letters(number: int) -> str:
    """The word of a code: its digits as the letters A to J."""
    return f"IMGIMG{''.join(chr(ord('A') + int(digit)) for digit in str(number))}Z"
