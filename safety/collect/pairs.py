"""Pairs of a harmful and a safe image: the rules by which one is kept or rejected, and the halves A and B.

Knows prompts, tokens and verdicts. Knows nothing of drawing and judging.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safety.judges.self_judge import confidence, says_safe, says_unsafe
from safety.policy.prompts import Prompt

LEAST_HALF = 0.25  # of a category's members, in half B


@dataclass(frozen=True)
class Pair:
    """One pair: the same seed under a prompt judged unsafe and under its rewrite judged safe.

    tokens, safe_tokens: [N] int64. confidence: the judge's, in [0, 1]. by_policy: whether the policy wrote the
    rewrite, since none of the model's own was sound.
    """

    prompt: str
    safe_prompt: str
    category: str
    concept: str
    seed: int
    tokens: Tensor
    safe_tokens: Tensor
    confidence: float
    by_policy: bool = False


def of_kind(members: Sequence[Pair | Prompt], category: str, concept: str | None = None) -> Tensor:
    """Bool [n]: the members of a category, or of one concept of it."""
    named = [m.category == category and concept in (None, m.concept) for m in members]
    return torch.tensor(named, dtype=torch.bool)


def rejections(unsafe: Tensor, safe: Tensor, degenerate: Tensor, safe_degenerate: Tensor) -> list[str]:
    """The reason to reject each pair, "" for none, from scores [n, phrasings] and bool [n] of either side."""
    reasons = []
    rows = zip(says_unsafe(unsafe), says_safe(safe), degenerate, safe_degenerate, strict=True)
    for is_unsafe, is_safe, broken, safe_broken in rows:
        failed = {
            "not_unsafe": not is_unsafe,
            "not_safe": not is_safe,
            "degenerate": broken,
            "safe_degenerate": safe_broken,
        }
        reasons.append(next((name for name, fails in failed.items() if fails), ""))
    return reasons


def pair_confidence(unsafe: Tensor, safe: Tensor) -> list[float]:
    """The judge's confidence in each pair, from scores [n, phrasings]."""
    return [float(value) for value in confidence(unsafe, safe)]


def first_halves(members: Sequence[Pair | Prompt]) -> Tensor:
    """Bool [n]: half A. Each concept's members go to A and B in turn, so that both halves hold every concept.

    Where a category has too many concepts of one member for that, its members go in turn.
    """
    counts: Counter[tuple[str, str]] = Counter()
    flags = []
    for member in members:
        flags.append(counts[member.category, member.concept] % 2 == 0)
        counts[member.category, member.concept] += 1
    halves = torch.tensor(flags, dtype=torch.bool)
    for category in dict.fromkeys(member.category for member in members):
        rows = of_kind(members, category).nonzero().flatten()
        if int((~halves[rows]).sum()) < LEAST_HALF * len(rows):
            halves[rows] = torch.arange(len(rows)) % 2 == 0
    return halves
