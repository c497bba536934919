"""Round 0: what the model's own codebook does with benign prompts, what a valid image is, how well the judge sees.

Everything later is measured against it; nothing in it changes during a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import BadModel
from safety.config import LoopConfig
from safety.gates.detector import spoiled_found
from safety.gates.inputs import Sight
from safety.judges.self_judge import says_unsafe, scores
from safety.metrics.degenerate import DegenerateDetector, ImageMeasures, calibrate, held_out_void, measure
from safety.policy.prompts import Prompt
from safety.runtime.model_runner import Drawing, ModelRunner, derived_seed

LEAST_SAFE = 8  # benign images, for limits of validity to mean anything


@dataclass(frozen=True)
class Baseline:
    """retention: benign images of the model's own codebook, n of them; fit: bool [n], the half for estimating.

    use: [K] float32 counts R. features: [B, M] float32 of the fitting half.
    positions: [P] int64, where features are looked at. validity: by safe images. validity_of_any: by these and harmful
    ones, which is what the unsafe side of a pair is held to: blood makes an image harmful, not void.
    canaries: [c, 3, H, W]; harmful: bool [c], their labels.
    spoiled: share of spoiled images found void, by kind. void: bool [s], safe benign images that are void by the limits
    which the others of them set.
    """

    retention: Drawing
    fit: Tensor
    use: Tensor
    features: Tensor
    positions: Tensor
    validity: DegenerateDetector
    validity_of_any: DegenerateDetector
    spoiled: dict[str, float]
    degenerate: Tensor
    canaries: Tensor
    harmful: Tensor
    sight: Sight

    @property
    def mean(self) -> Tensor:
        """mu0 of the features, [M]."""
        return self.features.mean(0)

    def mean_code(self, table: Tensor) -> Tensor:
        """mu0 of the codes, [D], of a table [K, D]: the mean over benign tokens."""
        return self.use @ table / self.use.sum()


def take_baseline(
    runner: ModelRunner, retention: Sequence[Prompt], canaries: Sequence[Prompt], config: LoopConfig, seed: int
) -> Baseline:
    """Draw, judge and measure the benign prompts and the canaries under the model's own codebook; raises BadModel."""
    facts = runner.model.facts
    kept, safe, measured, validity = take_validity(runner, retention, seed)
    generator = torch.Generator().manual_seed(derived_seed(seed, "spoiled"))
    spoiled = runner.cache.facts("spoiled", lambda: spoiled_found(runner, validity, kept.tokens[safe], generator))
    degenerate = held_out_void(measured.part(safe), _cell(runner))
    harmful = _draw(runner, "canaries", canaries, seed)
    validity_of_any = calibrate(measured.joined(_measured(runner, "canaries", harmful)), _cell(runner))
    fixed = torch.cat([harmful.tokens, kept.tokens[: len(canaries)]])
    images, labels = runner.decode(fixed, runner.base), torch.arange(len(fixed)) < len(canaries)
    sight = runner.cache.facts("sight", lambda: vars(look(runner, images, labels)))
    positions = sample_positions(facts.tokens, config.positions, seed)
    fit = torch.arange(len(retention)) % 2 == 0
    features = _features(runner, kept, fit, positions)
    use = torch.bincount(kept.tokens[safe].flatten(), minlength=facts.codes).float()
    return Baseline(
        kept,
        fit,
        use,
        features,
        positions,
        validity,
        validity_of_any,
        spoiled,
        degenerate,
        images,
        labels,
        Sight(**sight),
    )


def take_validity(
    runner: ModelRunner, prompts: Sequence[Prompt], seed: int
) -> tuple[Drawing, Tensor, ImageMeasures, DegenerateDetector]:
    """Draw benign prompts under the model's own codebook: what was drawn, which is safe (bool [n]), measures, limits.

    Raises BadModel where its judge finds hardly any of it safe: nothing can be measured with such a judge.
    """
    kept = _draw(runner, "benign", prompts, seed)
    safe = ~runner.cache.tensors("retention", lambda: {"unsafe": _unsafe(runner, kept)})["unsafe"]
    if safe.sum() < LEAST_SAFE:
        seen = f"its judge finds {safe.sum()} of {len(safe)} benign images safe"
        raise BadModel(f"{seen}; at least {LEAST_SAFE} are needed")
    measured = _measured(runner, "benign", kept)
    return kept, safe, measured, calibrate(measured.part(safe), _cell(runner))


def look(runner: ModelRunner, canaries: Tensor, harmful: Tensor) -> Sight:
    """Judge the canaries [c, 3, H, W] now."""
    return Sight.of(says_unsafe(scores(runner.judge_anew(canaries))), harmful)


def sample_positions(tokens: int, count: int, seed: int) -> Tensor:
    """`count` positions of an image in order, [P] int64, the first one always among them."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "positions"))
    rest = 1 + torch.randperm(tokens - 1, generator=generator)[: min(count, tokens) - 1]
    return torch.cat([torch.zeros(1, dtype=torch.int64), rest.sort().values])


def _draw(runner: ModelRunner, phase: str, prompts: Sequence[Prompt], seed: int) -> Drawing:
    seeds = [derived_seed(seed, phase, i) for i in range(len(prompts))]
    return runner.draw(phase, [prompt.text for prompt in prompts], seeds, runner.base)


def _unsafe(runner: ModelRunner, drawing: Drawing) -> Tensor:
    return says_unsafe(scores(runner.judge(drawing.tokens, runner.base)))


def _measured(runner: ModelRunner, name: str, drawing: Drawing) -> ImageMeasures:
    """What validity looks at in images of the model's own codebook; kept."""

    def make() -> dict[str, Tensor]:
        images = runner.decode(drawing.tokens, runner.base)
        return vars(measure(images, drawing.tokens, drawing.nll, _cell(runner)))

    return ImageMeasures(**runner.cache.tensors(f"measured-{name}", make))


def _cell(runner: ModelRunner) -> int:
    """Pixels a token, along a side."""
    return runner.model.facts.image_size // runner.model.facts.grid[1]


@torch.no_grad()
def _features(runner: ModelRunner, drawing: Drawing, fit: Tensor, positions: Tensor) -> Tensor:
    """Features [B, M] of the fitting half at the positions."""
    rows = []
    for start in range(0, len(drawing.prompts), runner.batch):
        runner.tell("features", start, len(drawing.prompts))
        part = slice(start, start + runner.batch)
        features = runner.model.features(drawing.prompts[part], drawing.tokens[part]).cpu()
        rows.append(features[fit[part]][:, positions].flatten(0, 1))
    return torch.cat(rows)
