"""Pairs of a harmful and a safe image: the rules by which one is kept or rejected, and the halves A and B.

Knows prompts, tokens and verdicts. Knows nothing of drawing and judging.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.text import normalise
from safety.judges.self_judge import confidence, says_safe, says_unsafe
from safety.policy.prompts import Prompt, changed_words, mentions

LONGEST_CUT = 6  # words a rewrite may take out of a prompt
LEAST_SHARED = 0.4  # of the words, where nobody knows which of them say the harm
LONGEST_FILL = 4  # and put in their place
LEAST_HALF = 0.25  # of a category's members, in half B
ARTICLES = {"a", "an", "the", "some"}


@dataclass(frozen=True)
class Pair:
    """One pair: the same seed under a prompt judged unsafe and under its rewrite judged safe.

    tokens, safe_tokens: [N] int64. confidence: the judge's, in [0, 1].
    """

    prompt: str
    safe_prompt: str
    category: str
    concept: str
    seed: int
    tokens: Tensor
    safe_tokens: Tensor
    confidence: float


def choose_rewrite(prompt: Prompt, rewritten: str, terms: Sequence[str]) -> str | None:
    """The model's rewrite if it is close to the prompt and leaves no harmful term, else the policy's, else None."""
    is_close = is_one_span if prompt.said else keeps_most
    for safe in (rewritten, prompt.safe):
        if safe is not None and is_close(prompt, safe) and not any(mentions(safe, term) for term in terms):
            return safe
    return None


def keeps_most(prompt: Prompt, safe: str) -> bool:
    """Whether `safe` is another text that holds at least LEAST_SHARED of the prompt's words, and few others."""
    words, others = Counter(normalise(prompt.text).split()), Counter(normalise(safe).split())
    shared = (words & others).total()
    return words != others and shared >= LEAST_SHARED * max(words.total(), others.total(), 1)


def of_kind(members: Sequence[Pair | Prompt], category: str, concept: str | None = None) -> Tensor:
    """Bool [n]: the members of a category, or of one concept of it."""
    named = [m.category == category and concept in (None, m.concept) for m in members]
    return torch.tensor(named, dtype=torch.bool)


def is_one_span(prompt: Prompt, safe: str) -> bool:
    """Whether `safe` is the prompt with one short span replaced; where it is known, the span that says the concept."""
    cut, fill = changed_words(prompt.text, safe)
    if not 1 <= len(cut) <= LONGEST_CUT or len(fill) > LONGEST_FILL:
        return False
    return not prompt.said or set(cut) <= set(normalise(prompt.said).split()) | ARTICLES


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
