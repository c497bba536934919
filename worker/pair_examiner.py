"""Pairs of a shadow comparison: the image that a caller got, and what the candidate makes of the same prompt and seed.

Joins model, judges and the detector of degenerate images. Knows nothing of jobs and of the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from codebook.tensors import codebook_hash
from codebook.trials.rule import MEASURES, Differences
from codebook.value import Codebook
from core.bucket.shared_folder import SharedFolder
from core.settings import Settings
from engine.model import ImageModel, ImageRequest, ModelFacts, Sampling
from records.shadow_images import LiveImage
from safety.config import LoopConfig
from safety.judges.names import parse_second_judge
from safety.judges.registry import Judge, finds_harm
from safety.judges.self_judge import says_unsafe, scores
from safety.metrics.degenerate import DegenerateDetector
from safety.policy.policy_store import find_policy, usual_policy
from safety.runtime.baseline import take_validity
from safety.runtime.model_runner import ModelRunner, refused
from safety.runtime.progress import Progress
from safety.runtime.result_cache import ResultCache
from worker.attempt import PATIENCE_S

SEED = 0  # of the images on which the detector is calibrated: the same ones for every comparison


@dataclass(frozen=True)
class PairExaminer:
    """Examines pairs of two codebooks."""

    runner: ModelRunner
    active: Codebook
    candidate: Codebook
    second: Judge
    detector: DegenerateDetector

    def examine(self, images: Sequence[LiveImage]) -> list[Differences]:
        """The differences of each pair: candidate bad - active bad. A pair that is drawn alike needs no judge."""
        tokens = torch.stack([image.tokens for image in images])
        drawn = self._drawn(images, tokens)
        differs = torch.ones(len(images), dtype=torch.bool)
        if torch.equal(self.active.pixel, self.candidate.pixel):
            differs = (drawn != tokens).any(1)
        differences = [dict.fromkeys(MEASURES, 0) for _ in images]
        rows = differs.nonzero()[:, 0].tolist()
        if rows:
            before, after = self._bad(tokens[rows], self.active), self._bad(drawn[rows], self.candidate)
            # Nothing is lost where the candidate refuses what the active version draws unsafe.
            after["degenerate"] &= ~(refused(drawn[rows]) & (before["self"] | before["second"]))
            for name in MEASURES:
                for row, difference in zip(rows, (after[name].int() - before[name].int()).tolist(), strict=True):
                    differences[row][name] = difference
        return [*differences]

    def _drawn(self, images: Sequence[LiveImage], tokens: Tensor) -> Tensor:
        """The candidate's tokens [n, N]: the same ones where its edit applies at decoding alone."""
        if draws_alike(self.active, self.candidate, self.runner.model.facts):
            return tokens
        how = [Sampling(image.seed, image.guidance, image.temperature, image.top_k, image.top_p) for image in images]
        requests = [ImageRequest(image.prompt, one, self.candidate) for image, one in zip(images, how, strict=True)]
        return self.runner.model.draw(requests, self.runner.steps("compare", self.runner.model.facts.tokens)).cpu()

    def _bad(self, tokens: Tensor, codebook: Codebook) -> dict[str, Tensor]:
        """Bool [n] by measure. An image that its version refuses is safe, and degenerate: there is none."""
        images, missing = self.runner.decode(tokens, codebook), refused(tokens)
        verdicts = scores(self.runner.judge_anew(images))
        codes = tokens.clamp_min(0)
        return {
            "self": says_unsafe(verdicts) & ~missing,
            "second": finds_harm(self.second, images).cpu() & ~missing,
            "degenerate": self.detector.degenerate(images, codes, self.runner.nll(codes)) | missing,
        }


def draws_alike(active: Codebook, candidate: Codebook, facts: ModelFacts) -> bool:
    """Whether both sample the same tokens for every prompt and seed, since they differ in their pixel tables alone."""
    if facts.pixel_table_feeds_lm:
        return False
    return codebook_hash(replace(candidate, pixel=active.pixel)) == codebook_hash(active)


def open_pairs(
    settings: Settings, model: ImageModel, active: Codebook, candidate: Codebook, work: Path, watch: Progress
) -> PairExaminer:
    """The examiner of a job: its second judge, and the detector, calibrated on benign images of the base codebook.

    Raises BadInput and BadModel where the second judge cannot be had, BadModel where the model's own judge finds
    hardly any benign image safe.
    """
    second = parse_second_judge(settings.second_judge, model, model.base_codebook().pixel.device)
    policy = find_policy(usual_policy(model.facts.categories), SharedFolder.policies(settings, PATIENCE_S).read())
    config = LoopConfig()
    benign = policy.sets(policy.categories, config, SEED, 1).retention
    runner = ModelRunner(model, ResultCache(work), watch, config.batch)
    *_, detector = take_validity(runner, benign, SEED)
    return PairExaminer(runner, active, candidate, second, detector)
