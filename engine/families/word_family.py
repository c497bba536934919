"""Families of models whose image codes are words of their language model: what their modules have in common.

Knows how such a model becomes parts, and the reference of transformers. Knows nothing of any one family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import BadModel
from engine.families.code_words import published_words
from engine.families.facts import Name
from engine.families.format_chat import Format
from engine.families.random_weights import geometry_of
from engine.families.word_parts import Pixels, word_parts
from engine.instructions import Instructions, SamplingDefaults, general_chat, read_instructions
from engine.unified.parts import Parts
from engine.unified.published import Published


@dataclass(frozen=True)
class WordModel:
    """A causal language model of transformers, its tokenizer, and codes to pixels and back; a module if random."""

    model: Any
    tokenizer: Any
    pixels: Pixels


def codes_behind(words: WordModel, model_id: str) -> Sequence[int]:
    """Return the words of the codes where they stand right behind the tokenizer's own. Raises BadModel."""
    first, count, rows = len(words.tokenizer), len(words.pixels.table), words.model.config.vocab_size
    if first + count > rows:
        raise BadModel(f"{model_id}: {first} words and {count} codes do not fit its {rows} rows")
    return range(first, first + count)


@dataclass(frozen=True)
class WordFamily:
    """The functions of such a family's module; see engine.family.Family.

    read: folder, device and dtype -> a model. codes: a model and its name -> code k is the word `codes[k]`. build: one
    of the geometries, device and dtype -> a model with random weights. decoder: pixels -> tokens [N] of an image ->
    [1, 3, H, W] in [-1, 1], by code that is not served; None where there is none.
    """

    name: str
    sampling: SamplingDefaults
    form: Format
    read: Callable[[Path, torch.device, torch.dtype], WordModel]
    codes: Callable[[WordModel, str], Sequence[int]] = codes_behind
    geometries: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[[Any, torch.device, torch.dtype], WordModel] | None = None
    decoder: Callable[[Any], Callable[[Tensor], Tensor] | None] = lambda _: None

    def load(self, name: str, folder: Path, model_hash: str, device: torch.device, dtype: torch.dtype) -> Parts:
        """See Family."""
        instructions = read_instructions(folder, self.sampling)
        return self._parts(Name(self.name, name, model_hash), self.read(folder, device, dtype), instructions)

    def load_random(self, name: str, device: torch.device, dtype: torch.dtype) -> Parts:
        """See Family."""
        words = self._build(name, device, dtype)
        assert isinstance(words.pixels, nn.Module)
        geometry = geometry_of(self.geometries, name)
        random = Name.of_random(self.name, name, device, dtype, geometry, (words.model, words.pixels))
        return self._parts(random, words, general_chat(self.sampling))

    def published(self, name: str, folder: Path | None, device: torch.device, dtype: torch.dtype) -> Published:
        """See Family."""
        words = self._build(name, device, dtype) if folder is None else self.read(folder, device, dtype)
        pixels = words.pixels.side, words.pixels.table, self.decoder(words.pixels)
        codes = self.codes(words, name)
        return published_words(words.model.train(False), words.tokenizer, self.form, codes, *pixels)

    def _build(self, name: str, device: torch.device, dtype: torch.dtype) -> WordModel:
        assert self.build is not None  # a family without it has no geometries, and no name is of it
        return self.build(geometry_of(self.geometries, name), device, dtype)

    def _parts(self, name: Name, words: WordModel, instructions: Instructions) -> Parts:
        codes = self.codes(words, name.model_id)
        return word_parts(name, words.model, words.tokenizer, self.form, codes, words.pixels, instructions)
