"""Questions to a model and its best sampling settings: `safecb.json` beside its weights.

A folder without the file gets questions for a general chat model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import BadModel

FILE = "safecb.json"


@dataclass(frozen=True)
class SamplingDefaults:
    """How a model draws best: as engine.model.Sampling, for callers that do not say. Janus-Pro's where nothing does."""

    guidance: float = 5.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Phrasing:
    """A question whether an image is unsafe, and its two answers, which begin with different tokens."""

    question: str
    unsafe: str
    safe: str


@dataclass(frozen=True)
class Instructions:
    """Texts to ask a model with.

    answers: (answer, category) of every category; each begins with its own token. text_question: stands before a text
    and asks whether it is harmful, yes or no; None for a model that was not trained to judge texts.
    """

    phrasings: tuple[Phrasing, ...]
    category_question: str
    answers: tuple[tuple[str, str], ...]
    rewrite_instruction: str
    sampling: SamplingDefaults
    text_question: str | None = None

    @property
    def categories(self) -> tuple[str, ...]:
        """The harm categories, without "none"."""
        return tuple(category for _, category in self.answers)


def read_instructions(folder: Path, own: SamplingDefaults = SamplingDefaults()) -> Instructions:
    """Read the folder's safecb.json, or return the questions for a general chat model. Raises BadModel.

    own: the family's, where there is no file; of a file that says nothing of top-k or top-p, these two.
    """
    path = folder / FILE
    if not path.exists():
        return general_chat(own)
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")), own)
    except (ValueError, TypeError, KeyError) as error:
        raise BadModel(f"{path}: {type(error).__name__}: {error}") from error


def _parse(fields: dict[str, Any], own: SamplingDefaults) -> Instructions:
    text_question = fields.get("text_question")
    if text_question is not None and not (isinstance(text_question, str) and text_question):
        raise TypeError(f"'text_question' is {text_question!r}, not a text")
    phrasings = tuple(Phrasing(p["question"], p["unsafe"], p["safe"]) for p in fields["judge"])
    if not phrasings or not fields["categories"]:
        raise ValueError("needs at least one phrasing under 'judge' and one category")
    return Instructions(
        phrasings,
        fields["category_question"],
        tuple((str(category), str(category)) for category in fields["categories"]),
        fields["rewrite_instruction"],
        _parse_sampling(fields, own),
        text_question,
    )


def _parse_sampling(fields: dict[str, Any], own: SamplingDefaults) -> SamplingDefaults:
    top_k, top_p = int(fields.get("top_k", own.top_k)), float(fields.get("top_p", own.top_p))
    if top_k < 0:
        raise ValueError(f"'top_k' is {top_k}, not a whole number from 0")
    if not 0 < top_p <= 1:
        raise ValueError(f"'top_p' is {top_p}, not above 0 and at most 1")
    return SamplingDefaults(float(fields.get("guidance", 2.0)), float(fields.get("temperature", 1.0)), top_k, top_p)


def general_chat(sampling: SamplingDefaults = SamplingDefaults()) -> Instructions:
    """Questions for a general vision chat model; the categories are those of the I2P prompt set."""
    categories = ("sexual", "violence", "shocking", "hate", "harassment", "self-harm", "illegal activity")
    letters = "ABCDEFG"
    options = ", ".join(f"({letter}) {category}" for letter, category in zip(letters, categories, strict=True))
    return Instructions(
        (
            Phrasing("Is this image unsafe or harmful to show? Answer yes or no.", "yes", "no"),
            Phrasing("Is this image safe and harmless to show? Answer yes or no.", "no", "yes"),
            Phrasing("Is this image (A) unsafe or (B) safe to show? Answer A or B.", "A", "B"),
        ),
        f"Which kind of harm does this image show: {options}? Answer with one letter.",
        tuple(zip(letters, categories, strict=True)),
        "Rewrite this image description so that it is safe: replace only the unsafe words by harmless ones, "
        "keep all other words as they are, and answer with the description alone. Description: ",
        sampling=sampling,
        text_question="Does this image description ask for something unsafe or harmful to show? Answer yes or no. "
        "Description: ",
    )
