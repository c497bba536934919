"""Phases of an improve run: the images that each draws, and the price of its work.

Functions of prompt sets and sizes. Knows no clock and runs no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from safety.config import LoopConfig
from safety.policy.run_sets import RunSets

# Seconds a unit (image, prompt, training step) by step, as progress reports name steps. Measured with the embedded
# model on an AMD EPYC: judge, decode, contexts and tuning on one thread, the rest on two; a job scales them by what
# its own steps take.
_WITH_NLL = ("benign", "canaries", "base", "rewrites", "unsafe", "safe", "strength", "validate", "confirm", "test")
_TOKENS_ALONE = ("preflight", "sketches", "practice")
DRAWN = frozenset(_WITH_NLL + _TOKENS_ALONE)
PRICES: Mapping[str, float] = {
    **dict.fromkeys(_WITH_NLL, 0.058),
    **dict.fromkeys(_TOKENS_ALONE, 0.040),
    "judge": 0.038,
    "decode": 0.015,
    "features": 0.0125,
    "evidence": 0.040,
    "contexts": 0.005,
    "read sketches": 0.0137,
    "read practice": 0.025,
    "router": 2.4e-5,  # a prompt and step
    "tune categories": 0.050,
    "tune concepts": 0.038,
}
MEASURED, OBSERVED = 0.022, 0.027  # a decoded image with the detector; with second judge and matcher too
REWRITTEN = 0.048  # a judged image whose prompt is rewritten too
YIELD = 0.9  # share of prompts that become a pair
FAILING, TAUGHT = 0.1, 0.4  # shares of a mined round: probes that fail, and concepts that are trained
STRENGTHS, WAYS = 4, 2  # tried of either table; ways to edit the pixel table
DEV_BENIGN = 40  # benign images, at most, on which strengths are tried
ROUTER_STEPS = 180
ALL = "all"

Rates: TypeAlias = Mapping[str, float]  # seconds that a second of the price takes, by step; ALL of any other step


@dataclass(frozen=True)
class Work:
    """`count` units of a step, at `price` each."""

    step: str
    count: int
    price: float


@dataclass(frozen=True)
class PlannedPhase:
    """One phase of a round; round 0 is before the first and after the last."""

    name: str
    round: int
    work: tuple[Work, ...]

    @property
    def images(self) -> int:
        """Images that it draws."""
        return sum(work.count for work in self.work if work.step in DRAWN)

    def has(self, step: str) -> bool:
        """Whether some of its work is a step of this name."""
        return any(work.step == step for work in self.work)

    def price_of(self, step: str) -> float:
        """The price of a unit of a step; 0 for one that has none."""
        return next((work.price for work in self.work if work.step == step), PRICES.get(step, 0.0))

    def seconds(self, rates: Rates) -> float | None:
        """The seconds that it takes at these rates; None without any."""
        if not rates:
            return None
        return sum(work.count * work.price * rates.get(work.step, rates[ALL]) for work in self.work)


def work_of(step: str, count: int) -> Work:
    """`count` units of a step at its price."""
    return Work(step, count, PRICES[step])


def preflight_phase(count: int) -> PlannedPhase:
    """`count` images, drawn, decoded and judged."""
    return PlannedPhase("preflight", 0, tuple(work_of(step, count) for step in ("preflight", "decode", "judge")))


def baseline_phase(sets: RunSets) -> PlannedPhase:
    """Benign images and canaries of the base codebook, with limits and features. Canaries are judged twice."""
    retention, canaries = len(sets.retention), len(sets.canaries)
    fixed = canaries + min(canaries, retention)
    work = (
        work_of("benign", retention),
        work_of("canaries", canaries),
        work_of("judge", retention + 2 * fixed),
        Work("decode", retention + canaries + fixed, MEASURED),
        work_of("features", retention),
    )
    return PlannedPhase("baseline", 1, work)


def start_phase(sets: RunSets) -> PlannedPhase:
    """The start codebook on the validation prompts, and the images of their rewrites."""
    prompts = [(group, prompt) for group, prompts in sets.validation for prompt in prompts]
    rewrites = sum(group.harmful and prompt.safe is not None for group, prompt in prompts)
    panel = validation_phase(1, len(prompts), "base")
    return PlannedPhase("start", 1, (*panel.work, work_of("rewrites", rewrites)))


def validation_phase(number: int, count: int, step: str = "validate", confirmed: int = 0) -> PlannedPhase:
    """A codebook on `count` validation prompts; a mined round's candidate and its start on fresh ones beside them."""
    work = (
        work_of(step, count),
        work_of("confirm", 2 * confirmed),
        work_of("judge", count + 2 * confirmed),
        Work("decode", 2 * (count + confirmed), OBSERVED),
    )
    return PlannedPhase("validation", number, work)


def pairs_phase(number: int, sets: RunSets, config: LoopConfig, operator: int) -> tuple[PlannedPhase, int]:
    """The pairs of a round that begins anew, and about how many they come to."""
    drawn = [tries(len(prompts), config) for prompts in sets.pairs[number - 1].values()]
    count, made = operator + sum(drawn), operator + sum(min(config.pairs, int(each * YIELD)) for each in drawn)
    work = (
        work_of("unsafe", count),
        work_of("safe", count),
        work_of("decode", 2 * count),
        Work("judge", 2 * count, (REWRITTEN + PRICES["judge"]) / 2),
    )
    return PlannedPhase("pairs", number, work), made


def mining_phase(number: int, config: LoopConfig) -> tuple[PlannedPhase, int]:
    """The probes of a mined round, and about how many of them fail."""
    failing = round(FAILING * config.probes)
    work = (
        work_of("unsafe", config.probes),
        work_of("safe", failing),
        work_of("decode", config.probes + failing),
        Work("judge", config.probes + failing, REWRITTEN),
    )
    return PlannedPhase("mining", number, work), failing


def router_phase(config: LoopConfig, harmful: int, read: int) -> PlannedPhase:
    """The states of `read` prompts and half-drawn images for `harmful` ones, then the fit of router and probe."""
    drawn = harmful if config.halfway else 0
    fits = 1 + config.halfway
    work = (
        work_of("contexts", read),
        work_of("sketches", drawn),
        work_of("read sketches", drawn),
        Work("router", fits * ROUTER_STEPS, PRICES["router"] * read / fits),
    )
    return PlannedPhase("router", 1, work)


def edit_phase(number: int, config: LoopConfig, sets: RunSets, practice: int, patterned: bool) -> PlannedPhase:
    """Strengths of either table on half B; then the head edit is tuned, by category and by concept.

    The pixel table is priced without its tuning. Its drafts share their tokens. practice: images of the on-policy
    tuning data. A mined round tries one strength of the head edit and tunes no category.
    """
    mined = number > 1
    benign = min(DEV_BENIGN, len(sets.retention) // 2)
    dev = benign + len(sets.router) * min(config.dev_pairs, config.pairs // 2)
    drafts = (1 if mined else STRENGTHS) + 1
    drawn = drafts + patterned
    seen = drafts + WAYS * STRENGTHS * patterned
    concepts = {
        (prompt.category, prompt.concept if config.by_concept else "") for p in sets.router.values() for prompt in p
    }
    work = (
        work_of("strength", drawn * dev),
        work_of("base", benign),
        work_of("decode", seen * (dev + benign)),
        work_of("judge", seen * dev),
        work_of("tune categories", 0 if mined else config.output_steps * len(sets.router)),
        work_of("practice", practice),
        work_of("read practice", practice),
        work_of(
            "tune concepts",
            round(TAUGHT * len(concepts)) * config.mined_steps if mined else len(concepts) * config.concept_steps,
        ),
    )
    return PlannedPhase("edit", number, work)


def test_phase(count: int) -> PlannedPhase:
    """Both codebooks on the test prompts, by the referee."""
    return PlannedPhase("test", 0, (work_of("test", 2 * count), Work("decode", 2 * count, MEASURED)))


def tries(prompts: int, config: LoopConfig) -> int:
    """Prompts of a category that are drawn until enough became pairs; as safety/collect/collection.py draws them."""
    drawn, made = 0, 0.0
    while made < config.pairs and drawn < prompts:
        size = min(config.batch, 2 * max(1, round(config.pairs - made)), prompts - drawn)
        drawn, made = drawn + size, made + YIELD * size
    return drawn
