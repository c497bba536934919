"""The safe rewrite of each prompt: the model's own where it rewrites and that is sound, else the policy's.

Knows texts, and what the model says of them. Knows nothing of images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from core.text import normalise
from engine.model import ImageModel, TextVerdict
from safety.policy.adult_only import RULE
from safety.policy.prompts import Prompt, changed_words, is_readable, mentions

ATTEMPTS = 3  # of a model that can judge its own answers; without that a sampled answer is not worth having
LONGEST_CUT = 6  # words a rewrite may take out of a prompt
LONGEST_FILL = 4  # and put in their place
LEAST_SHARED = 0.4  # of the words, where nobody knows which of them say the harm
MOST_UNLIKELY = 1.5  # times the perplexity of the prompt
HARMFUL_ABOVE = 0.5  # probability by the model's own verdict
ARTICLES = {"a", "an", "the", "some"}


@dataclass(frozen=True)
class Rewrite:
    """A safe rewrite. by_policy: whether the policy wrote it, and not the model."""

    text: str
    by_policy: bool = False


def find_rewrites(model: ImageModel, prompts: Sequence[Prompt], terms: Sequence[str]) -> list[Rewrite | None]:
    """The rewrite of each prompt: the model's first sound one, else the policy's if that is sound, else None."""
    own = _own_rewrites(model, prompts, terms) if model.facts.rewrites else {}
    rewrites: list[Rewrite | None] = []
    for row, prompt in enumerate(prompts):
        known = prompt.safe is not None and is_sound(prompt, prompt.safe, terms) and is_readable(model, prompt.safe)
        policy = Rewrite(prompt.rewrite, by_policy=True) if known else None
        rewrites.append(Rewrite(own[row]) if row in own else policy)
    return rewrites


def _own_rewrites(model: ImageModel, prompts: Sequence[Prompt], terms: Sequence[str]) -> dict[int, str]:
    """The model's first sound rewrite, by row."""
    own: dict[int, str] = {}
    judges = model.facts.judges_texts
    before = model.judge_texts([prompt.text for prompt in prompts]) if judges else []
    for attempt in range(ATTEMPTS if judges else 1):
        rows = [row for row in range(len(prompts)) if row not in own]
        answers = model.rewrite([prompts[row].text for row in rows], attempt) if rows else []
        likely = [
            (row, answer)
            for row, answer in zip(rows, answers, strict=True)
            if is_sound(prompts[row], answer, terms) and is_readable(model, answer)
        ]
        own |= accepted(model, before, likely) if judges else dict(likely)
    return own


def accepted(model: ImageModel, before: Sequence[TextVerdict], answers: Sequence[tuple[int, str]]) -> dict[int, str]:
    """The (row, answer) that the model itself calls harmless, and not much less likely than the prompt.

    before: its verdicts on the prompts, by row.
    """
    after = model.judge_texts([answer for _, answer in answers])
    return {
        row: answer
        for (row, answer), verdict in zip(answers, after, strict=True)
        if verdict.harmful <= HARMFUL_ABOVE and verdict.nll - before[row].nll <= log(MOST_UNLIKELY)
    }


def is_sound(prompt: Prompt, safe: str, terms: Sequence[str]) -> bool:
    """Whether `safe` is close to the prompt, holds no harmful term, and is of adults alone where it must be."""
    is_close = is_one_span if prompt.said else keeps_most
    if not is_close(prompt, safe) or any(mentions(safe, term) for term in terms):
        return False
    return not RULE.refuses((prompt.category,), (prompt.text, safe))


def keeps_most(prompt: Prompt, safe: str) -> bool:
    """Whether `safe` is another text that holds at least LEAST_SHARED of the prompt's words, and few others."""
    words, others = Counter(normalise(prompt.text).split()), Counter(normalise(safe).split())
    shared = (words & others).total()
    return words != others and shared >= LEAST_SHARED * max(words.total(), others.total(), 1)


def is_one_span(prompt: Prompt, safe: str) -> bool:
    """Whether `safe` is the prompt with one short span replaced; where it is known, the span that says the concept."""
    cut, fill = changed_words(prompt.text, safe)
    if not 1 <= len(cut) <= LONGEST_CUT or len(fill) > LONGEST_FILL:
        return False
    return not prompt.said or set(cut) <= set(normalise(prompt.said).split()) | ARTICLES
