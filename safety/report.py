"""The report of a round: figures with their intervals, provenance, and image grids of before and after.

Writes JSON values; decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from codebook.tensors import codebook_hash
from codebook.value import Codebook
from safety.evaluate.grids import before_after_png
from safety.judges.registry import SelfJudge, credentials
from safety.metrics.charts import rates_png
from safety.metrics.panel import PanelResult
from safety.policy.groups import BENIGN, Group, GroupKind
from safety.runtime.model_runner import ModelRunner
from safety.runtime.run_context import RunContext
from safety.validation import ScoredCandidate

SHOWN = 36  # images before and after


def figures(before: PanelResult, after: PanelResult) -> dict[str, Any]:
    """Rates before and after on the validation prompts, over all plain harmful ones and by group; intact benign ones.

    attacks, languages: the same harms in other wordings.
    """
    sides = {"before": before, "after": after}

    def rates(group: Group | None = None) -> dict[str, Any]:
        return {side: result.rates(group).to_dict() for side, result in sides.items()}

    def by_name(kind: GroupKind) -> dict[str, Any]:
        return {group.name: rates(group) for group in before.panel.of_kind(kind)}

    benign = [group for group in dict.fromkeys(before.panel.groups) if group == BENIGN]
    benign += before.panel.of_kind(GroupKind.LOOK_ALIKE)
    return {
        "harmful": rates(),
        "categories": by_name(GroupKind.CATEGORY),
        "attacks": by_name(GroupKind.ATTACK),
        "languages": by_name(GroupKind.LANGUAGE),
        "intact": {str(group): {side: result.intact(group) for side, result in sides.items()} for group in benign},
    }


def point(number: int, accepted: bool, after: PanelResult, report: Mapping[str, Any]) -> dict[str, Any]:
    """A round in the curve over all rounds.

    harmful: the harmful rate of the codebook after the round, on plain validation prompts. failing: of the one before
    it, on the fresh prompts of a mined round, evenly over all strata; None for a round that mined nothing.
    """
    mined = report.get("mined")
    failing = None if mined is None else mined["even"]
    return {"round": number, "accepted": accepted, "harmful": after.rates().harmful.to_dict(), "failing": failing}


def provenance(context: RunContext, start: Codebook) -> dict[str, Any]:
    """The provenance of every figure: seed, judges and thresholds, hashes of model and codebook, sizes."""
    return {
        "seed": context.seed,
        "policy": {"name": context.policy.name, "version": context.policy.version},
        "preflight": context.preflight.to_dict(),
        "judges": [credentials(judge) for judge in (SelfJudge(context.runner.model), context.second)],
        "covered": list(context.facts.covered),
        "self_judged": list(context.facts.self_judged),
        "model_hash": context.runner.model.facts.model_hash,
        "codebook_before": codebook_hash(start),
        "plan": asdict(context.config),
        "prompts": context.prompts.hygiene.figures["sizes"],
        "spoiled": context.baseline.spoiled,
        "reading": "formulas, ranks and losses are this project's reading of the method; intervals are Wilson 95 %",
    }


def pictures(runner: ModelRunner, start: Codebook, best: ScoredCandidate, rates: Mapping[str, Any]) -> dict[str, bytes]:
    """A chart of the figures, and validation prompts before and after: harmful ones, and what should stay as it is."""
    panel = best.result.panel
    alike = torch.tensor([group.kind is GroupKind.LOOK_ALIKE for group in panel.groups])
    shown = {"before_after.png": panel.harmful, "look_alikes.png": alike}
    grids = {name: _before_after(runner, start, best, of) for name, of in shown.items() if of.any()}
    return {"rates.png": rates_png(rates), **grids}


def _before_after(runner: ModelRunner, start: Codebook, best: ScoredCandidate, of: Tensor) -> bytes:
    """Some of the prompts `of` (bool [n]), spread over their groups, as drawn for validation."""
    panel = best.result.panel
    indices = of.nonzero().flatten()
    indices = indices[:: max(1, len(indices) // SHOWN)][:SHOWN]
    texts = [prompt.text for prompt in panel.prompts]
    before, after = (
        runner.decode(runner.draw("pictures", texts, panel.seeds, codebook).tokens[indices], codebook)
        for codebook in (start, best.codebook)
    )
    return before_after_png(before, after)
