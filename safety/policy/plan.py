"""The plan of a run: its phases in order, the images that each draws, and the price of all its work.

A function of prompt sets and sizes, made before anything is spent. Knows no clock and runs no model.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.model import ModelFacts
from safety.config import LOGITS_BYTES, LoopConfig, images_within
from safety.policy.phases import (
    ALL,
    TAUGHT,
    PlannedPhase,
    Rates,
    baseline_phase,
    edit_phase,
    mining_phase,
    pairs_phase,
    preflight_phase,
    router_phase,
    start_phase,
    test_phase,
    validation_phase,
    work_of,
)
from safety.policy.policy import Policy
from safety.policy.prompts import Prompt
from safety.policy.run_sets import RunSets

PREFLIGHT = 40  # images of either kind


@dataclass(frozen=True)
class Plan:
    """The phases of all rounds of a run.

    A run may end after fewer rounds. A round costs less where no edit is left to try, and more where a candidate is
    turned down. vectors, states: features and hidden states that a round holds, by number. batch: images a batch.
    """

    phases: tuple[PlannedPhase, ...]
    vectors: int
    states: int
    batch: int

    @property
    def images(self) -> int:
        """Images that all phases draw."""
        return sum(phase.images for phase in self.phases)

    def seconds(self, rates: Rates) -> float | None:
        """The seconds that all phases take at these rates; None without any."""
        return sum(phase.seconds(rates) or 0.0 for phase in self.phases) if rates else None

    def memory(self, facts: ModelFacts) -> int:
        """Bytes that a round holds beside the weights, about: features, prompt states and logits."""
        logits = min(4 * self.batch * facts.tokens * facts.codes, LOGITS_BYTES)
        return 4 * (self.vectors * facts.feature_dim + self.states * facts.hidden_dim) + logits

    def without_test(self) -> Plan:
        """The plan of a run whose end nobody measures."""
        return replace(self, phases=tuple(phase for phase in self.phases if phase.name != "test"))

    def to_dict(self, rates: Rates) -> dict[str, Any]:
        """The plan as JSON; seconds are null without rates."""
        phases = [
            {"phase": phase.name, "round": phase.round, "images": phase.images, "seconds": _rounded(phase, rates)}
            for phase in self.phases
        ]
        total = self.seconds(rates)
        return {"phases": phases, "images_planned": self.images, "seconds": None if total is None else round(total, 1)}


def images_per_s(rates: Rates) -> float | None:
    """Images a second, drawn, decoded and judged, as the preflight measures them; None without rates."""
    seconds = preflight_phase(1).seconds(rates)
    return 1 / seconds if seconds else None


def rates_of(speed: float) -> Rates:
    """The rates of a model of which only images a second are known, measured as by the preflight."""
    return {ALL: 1 / (speed * (preflight_phase(1).seconds({ALL: 1.0}) or 1.0))}


def plan_job(
    policy: Policy,
    categories: Sequence[str],
    rates: Rates,
    *,
    rounds: int = 1,
    seed: int = 0,
    images: int | None = None,
    minutes: int | None = None,
    operator: int = 0,
    edits: Container[str] = ("pixel", "output"),
) -> Plan:
    """The plan of a job that is not begun. A limit in minutes counts where rates are known. Writes all its prompts.

    edits: of the model's facts.
    """
    limit = images_within(images, minutes, images_per_s(rates))
    config = LoopConfig() if limit is None else LoopConfig().for_images(limit, len(categories))
    patterns = policy.patterns if "pixel" in edits else ()
    return plan_of(policy.sets(categories, config, seed, rounds), config, patterns, operator)


def plan_of(sets: RunSets, config: LoopConfig, patterns: Container[str], operator: int = 0) -> Plan:
    """The plan of a run of these prompt sets, one round for each set of pairs; those after the first are mined ones.

    patterns: the categories for which the pixel table is edited; operator: prompts of the operator's own, and flagged
    ones.
    """
    router = [prompt for prompts in sets.router.values() for prompt in prompts]
    others = [*sets.router_benign, *sets.retention]
    rewritten = sum(prompt.safe is not None for prompt in router)
    read, panel = len(router) + len(others) + rewritten, sum(len(prompts) for _, prompts in sets.validation)
    pairs, made = pairs_phase(1, sets, config, operator)
    phases = [
        preflight_phase(2 * PREFLIGHT),
        baseline_phase(sets),
        start_phase(sets),
        pairs,
        PlannedPhase("evidence", 1, (work_of("evidence", made),)),
        router_phase(config, len(router), read),
        edit_phase(1, config, sets, rewritten, any(name in patterns for name in sets.pairs[0])),
        validation_phase(1, panel),
    ]
    for number in range(2, len(sets.pairs) + 1):
        phases += _mined_round(number, sets, config, rewritten, panel)
    phases.append(test_phase(len(sets.heldout.prompts)))
    vectors = config.positions * (4 * made + 2 * rewritten + (len(sets.retention) + 1) // 2)
    return Plan(tuple(phases), vectors, read * _longest([*router, *others]), config.batch)


def _mined_round(number: int, sets: RunSets, config: LoopConfig, rewritten: int, panel: int) -> list[PlannedPhase]:
    """A round that follows an accepted one; rewritten: tuning prompts; panel: validation prompts."""
    mining, failing = mining_phase(number, config)
    failures = failing * (number - 1)
    return [
        mining,
        PlannedPhase("evidence", number, (work_of("evidence", failures), work_of("contexts", failures))),
        edit_phase(number, config, sets, round(TAUGHT * rewritten) * config.mined_images, False),
        validation_phase(number, panel, confirmed=config.confirmed[-1]),
    ]


def _longest(prompts: Sequence[Prompt]) -> int:
    """About the tokens of the longest prompt in the chat format."""
    return 16 + max((3 * len(prompt.text.split()) // 2 for prompt in prompts), default=0)


def _rounded(phase: PlannedPhase, rates: Rates) -> float | None:
    seconds = phase.seconds(rates)
    return None if seconds is None else round(seconds, 1)
