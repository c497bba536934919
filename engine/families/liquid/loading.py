"""Liquid models from a folder or with random weights. Knows transformers' classes. Knows nothing of names and hubs.

The VQGAN is not in the checkpoint: it lies in the folder `vq` beside the weights, as ChameleonVQVAE with its decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, ChameleonVQVAEConfig, GemmaConfig, GemmaForCausalLM
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from core.errors import BadModel
from engine.families.checkpoints import from_folder
from engine.families.facts import kv_row
from engine.families.format_chat import Format
from engine.families.liquid.random_model import GEOMETRIES, random_liquid
from engine.families.taming import published_decoder
from engine.families.vqgan import Vqgan, codes_a_side
from engine.families.word_family import WordFamily, WordModel, codes_behind
from engine.instructions import SamplingDefaults

# See engine.family.Family.
__all__ = ["FOLDERS", "GEOMETRIES", "LICENCE", "NAME", "fits", "kv_numbers", "load", "load_random", "published"]

NAME = "liquid"
LICENCE = "Gemma Terms of Use; its VQGAN: Chameleon Research License (Meta), non-commercial"
VQ = "vq"  # folder
FOLDERS: Sequence[str] = (VQ,)
PLAIN_GEMMA = 256000  # words of a Gemma that draws no image
# Of evaluation/inference_t2i.py:
SAMPLING = SamplingDefaults(guidance=7.0, temperature=0.99, top_k=4096, top_p=0.96)
FORMAT = Format(
    draw="<bos>{text} Generate an image based on this description.<boi>",
    unconditional="<bos><unconditional><boi>",
    ask="<bos><start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n",
    about="<bos><start_of_turn>user\n<boi>{image}<eoi>\n{text}<end_of_turn>\n<start_of_turn>model\n",
    image_token="<unused0>",  # no prompt has it
    end="<end_of_turn>",
    marks=r"<(bos|eos|pad|boi|eoi|unconditional|start_of_turn|end_of_turn|unused\d+)>",
)


def fits(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of this family: a Gemma with more, or other, words than Google's."""
    return config.get("model_type") == "gemma" and config.get("vocab_size") != PLAIN_GEMMA


def kv_numbers(folder: Path) -> int:
    """The numbers of a KV row of any prompt with an image, by configuration alone. Raises BadModel."""
    vq = from_folder(ChameleonVQVAEConfig, _vq(folder))
    return kv_row(from_folder(GemmaConfig, folder), codes_a_side(vq) ** 2)


def read_liquid(folder: Path, device: torch.device, dtype: torch.dtype) -> WordModel:
    """Read the models of transformers and the decoder. Raises BadModel."""
    beside = _vq(folder)
    model = from_folder(GemmaForCausalLM, folder, device, dtype)
    vqgan = Vqgan.of_folder(from_folder(ChameleonVQVAE, beside, device, dtype), beside)
    return WordModel(model, from_folder(AutoTokenizer, folder), vqgan)


def _vq(folder: Path) -> Path:
    """The folder of the VQGAN. Raises BadModel where there is none."""
    if not (folder / VQ).is_dir():
        raise BadModel(
            f"{folder}: has no folder {VQ!r} with the VQGAN that Liquid draws with: a ChameleonVQVAE with its "
            "decoder as safetensors, such as leloy/Anole-7b-v0.1-vqvae-hf"
        )
    return folder / VQ


FAMILY = WordFamily(NAME, SAMPLING, FORMAT, read_liquid, codes_behind, GEOMETRIES, random_liquid, published_decoder)
load, load_random, published = FAMILY.load, FAMILY.load_random, FAMILY.published
