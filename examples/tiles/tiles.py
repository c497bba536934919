"""Tiles: a Llama some of whose words are tiles of an image. Knows its own words and weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from engine.families.checkpoints import from_folder, read_tensors
from engine.families.code_rows import nearest
from engine.families.code_words import published_words
from engine.families.facts import Name, kv_row
from engine.families.format_chat import Format
from engine.families.word_parts import word_parts
from engine.instructions import SamplingDefaults, read_instructions
from engine.unified.parts import Parts
from engine.unified.published import Published

NAME, LICENCE, FOLDERS, GEOMETRIES = "tiles", "Apache-2.0", (), ()
SAMPLING = SamplingDefaults(guidance=2.0, top_p=0.95)
FORMAT = Format(
    draw="<s>{text}<draw>",
    unconditional="<s><draw>",
    ask="<s>{text}<answer>",
    about="<s><draw>{image}<end>{text}<answer>",
    image_token="<image>",
    end="</s>",
    marks="<(s|/s|draw|image|end|answer|pad)>",
)


def fits(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "llama" and "tiles" in config


class Tiles:
    def __init__(self, table: Tensor, side: int) -> None:
        self.table, self.side, self.edge = table, side, round((table.shape[1] / 3) ** 0.5)
        self.size = side * self.edge

    def decode_one(self, tokens: Tensor, table: Tensor) -> Tensor:
        tiles = table[tokens].view(self.side, self.side, 3, self.edge, self.edge)
        return tiles.permute(2, 0, 3, 1, 4).reshape(1, 3, self.size, self.size).float().clamp(-1, 1)

    def encode_one(self, image: Tensor) -> Tensor:
        cut = image.view(3, self.side, self.edge, self.side, self.edge).permute(1, 3, 0, 2, 4)
        return nearest(cut.reshape(self.side**2, -1), self.table)


def read(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any, range, Tiles]:
    model, tokenizer = from_folder(LlamaForCausalLM, folder, device, dtype), from_folder(AutoTokenizer, folder)
    table = read_tensors(folder, ["tiles."])["table"].to(device)
    codes = range(len(tokenizer), len(tokenizer) + len(table))
    return model, tokenizer, codes, Tiles(table, model.config.tiles["side"])


def kv_numbers(folder: Path) -> int:
    config = from_folder(LlamaConfig, folder)
    return kv_row(config, config.tiles["side"] ** 2)


def load(name: str, folder: Path, model_hash: str, device: torch.device, dtype: torch.dtype) -> Parts:
    model, tokenizer, codes, tiles = read(folder, device, dtype)
    instructions = read_instructions(folder, SAMPLING)
    return word_parts(Name(NAME, name, model_hash), model, tokenizer, FORMAT, codes, tiles, instructions)


def published(name: str, folder: Path, device: torch.device, dtype: torch.dtype) -> Published:
    model, tokenizer, codes, tiles = read(folder, device, dtype)
    pixels = tiles.side, tiles.table, lambda tokens: tiles.decode_one(tokens, tiles.table)
    return published_words(model.train(False), tokenizer, FORMAT, codes, *pixels)
