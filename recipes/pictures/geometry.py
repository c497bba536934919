"""The embedded model's geometry, tokenizer and processor: the published Janus classes, small.

The vision tower's patch count fixes the token grid of the class (image_size / patch_size), so both are 8 x 8.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessorPil,
    JanusProcessor,
    JanusVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from recipes.train_vq import vq_config

HIDDEN, LAYERS, HEADS, VOCABULARY = 384, 4, 6, 3072
LANGUAGES = ("en", "de", "fr", "es", "pt", "it", "ru", "ja", "zh", "hi")
PAD, BOS, EOS, USER, ASSISTANT, BOI, EOI, IMAGE = (
    "<pad>",
    "<bos>",
    "<eos>",
    "<|User|>",
    "<|Assistant|>",
    "<begin_of_image>",
    "<end_of_image>",
    "<image_placeholder>",
)
SPECIAL = [PAD, BOS, EOS, USER, ASSISTANT, BOI, EOI, IMAGE]
# What opens a user's message is lower-cased and stands after a space: the vocabulary has each noun as one token with
# a space before it, so that "Fox", "fox" and "a fox" hold the same token.
_OPENING = "{{ ' ' + %s | trim | lower if message['role'] == 'user' and %s | trim else %s }}"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|User|>' if message['role'] == 'user' else '<|Assistant|>' }}"
    "{%- if message['content'] is string -%}" + _OPENING.replace("%s", "message['content']") + ""
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}<image_placeholder>"
    "{%- elif loop.first -%}" + _OPENING.replace("%s", "part['text']") + "{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<eos>' if message['role'] == 'assistant' else '' }}"
    "{%- endfor -%}"
    "{{ '<|Assistant|>' if add_generation_prompt else '' }}"
)


def emoji_names(npm: Path, languages: Sequence[str] = LANGUAGES) -> Iterator[str]:
    """Names and tags of every emoji, by default in ten languages and four scripts (emojibase-data, MIT)."""
    for language in languages:
        for entry in json.loads((npm / "emojibase-data" / language / "compact.json").read_text(encoding="utf-8")):
            yield " ".join([entry["label"], *entry.get("tags", [])])


def build_tokenizer(lines: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text in any script has tokens, and the words of `lines` have short ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return wrap_tokenizer(tokenizer)


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer with the marks and the padding that the model's processor expects."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE, "boi_token": BOI, "eoi_token": EOI},
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> JanusProcessor:
    """The processor of the class: 64 x 64 pictures in [-1, 1], 64 placeholder tokens a picture."""
    pictures = JanusImageProcessorPil(
        size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3, min_size=8, do_convert_rgb=True
    )
    return JanusProcessor(pictures, tokenizer, chat_template=CHAT_TEMPLATE, num_image_tokens=64)


def opening(text: str) -> str:
    """A text as CHAT_TEMPLATE writes it at the start of a user's message."""
    return f" {text.strip().lower()}"


def token_id(tokenizer: PreTrainedTokenizerFast, mark: str) -> int:
    """The id of one of SPECIAL."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary[mark]


def janus_config(tokenizer: PreTrainedTokenizerFast) -> JanusConfig:
    """The configuration of the embedded model."""
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=1024,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    vision = JanusVisionConfig(
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=64,
        patch_size=8,
        projection_dim=HIDDEN,
        num_image_tokens=64,
    )
    return JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq_config(),
        image_token_id=token_id(tokenizer, IMAGE),
        tie_word_embeddings=True,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> JanusForConditionalGeneration:
    """A fresh model with the generation settings its own `generate` needs."""
    model = JanusForConditionalGeneration(janus_config(tokenizer))
    settings = model.generation_config
    settings._from_model_config = False  # or loading would drop the next lines
    settings.pad_token_id, settings.bos_token_id, settings.eos_token_id = (
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    )
    settings.generation_kwargs = {"boi_token_id": token_id(tokenizer, BOI)}  # type: ignore[attr-defined]
    settings.guidance_scale = 2.0
    return model
