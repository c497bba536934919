"""Anole models from a folder or with random weights. Knows transformers' classes. Knows nothing of names and hubs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, ChameleonConfig, ChameleonForConditionalGeneration

from engine.families.anole.random_model import GEOMETRIES, letters, random_anole, unmask
from engine.families.checkpoints import from_folder
from engine.families.code_rows import named_codes
from engine.families.facts import kv_row
from engine.families.format_chat import Format
from engine.families.taming import published_decoder
from engine.families.vqgan import Vqgan, codes_a_side
from engine.families.word_family import WordFamily, WordModel
from engine.instructions import SamplingDefaults

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


def kv_numbers(folder: Path) -> int:
    """The numbers of a KV row of any prompt with an image, by configuration alone. Raises BadModel."""
    config = from_folder(ChameleonConfig, folder)
    return kv_row(config, codes_a_side(config.vq_config) ** 2)


def read_anole(folder: Path, device: torch.device, dtype: torch.dtype) -> WordModel:
    """Read the model of transformers and its decoder. Raises BadModel."""
    model = from_folder(ChameleonForConditionalGeneration, folder, device, dtype)
    unmask(model)
    return WordModel(model, from_folder(AutoTokenizer, folder), Vqgan.of_folder(model.model.vqmodel, folder))


def codes_of(words: WordModel, model_id: str) -> Sequence[int]:
    """The words of the codes, by the name of each. Raises BadModel."""
    names = map(letters, range(len(words.pixels.table)))
    return named_codes(words.model.config.vocabulary_map, names, model_id)


FAMILY = WordFamily(NAME, SAMPLING, FORMAT, read_anole, codes_of, GEOMETRIES, random_anole, published_decoder)
load, load_random, published = FAMILY.load, FAMILY.load_random, FAMILY.published
