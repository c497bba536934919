"""VILA-U models from a folder or with random weights: a Llama, a vision tower and a projector, a sub-folder each.

Knows transformers' classes. Knows nothing of names and hubs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from core.errors import BadModel
from engine.families.backbones import read_backbone
from engine.families.checkpoints import check_weights, from_folder, load_strictly, read_tensors
from engine.families.code_rows import text_head
from engine.families.facts import Name, facts_of, kv_row
from engine.families.fast_norms import use_fast_norms
from engine.families.format_chat import Format, FormatChat
from engine.families.random_weights import geometry_of
from engine.families.vila_u.depth_head import DepthTransformer
from engine.families.vila_u.published import published_vila_u
from engine.families.vila_u.random_model import GEOMETRIES, random_vila_u
from engine.families.vila_u.tokenizer import MARKS, load_tokenizer
from engine.families.vila_u.tower import Tower, load_tower, read_side
from engine.instructions import Instructions, SamplingDefaults, general_chat, read_instructions
from engine.runner.image_lm import ImageHead
from engine.runner.script import Script
from engine.unified.parts import Language, Parts
from engine.unified.published import Published
from engine.unified.served_model import LONGEST_PROMPT

# See engine.family.Family.
__all__ = ["FOLDERS", "GEOMETRIES", "LICENCE", "NAME", "fits", "kv_numbers", "load", "load_random", "published"]

NAME = "vila_u"
LICENCE = "MIT; its language model: Llama 2 Community License (Meta)"
LLM, TOWER, PROJECTOR = "llm", "vision_tower", "mm_projector"
FOLDERS: Sequence[str] = (LLM, TOWER, PROJECTOR)
SAMPLING = SamplingDefaults(guidance=3.0, top_k=900, top_p=0.96)  # of each draw of a cell, in their generate
SYSTEM = (
    "<s> A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER:"
)
FORMAT = Format(
    draw=f"{SYSTEM} {{text}} ASSISTANT: <im_start>",
    unconditional=f"{SYSTEM}ASSISTANT: <im_start>",  # of a blank message, after which their code puts no separator
    ask=f"{SYSTEM} {{text}} ASSISTANT:",
    about=f"{SYSTEM} {{image}} \n{{text}} ASSISTANT:",
    image_token="<vi_end>",  # of videos, which are not drawn: no prompt has it
    end="</s>",
    marks=r"</?s>|<unk>|<(im|vi)_(start|end)>|<im_patch>|<image>|\[PAD\]",
    between=" ",
)


def fits(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of this family."""
    return config.get("model_type") in ("vila_u", "vila_u_llama")


def load(name: str, folder: Path, model_hash: str, device: torch.device, dtype: torch.dtype) -> Parts:
    """Make the parts of the model called `name` from its folder. Raises BadModel."""
    _check_parts(folder)
    tokenizer = load_tokenizer(folder / LLM)
    with torch.random.fork_rng():  # modules are initialised before they are filled
        tower = load_tower(folder / TOWER)
        projector = _load_projector(folder / PROJECTOR)
    model = from_folder(LlamaForCausalLM, folder / LLM, device, dtype)
    instructions = read_instructions(folder, SAMPLING)
    return vila_u_parts(
        model, tower.to(device, dtype), projector, tokenizer, instructions, Name(NAME, name, model_hash)
    )


def kv_numbers(folder: Path) -> int:
    """The numbers of a KV row of any prompt with an image, by configuration alone. Raises BadModel."""
    _check_parts(folder)
    return kv_row(from_folder(LlamaConfig, folder / LLM), read_side(folder / TOWER) ** 2)


def load_random(name: str, device: torch.device, dtype: torch.dtype) -> Parts:
    """Make parts with random weights, as "random:vila-u-7b". Raises BadModel for an unknown geometry."""
    geometry = geometry_of(GEOMETRIES, name)
    model, tower, projector, tokenizer = random_vila_u(geometry, device, dtype)
    random = Name.of_random(NAME, name, device, dtype, geometry, [model, *tower.parts, *projector])
    return vila_u_parts(model, tower, projector, tokenizer, general_chat(SAMPLING), random)


def published(name: str, folder: Path | None, device: torch.device, dtype: torch.dtype) -> Published | None:
    """Make the layers of the published code over the tensors of a folder; random weights lie in none. Raises BadModel.

    It is loaded as for serving first, and what is wrong with it refused by name.
    """
    if folder is None:
        return None
    tower = load_tower(folder / TOWER)
    llama = from_folder(LlamaForCausalLM, folder / LLM, device, dtype)
    script = Script.deep(tower.side**2, tower.vq.depth)
    chat = FormatChat(load_tokenizer(folder / LLM), FORMAT, script.steps, LONGEST_PROMPT)
    return published_vila_u(llama, tower, folder / TOWER, folder / PROJECTOR, chat)


def vila_u_parts(
    model: LlamaForCausalLM,
    tower: Tower,
    projector: Sequence[nn.Linear],
    tokenizer: Any,  # noqa: ANN401
    instructions: Instructions,
    name: Name,
) -> Parts:
    """Make the parts of a model, its tower, projector and tokenizer. Raises BadModel."""
    model.train(False).requires_grad_(False)
    config, vq, weight = model.config, tower.vq, model.lm_head.weight
    marks = tokenizer.convert_tokens_to_ids(list(MARKS))
    if marks != [config.vocab_size - 4 + number for number in range(4)]:
        last = f"the last words of its {config.vocab_size}"
        raise BadModel(f"{name.model_id}: {', '.join(MARKS)} are not {last}, but {marks}")
    script, longest = Script.deep(tower.side**2, vq.depth), config.max_position_embeddings
    sizes = tower.side, tower.size, vq.table, config.hidden_size, longest - script.steps
    facts = facts_of(name, *sizes, instructions, model.dtype)
    facts = replace(facts, depth=vq.depth, feature_dim=tower.modules.in_mlp_1.out_features)
    use_fast_norms(vq.decoder)
    layers = [layer.to(weight) for layer in projector]
    depth = DepthTransformer(tower.modules, tower.heads, vq.table, layers)

    def see(images: Tensor) -> Tensor:
        """Embeddings [B, cells, H] of images [B, 3, H, W] in [-1, 1]: of the sums of the rows of their codes."""
        codes = torch.stack([vq.encode_one(image[None].to(weight.device)) for image in images])
        return depth.read(codes.view(len(images), -1, vq.depth))

    chat = FormatChat(tokenizer, FORMAT, script.steps, facts.max_prompt_tokens)
    language = Language(read_backbone(model.model), text_head(model.lm_head, marks), chat, longest, see)
    classifier = tower.modules.classifier_mlp["linear"]
    assert isinstance(classifier, nn.Linear)
    head = ImageHead(classifier, vq.table.to(weight), depth=depth)
    return Parts(facts, instructions, language, head, script, vq.table, vq.decode_one, None, vq.encode_one)


def _check_parts(folder: Path) -> None:
    """Raise BadModel for a folder without one of its parts."""
    for part in FOLDERS:
        if not any((folder / part).glob("*.safetensors")):
            raise BadModel(f"{folder}: its folder {part!r} is missing or holds no .safetensors file")


def _load_projector(folder: Path) -> list[nn.Linear]:
    """The layers of the projector, between which there is a GELU. Raises BadModel for another kind."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["mm_projector_type"]
    except (OSError, ValueError, KeyError) as error:
        raise BadModel(f"{folder}: no readable config.json with an mm_projector_type: {error}") from error
    tensors = read_tensors(folder, ["layers."])
    places = sorted((name.removesuffix(".weight") for name in tensors if name.endswith(".weight")), key=int)
    if kind != f"mlp{len(places)}x_gelu":
        raise BadModel(f"{folder}: a projector {kind!r} of {len(places)} layers is not known; mlp2x_gelu is")
    layers = []
    for place in places:
        outputs, inputs = tensors[f"{place}.weight"].shape
        layer = nn.Linear(inputs, outputs)
        parts = {part: tensors[f"{place}.{part}"] for part in ("weight", "bias") if f"{place}.{part}" in tensors}
        load_strictly(layer, parts, folder, "projector")
        check_weights(folder, layer)
        layers.append(layer.requires_grad_(False))
    return layers
