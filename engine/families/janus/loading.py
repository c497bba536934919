"""Janus models from a folder or with random weights: the model of transformers, its processor and its instructions.

Knows transformers' loaders. Knows nothing of names and hubs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor, JanusVisionConfig, JanusVQVAEConfig

from core.errors import BadModel
from engine.families.backbones import read_backbone
from engine.families.checkpoints import from_folder
from engine.families.facts import Name, kv_row
from engine.families.fast_norms import use_fast_norms
from engine.families.janus.pixels import decode_one, encode_one
from engine.families.janus.prompting import JanusChat
from engine.families.janus.published import published_janus
from engine.families.janus.random_model import GEOMETRIES, random_janus
from engine.families.janus.sight import Sight
from engine.families.random_weights import geometry_of
from engine.instructions import Instructions, general_chat, read_instructions
from engine.model import ModelFacts
from engine.runner.image_lm import ImageHead
from engine.runner.script import Script
from engine.unified.parts import Language, Parts
from engine.unified.published import Published
from engine.unified.served_model import LONGEST_PROMPT

# See engine.family.Family.
__all__ = ["FOLDERS", "GEOMETRIES", "LICENCE", "NAME", "fits", "kv_numbers", "load", "load_random", "published"]

NAME = "janus"
LICENCE = "of Janus-Pro: DeepSeek Model License; of the embedded model: see NOTICE"
FOLDERS: Sequence[str] = ()


def fits(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of this family. Raises BadModel for DeepSeek's own layout."""
    if config.get("model_type") == "multi_modality":
        size = "1B" if (config.get("language_config") or {}).get("hidden_size") == 2048 else "7B"
        raise BadModel(
            "is a Janus in DeepSeek's own layout ('multi_modality', weights under language_model, gen_vision_model, "
            f"...), which transformers does not read; in its layout: deepseek-community/Janus-Pro-{size}"
        )
    return config.get("model_type") == NAME


def load(name: str, folder: Path, model_hash: str, device: torch.device, dtype: torch.dtype) -> Parts:
    """Make the parts of the model called `name` from its folder. Raises BadModel."""
    instructions = read_instructions(folder)
    model, processor = load_janus(folder, device, dtype)
    return janus_parts(model, processor, instructions, name, model_hash)


def kv_numbers(folder: Path) -> int:
    """The numbers of a KV row of any prompt with an image, by configuration alone. Raises BadModel."""
    config = from_folder(JanusConfig, folder)
    return kv_row(config.text_config, config.vq_config.num_patches**2)


def load_random(name: str, device: torch.device, dtype: torch.dtype) -> Parts:
    """Make parts with random weights, as "random:janus-pro-1b". Raises BadModel for an unknown geometry."""
    geometry = geometry_of(GEOMETRIES, name)
    model, processor = random_janus(geometry, device, dtype)
    random = Name.of_random(NAME, name, device, dtype, geometry, [model])
    return janus_parts(model, processor, general_chat(), name, random.model_hash)


def published(name: str, folder: Path | None, device: torch.device, dtype: torch.dtype) -> Published:
    """Make the model of transformers, from its folder or with random weights. Raises BadModel."""
    if folder is None:
        both = random_janus(geometry_of(GEOMETRIES, name), device, dtype)
    else:
        both = load_janus(folder, device, dtype)
    return published_janus(*both, transformers.__version__)


def janus_parts(
    model: JanusForConditionalGeneration,
    processor: JanusProcessor,
    instructions: Instructions,
    model_id: str,
    model_hash: str,
) -> Parts:
    """Make the parts of a model on its device, and its processor. Raises BadModel."""
    model.train(False).requires_grad_(False)
    inner = model.model
    vq, text = inner.vqmodel, inner.language_model.config
    longest: int = text.max_position_embeddings
    configs = (vq.config, inner.vision_model.config)
    facts = _facts(*configs, longest, text.hidden_size, instructions, model_id, model_hash, model.dtype)
    use_fast_norms(vq.decoder)
    chat = JanusChat(processor, facts.max_prompt_tokens)
    sight = Sight(model, *chat.image_statistics)
    return Parts(
        facts,
        instructions,
        Language(read_backbone(inner.language_model), model.lm_head, chat, longest, sight),
        _image_head(inner),
        Script.plain(facts.tokens),
        vq.quantize.embedding.weight,
        partial(decode_one, vq),
        encode=partial(encode_one, vq),
    )


def load_janus(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> tuple[JanusForConditionalGeneration, JanusProcessor]:
    """The model of transformers, on its device, and its processor. Raises BadModel."""
    model = from_folder(JanusForConditionalGeneration, folder, device, dtype)
    return model, from_folder(JanusProcessor, folder)


def _image_head(janus: transformers.JanusModel) -> ImageHead:
    head = janus.generation_head
    with torch.no_grad():  # no codebook version edits what the language model reads, so once is enough
        embeddings: Tensor = janus.generation_aligner(janus.generation_embeddings.weight)
    return ImageHead(head.vision_head, embeddings, head.proj_out, head.activation_fn)


def _facts(
    vq: JanusVQVAEConfig,
    vision: JanusVisionConfig,
    longest: int,
    hidden: int,
    instructions: Instructions,
    model_id: str,
    model_hash: str,
    dtype: torch.dtype,
) -> ModelFacts:
    """The facts that a configuration states; raises BadModel where its parts contradict each other."""
    side = vq.num_patches
    size = side * 2 ** (len(vq.channel_multiplier) - 1)
    if side * side != vision.num_image_tokens:
        raise BadModel(f"{model_id}: {vision.num_image_tokens} image tokens do not fill a {side} x {side} grid")
    if size != vision.image_size:
        raise BadModel(f"{model_id}: draws {size} pixels a side, but its vision tower reads {vision.image_size}")
    return ModelFacts(
        family=NAME,
        model_id=model_id,
        model_hash=model_hash,
        grid=(side, side),
        image_size=size,
        codes=vq.num_embeddings,
        code_dim=vq.embed_dim,
        feature_dim=vq.projection_dim,
        hidden_dim=hidden,
        normalised=True,
        pixel_table_feeds_lm=False,
        max_prompt_tokens=min(longest - side * side, LONGEST_PROMPT),
        categories=instructions.categories,
        guidance=instructions.sampling.guidance,
        temperature=instructions.sampling.temperature,
        judges_texts=instructions.text_question is not None,
        dtype=str(dtype).removeprefix("torch."),
        top_k=min(instructions.sampling.top_k, vq.num_embeddings),
        top_p=instructions.sampling.top_p,
    )
