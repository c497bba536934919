"""Round 0, the baseline of a run: benign images of the base codebook, the calibrated detector, the judge's sight.

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
from safety.metrics.degenerate import DegenerateDetector, ImageMeasures, calibrate, held_out_degenerate, measure
from safety.policy.prompts import Prompt
from safety.runtime.model_runner import Drawing, ModelRunner, derived_seed

IMAGE_BYTES = 1 << 28  # of float32 images held together
LEAST_SAFE = 8  # benign images, for limits of validity to mean anything


@dataclass(frozen=True)
class Baseline:
    """retention: n benign images of the base codebook; fit: bool [n], the half for estimates.

    use: [K] float32 counts R. features: [B, M] float32 of the fitting half.
    positions: [P] int64, at which features are kept. validity: the detector calibrated on safe images. validity_of_any:
    on harmful ones too, for the unsafe side of a pair: blood makes an image harmful, not degenerate.
    canaries: [c, 3, H, W]; harmful: bool [c], their labels; sight: the judge's on them, None without any.
    spoiled: share of spoiled images flagged, by kind. degenerate: bool [s], safe benign images that are so by
    the limits which the other images set.
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
    sight: Sight | None

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
    benign, safe, measured, validity = take_validity(runner, retention, seed)
    generator = torch.Generator().manual_seed(derived_seed(seed, "spoiled"))
    spoiled = runner.cache.facts("spoiled", lambda: spoiled_found(runner, validity, benign.tokens[safe], generator))
    degenerate = held_out_degenerate(measured.part(safe), _cell(runner))
    harmful = _draw(runner, "canaries", canaries, seed)
    validity_of_any = validity
    if canaries:
        validity_of_any = calibrate(measured.joined(_measured(runner, "canaries", harmful)), _cell(runner))
    fixed = torch.cat([harmful.tokens, benign.tokens[: len(canaries)]])
    images, labels = runner.decode(fixed, runner.base), torch.arange(len(fixed)) < len(canaries)
    sight = runner.cache.facts("sight", lambda: vars(judge_canaries(runner, images, labels))) if canaries else None
    positions = sample_positions(facts.tokens, config.positions, seed)
    fit = torch.arange(len(retention)) % 2 == 0
    features = _features(runner, benign, fit, positions)
    use = torch.bincount(benign.tokens[safe].flatten(), minlength=facts.codes).float()
    return Baseline(
        benign,
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
        None if sight is None else Sight(**sight),
    )


def take_validity(
    runner: ModelRunner, prompts: Sequence[Prompt], seed: int
) -> tuple[Drawing, Tensor, ImageMeasures, DegenerateDetector]:
    """Draw benign prompts under the base codebook: the images, which are safe (bool [n]), their measures, the detector.

    Raises BadModel where the model's judge finds hardly any of them safe: no measure is possible with such a judge.
    """
    benign = _draw(runner, "benign", prompts, seed)
    safe = ~runner.cache.tensors("retention", lambda: {"unsafe": _unsafe(runner, benign)})["unsafe"]
    if safe.sum() < LEAST_SAFE:
        finding = f"its judge finds {safe.sum()} of {len(safe)} benign images safe"
        raise BadModel(f"{finding}; at least {LEAST_SAFE} are needed")
    measured = _measured(runner, "benign", benign)
    return benign, safe, measured, calibrate(measured.part(safe), _cell(runner))


def judge_canaries(runner: ModelRunner, canaries: Tensor, harmful: Tensor) -> Sight:
    """Judge the canaries [c, 3, H, W] anew."""
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
    """The detector's measures of images of the base codebook; cached."""

    def make() -> dict[str, Tensor]:
        facts = runner.model.facts
        count = max(1, IMAGE_BYTES // (4 * 3 * facts.image_size**2))
        parts = []
        for tokens, nll in zip(torch.split(drawing.tokens, count), torch.split(drawing.nll, count), strict=True):
            parts.append(vars(measure(runner.decode(tokens, runner.base), tokens, nll, _cell(runner))))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return ImageMeasures(**runner.cache.tensors(f"measured-{name}", make))


def _cell(runner: ModelRunner) -> int:
    """Pixels a token, along a side."""
    return runner.model.facts.image_size // runner.model.facts.grid[1]


@torch.no_grad()
def _features(runner: ModelRunner, drawing: Drawing, fit: Tensor, positions: Tensor) -> Tensor:
    """Features [B, M] of the fitting half at the positions."""
    rows = []
    for start in range(0, len(drawing.prompts), runner.batch):
        runner.report("features", start, len(drawing.prompts))
        part = slice(start, start + runner.batch)
        features = runner.model.features(drawing.prompts[part], drawing.tokens[part]).cpu()
        rows.append(features[fit[part]][:, positions].flatten(0, 1))
    return torch.cat(rows)
