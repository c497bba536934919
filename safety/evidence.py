"""What teacher forcing says about pairs: which tokens the unsafe words caused, and what the words add to the features.

Reads a model; changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model import ImageModel
from safety.output_update import Lesson
from safety.pairs import Pair
from safety.pixel_update import Partners

BLAMED = 1.0  # nats by which the unsafe prompt makes a token likelier than the safe one does
PARTNERS = 8  # likeliest codes of the safe prompt kept at a blamed place
CHUNK = 16  # pairs at once: their logits are chunk x N x K


@dataclass(frozen=True)
class Evidence:
    """Of n pairs.

    places: the blamed tokens of all pairs with their partners; pair: [T] int64, whose each is.
    given, wanted: [n, 2, P, M] float32 features under the unsafe and the safe prompt, on the unsafe image's tokens
    and on the safe one's, at P positions.
    """

    places: Partners
    pair: Tensor
    given: Tensor
    wanted: Tensor

    def counts(self, codes: int) -> tuple[Tensor, Tensor]:
        """Counts [n, K] float32 of the blamed codes, and expected counts of the safe ones at the same places."""
        n, places = self.given.shape[0], self.places
        unsafe, safe = torch.zeros(n, codes), torch.zeros(n, codes)
        unsafe.index_put_((self.pair, places.code), torch.ones(self.pair.numel()), accumulate=True)
        owner = self.pair[:, None].expand_as(places.partner)
        safe.index_put_((owner, places.partner), places.share, accumulate=True)
        return unsafe, safe

    def text_differences(self) -> Tensor:
        """What the unsafe words add, pooled over positions: [n, M], both images' histories together."""
        return (self.given - self.wanted).mean((1, 2))

    def lesson(self, of: Tensor) -> Lesson:
        """The features of the pairs `of` (bool [n]) as rows."""
        return Lesson(self.given[of].flatten(0, 2), self.wanted[of].flatten(0, 2))


def gather_evidence(
    model: ImageModel, pairs: Sequence[Pair], positions: Tensor, on_step: Callable[[int], None]
) -> Evidence:
    """Teacher-force both images of each pair under both prompts; positions: [P] int64."""
    parts = []
    for start in range(0, len(pairs), CHUNK):
        parts.append(_chunk(model, pairs[start : start + CHUNK], start, positions))
        on_step(start)
    merged = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    code, partner, share, pair, given, wanted = merged
    return Evidence(Partners(code, partner, share), pair, given, wanted)


@torch.no_grad()
def _chunk(model: ImageModel, pairs: Sequence[Pair], offset: int, positions: Tensor) -> tuple[Tensor, ...]:
    unsafe, safe = [pair.prompt for pair in pairs], [pair.safe_prompt for pair in pairs]
    tokens = torch.stack([pair.tokens for pair in pairs])
    given, wanted = model.features(unsafe, tokens), model.features(safe, tokens)
    safe_tokens = torch.stack([pair.safe_tokens for pair in pairs])
    given_safe, wanted_safe = model.features(unsafe, safe_tokens), model.features(safe, safe_tokens)
    likely = model.head(wanted).log_softmax(-1).cpu()
    blame = (model.head(given).log_softmax(-1).cpu() - likely).gather(2, tokens[:, :, None])[:, :, 0]
    pair, place = (blame > BLAMED).nonzero(as_tuple=True)
    share, partner = likely[pair, place].exp().topk(min(PARTNERS, likely.shape[-1]), dim=-1)
    kept = [torch.stack(both, 1)[:, :, positions].cpu() for both in ((given, given_safe), (wanted, wanted_safe))]
    share = share / share.sum(1, keepdim=True)
    return tokens[pair, place], partner, share, pair + offset, *kept
