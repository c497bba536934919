"""Tiles: a Llama some of whose words are tiles of an image. Knows its own words and weights."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from engine.families.checkpoints import from_folder, read_tensors
from engine.families.code_rows import nearest
from engine.families.facts import kv_row
from engine.families.format_chat import Format
from engine.families.word_family import WordFamily, WordModel
from engine.instructions import SamplingDefaults

NAME, LICENCE, FOLDERS, GEOMETRIES = "tiles", "Apache-2.0", (), ()
FORMAT = Format(
    draw="<s>{text}<draw>",
    unconditional="<s><draw>",
    ask="<s>{text}<answer>",
    about="<s><draw>{image}<end>{text}<answer>",
    image_token="<image>",
    end="</s>",
    marks="<(s|/s|draw|image|end|answer|pad)>",
)


def fits(config: dict[str, Any]) -> bool:
    return config.get("model_type") == "llama" and "tiles" in config


class Tiles:
    def __init__(self, table: Tensor, side: int) -> None:
        self.table, self.side, self.edge = table, side, round((table.shape[1] / 3) ** 0.5)
        self.size = side * self.edge

    def decode_one(self, tokens: Tensor, table: Tensor) -> Tensor:
        tiles = table[tokens].view(self.side, self.side, 3, self.edge, self.edge)
        return tiles.permute(2, 0, 3, 1, 4).reshape(1, 3, self.size, self.size)

    def encode_one(self, image: Tensor) -> Tensor:
        cut = image.view(3, self.side, self.edge, self.side, self.edge).permute(1, 3, 0, 2, 4)
        return nearest(cut.reshape(self.side**2, -1), self.table)


def read(folder: Path, device: torch.device, dtype: torch.dtype) -> WordModel:
    model = from_folder(LlamaForCausalLM, folder, device, dtype)
    table = read_tensors(folder, ["tiles."])["table"].to(device)
    return WordModel(model, from_folder(AutoTokenizer, folder), Tiles(table, model.config.tiles["side"]))


def kv_numbers(folder: Path) -> int:
    config = from_folder(LlamaConfig, folder)
    return kv_row(config, config.tiles["side"] ** 2)


family = WordFamily(NAME, SamplingDefaults(guidance=2.0, top_p=0.95), FORMAT, read)
load, published = family.load, family.published
