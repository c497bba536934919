"""Parity of a served model with its published code: greedy tokens, logits, pixel table, pixels.

The published code runs first, and only its results stay, so that the two never share a device's memory. Knows tensors.
Knows nothing of families.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cli.verify.checks import Check, limited, measured, unmeasured
from engine.model import ImageModel, ImageRequest, Sampling
from engine.registry import load_published
from engine.unified.published import Greedy

PROMPTS = ("a red apple", "a dog on a blue background")
GUIDANCE = 3.0
MOST_TOKENS = 256  # of an image, compared: `generate` takes seconds to minutes for them
EXACT = "float32"  # in shorter numbers rounding decides between two likeliest tokens
# The largest difference of a logit, in standard deviations of the step's logits.
LOGITS = {True: 0.01, False: 1.0}
LEVEL = 2 / 255  # of an 8-bit image, in pixels of [-1, 1]


@dataclass(frozen=True)
class Reference:
    """Results of the published code. tokens [n, N]: of images whose pixels [n, 3, H, W] it has decoded, if it does."""

    source: str
    table: Tensor
    greedy: tuple[Greedy, ...]
    tokens: Tensor
    pixels: Tensor | None


def run_reference(name: str, device: str, dtype: str) -> Reference | None:
    """Run the published code of the model called `name`; None where its family has none. Raises BadModel."""
    published = load_published(name, device, dtype)
    if published is None:
        return None
    count = min(published.tokens, MOST_TOKENS)
    greedy = tuple(published.greedy(prompt, GUIDANCE, count) for prompt in PROMPTS)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(len(published.table), (2, published.tokens), generator=generator)
    decode = published.decode
    pixels = None if decode is None else torch.cat([decode(row).cpu() for row in tokens])
    return Reference(published.source, published.table, greedy, tokens, pixels)


def free_memory() -> None:
    """Give back what the published code has held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parity_checks(model: ImageModel, reference: Reference) -> Iterator[Check]:
    """Compare the served model with the results of the published code."""
    yield _tokens(model, reference)
    yield _logits(model, reference)
    table = model.base_codebook().pixel
    same = table.shape == reference.table.shape and int((table == reference.table).all(1).sum())
    yield limited(
        "pixel table",
        same == len(reference.table),
        f"{int(same)} of {len(reference.table)} rows equal",
        "all",
        rows=same,
    )
    yield _pixels(model, reference)


def _tokens(model: ImageModel, reference: Reference) -> Check:
    base = model.base_codebook()
    drawn = model.draw([ImageRequest(prompt, Sampling(1, GUIDANCE, 0.0), base) for prompt in PROMPTS]).cpu()
    target = torch.stack([greedy.tokens for greedy in reference.greedy])
    equal = drawn[:, : target.shape[1]] == target
    count, total = int(equal.sum()), equal.numel()
    before = min(int(row.int().cumprod(0).sum()) for row in equal)
    figures = {"equal": float(count), "tokens": float(total), "first_differs_at": float(before)}
    words = f"{count} of {total} greedy tokens equal, guidance {GUIDANCE:g}"
    if model.facts.dtype == EXACT:
        return limited("tokens", count == total, words, "all", **figures)
    ties = f"; {before} until rounding in {model.facts.dtype} decides: see the logits" if count < total else ""
    return measured("tokens", words + ties, **figures)


def _logits(model: ImageModel, reference: Reference) -> Check:
    """Teacher-forced: the served model reads the tokens that the published code has drawn."""
    tokens = torch.stack([greedy.tokens for greedy in reference.greedy])
    right = torch.stack([greedy.logits for greedy in reference.greedy])
    own = model.head(model.features(PROMPTS, tokens)).float().cpu()
    apart = (own - right).abs() / right.std(-1, keepdim=True)
    largest, mean = float(apart.max()), float(apart.mean())
    limit = LOGITS[model.facts.dtype == EXACT]
    words = f"at most {largest:.2g} standard deviations apart, {mean:.2g} on average"
    return limited("logits", largest <= limit, words, f"at most {limit:g}", largest=largest, mean=mean)


def _pixels(model: ImageModel, reference: Reference) -> Check:
    if reference.pixels is None:
        return unmeasured("pixels", "there is no published decoder to run on these weights")
    own = model.decode(reference.tokens, model.base_codebook().pixel).cpu()
    apart = (own - reference.pixels).abs() / LEVEL
    largest, mean = float(apart.max()), float(apart.mean())
    words = f"at most {largest:.2g} of 255 levels apart, {mean:.2g} on average"
    if model.facts.dtype == EXACT:
        return limited("pixels", largest <= 1, words, "at most 1 level", largest=largest, mean=mean)
    return limited("pixels", mean <= 1, words, "at most 1 level on average", largest=largest, mean=mean)
