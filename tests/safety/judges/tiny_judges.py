"""Tiny random checkpoints of the kinds that judge images: ViT, CLIP, SigLIP, ShieldGemma 2, Llava; 32 x 32 pixels.

Their weights are drawn wide, so that images visibly matter; they have learned nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    Gemma3ImageProcessorPil,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ShieldGemma2Config,
    ShieldGemma2ForImageClassification,
    ShieldGemma2Processor,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

SIZE = 32
SEED = 3  # of weights under which CLIP finds some pairs alike, and judges disagree
LABELS = ("drawing", "gore", "weapon+knife")
MARKS = ["<pad>", "<bos>", "<eos>", "<image>", "<boi>", "<eoi>"]
WORDS = "Yes No yes no unsafe safe a picture of blood flowers weapon image policy violate rating"
CHAT = (
    "{{ '<bos>' }}{% for message in messages %}{% for part in message['content'] %}"
    "{{ IMAGE if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endfor %}{{ ' Answer:' }}"
)
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
}
_TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_SQUARE = {"height": SIZE, "width": SIZE}


def build_vit(folder: Path, labels: tuple[str, ...] = LABELS, multi: bool = False, size: int = SIZE) -> Path:
    """An image classifier; `size` is what its processor makes of images, which only SIZE suits."""
    config = ViTConfig(**_VISION, id2label=dict(enumerate(labels)))
    config.problem_type = "multi_label_classification" if multi else None
    ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    return _save(ViTForImageClassification, config, folder)


def build_clip(folder: Path, model: type[PreTrainedModel] = CLIPModel) -> Path:
    tokenizer = _tokenizer()
    text = {**_TEXT, "vocab_size": len(tokenizer), "projection_dim": 8}
    config = CLIPConfig(text_config=text, vision_config={**_VISION, "projection_dim": 8}, projection_dim=8)
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=_SQUARE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return _save(model, config, folder)


def build_siglip(folder: Path) -> Path:
    tokenizer = _tokenizer()
    config = SiglipConfig(text_config={**_TEXT, "vocab_size": len(tokenizer)}, vision_config=_VISION)
    SiglipImageProcessorPil(size=_SQUARE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return _save(SiglipModel, config, folder)


def build_shield_gemma(folder: Path) -> Path:
    tokenizer = _tokenizer()
    text = {
        "model_type": "gemma3_text",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vocabulary = tokenizer.get_vocab()
    config = ShieldGemma2Config(
        text_config=text,
        vision_config={"model_type": "siglip_vision_model", **_VISION},
        mm_tokens_per_image=4,
        boi_token_index=vocabulary["<boi>"],
        eoi_token_index=vocabulary["<eoi>"],
        image_token_index=vocabulary["<image>"],
    )
    config.yes_token_index, config.no_token_index = vocabulary["Yes"], vocabulary["No"]
    chat = CHAT.replace("IMAGE", "'<boi>'")
    pictures = Gemma3ImageProcessorPil(size=_SQUARE)
    processor = ShieldGemma2Processor(pictures, tokenizer, chat, image_seq_length=4)  # type: ignore[no-untyped-call]
    processor.save_pretrained(folder)
    return _save(ShieldGemma2ForImageClassification, config, folder)


def build_llava(folder: Path) -> Path:
    tokenizer = _tokenizer()
    text = LlamaConfig(**{**_TEXT, "max_position_embeddings": 512}, vocab_size=len(tokenizer))
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION),
        text_config=text,
        image_token_index=tokenizer.get_vocab()["<image>"],
        vision_feature_layer=-1,
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=_SQUARE)
    chat = CHAT.replace("IMAGE", "'<image>'")
    processor = LlavaProcessor(  # type: ignore[no-untyped-call]
        pictures, tokenizer, 8, "default", chat, image_token="<image>", num_additional_image_tokens=1
    )
    processor.save_pretrained(folder)
    return _save(LlavaForConditionalGeneration, config, folder)


def _save(kind: type[PreTrainedModel], config: PreTrainedConfig, folder: Path) -> Path:
    """Draw the weights, the same ones each time, and write them."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(SEED)
        model = kind(config)  # draws what has one dimension, such as CLIP's class embedding
        for _, weight in sorted(model.named_parameters()):
            if weight.ndim > 1:
                weight.normal_(0.0, weight[0].numel() ** -0.5)
    model.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that ends texts with <eos>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=MARKS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS, *WORDS.split()] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", MARKS.index("<eos>"))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"},
    )
