"""The test of the experiment on iteration: every arm's codebooks on the same prompts and seeds, by the referee.

Measures and reports as JSON; decides nothing but the verdict.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codebook.tensors import codebook_hash
from codebook.value import Codebook
from safety.evaluate.evaluation import label, samplings
from safety.evaluate.iteration.arms import ABOUT, Arm, Step
from safety.evaluate.iteration.verdict import Difference, verdict
from safety.judges.registry import Judge, credentials
from safety.metrics.rates import Rate, Rates
from safety.policy.prompt_file import AskedPrompt
from safety.runtime.run_context import RunContext


@dataclass(frozen=True)
class Tested:
    """Of a step: the images drawn so far, the failing probes, and bool [n] of the test's images."""

    images: int
    failed: int
    harmful: Tensor
    degenerate: Tensor
    right: Tensor

    @property
    def safe_valid(self) -> Tensor:
        """Bool [n]."""
        return ~(self.harmful | self.degenerate)


def run_test(context: RunContext, codebook: Codebook, prompts: Sequence[AskedPrompt], referee: Judge) -> Tested:
    """The codebook on the test's prompts; kept for a resume."""
    runner = context.runner

    def observe() -> dict[str, Tensor]:
        how = samplings(runner.model, prompts, context.seed)
        labels = label(runner, codebook, prompts, how, [referee], context.baseline.validity)
        right = labels.right.get(referee.name, torch.zeros(len(prompts), dtype=torch.bool))
        return {"harmful": labels.harmful[referee.name], "degenerate": labels.degenerate, "right": right}

    texts = "\n".join([str(context.seed), referee.version, *(prompt.text for prompt in prompts)])
    name = f"tested-{codebook_hash(codebook)[:16]}-{hashlib.sha256(texts.encode()).hexdigest()[:16]}"
    return Tested(0, 0, **runner.cache.tensors(name, observe))


def tested(step: Step, result: Tested) -> Tested:
    """The result with the step's counts."""
    return Tested(step.images, step.failed, result.harmful, result.degenerate, result.right)


Results = Mapping[Arm, Sequence[Sequence[Tested]]]  # by arm, seed and step


def report(results: Results, base: Sequence[Tested], prompts: Sequence[AskedPrompt], referee: Judge) -> dict[str, Any]:
    """The report; base: the model's own codebook, a seed each."""
    harmful = torch.tensor([prompt.shows is None for prompt in prompts])
    last = {arm: torch.stack([steps[-1].safe_valid[harmful] for steps in seeds]) for arm, seeds in results.items()}
    differences = {
        f"{Arm.MINED} - {arm}": Difference.of(last[Arm.MINED], other)
        for arm, other in last.items()
        if Arm.MINED in last and arm is not Arm.MINED
    }
    over_single = differences.get(f"{Arm.MINED} - {Arm.SINGLE}")
    over_random = differences.get(f"{Arm.MINED} - {Arm.RANDOM}")
    return {
        "judge": credentials(referee),
        "prompts": {"harmful": int(harmful.sum()), "harmless": int((~harmful).sum())},
        "seeds": len(base),
        "base": _rates(base, harmful, prompts),
        "arms": {
            str(arm): {
                "about": ABOUT[arm],
                "steps": [_rates(step, harmful, prompts) for step in zip(*seeds, strict=True)],
            }
            for arm, seeds in results.items()
        },
        "differences": {name: difference.to_dict() for name, difference in differences.items()},
        "verdict": None if over_single is None else verdict(over_single, over_random),
    }


def _rates(seeds: Sequence[Tested], harmful: Tensor, prompts: Sequence[AskedPrompt]) -> dict[str, Any]:
    """One step over all seeds, as JSON. ways: harm by way of asking; right: by group of harmless prompts."""
    harm, broken = (torch.cat([getattr(one, name) for one in seeds]) for name in ("harmful", "degenerate"))
    right, mask = torch.cat([one.right for one in seeds]), harmful.repeat(len(seeds))
    groups: dict[str, list[int]] = {}
    for i, prompt in enumerate([*prompts] * len(seeds)):
        level, _, way = prompt.categories[0].partition(", ")
        groups.setdefault(way or "plain" if prompt.shows is None else level, []).append(i)
    return {
        "images": round(sum(one.images for one in seeds) / len(seeds)),
        "failed": sum(one.failed for one in seeds),
        "rates": Rates.of(harm[mask], broken[mask]).to_dict(),
        "ways": {name: Rate(int(harm[of].sum()), len(of)).to_dict() for name, of in groups.items() if mask[of[0]]},
        "right": {
            name: Rate(int(right[of].sum()), len(of)).to_dict() for name, of in groups.items() if not mask[of[0]]
        },
    }
