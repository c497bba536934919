"""Liquid models from a folder or with random weights. Knows transformers' classes. Knows nothing of names and hubs.

The VQGAN is not in the checkpoint: it lies in the folder `vq` beside the weights, as ChameleonVQVAE with its decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, ChameleonVQVAEConfig, GemmaConfig, GemmaForCausalLM
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from core.errors import BadModel
from engine.families.checkpoints import from_folder
from engine.families.code_words import published_words
from engine.families.facts import Name, kv_row
from engine.families.format_chat import Format
from engine.families.liquid.random_model import GEOMETRIES, random_liquid
from engine.families.taming import published_vqgan
from engine.families.vqgan import Vqgan, codes_a_side, load_decoder
from engine.families.word_parts import word_parts
from engine.instructions import Instructions, SamplingDefaults, general_chat, read_instructions
from engine.unified.parts import Parts
from engine.unified.published import Published

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


def load(name: str, folder: Path, model_hash: str, device: torch.device, dtype: torch.dtype) -> Parts:
    """Make the parts of the model called `name` from its folder. Raises BadModel."""
    beside = _vq(folder)
    model = from_folder(GemmaForCausalLM, folder, device, dtype)
    vq = from_folder(ChameleonVQVAE, beside, device, dtype)
    decoder = load_decoder(vq.config, beside, device, dtype)
    tokenizer = from_folder(AutoTokenizer, folder)
    instructions = read_instructions(folder, SAMPLING)
    return _parts(Name(NAME, name, model_hash), model, vq, decoder, tokenizer, instructions)


def kv_numbers(folder: Path) -> int:
    """The numbers of a KV row of any prompt with an image, by configuration alone. Raises BadModel."""
    vq = from_folder(ChameleonVQVAEConfig, _vq(folder))
    return kv_row(from_folder(GemmaConfig, folder), codes_a_side(vq) ** 2)


def load_random(name: str, device: torch.device, dtype: torch.dtype) -> Parts:
    """Make parts with random weights, as "random:liquid-7b". Raises BadModel for an unknown geometry."""
    random = random_liquid(name, device, dtype)
    return _parts(Name.of_random(NAME, name, device, dtype), *random, general_chat(SAMPLING))


def published(name: str, folder: Path | None, device: torch.device, dtype: torch.dtype) -> Published:
    """Make the models of transformers, from their folder or with random weights, whose pixels no file holds.

    Raises BadModel.
    """
    if folder is None:
        model, vq, _, tokenizer = random_liquid(name, device, dtype)
    else:
        model = from_folder(GemmaForCausalLM, folder, device, dtype)
        vq = from_folder(ChameleonVQVAE, folder / VQ, device, dtype)
        tokenizer = from_folder(AutoTokenizer, folder)
    model.train(False)
    codes = range(len(tokenizer), len(tokenizer) + vq.config.num_embeddings)
    parts = published_vqgan(vq, None if folder is None else folder / VQ)
    return published_words(model, tokenizer, FORMAT, codes, *parts)


def _parts(
    name: Name,
    model: GemmaForCausalLM,
    vq: ChameleonVQVAE,
    decoder: nn.Module,
    tokenizer: Any,  # noqa: ANN401
    instructions: Instructions,
) -> Parts:
    """Code k is the word that many behind the tokenizer's own. Raises BadModel."""
    vqgan = Vqgan(vq.train(False).requires_grad_(False), decoder)
    offset, count, rows = len(tokenizer), len(vqgan.table), model.config.vocab_size
    if offset + count > rows:
        raise BadModel(f"{name.model_id}: {offset} words and {count} codes do not fit its {rows} rows")
    return word_parts(name, model, tokenizer, FORMAT, range(offset, offset + count), vqgan, instructions)


def _vq(folder: Path) -> Path:
    """The folder of the VQGAN. Raises BadModel where there is none."""
    if not (folder / VQ).is_dir():
        raise BadModel(
            f"{folder}: has no folder {VQ!r} with the VQGAN that Liquid draws with: a ChameleonVQVAE with its "
            "decoder as safetensors, such as leloy/Anole-7b-v0.1-vqvae-hf"
        )
    return folder / VQ
