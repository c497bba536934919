"""The held-out test of a run: both codebooks on unseen prompts, by the referee.

The referee takes no part in the loop: no pair, strength, threshold, gate or stop depends on it. It measures once, after
the last round. Degenerate images are found by the loop's own detector, calibrated on the base codebook.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codebook.tensors import codebook_hash
from codebook.value import Codebook
from safety.judges.matchers import Matcher, shows_prompt
from safety.judges.registry import Judge, credentials, finds_harm
from safety.metrics.rates import Rate, Rates
from safety.policy.run_sets import HeldOutSet
from safety.runtime.model_runner import derived_seed
from safety.runtime.run_context import RunContext


@dataclass(frozen=True)
class HeldOutResult:
    """Of the images of all prompts, bool [n] each. right: shows its prompt; no meaning for harmful prompts."""

    unsafe: Tensor
    degenerate: Tensor
    right: Tensor


def assess(context: RunContext, before: Codebook, after: Codebook, referee: Judge) -> dict[str, Any]:
    """Both codebooks on the same prompts and seeds: rates with Wilson 95 % intervals, as JSON.

    levels, categories: HR, VR and SVR. look_alikes, benign: the rate at which the image shows its
    prompt, where the referee matches.
    """
    heldout = context.prompts.heldout
    context.runner.round = 0  # the test is no part of a round
    sides = {
        "before": _score_heldout(context, heldout, before, referee),
        "after": _score_heldout(context, heldout, after, referee),
    }
    rows, matches = _rows(heldout), isinstance(referee, Matcher)
    levels: dict[str, list[Tensor]] = {}
    for name in heldout.harmful:
        levels.setdefault("pattern" if name in context.policy.patterns else "object", []).append(rows[name])
    return {
        "judge": credentials(referee),
        "codebooks": {"before": codebook_hash(before), "after": codebook_hash(after)},
        "levels": {level: _rates(sides, torch.cat(parts)) for level, parts in levels.items()},
        "categories": {name: _rates(sides, rows[name]) for name in heldout.harmful},
        **({name: _matches(sides, rows[name]) for name in ("look_alikes", "benign")} if matches else {}),
    }


def _score_heldout(context: RunContext, heldout: HeldOutSet, codebook: Codebook, referee: Judge) -> HeldOutResult:
    runner, prompts = context.runner, heldout.prompts
    seeds = [derived_seed(context.seed, "test", i) for i in range(len(prompts))]

    def observe() -> dict[str, Tensor]:
        drawn = runner.draw("test", [prompt.text for prompt in prompts], seeds, codebook)
        images = runner.decode(drawn.tokens, codebook)
        parts = torch.split(images, runner.batch)
        shown = [prompt.shows or prompt.text for prompt in prompts]
        return {
            "unsafe": torch.cat([finds_harm(referee, part) for part in parts]),
            "degenerate": context.baseline.validity.degenerate(images, drawn.tokens, drawn.nll),
            "right": _right(referee, images, shown),
        }

    return HeldOutResult(**runner.cache.tensors(f"test-{codebook_hash(codebook)[:16]}-{len(prompts)}", observe))


def _right(referee: Judge, images: Tensor, shown: Sequence[str]) -> Tensor:
    """Bool [n]: the images that show their prompt; all False where the referee does not match."""
    if isinstance(referee, Matcher):
        return shows_prompt(referee, images, shown)
    return torch.zeros(len(shown), dtype=torch.bool)


def _rows(heldout: HeldOutSet) -> dict[str, Tensor]:
    """The indices of each group among all prompts."""
    sizes = {name: len(group) for name, group in heldout.harmful.items()}
    sizes |= {"benign": len(heldout.benign), "look_alikes": len(heldout.look_alikes)}
    parts = torch.split(torch.arange(len(heldout.prompts)), list(sizes.values()))
    return dict(zip(sizes, parts, strict=True))


def _rates(sides: Mapping[str, HeldOutResult], rows: Tensor) -> dict[str, Any]:
    return {side: Rates.of(result.unsafe[rows], result.degenerate[rows]).to_dict() for side, result in sides.items()}


def _matches(sides: Mapping[str, HeldOutResult], rows: Tensor) -> dict[str, Any]:
    return {side: Rate(int(result.right[rows].sum()), len(rows)).to_dict() for side, result in sides.items()}
