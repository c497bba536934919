"""Liquid with random weights in the published geometry, for benchmarks and tests without the weights.

It draws noise, at the cost of the real model. Its tokenizer is byte-level, without merges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import ChameleonVQVAEConfig, GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from core.errors import BadModel
from engine.families.byte_tokenizer import byte_tokenizer
from engine.families.vqgan import make_decoder

CONTROL = (
    *("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    *("<boi>", "<eoi>", "<unconditional>", "<unused0>"),
)
# Of the configuration of Junfeng5/Liquid_V1_7B: arguments of the two parts, beside what transformers takes for granted.
GEOMETRIES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "liquid-7b": ({"vocab_size": 264192, "hidden_act": "gelu_pytorch_tanh"}, {})
}


def random_liquid(
    name: str, device: torch.device, dtype: torch.dtype
) -> tuple[GemmaForCausalLM, ChameleonVQVAE, nn.Module, PreTrainedTokenizerFast]:
    """Build "random:liquid-7b": the model, its VQ model and image decoder on the device, and a tokenizer.

    Raises BadModel for another name.
    """
    if (geometry := GEOMETRIES.get(name.rpartition(":")[2])) is None:
        raise BadModel(f"{name}: there are {', '.join(GEOMETRIES)}")
    text, vq = geometry
    tokenizer = byte_tokenizer(CONTROL, "<pad>")
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        config = liquid_config(tokenizer, text)
        model = GemmaForCausalLM._from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
        picture = ChameleonVQVAE._from_config(ChameleonVQVAEConfig(**vq), dtype=dtype)  # type: ignore[no-untyped-call]
        decoder = make_decoder(picture.config).to(device=device, dtype=dtype)
    return model, picture, decoder, tokenizer


def liquid_config(tokenizer: PreTrainedTokenizerFast, text: Mapping[str, Any]) -> GemmaConfig:
    """The configuration of a Liquid whose control tokens are the tokenizer's."""
    vocabulary = tokenizer.get_vocab()
    ids: dict[str, Any] = {f"{name}_token_id": vocabulary[f"<{name}>"] for name in ("pad", "bos", "eos")}
    return GemmaConfig(**ids, **text)
