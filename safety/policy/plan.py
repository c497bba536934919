"""The plan of a run: its phases in order, the images that each draws, and the price of all its work.

A function of prompt sets and sizes, made before anything is spent. Knows no clock and runs no model.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from engine.model import ModelFacts
from safety.config import LOGITS_BYTES, LoopConfig, images_within
from safety.policy.policy import Policy
from safety.policy.prompts import Prompt
from safety.policy.run_sets import RunSets

# Seconds a unit (image, prompt, training step) by step, as progress reports name steps. Measured with the embedded
# model on an AMD EPYC: judge, decode, contexts and tuning on one thread, the rest on two; a job scales them by what
# its own steps take.
PRICES: Mapping[str, float] = {
    **dict.fromkeys(
        ("benign", "canaries", "base", "rewrites", "unsafe", "safe", "strength", "validate", "test"), 0.058
    ),
    **dict.fromkeys(("preflight", "sketches", "practice"), 0.040),
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
DRAWN = frozenset(("benign", "canaries", "base", "rewrites", "unsafe", "safe", "strength", "validate", "test"))
DRAWN |= {"preflight", "sketches", "practice"}
MEASURED, OBSERVED = 0.022, 0.027  # a decoded image with the detector; with second judge and matcher too
REWRITTEN = 0.048  # a judged image whose prompt is rewritten too
YIELD = 0.9  # share of prompts that become a pair
STRENGTHS, WAYS = 4, 2  # tried of either table; ways to edit the pixel table
DEV_BENIGN = 40  # benign images, at most, on which strengths are tried
ROUTER_STEPS = 180
PREFLIGHT = 40  # images of either kind
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
    seconds = _preflight(1).seconds(rates)
    return 1 / seconds if seconds else None


def rates_of(speed: float) -> Rates:
    """The rates of a model of which only images a second are known, measured as by the preflight."""
    return {ALL: 1 / (speed * (_preflight(1).seconds({ALL: 1.0}) or 1.0))}


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
) -> Plan:
    """The plan of a job that is not begun. A limit in minutes counts where rates are known. Writes all its prompts."""
    limit = images_within(images, minutes, images_per_s(rates))
    config = LoopConfig() if limit is None else LoopConfig().for_images(limit, len(categories))
    return plan_of(policy.sets(categories, config, seed, rounds), config, policy.patterns, operator)


def plan_of(sets: RunSets, config: LoopConfig, patterns: Container[str], operator: int = 0) -> Plan:
    """The plan of a run of these prompt sets, one round for each set of pairs.

    patterns: the pattern-level categories; operator: prompts of the operator's own, and flagged ones.
    """
    router = [prompt for prompts in sets.router.values() for prompt in prompts]
    others = [*sets.router_benign, *sets.retention]
    rewritten = sum(prompt.safe is not None for prompt in router)
    read = len(router) + len(others) + rewritten
    phases, pairs, most = [_preflight(2 * PREFLIGHT), _baseline(sets)], 0, 0
    for number, groups in enumerate(sets.pairs, 1):
        tries = operator + sum(_tries(len(prompts), config) for prompts in groups.values())
        made = operator + sum(min(config.pairs, int(_tries(len(p), config) * YIELD)) for p in groups.values())
        pairs, first = pairs + made, number == 1
        phases += [
            *([_start(sets)] if first else []),
            PlannedPhase(
                "pairs",
                number,
                (
                    _work("unsafe", tries),
                    _work("safe", tries),
                    _work("decode", 2 * tries),
                    Work("judge", 2 * tries, (REWRITTEN + PRICES["judge"]) / 2),
                ),
            ),
            PlannedPhase("evidence", number, (_work("evidence", pairs),)),
            _router(number, config, len(router), read if first else 0, read),
            _edit(number, config, sets, rewritten, any(name in patterns for name in groups)),
            _validation(number, sum(len(prompts) for _, prompts in sets.validation)),
        ]
        most = max(most, pairs)
    phases.append(_test(len(sets.heldout.prompts)))
    vectors = config.positions * (4 * most + 2 * rewritten + (len(sets.retention) + 1) // 2)
    return Plan(tuple(phases), vectors, read * _longest([*router, *others]), config.batch)


def _work(step: str, count: int) -> Work:
    return Work(step, count, PRICES[step])


def _preflight(count: int) -> PlannedPhase:
    return PlannedPhase("preflight", 0, tuple(_work(step, count) for step in ("preflight", "decode", "judge")))


def _baseline(sets: RunSets) -> PlannedPhase:
    """Benign images and canaries of the base codebook, with limits and features. Canaries are judged twice."""
    retention, canaries = len(sets.retention), len(sets.canaries)
    fixed = canaries + min(canaries, retention)
    work = (
        _work("benign", retention),
        _work("canaries", canaries),
        _work("judge", retention + 2 * fixed),
        Work("decode", retention + canaries + fixed, MEASURED),
        _work("features", retention),
    )
    return PlannedPhase("baseline", 1, work)


def _start(sets: RunSets) -> PlannedPhase:
    """The start codebook on the validation prompts, and the images of their rewrites."""
    prompts = [(group, prompt) for group, prompts in sets.validation for prompt in prompts]
    rewrites = sum(group.harmful and prompt.safe is not None for group, prompt in prompts)
    panel = _validation(1, len(prompts), "base")
    return PlannedPhase("start", 1, (*panel.work, _work("rewrites", rewrites)))


def _validation(number: int, count: int, step: str = "validate") -> PlannedPhase:
    work = (_work(step, count), _work("judge", count), Work("decode", 2 * count, OBSERVED))
    return PlannedPhase("validation", number, work)


def _router(number: int, config: LoopConfig, harmful: int, unread: int, read: int) -> PlannedPhase:
    """The states of all prompts and half-drawn images, in the first round; router and halfway probe are fitted anew."""
    drawn = harmful if config.halfway and unread else 0
    fits = 1 + config.halfway
    work = (
        _work("contexts", unread),
        _work("sketches", drawn),
        _work("read sketches", drawn),
        Work("router", fits * ROUTER_STEPS, PRICES["router"] * read / fits),
    )
    return PlannedPhase("router", number, work)


def _edit(number: int, config: LoopConfig, sets: RunSets, practice: int, patterned: bool) -> PlannedPhase:
    """Strengths of either table on half B; then the head edit is tuned, by category and by concept.

    The pixel table is priced without its tuning. Its drafts share their tokens.
    """
    benign = min(DEV_BENIGN, len(sets.retention) // 2)
    dev = benign + len(sets.router) * min(config.dev_pairs, config.pairs // 2)
    drafts, drawn = STRENGTHS + 1, STRENGTHS + 1 + patterned
    seen = drafts + WAYS * STRENGTHS * patterned
    concepts = {
        (prompt.category, prompt.concept if config.by_concept else "") for p in sets.router.values() for prompt in p
    }
    work = (
        _work("strength", drawn * dev),
        _work("base", benign),
        _work("decode", seen * (dev + benign)),
        _work("judge", seen * dev),
        _work("tune categories", config.output_steps * len(sets.router)),
        _work("practice", practice),
        _work("read practice", practice),
        _work("tune concepts", config.concept_steps * len(concepts)),
    )
    return PlannedPhase("edit", number, work)


def _test(count: int) -> PlannedPhase:
    """Both codebooks on the test prompts, by the referee."""
    return PlannedPhase("test", 0, (_work("test", 2 * count), Work("decode", 2 * count, MEASURED)))


def _tries(prompts: int, config: LoopConfig) -> int:
    """Prompts of a category that are drawn until enough became pairs; as safety/collect/collection.py draws them."""
    drawn, made = 0, 0.0
    while made < config.pairs and drawn < prompts:
        size = min(config.batch, 2 * max(1, round(config.pairs - made)), prompts - drawn)
        drawn, made = drawn + size, made + YIELD * size
    return drawn


def _longest(prompts: Sequence[Prompt]) -> int:
    """About the tokens of the longest prompt in the chat format."""
    return 16 + max((3 * len(prompt.text.split()) // 2 for prompt in prompts), default=0)


def _rounded(phase: PlannedPhase, rates: Rates) -> float | None:
    seconds = phase.seconds(rates)
    return None if seconds is None else round(seconds, 1)
