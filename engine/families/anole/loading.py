"""Anole models from a folder or with random weights. Knows transformers' classes. Knows nothing of names and hubs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, ChameleonConfig, ChameleonForConditionalGeneration

from core.errors import BadModel
from engine.families.anole.random_model import GEOMETRIES, letters, random_anole
from engine.families.checkpoints import from_folder
from engine.families.code_words import published_words
from engine.families.facts import Name, kv_row
from engine.families.format_chat import Format
from engine.families.taming import published_vqgan
from engine.families.vqgan import Vqgan, codes_a_side, load_decoder
from engine.families.word_parts import word_parts
from engine.instructions import Instructions, SamplingDefaults, general_chat, read_instructions
from engine.unified.parts import Parts
from engine.unified.published import Published

# See engine.family.Family.
__all__ = ["FOLDERS", "GEOMETRIES", "LICENCE", "NAME", "fits", "kv_numbers", "load", "load_random", "published"]

NAME = "anole"
LICENCE = "Chameleon Research License (Meta): non-commercial"
FOLDERS: Sequence[str] = ()
SAMPLING = SamplingDefaults(guidance=3.0, temperature=0.7, top_p=0.9)  # of inference/chameleon.py
BEGIN, END, SEPARATOR = "<racm3:break>", "<eoss>", "<reserved08706>"
FORMAT = Format(
    draw=f"<s>{{text}}{SEPARATOR}{BEGIN}",
    unconditional=f"<s>{BEGIN}",
    ask=f"<s>{{text}}{SEPARATOR}",
    about=f"<s>{BEGIN}{{image}}{END}{{text}}{SEPARATOR}",
    image_token="<image>",
    end="</s>",
    marks=r"<racm3:break>|<eoss>|<reserved\d+>|<image>|</?s>|IMGIMG[A-J]+Z",
)


def fits(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of this family."""
    return config.get("model_type") == "chameleon"


def load(name: str, folder: Path, model_hash: str, device: torch.device, dtype: torch.dtype) -> Parts:
    """Make the parts of the model called `name` from its folder. Raises BadModel."""
    model = from_folder(ChameleonForConditionalGeneration, folder, device, dtype)
    decoder = load_decoder(model.config.vq_config, folder, device, dtype)
    tokenizer = from_folder(AutoTokenizer, folder)
    instructions = read_instructions(folder, SAMPLING)
    return _parts(Name(NAME, name, model_hash), model, decoder, tokenizer, instructions)


def kv_numbers(folder: Path) -> int:
    """The numbers of a KV row of any prompt with an image, by configuration alone. Raises BadModel."""
    config = from_folder(ChameleonConfig, folder)
    return kv_row(config, codes_a_side(config.vq_config) ** 2)


def load_random(name: str, device: torch.device, dtype: torch.dtype) -> Parts:
    """Make parts with random weights, as "random:anole-7b". Raises BadModel for an unknown geometry."""
    random = random_anole(name, device, dtype)
    return _parts(Name.of_random(NAME, name, device, dtype), *random, general_chat(SAMPLING))


def published(name: str, folder: Path | None, device: torch.device, dtype: torch.dtype) -> Published:
    """Make the model of transformers, from its folder or with random weights, whose pixels no file holds.

    Raises BadModel.
    """
    if folder is None:
        model, _, tokenizer = random_anole(name, device, dtype)
    else:
        model = from_folder(ChameleonForConditionalGeneration, folder, device, dtype)
        tokenizer = from_folder(AutoTokenizer, folder)
    inner: Any = model.train(False).model
    vq = inner.vqmodel
    codes = _codes(model.config.vocabulary_map or {}, vq.config.num_embeddings, name)
    inner.vocabulary_mapping.__dict__["image_tokens"] = []  # transformers forbids them, as a Chameleon does
    return published_words(model, tokenizer, FORMAT, codes, *published_vqgan(vq, folder))


def _parts(
    name: Name,
    model: ChameleonForConditionalGeneration,
    decoder: nn.Module,
    tokenizer: Any,  # noqa: ANN401
    instructions: Instructions,
) -> Parts:
    vqgan = Vqgan(model.model.vqmodel, decoder)
    codes = _codes(model.config.vocabulary_map or {}, len(vqgan.table), name.model_id)
    return word_parts(name, model, tokenizer, FORMAT, codes, vqgan, instructions)


def _codes(ids: Mapping[str, int], count: int, model_id: str) -> list[int]:
    """The words of the codes, by the name of each: their order is the checkpoint's own."""
    try:
        return [ids[letters(number)] for number in range(count)]
    except KeyError as missing:
        raise BadModel(f"{model_id}: its vocabulary_map lacks {missing}") from None
