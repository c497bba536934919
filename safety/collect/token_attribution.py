"""Token attribution by teacher forcing: the tokens that the unsafe words caused, and their part of the features.

Reads a model; changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model import ImageModel
from safety.collect.pairs import Pair, first_halves, of_kind
from safety.config import LOGITS_BYTES
from safety.edit.head_edit import TeacherPairs
from safety.edit.pixel_table import Partners
from safety.policy.prompts import Prompt

BLAMED = 1.0  # nats by which the unsafe prompt makes a token likelier than the safe one does
PARTNERS = 8  # likeliest codes of the safe prompt, kept for each blamed token
CHUNK = 16  # pairs a batch, at most: their logits are [pairs, N, K] float32, within LOGITS_BYTES


@dataclass(frozen=True)
class PromptContrast:
    """Features of the same images under unsafe prompts and under their safe rewrites.

    members: the n prompts or pairs. unsafe, safe: [n, I, P, M] float32, of I images each at P positions.
    """

    members: Sequence[Pair | Prompt]
    unsafe: Tensor
    safe: Tensor

    def text_differences(self) -> Tensor:
        """Unsafe minus safe, pooled over positions and images: [n, M]."""
        return (self.unsafe - self.safe).mean((1, 2))

    def halves(self, category: str, concept: str | None = None) -> tuple[TeacherPairs, TeacherPairs]:
        """The features of a category's members, or of one concept's, as rows: of half A and of half B."""
        first, of = first_halves(self.members), of_kind(self.members, category, concept)
        sides = (of & first, of & ~first)
        a, b = (TeacherPairs(self.unsafe[side].flatten(0, 2), self.safe[side].flatten(0, 2)) for side in sides)
        return a, b


@dataclass(frozen=True)
class TokenAttribution:
    """Of n pairs.

    blamed: the blamed tokens of all pairs with their partners; pair: [T] int64, the pair of each.
    contrast: of each pair's two images, the unsafe one first.
    """

    blamed: Partners
    pair: Tensor
    contrast: PromptContrast

    def counts(self, codes: int) -> tuple[Tensor, Tensor]:
        """Counts [n, K] float32 of the blamed codes, and expected counts of the safe codes in their place."""
        n, blamed = self.contrast.unsafe.shape[0], self.blamed
        unsafe, safe = torch.zeros(n, codes), torch.zeros(n, codes)
        unsafe.index_put_((self.pair, blamed.code), torch.ones(self.pair.numel()), accumulate=True)
        owner = self.pair[:, None].expand_as(blamed.partner)
        safe.index_put_((owner, blamed.partner), blamed.share, accumulate=True)
        return unsafe, safe


def attribute_tokens(
    model: ImageModel, pairs: Sequence[Pair], positions: Tensor, on_step: Callable[[int], None]
) -> TokenAttribution:
    """Teacher-force both images of each pair under both prompts; positions: [P] int64."""
    parts, facts = [], model.facts
    count = max(1, min(CHUNK, LOGITS_BYTES // (4 * facts.tokens * facts.codes)))
    for start in range(0, len(pairs), count):
        parts.append(_chunk(model, pairs[start : start + count], start, positions))
        on_step(start)
    merged = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    code, partner, share, pair, unsafe, safe = merged
    return TokenAttribution(Partners(code, partner, share), pair, PromptContrast(pairs, unsafe, safe))


def contrast(
    model: ImageModel,
    prompts: Sequence[Prompt],
    tokens: Tensor,
    positions: Tensor,
    on_step: Callable[[int], None],
) -> PromptContrast:
    """Teacher-force one image a prompt, tokens [n, N] int64 of any origin, under the prompt and its rewrite; n >= 0.

    Raises ValueError for a prompt whose rewrite is unknown.
    """
    none = torch.zeros(0, 1, len(positions), model.facts.feature_dim)
    sides: tuple[list[Tensor], list[Tensor]] = ([none], [none])
    for start in range(0, len(prompts), CHUNK):
        some = prompts[start : start + CHUNK]
        unsafe, safe = [prompt.text for prompt in some], [prompt.rewrite for prompt in some]
        forced = _forced(model, unsafe, safe, tokens[start : start + CHUNK])
        for side, features in zip(sides, forced, strict=True):
            side.append(features[:, None, positions].cpu())
        on_step(start)
    return PromptContrast(prompts, torch.cat(sides[0]), torch.cat(sides[1]))


@torch.no_grad()
def _forced(model: ImageModel, unsafe: Sequence[str], safe: Sequence[str], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Features [B, N, M] of tokens [B, N] under the unsafe prompts and under the safe ones."""
    return model.features(unsafe, tokens), model.features(safe, tokens)


@torch.no_grad()
def _chunk(model: ImageModel, pairs: Sequence[Pair], offset: int, positions: Tensor) -> tuple[Tensor, ...]:
    unsafe, safe = [pair.prompt for pair in pairs], [pair.safe_prompt for pair in pairs]
    tokens, safe_tokens = (torch.stack(side) for side in zip(*((p.tokens, p.safe_tokens) for p in pairs), strict=True))
    first, second = _forced(model, unsafe, safe, tokens), _forced(model, unsafe, safe, safe_tokens)
    likely = model.head(first[1]).log_softmax(-1).cpu()
    blame = (model.head(first[0]).log_softmax(-1).cpu() - likely).gather(2, tokens[:, :, None])[:, :, 0]
    pair, position = (blame > BLAMED).nonzero(as_tuple=True)
    share, partner = likely[pair, position].exp().topk(min(PARTNERS, likely.shape[-1]), dim=-1)
    sides = [torch.stack(both, 1)[:, :, positions].cpu() for both in zip(first, second, strict=True)]
    share = share / share.sum(1, keepdim=True)
    return tokens[pair, position], partner, share, pair + offset, *sides
