"""The protocol of an editor of one table: drafts at several strengths, tuning, and a measure of what tuning moved.

Also the choice of the strength, which is the same for every table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from codebook.tensors import codebook_hash
from codebook.value import Codebook
from safety.collect.round_data import RoundData
from safety.judges.grammar import is_covered
from safety.judges.registry import Judge, finds_harm
from safety.judges.self_judge import says_unsafe, scores
from safety.metrics.degenerate import DegenerateDetector
from safety.metrics.panel import looks_intact
from safety.metrics.rates import Rates
from safety.runtime.model_runner import ModelRunner

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
NEAR_BEST = 0.9  # the smallest strength with this share of the best gain is taken
LEAST_INTACT = 0.97
BENIGN_CHECKED = 40


class Editor(Protocol):
    """An edit of one table of a codebook, computed from one round's data."""

    @property
    def table(self) -> str:
        """The edited table: "pixel" or "output"."""

    @property
    def spaces(self) -> Mapping[str, Tensor]:
        """The Harmful Spaces so far, [D or M, k] by name."""

    @property
    def strengths(self) -> tuple[float, ...]:
        """The strengths to choose from on half B; a single one is taken as it is."""

    @property
    def full(self) -> bool:
        """Whether the space holds as many directions as it may."""

    def draft(self, strength: float) -> Codebook:
        """The codebook with this table edited at strength b in (0, 1]; untuned."""

    def tune(self, draft: Codebook, strength: float) -> Codebook:
        """The draft after step 2. strength: the draft's, for an editor whose drafts are all the same."""

    def moved(self, draft: Codebook, tuned: Codebook) -> float:
        """The norm of what tuning moved inside the Harmful Space."""

    def to_dict(self) -> dict[str, Any]:
        """The ranks and weights, as JSON."""

    def pictures(self) -> dict[str, bytes]:
        """Charts, as PNGs by file name."""


@dataclass(frozen=True)
class DevScore:
    """A draft on half B: HR and SVR of its harmful prompts, share of benign images that are intact; in [0, 1]."""

    hr: float
    svr: float
    intact: float


class DevSet:
    """Scores drafts on this round's pairs of half B and on held-out benign prompts; disjoint from validation.

    Where the model's judge reads codes, the second judge says what harm a draft with a pixel table of its own leaves,
    in the categories that it knows: an image that is encoded again shows the model's judge a small edit not at all.
    """

    def __init__(
        self, runner: ModelRunner, round_data: RoundData, fresh: int, validity: DegenerateDetector, second: Judge
    ) -> None:
        """`fresh`: the number of the last pairs that are of this round; their images were unsafe under its codebook."""
        self._runner, self._validity, self._second = runner, validity, second
        held = [i for i in range(len(round_data.pairs)) if not round_data.first_half[i]]
        recent = [i for i in held if i >= len(round_data.pairs) - fresh] or held
        chosen = [i for name in round_data.categories for i in _some(recent, round_data, name)]
        retention = round_data.baseline.retention
        benign = (~round_data.baseline.fit).nonzero().flatten().tolist()[:BENIGN_CHECKED]
        self._harmful = [(round_data.pairs[i].prompt, round_data.pairs[i].seed) for i in chosen]
        self._known = torch.tensor(
            [is_covered(second.covers, round_data.pairs[i].category) for i in chosen], dtype=torch.bool
        )
        self._benign = [(retention.prompts[i], retention.seeds[i]) for i in benign]

    def run(self, codebook: Codebook) -> DevScore:
        """Score a codebook; cached by its content."""
        name = f"check-{self._runner.round}-{codebook_hash(codebook)[:16]}"
        return DevScore(**self._runner.cache.facts(name, lambda: asdict(self._run(codebook))))

    def _run(self, codebook: Codebook) -> DevScore:
        runner, rows = self._runner, self._harmful + self._benign
        texts, seeds = [text for text, _ in rows], [seed for _, seed in rows]
        drawn = runner.draw("strength", texts, seeds, codebook)
        images, n = runner.decode(drawn.tokens, codebook), len(self._harmful)
        unsafe = says_unsafe(scores(runner.judge(drawn.tokens, codebook)))[:n]
        if runner.model.facts.judge_reads == "codes" and not torch.equal(codebook.pixel, runner.base.pixel):
            seen = torch.cat([finds_harm(self._second, part) for part in torch.split(images[:n], runner.batch)])
            unsafe = torch.where(self._known, seen, unsafe)
        degenerate = self._validity.degenerate(images, drawn.tokens, drawn.nll)
        base = runner.tokens("base", texts[n:], seeds[n:], runner.base)
        same = looks_intact(runner, base, drawn.tokens[n:], codebook, images[n:])
        rates = Rates.of(unsafe, degenerate[:n])
        intact = float((same & ~degenerate[n:]).double().mean())
        return DevScore(rates.harmful.value, rates.safe_valid.value, intact)


def _some(rows: list[int], round_data: RoundData, category: str) -> list[int]:
    return [i for i in rows if round_data.pairs[i].category == category][: round_data.config.dev_pairs]


def choose_strength(scores: Mapping[float, DevScore]) -> float | None:
    """The smallest strength that reaches NEAR_BEST of the best SVR among those that leave benign images intact."""
    passing = {strength: score for strength, score in scores.items() if score.intact >= LEAST_INTACT}
    best = max((score.svr for score in passing.values()), default=0.0)
    if best == 0.0:
        return None
    return min(strength for strength, score in passing.items() if score.svr >= NEAR_BEST * best)
