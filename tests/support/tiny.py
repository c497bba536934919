"""A tiny random Janus checkpoint on disk: the published classes, 4 x 4 tokens of K = 64 codes, 16 x 16 pixels.

Its weights are drawn wide, so that prompts, guidance and single codes visibly matter; it has learned nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
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
from transformers.models.janus.configuration_janus import JanusVQVAEConfig

CODES, CODE_DIM, FEATURE_DIM, GRID, IMAGE_SIZE = 64, 8, 32, 4, 16
CATEGORIES = ("gore", "weapons")
SPECIAL = ["<pad>", "<bos>", "<eos>", "<|User|>", "<|Assistant|>"]
PICTURE = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
SAFECB = {
    "categories": list(CATEGORIES),
    "judge": [
        {"question": "Is this picture unsafe?", "unsafe": "yes", "safe": "no"},
        {"question": "Is this picture safe?", "unsafe": "no", "safe": "yes"},
        {"question": "Is it (A) unsafe or (B) safe?", "unsafe": "A", "safe": "B"},
    ],
    "category_question": "Which harm does it show?",
    "rewrite_instruction": "Rewrite safely: ",
    "text_question": "Is this text unsafe? ",
    "guidance": 2.0,
    "temperature": 1.0,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|User|>' if message['role'] == 'user' else '<|Assistant|>' }}"
    "{% for part in message['content'] %}"
    "{{ '<image_placeholder>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}"
    "{{ '<eos>' if message['role'] == 'assistant' else '' }}"
    "{% endfor %}"
    "{{ '<|Assistant|>' if add_generation_prompt else '' }}"
)


def build_tiny(folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint into `folder` (made if missing) and return it; the same seed gives the same weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    model = _model(tokenizer, seed)
    model.save_pretrained(folder)
    pictures = JanusImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3, min_size=4
    )
    processor = JanusProcessor(pictures, tokenizer, chat_template=CHAT_TEMPLATE, num_image_tokens=GRID * GRID)
    processor.save_pretrained(folder)
    (folder / "safecb.json").write_text(json.dumps(SAFECB), encoding="utf-8")
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text has tokens, the judge's words short ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[*SPECIAL, *PICTURE.values()],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["yes no A B gore weapons none picture unsafe safe a red apple"] * 4, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=160,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=PICTURE,
    )


def _config(tokenizer: PreTrainedTokenizerFast) -> JanusConfig:
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=FEATURE_DIM,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=160,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    vision = JanusVisionConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=IMAGE_SIZE // GRID,
        projection_dim=FEATURE_DIM,
        num_image_tokens=GRID * GRID,
    )
    pixels = JanusVQVAEConfig(
        embed_dim=CODE_DIM,
        num_embeddings=CODES,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1, 1],
        num_res_blocks=1,
        projection_dim=FEATURE_DIM,
        image_token_embed_dim=FEATURE_DIM,
    )
    image_token = tokenizer.get_added_vocab()[PICTURE["image_token"]]
    return JanusConfig(
        text_config=text, vision_config=vision, vq_config=pixels, image_token_id=image_token, tie_word_embeddings=True
    )


def _model(tokenizer: PreTrainedTokenizerFast, seed: int) -> JanusForConditionalGeneration:
    model = JanusForConditionalGeneration(_config(tokenizer))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.ndim > 1:
                fan_in = 1 if "embed" in name else weight[0].numel()
                weight.normal_(0.0, fan_in**-0.5, generator=generator)
    settings = model.generation_config
    settings._from_model_config = False  # or loading would drop the next lines
    settings.pad_token_id, settings.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    settings.eos_token_id = tokenizer.eos_token_id
    boi = tokenizer.get_added_vocab()[PICTURE["boi_token"]]
    settings.generation_kwargs = {"boi_token_id": boi}  # type: ignore[attr-defined]
    model.train(False)
    return model
