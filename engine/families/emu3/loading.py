"""Emu3 models from a folder or with random weights. One checkpoint draws (Emu3-Gen), another one reads (Emu3-Chat).

The one that reads lies in the folder `chat` beside the weights of the one that draws; without it that one reads too.
Knows transformers' classes. Knows nothing of names and hubs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoTokenizer, Emu3Config, Emu3ForConditionalGeneration, Emu3TextConfig, Emu3VQVAE

from core.errors import BadModel
from engine.families.backbones import read_backbone
from engine.families.checkpoints import from_folder, read_option
from engine.families.code_rows import image_head, named_codes, text_head
from engine.families.code_words import CodeWords
from engine.families.emu3.picture import decode_one, encode_one
from engine.families.emu3.random_model import GEOMETRIES, random_emu3, visual_token
from engine.families.facts import Name, facts_of, kv_row
from engine.families.fast_norms import use_fast_norms
from engine.families.format_chat import Format, FormatChat
from engine.families.random_weights import geometry_of
from engine.instructions import Instructions, SamplingDefaults, general_chat, read_instructions
from engine.runner.script import Script
from engine.unified.parts import Language, Parts
from engine.unified.published import Published
from engine.unified.served_model import LONGEST_PROMPT

# See engine.family.Family.
__all__ = ["FOLDERS", "GEOMETRIES", "LICENCE", "NAME", "fits", "kv_numbers", "load", "load_random", "published"]

NAME = "emu3"
LICENCE = "Apache-2.0"
READER = "chat"  # folder
FOLDERS: Sequence[str] = (READER,)
IMAGE_SIZE = 720  # pixels, of the published checkpoint; `image_size` in safecb.json says another one
SAMPLING = SamplingDefaults(guidance=3.0, top_k=2048)  # of BAAI's image_generation.py
LIKED = " masterpiece, film grained, best quality."
DISLIKED = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)
BOI, IMAGE, EOI, EOL, EOF = "<|image start|>", "<|image token|>", "<|image end|>", "<|extra_200|>", "<|extra_201|>"
MARKS = r"<\|(visual token|image|extra_|end|dummy)[^|]*\|>|<image>"


def fits(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of this family. Raises BadModel for BAAI's own layout."""
    if config.get("model_type") == "Emu3":
        raise BadModel(
            "is an Emu3 in BAAI's own layout ('Emu3', whose image tokenizer is a repository of its own), which "
            "transformers does not read; in its layout: BAAI/Emu3-Gen-hf, and BAAI/Emu3-Chat-hf in its folder chat"
        )
    return config.get("model_type") == NAME


def load(name: str, folder: Path, model_hash: str, device: torch.device, dtype: torch.dtype) -> Parts:
    """Make the parts of the model called `name` from its folder. Raises BadModel."""
    draws = from_folder(Emu3ForConditionalGeneration, folder, device, dtype)
    tokenizer = from_folder(AutoTokenizer, folder)
    size = read_option(folder, "image_size", IMAGE_SIZE)
    reader = folder / READER
    reads = from_folder(Emu3ForConditionalGeneration, reader, device, dtype) if reader.is_dir() else None
    return emu3_parts(draws, reads, tokenizer, size, read_instructions(folder, SAMPLING), Name(NAME, name, model_hash))


def kv_numbers(folder: Path) -> int:
    """The numbers of a KV row of any prompt with an image, by configuration alone. Raises BadModel."""
    config = from_folder(Emu3Config, folder)
    factor = 2 ** (len(config.vq_config.channel_multiplier) - 1)
    side = read_option(folder, "image_size", IMAGE_SIZE) // factor
    return kv_row(config.text_config, Script.lines(side, side).steps)


def load_random(name: str, device: torch.device, dtype: torch.dtype) -> Parts:
    """Make parts with random weights, as "random:emu3". Raises BadModel for an unknown geometry."""
    geometry = geometry_of(GEOMETRIES, name)
    model, tokenizer = random_emu3(geometry, device, dtype)
    random = Name.of_random(NAME, name, device, dtype, geometry, [model])
    return emu3_parts(model, None, tokenizer, IMAGE_SIZE, general_chat(SAMPLING), random)


def published(name: str, folder: Path | None, device: torch.device, dtype: torch.dtype) -> Published:
    """Make the model of transformers that draws, from its folder or with random weights. Raises BadModel."""
    if folder is None:
        (model, tokenizer), size = random_emu3(geometry_of(GEOMETRIES, name), device, dtype), IMAGE_SIZE
    else:
        model = from_folder(Emu3ForConditionalGeneration, folder, device, dtype)
        tokenizer, size = from_folder(AutoTokenizer, folder), read_option(folder, "image_size", IMAGE_SIZE)
    vq, ids = model.train(False).model.vqmodel, model.config.vocabulary_map or {}
    side, codes = size // vq.spatial_scale_factor, _codes(ids, vq, name)
    chat = FormatChat(tokenizer, _format(side), side * (side + 1), LONGEST_PROMPT)
    words = CodeWords(model, chat, codes, Script.lines(side, side), [ids[EOL]])

    def decode(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            frame: Tensor = vq.decode(tokens.view(1, side, side).to(device))
        return frame.float().clamp(-1, 1)

    source = f"transformers {transformers.__version__}, Emu3ForConditionalGeneration"
    table = vq.quantize.embedding.weight.detach().float().cpu()
    return Published(source, side * side, table, words.greedy, decode)


def emu3_parts(
    draws: Emu3ForConditionalGeneration,
    reads: Emu3ForConditionalGeneration | None,
    tokenizer: Any,  # noqa: ANN401
    size: int,
    instructions: Instructions,
    name: Name,
) -> Parts:
    """Make the parts of one model that draws and one that reads. size: pixels of an image. Raises BadModel."""
    for model in (draws, reads):
        if model is not None:
            model.train(False).requires_grad_(False)
    vq, config = draws.model.vqmodel, draws.config.text_config
    ids: Mapping[str, int] = draws.config.vocabulary_map or {}
    factor = vq.spatial_scale_factor
    if size % factor:
        raise BadModel(f"{name.model_id}: image_size {size} is not a multiple of {factor}")
    side = size // factor
    script, codes = Script.lines(side, side), _codes(ids, vq, name.model_id)
    assert isinstance(config, Emu3TextConfig)
    room, table = config.max_position_embeddings - script.steps, vq.quantize.embedding.weight
    facts = facts_of(name, side, size, table, config.hidden_size, room, instructions, draws.dtype)
    facts = replace(facts, rewrites=reads is not None)  # the one that draws was trained to do nothing else
    use_fast_norms(vq.decoder)
    chat = FormatChat(tokenizer, _format(side), side * (side + 1), facts.max_prompt_tokens)
    drawing, reading = (
        None if model is None else _language(model, chat, codes, ids[EOL], side) for model in (draws, reads)
    )
    assert drawing is not None
    head = image_head(draws.lm_head, draws.model.text_model.embed_tokens, codes, [ids[EOL]])
    picture = partial(decode_one, vq, facts.grid)
    encode = partial(encode_one, (reads or draws).model.vqmodel)
    return Parts(facts, instructions, drawing, head, script, table, picture, reading, encode)


def _language(
    model: Emu3ForConditionalGeneration, chat: FormatChat, codes: Sequence[int], end_of_line: int, side: int
) -> Language:
    vq, embed, config = model.model.vqmodel, model.model.text_model.embed_tokens, model.config.text_config
    assert isinstance(config, Emu3TextConfig)
    ids = torch.tensor(codes, device=model.lm_head.weight.device)

    def see(images: Tensor) -> Tensor:
        """Embeddings [B, rows * (columns + 1), H] of images [B, 3, H, W] in [-1, 1], each line with its end."""
        lines = [ids[encode_one(vq, image[None].to(ids.device))].view(side, side) for image in images]
        ended = [nn.functional.pad(line, (0, 1), value=end_of_line).flatten() for line in lines]
        embedded: Tensor = embed(torch.stack(ended))
        return embedded

    head = text_head(model.lm_head, codes)
    return Language(read_backbone(model.model.text_model), head, chat, config.max_position_embeddings, see)


def _format(side: int) -> Format:
    size = f"{BOI}{side}*{side}{IMAGE}"
    bos = "<|extra_203|>"
    return Format(
        draw=f"{bos}{{text}}{LIKED}{size}",
        unconditional=f"{bos}{DISLIKED}{size}",
        ask=f"{bos}You are a helpful assistant. USER: {{text}} ASSISTANT:",
        about=f"{bos}You are a helpful assistant. USER: {size}{{image}}{EOF}{EOI}{{text}} ASSISTANT:",
        image_token="<image>",
        end="<|extra_204|>",
        marks=MARKS,
        between=" ",
    )


def _codes(ids: Mapping[str, int], vq: Emu3VQVAE, model_id: str) -> list[int]:
    """The words of the codes, by the name of each. Raises BadModel."""
    return named_codes(ids, map(visual_token, range(vq.config.codebook_size)), model_id)
