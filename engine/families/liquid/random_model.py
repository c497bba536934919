"""Liquid with random weights in the published geometry, for benchmarks and tests without the weights.

It draws noise, at the cost of the real model. Its tokenizer is byte-level, without merges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import ChameleonVQVAEConfig, GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from engine.families.byte_tokenizer import byte_tokenizer
from engine.families.random_weights import build, seeded
from engine.families.vqgan import Vqgan
from engine.families.word_family import WordModel

CONTROL = (
    *("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    *("<boi>", "<eoi>", "<unconditional>", "<unused0>"),
)
# Of the configuration of Junfeng5/Liquid_V1_7B: arguments of the two parts, beside what transformers takes for granted.
GEOMETRIES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "liquid-7b": ({"vocab_size": 264192, "hidden_act": "gelu_pytorch_tanh"}, {})
}


def random_liquid(
    geometry: tuple[Mapping[str, Any], Mapping[str, Any]], device: torch.device, dtype: torch.dtype
) -> WordModel:
    """Build the model, its VQ model and image decoder on the device, and a tokenizer."""
    text, vq = geometry
    tokenizer = byte_tokenizer(CONTROL, "<pad>")
    with seeded(device):
        model = build(GemmaForCausalLM, liquid_config(tokenizer, text), dtype)
        vqgan = Vqgan.random(build(ChameleonVQVAE, ChameleonVQVAEConfig(**vq), dtype))
    return WordModel(model, tokenizer, vqgan)


def liquid_config(tokenizer: PreTrainedTokenizerFast, text: Mapping[str, Any]) -> GemmaConfig:
    """The configuration of a Liquid whose control tokens are the tokenizer's."""
    vocabulary = tokenizer.get_vocab()
    ids: dict[str, Any] = {f"{name}_token_id": vocabulary[f"<{name}>"] for name in ("pad", "bos", "eos")}
    return GemmaConfig(**ids, **text)
