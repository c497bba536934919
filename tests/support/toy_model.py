"""A toy ImageModel with planted harm: coloured patches, a linear language model over known words, a pixel judge.

Every part is real, only small: harm is planted as codes that lean along one direction of the pixel table, and as
directions of the head's features. 8 x 8 tokens of 4 x 4 pixels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, lru_cache

import torch
from torch import Tensor

from codebook.value import Codebook, HeadEdit
from engine.model import CATEGORY_NONE, REFUSED, ImageRequest, ModelFacts, TextVerdict, Verdict
from safety.policy.emoji.taxonomy import read_taxonomy
from tests.support.redraws import redrawn

GRID, CELL, CODES, DIM, WIDTH = 8, 4, 96, 8, 96
FAMILIES, COLOURS = 12, 5
HARMS = ("gore", "decay", "weapons", "substances")
# Classes of codes: five backgrounds, twelve colour families, four harms; the last codes belong to no class.
CLASS = torch.tensor(
    [i // 2 for i in range(10)] + [5 + i // 5 for i in range(60)] + [17 + i // 6 for i in range(24)] + [21, 21]
)
CLASSES = 22
SAID = 1024  # prompts whose words are kept as tensors: a run asks for each of them many times
LIKE = 0.5  # a cell farther than this from every patch shows nothing the judge knows


def _hash(text: str, size: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % size


class ToyModel:
    """See the module. `judge` may be replaced by a function of images in the tests of bad judges."""

    name, version, threshold = "toy", "1", 0.5  # as a second judge
    covers: frozenset[str] | None = None
    batch, device = 32, torch.device("cpu")

    def __init__(self, judge: Callable[[Tensor], Tensor] | None = None, seed: int = 0) -> None:
        self._taxonomy = read_taxonomy()
        generator = torch.Generator().manual_seed(seed)
        self._table = _plant(generator)
        self._paint = _painter()
        self._turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
        self._rows = _output_rows(generator) @ self._turn.T
        self._names = torch.randn(len(self._taxonomy.articles), 12, generator=generator)
        self._harm_of = {c.term: name for name, group in self._taxonomy.concepts.items() for c in group}
        self._partner = {c.term: c.safe for group in self._taxonomy.concepts.values() for c in group if c.safe}
        self._score = judge or self._harm_score
        self._words = lru_cache(SAID)(self._read)
        self._patches = self._cells(self.decode(torch.arange(CODES)[:, None].expand(-1, GRID**2), self._table))[:, 0]
        self.facts = ModelFacts(
            "toy", "toy", "f" * 64, (GRID, GRID), GRID * CELL, CODES, DIM, WIDTH, WIDTH, False, False, 64, HARMS
        )

    def base_codebook(self) -> Codebook:
        return Codebook("v0", "toy", "f" * 64, self._table.clone())

    def check_prompt(self, prompt: str) -> None:
        pass

    def draw(self, requests: Sequence[ImageRequest], on_step: Callable[[int], None] | None = None) -> Tensor:
        return redrawn(self, requests, lambda some: self._once(some, on_step))

    def _once(self, requests: Sequence[ImageRequest], on_step: Callable[[int], None] | None) -> Tensor:
        edits = [request.codebook.output for request in requests]
        experts = self._routed(requests)
        fired = [
            edit.mode if edit is not None and chosen else None for edit, chosen in zip(edits, experts, strict=True)
        ]
        if "rewrite" in fired:
            requests = [
                replace(request, prompt=self._rewritten(request.prompt)) if mode == "rewrite" else request
                for request, mode in zip(requests, fired, strict=True)
            ]
            experts = self._routed(requests)
        tokens = self._drawn(requests, experts, on_step)
        tokens[[mode == "refuse" for mode in fired]] = REFUSED
        for b, (request, edit) in enumerate(zip(requests, edits, strict=True)):
            if edit is not None and edit.probe is not None and not experts[b]:
                begun = self.features([request.prompt], tokens[b : b + 1, : edit.probe.after])
                if any(late := edit.probe.experts(begun.mean(1), edit.groups)):
                    tokens[b] = self._drawn([request], late, on_step)
        return tokens

    def _routed(self, requests: Sequence[ImageRequest]) -> list[tuple[int, ...]]:
        edits = [request.codebook.output for request in requests]
        states, seen = self.prompt_states([request.prompt for request in requests])
        return [
            () if edit is None else edit.experts(states[b : b + 1], seen[b : b + 1])[0] for b, edit in enumerate(edits)
        ]

    def _drawn(
        self,
        requests: Sequence[ImageRequest],
        experts: Sequence[tuple[int, ...]],
        on_step: Callable[[int], None] | None,
    ) -> Tensor:
        tokens = torch.zeros(len(requests), GRID**2, dtype=torch.int64)
        said = self._said([request.prompt for request in requests])
        noise = torch.stack([_gumbel(request.sampling.seed) for request in requests])
        scale = torch.tensor([request.sampling.guidance for request in requests])[:, None]
        bias = torch.zeros(len(requests), CODES)
        alike: dict[tuple[int, tuple[int, ...]], tuple[HeadEdit, list[int]]] = {}
        for b, (request, chosen) in enumerate(zip(requests, experts, strict=True)):
            if (edit := request.codebook.output) is not None and chosen:
                alike.setdefault((id(edit), chosen), (edit, []))[1].append(b)
                scale[b] = 1 + edit.guidance * (request.sampling.guidance - 1)
                if edit.bias is not None:
                    bias[b] = edit.bias[list(chosen)].sum(0)
        for i in range(GRID**2):
            history = self._history(tokens, torch.tensor([i]))[:, 0]
            given, free = (said[:, i] + history) @ self._turn.T, history @ self._turn.T
            for (_, chosen), (edit, rows) in alike.items():
                for expert in chosen:
                    given[rows] = edit.apply(given[rows], expert)
            unguided = self.head(free)
            logits = unguided + scale * (self.head(given) + bias - unguided)
            tokens[:, i] = (logits + noise[:, i]).argmax(1)
            if on_step is not None:
                on_step(i)
        return tokens

    def decode(self, tokens: Tensor, pixel: Tensor) -> Tensor:
        codes = pixel[tokens] if pixel.dim() == 2 else torch.stack([p[t] for p, t in zip(pixel, tokens, strict=True)])
        patches = torch.tanh(codes @ self._paint).reshape(-1, GRID, GRID, 3, CELL, CELL)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, GRID * CELL, GRID * CELL)

    def judge(self, images: Tensor) -> list[Verdict]:
        verdicts = []
        for scores in self._score(images):
            unsafe = torch.stack([scores.max() * f for f in (1.0, 0.97, 0.95)])
            name = HARMS[int(scores.argmax())] if scores.max() > 0.5 else CATEGORY_NONE
            verdicts.append(Verdict(tuple(unsafe.tolist()), name))
        return verdicts

    def rewrite(self, prompts: Sequence[str], attempt: int = 0) -> list[str]:
        return [self._rewritten(prompt) for prompt in prompts]

    def judge_texts(self, texts: Sequence[str]) -> list[TextVerdict]:
        raise NotImplementedError

    def features(self, prompts: Sequence[str], tokens: Tensor) -> Tensor:
        history = self._history(tokens, torch.arange(tokens.shape[1]))
        features: Tensor = (self._said(prompts)[:, : tokens.shape[1]] + history) @ self._turn.T
        return features

    def prompt_states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        first = self.features(prompts, torch.zeros(len(prompts), 1, dtype=torch.int64))
        return first, torch.ones(len(prompts), 1, dtype=torch.bool)

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = features @ self._rows.T
        return logits

    def harmful(self, images: Tensor) -> Tensor:
        """As a second judge: by the mean colour of cells alone."""
        means = torch.unflatten(self._cells(images), 2, (3, -1)).mean(3)
        known = torch.unflatten(self._patches, 1, (3, -1)).mean(2)
        nearest = torch.cdist(means, known.expand(images.shape[0], -1, -1)).argmin(2)
        return torch.sigmoid(2.0 * (self._counts(nearest).amax(1) - 2.5))

    def match(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """As a matcher: the prompt is not in the pixels, so every image shows a cat."""
        return torch.tensor([float(prompt == "cat") for prompt in prompts])

    def _harm_score(self, images: Tensor) -> Tensor:
        cells = self._cells(images)
        gaps = torch.cdist(cells, self._patches.expand(cells.shape[0], -1, -1)).min(2)
        known = torch.where(gaps.values < LIKE, gaps.indices, CODES - 1)  # the last code is of no class
        return torch.sigmoid(2.0 * (self._counts(known) - 2.5))

    def _counts(self, tokens: Tensor) -> Tensor:
        """Cells of each harm, [B, 4]."""
        return torch.stack([(CLASS[tokens] == 17 + i).sum(1) for i in range(4)], 1).float()

    def _cells(self, images: Tensor) -> Tensor:
        parts = images.reshape(-1, 3, GRID, CELL, GRID, CELL).permute(0, 2, 4, 1, 3, 5)
        return parts.reshape(images.shape[0], GRID**2, -1)

    def _said(self, prompts: Sequence[str]) -> Tensor:
        """What the text adds at each position, before turning: [B, N, WIDTH].

        Dims 0-20 emit a class here, 21-36 say family and harms everywhere, 37-48 name the noun, 49-93 are history.
        """
        return torch.stack([self._words(prompt) for prompt in prompts])

    def _read(self, prompt: str) -> Tensor:
        row = torch.zeros(GRID**2, WIDTH)
        if prompt:
            self._say(row, prompt)
        return row

    def _say(self, row: Tensor, prompt: str) -> None:
        nouns = list(self._taxonomy.articles)
        noun = max((n for n in nouns if _has(prompt, n)), key=len, default="cat")
        # A harmful noun has the shape of its safe partner: an edit of what fills the shape is all it takes.
        family, inside = _hash(noun, FAMILIES), _shape(self._partner.get(noun, noun))
        colour = next((i for i, c in enumerate(self._taxonomy.colours) if _has(prompt, f"{c} background")), 0)
        row[~inside, colour] = 1.0
        row[inside, 5 + family] = 1.0
        row[:, 21 + family] = 0.5
        row[:, 37:49] = 0.4 * self._names[nouns.index(noun)]
        for term, harm in self._harm_of.items():
            if _has(prompt, term):
                row[inside, 17 + HARMS.index(harm)] = 1.15
                row[:, 33 + HARMS.index(harm)] = 0.5

    def _history(self, tokens: Tensor, at: Tensor) -> Tensor:
        """What the tokens before and above the positions `at` add, [B, len(at), WIDTH]: their classes."""
        added = torch.zeros(tokens.shape[0], len(at), WIDTH)
        for first, back, is_there in ((49, 1, at % GRID > 0), (72, GRID, at >= GRID)):
            classes = CLASS[tokens[:, (at - back).clamp(min=0)]][..., None]
            added.scatter_(2, first + classes, (0.6 * is_there)[None, :, None].expand(classes.shape))
        return added

    def _rewritten(self, prompt: str) -> str:
        for group in self._taxonomy.concepts.values():
            for concept in group:
                if concept.pattern:
                    prompt = prompt.replace(f" {concept.term}", "")
                else:
                    words = self._taxonomy
                    prompt = re.sub(rf"\b{words.phrase(concept.term)}\b", words.phrase(concept.safe), prompt)
        return prompt


def _has(prompt: str, words: str) -> bool:
    return words in prompt and _whole(words).search(prompt) is not None  # a run calls it millions of times


@cache
def _whole(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(words)}\b")


@cache
def _shape(noun: str) -> Tensor:
    """Where a noun is, bool [N]: one of four shapes in three sizes."""
    kind, size = _hash(f"shape {noun}", 4), 2.0 + 0.5 * _hash(f"size {noun}", 3)
    y, x = torch.meshgrid(torch.arange(GRID) - 3.5, torch.arange(GRID) - 3.5, indexing="ij")
    reach = (
        x.abs() + y.abs() / 2,
        x.square().add(y.square()).sqrt(),
        torch.maximum(x.abs(), y.abs()),
        x.abs() + y.abs(),
    )
    return (reach[kind] <= size + 0.3 * kind).flatten()


def _plant(generator: torch.Generator) -> Tensor:
    """The pixel table [96, 8]: colours in dims 0-2, texture in 3-5; dim 6 is gore, dim 7 decay."""
    colours = torch.rand(CLASSES, 3, generator=generator) * 1.6 - 0.8
    colours[:5] = 1.0 + 0.2 * torch.rand(5, 3, generator=generator)
    colours[17:19] = 0.0
    colours[19], colours[20] = torch.tensor([-0.1, 0.0, 0.15]), torch.tensor([0.9, 0.5, -1.2])
    table = torch.zeros(CODES, DIM)
    table[:, :3] = colours[CLASS] + 0.05 * torch.randn(CODES, 3, generator=generator)
    table[:, 3:6] = 0.25 * torch.randn(CODES, 3, generator=generator)
    table[70:76, 6], table[76:82, 7] = 2.0, 2.0
    table[:, 6:] += 0.01 * torch.randn(CODES, 2, generator=generator)
    return table


def _painter() -> Tensor:
    """From codes to patches, [8, 3 * 16]: colours flat, textures striped, dim 6 red, dim 7 olive."""
    paint = torch.zeros(DIM, 3, CELL, CELL)
    for channel in range(3):
        paint[channel, channel] = 1.0
    paint[3, :, ::2], paint[4, :, :, ::2] = 1.0, 1.0
    paint[5, :, 1:3, 1:3] = 1.0
    paint[6] = torch.tensor([0.6, -0.8, -0.7])[:, None, None]
    paint[7] = torch.tensor([-0.3, -0.2, -0.9])[:, None, None]
    return paint.flatten(1)


def _output_rows(generator: torch.Generator) -> Tensor:
    """The output table [96, 96], before turning: emitted classes 9 nats up, the class before 1.5."""
    rows = 0.05 * torch.randn(CODES, WIDTH, generator=generator)
    for code, kind in enumerate(CLASS.tolist()):
        if kind < 21:
            rows[code, kind] += 9.0
        rows[code, 49 + kind] += 4.0
        rows[code, 72 + kind] += 4.0
    return rows


def _gumbel(seed: int) -> Tensor:
    noise = torch.rand(GRID**2, CODES, generator=torch.Generator().manual_seed(seed))
    return -(-noise.clamp(1e-6, 1 - 1e-6).log()).log()
