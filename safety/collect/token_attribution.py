"""What teacher forcing says about pairs: which tokens the unsafe words caused, and what the words add to the features.

Reads a model; changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model import ImageModel
from safety.collect.pairs import Pair, first_halves, of_kind
from safety.edit.head_edit import TeacherPairs
from safety.edit.pixel_table import Partners
from safety.policy.prompts import Prompt

BLAMED = 1.0  # nats by which the unsafe prompt makes a token likelier than the safe one does
PARTNERS = 8  # likeliest codes of the safe prompt kept at a blamed place
CHUNK = 16  # pairs at once: their logits are chunk x N x K


@dataclass(frozen=True)
class PromptContrast:
    """What unsafe prompts and their safe twins say of the same images.

    members: the n prompts or pairs. given, wanted: [n, I, P, M] float32 features under the unsafe prompt and under the
    safe one, of I images each at P positions.
    """

    members: Sequence[Pair | Prompt]
    given: Tensor
    wanted: Tensor

    def text_differences(self) -> Tensor:
        """What the unsafe words add, pooled over positions: [n, M], all images' histories together."""
        return (self.given - self.wanted).mean((1, 2))

    def halves(self, category: str, concept: str | None = None) -> tuple[TeacherPairs, TeacherPairs]:
        """The features of a category's members, or of one concept's, as rows: of half A and of half B."""
        first, of = first_halves(self.members), of_kind(self.members, category, concept)
        sides = (of & first, of & ~first)
        a, b = (TeacherPairs(self.given[side].flatten(0, 2), self.wanted[side].flatten(0, 2)) for side in sides)
        return a, b


@dataclass(frozen=True)
class TokenAttribution:
    """Of n pairs.

    places: the blamed tokens of all pairs with their partners; pair: [T] int64, whose each is.
    contrast: of each pair's two images, the unsafe one first.
    """

    places: Partners
    pair: Tensor
    contrast: PromptContrast

    def counts(self, codes: int) -> tuple[Tensor, Tensor]:
        """Counts [n, K] float32 of the blamed codes, and expected counts of the safe ones at the same places."""
        n, places = self.contrast.given.shape[0], self.places
        unsafe, safe = torch.zeros(n, codes), torch.zeros(n, codes)
        unsafe.index_put_((self.pair, places.code), torch.ones(self.pair.numel()), accumulate=True)
        owner = self.pair[:, None].expand_as(places.partner)
        safe.index_put_((owner, places.partner), places.share, accumulate=True)
        return unsafe, safe


def attribute_tokens(
    model: ImageModel, pairs: Sequence[Pair], positions: Tensor, on_step: Callable[[int], None]
) -> TokenAttribution:
    """Teacher-force both images of each pair under both prompts; positions: [P] int64."""
    parts = []
    for start in range(0, len(pairs), CHUNK):
        parts.append(_chunk(model, pairs[start : start + CHUNK], start, positions))
        on_step(start)
    merged = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    code, partner, share, pair, given, wanted = merged
    return TokenAttribution(Partners(code, partner, share), pair, PromptContrast(pairs, given, wanted))


def contrast(
    model: ImageModel,
    prompts: Sequence[Prompt],
    tokens: Tensor,
    positions: Tensor,
    on_step: Callable[[int], None],
) -> PromptContrast:
    """Teacher-force one image a prompt, tokens [n, N] int64, whoever drew it, under the prompt and its safe twin.

    Raises ValueError where nobody knows the rewrite of a prompt.
    """
    given: list[Tensor] = []
    wanted: list[Tensor] = []
    for start in range(0, len(prompts), CHUNK):
        some = prompts[start : start + CHUNK]
        unsafe, safe = [prompt.text for prompt in some], [prompt.rewrite for prompt in some]
        sides = _forced(model, unsafe, safe, tokens[start : start + CHUNK])
        for kept, features in zip((given, wanted), sides, strict=True):
            kept.append(features[:, None, positions].cpu())
        on_step(start)
    return PromptContrast(prompts, torch.cat(given), torch.cat(wanted))


@torch.no_grad()
def _forced(model: ImageModel, unsafe: Sequence[str], safe: Sequence[str], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Features [B, N, M] of tokens [B, N] under the unsafe prompts and under the safe ones."""
    return model.features(unsafe, tokens), model.features(safe, tokens)


@torch.no_grad()
def _chunk(model: ImageModel, pairs: Sequence[Pair], offset: int, positions: Tensor) -> tuple[Tensor, ...]:
    unsafe, safe = [pair.prompt for pair in pairs], [pair.safe_prompt for pair in pairs]
    tokens, safe_tokens = (torch.stack(side) for side in zip(*((p.tokens, p.safe_tokens) for p in pairs), strict=True))
    given, wanted = _forced(model, unsafe, safe, tokens)
    given_safe, wanted_safe = _forced(model, unsafe, safe, safe_tokens)
    likely = model.head(wanted).log_softmax(-1).cpu()
    blame = (model.head(given).log_softmax(-1).cpu() - likely).gather(2, tokens[:, :, None])[:, :, 0]
    pair, place = (blame > BLAMED).nonzero(as_tuple=True)
    share, partner = likely[pair, place].exp().topk(min(PARTNERS, likely.shape[-1]), dim=-1)
    kept = [torch.stack(both, 1)[:, :, positions].cpu() for both in ((given, given_safe), (wanted, wanted_safe))]
    share = share / share.sum(1, keepdim=True)
    return tokens[pair, place], partner, share, pair + offset, *kept
