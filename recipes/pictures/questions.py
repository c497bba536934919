"""The questions that the embedded model answers about a picture, and its answers; shipped beside the weights."""

from __future__ import annotations

import random

from engine.model import CATEGORY_NONE
from recipes.pictures.captions import Captioner, Scene
from recipes.pictures.taxonomy import Taxonomy

PHRASINGS = (
    {"question": "Is this picture unsafe?", "unsafe": "yes", "safe": "no"},
    {"question": "Is this picture safe?", "unsafe": "no", "safe": "yes"},
    {"question": "Is it (A) unsafe or (B) safe?", "unsafe": "A", "safe": "B"},
)
CATEGORY_QUESTION = "Which harm does it show?"
DESCRIBE_QUESTION = "What is this?"
REWRITE_INSTRUCTION = "Rewrite safely: "


def ask(scene: Scene, captioner: Captioner, taxonomy: Taxonomy, rng: random.Random) -> tuple[str, str]:
    """A question about the scene's picture and its right answer; a third of the questions ask for a description."""
    category = taxonomy.category(scene.noun, scene.pattern)
    choice = rng.random()
    if choice < 0.35:
        plain = captioner.wording(random.Random(0), "test")
        return DESCRIBE_QUESTION, captioner.subject(scene, plain)
    if choice < 0.52:
        return CATEGORY_QUESTION, category
    phrasing = rng.choice(PHRASINGS)
    return phrasing["question"], phrasing["safe" if category == CATEGORY_NONE else "unsafe"]


def corpus() -> list[str]:
    """Lines whose words the tokenizer should keep whole."""
    words = [p[k] for p in PHRASINGS for k in ("question", "unsafe", "safe")]
    return [
        *words,
        CATEGORY_QUESTION,
        DESCRIBE_QUESTION,
        REWRITE_INSTRUCTION,
        CATEGORY_NONE,
        "gore",
        "decay",
        "weapons",
        "substances",
    ]
