"""Janus-Pro with random weights in the published geometry, for benchmarks and tests without the weights.

It draws noise, at the cost of the real model. Its tokenizer is byte-level, without merges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessorPil,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from engine.families.random_weights import build, seeded

_PAD, _BOS, _EOS, _USER, _ASSISTANT = "<pad>", "<bos>", "<eos>", "<|User|>", "<|Assistant|>"
_BEGIN = "<begin_of_image>"
_IMAGE_TOKENS = {"image_token": "<image_placeholder>", "boi_token": _BEGIN, "eoi_token": "<end_of_image>"}
_TEMPLATE = (
    "<bos>{% for message in messages %}"
    "{{ '<|User|>' if message['role'] == 'user' else '<|Assistant|>' }}"
    "{% for part in message['content'] %}"
    "{{ '<image_placeholder>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}"
    "{{ '<eos>' if message['role'] == 'assistant' else '' }}"
    "{% endfor %}"
    "{{ '<|Assistant|>' if add_generation_prompt else '' }}"
)


@dataclass(frozen=True)
class Geometry:
    """Sizes of the language model; the vision tower and the VQ model are the same in all."""

    hidden: int
    layers: int
    heads: int
    intermediate: int


# From the config.json files of deepseek-community/Janus-Pro-1B and -7B.
GEOMETRIES = {"janus-pro-1b": Geometry(2048, 24, 16, 5632), "janus-pro-7b": Geometry(4096, 30, 32, 11008)}


def random_janus(
    geometry: Geometry, device: torch.device, dtype: torch.dtype
) -> tuple[JanusForConditionalGeneration, JanusProcessor]:
    """Build the model on its device, and its processor."""
    processor = _processor()
    with seeded(device):
        model = build(JanusForConditionalGeneration, janus_config(geometry, processor), dtype)
    # Read by transformers' own `generate`, the baseline of the benchmarks.
    model.generation_config.generation_kwargs = {"boi_token_id": processor.tokenizer.convert_tokens_to_ids(_BEGIN)}
    return model, processor


def janus_config(geometry: Geometry, processor: JanusProcessor) -> JanusConfig:
    """The configuration of a Janus-Pro of this geometry, but for the ids of its tokens."""
    tokenizer = processor.tokenizer
    return JanusConfig(
        text_config=LlamaConfig(
            vocab_size=102400,
            hidden_size=geometry.hidden,
            intermediate_size=geometry.intermediate,
            num_hidden_layers=geometry.layers,
            num_attention_heads=geometry.heads,
            num_key_value_heads=geometry.heads,
            max_position_embeddings=16384,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        vision_config=JanusVisionConfig(projection_dim=geometry.hidden),
        vq_config=JanusVQVAEConfig(projection_dim=geometry.hidden, image_token_embed_dim=geometry.hidden),
        image_token_id=tokenizer.convert_tokens_to_ids(_IMAGE_TOKENS["image_token"]),
        tie_word_embeddings=False,
    )


def _processor() -> JanusProcessor:
    special = [_PAD, _BOS, _EOS, _USER, _ASSISTANT, *_IMAGE_TOKENS.values()]
    vocabulary = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    byte_level = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=byte_level,
        pad_token=_PAD,
        bos_token=_BOS,
        eos_token=_EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens=_IMAGE_TOKENS,
    )
    images = JanusImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True)
    return JanusProcessor(images, tokenizer, chat_template=_TEMPLATE, num_image_tokens=576)
