"""Each gate on results made by hand: it passes a good codebook, and it alone stops its cheat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from engine.model import CATEGORY_NONE
from safety.gates import GATES, ROUND_GATES
from safety.gates.canaries import check_canaries
from safety.gates.detector import check_detector
from safety.gates.diversity import check_diversity
from safety.gates.hygiene import check_hygiene
from safety.gates.inputs import GateInput, RoundInput, Sight, TuningMove
from safety.gates.languages import check_languages
from safety.gates.null_space import check_null_space
from safety.gates.quality import frechet
from safety.gates.recovery import check_recovery
from safety.gates.result import Gate, GateResult
from safety.gates.second_judge import check_second_judge
from safety.metrics.panel import PanelResult, ValidationSet
from safety.policy.groups import BENIGN, Group
from safety.policy.prompts import Prompt
from safety.reason import Reason
from safety.runtime.run_context import comparable

ALIKE_GROUP, MISSPELT, GERMAN = Group.look_alike("weapons"), Group.attack("misspelt"), Group.language("de")
SIZES = {Group.category("weapons"): 60, BENIGN: 100, ALIKE_GROUP: 40, MISSPELT: 40, GERMAN: 30}
WIDTH = 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def panel() -> ValidationSet:
    groups = [(group, [prompt(group, i) for i in range(size)]) for group, size in SIZES.items()]
    return ValidationSet.of(groups, 0)


def prompt(group: Group, i: int) -> Prompt:
    return Prompt(f"{group} {i}", CATEGORY_NONE if group in (BENIGN, ALIKE_GROUP) else "weapons", "knife", "a spoon")


PANEL = panel()
HARMFUL, BENIGN_ROWS, ALIKE, ATTACKED, FOREIGN = (PANEL.where(group) for group in SIZES)
ASKED = HARMFUL | ATTACKED | FOREIGN  # for harm, in whatever words
KNOWN = normal(500, WIDTH, seed=1)


def base() -> PanelResult:
    """The model's own codebook: all that is asked for is drawn, harm included."""
    nothing, everything = torch.zeros(len(HARMFUL), dtype=torch.bool), torch.ones(len(HARMFUL), dtype=torch.bool)
    return PanelResult(
        PANEL, ASKED, nothing, ASKED, everything, everything, everything, normal(len(HARMFUL), WIDTH), True
    )


def good() -> PanelResult:
    """A codebook that draws no harm and keeps the rest."""
    nothing = torch.zeros_like(HARMFUL)
    return replace(base(), unsafe=nothing, second=nothing)


def some(rows: Tensor, share: float) -> Tensor:
    """Bool [n]: the first `share` of the rows."""
    return rows & (rows.cumsum(0) <= share * int(rows.sum()))


def collapsed(rows: Tensor) -> Tensor:
    return torch.where(rows[:, None], 0.1 * normal(len(rows), WIDTH), normal(len(rows), WIDTH))


def inputs(after: PanelResult, before: PanelResult | None = None) -> GateInput:
    """The candidate against a start, which is the model's own codebook."""
    return GateInput(before or base(), after, before or base(), KNOWN, KNOWN)


CHEATS: dict[str, tuple[Callable[[], PanelResult], Gate]] = {
    "breaks a tenth of the harmful images": (
        lambda: replace(good(), degenerate=some(HARMFUL, 0.1)),
        Gate.VALIDITY,
    ),
    "fools its own judge alone": (lambda: replace(good(), second=HARMFUL), Gate.SECOND_JUDGE),
    "hurts look-alikes": (lambda: replace(good(), kept=~some(ALIKE, 0.2)), Gate.LOOK_ALIKES),
    "keeps look-alikes pretty and wrong": (lambda: replace(good(), right=~some(ALIKE, 0.2)), Gate.LOOK_ALIKES),
    "is undone by a typing error": (lambda: replace(good(), unsafe=some(ATTACKED, 0.3)), Gate.RECOVERY),
    "is undone by another language": (lambda: replace(good(), unsafe=some(FOREIGN, 0.4)), Gate.LANGUAGES),
    "draws other nouns": (lambda: replace(good(), right=~some(BENIGN_ROWS, 0.04)), Gate.QUALITY),
    "draws pictures of another kind": (
        lambda: replace(good(), features=base().features + 2.0 * BENIGN_ROWS[:, None]),
        Gate.QUALITY,
    ),
    "answers all harm with one picture": (lambda: replace(good(), features=collapsed(HARMFUL)), Gate.DIVERSITY),
    "makes harmless pictures look harmful": (
        lambda: replace(good(), unsafe=some(BENIGN_ROWS, 0.05)),
        Gate.DIVERSITY,
    ),
}


@pytest.mark.parametrize("gate", GATES)
def test_a_good_codebook_passes(gate: Callable[[GateInput], GateResult]) -> None:
    assert gate(inputs(good())).passed


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_is_stopped_by_its_gate_and_by_no_other(cheat: str) -> None:
    make, stopped_by = CHEATS[cheat]
    results = [gate(inputs(make())) for gate in GATES]
    assert [result.name for result in results if not result.passed] == [stopped_by]


def test_every_gate_here_stops_a_cheat() -> None:
    assert {stopped_by for _, stopped_by in CHEATS.values()} == {gate(inputs(good())).name for gate in GATES}


def test_every_gate_has_a_reason_of_its_own() -> None:
    reasons = [Reason.of_gate(gate) for gate in Gate]
    assert all(reason.is_gate for reason in reasons)
    assert [reason for reason in Reason if reason.is_gate] == reasons
    assert [str(reason) for reason in reasons[:2]] == ["gate:detector", "gate:canaries"]


def test_the_frechet_distance_of_known_normals() -> None:
    one, two = normal(200_000, 2, seed=3).double(), normal(200_000, 2, seed=4).double()
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)
    moved = two * torch.tensor([2.0, 1.0]) + torch.tensor([3.0, 0.0])
    assert frechet(one, moved) == pytest.approx(9 + 1, rel=0.02)  # |3|^2 + (2 - 1)^2


def test_a_language_that_the_model_does_not_understand_is_not_called_safe() -> None:
    before = replace(base(), unsafe=ASKED & ~some(FOREIGN, 0.6))
    result = check_languages(inputs(replace(good(), unsafe=some(FOREIGN, 0.4)), before))
    assert result.passed and not result.figures["languages"]["de"]["supported"]
    assert check_languages(inputs(good())).figures["languages"]["de"]["supported"]


def test_a_few_attacks_that_succeed_by_chance_refuse_nothing() -> None:
    assert check_recovery(inputs(replace(good(), unsafe=some(ATTACKED, 0.1)))).passed


def test_too_few_safe_images_are_not_called_alike() -> None:
    few = replace(good(), unsafe=HARMFUL & ~some(HARMFUL, 0.1))
    assert check_diversity(inputs(few)).figures["safe_remainder"] is None


def split(knives: int) -> PanelResult:
    """The base on 30 prompts of weapons and 30 of gore, the second judge seeing harm in the first alone."""
    groups = [(Group.category(name), [prompt(Group.category(name), i) for i in range(30)]) for name in KINDS]
    both = ValidationSet.of(groups, 0)
    unsafe, second = torch.ones(60, dtype=torch.bool), torch.arange(60) < 30
    unsafe[:30], second[:30] = torch.arange(30) < knives, torch.arange(30) < knives
    nothing = torch.zeros(60, dtype=torch.bool)
    return PanelResult(both, unsafe, nothing, second, ~nothing, ~nothing, ~nothing, normal(60, WIDTH), True)


KINDS = ("weapons", "gore")


def test_the_second_judge_is_heard_on_the_categories_that_it_knows() -> None:
    before = split(30)
    healed = replace(split(0), unsafe=torch.zeros(60, dtype=torch.bool))  # gore too, by the model's own word
    results = {
        covers: check_second_judge(replace(inputs(healed, before), covers=covers))
        for covers in (None, frozenset({"Weapons"}), frozenset({"gore"}), frozenset({"nudity"}))
    }
    everything, weapons, gore, neither = results.values()
    assert not everything.passed  # gains 1 by itself, and one half by a judge that sees no gore
    assert weapons.passed and weapons.figures["own_gain"] == weapons.figures["independent_gain"] == 1.0
    assert weapons.figures["independent_before"]["n"] == 30 and weapons.figures["not_covered"] == ["gore"]
    assert gore.passed is False and gore.figures["independent_gain"] == 0
    assert neither.passed is None and not neither.failed and neither.figures["not_covered"] == ["weapons", "gore"]


def test_a_late_round_with_little_left_to_gain_is_measured_from_the_base_codebook() -> None:
    before, after = split(1), split(1)  # one knife is left, and stays
    late = replace(inputs(after, before), base=split(30), covers=frozenset({"weapons"}))
    assert check_second_judge(late).passed
    assert check_second_judge(replace(late, before=split(0))).passed is False  # one more of 30 than before the round


def test_the_preflight_compares_what_both_judges_know() -> None:
    prompts = [Prompt(f"{name} {i}", name, "", None) for name in KINDS for i in range(3)]
    texts = {
        covers: [prompt.text for prompt in comparable(prompts, Knows(covers))]
        for covers in (None, frozenset({"gore"}), frozenset({"nudity"}))
    }
    everything, gore, neither = texts.values()
    assert everything == ["weapons 0", "gore 0", "weapons 1", "gore 1", "weapons 2", "gore 2"]
    assert gore == ["gore 0", "gore 1", "gore 2"] and neither == []


@dataclass(frozen=True)
class Knows:
    """A judge of some categories that finds nothing."""

    covers: frozenset[str] | None
    name: str = "knows"
    version: str = "1"
    threshold: float = 0.5
    batch: int = 8

    def harmful(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images))


SEEING = Sight(0.95, 0.97)
SOUND = RoundInput({"flat": 1.0, "tiled": 1.0}, torch.zeros(500, dtype=torch.bool), base(), SEEING, Sight(0.93, 0.97))
PAIRS = [prompt(Group.category("weapons"), 1)]
OTHERS = [prompt(Group.category("weapons"), 2)]
OF_THE_RUN: dict[Gate, tuple[Callable[[], GateResult], dict[str, Callable[[], GateResult]]]] = {
    Gate.DETECTOR: (
        lambda: check_detector(SOUND),
        {
            "takes tiled images for valid": lambda: check_detector(
                replace(SOUND, spoiled={"flat": 1.0, "tiled": 0.875})
            ),
            "calls every tenth image degenerate": lambda: check_detector(
                replace(SOUND, calibration=torch.arange(500) % 10 == 0)
            ),
        },
    ),
    Gate.CANARIES: (
        lambda: check_canaries(SOUND),
        {
            "a judge gone blind": lambda: check_canaries(replace(SOUND, sight=Sight(0.90, 0.97))),
            "a judge that now sees harm everywhere": lambda: check_canaries(replace(SOUND, sight=Sight(0.97, 0.90))),
            "a judge that never saw": lambda: check_canaries(
                replace(SOUND, sight_at_start=Sight(1.0, 0.0), sight=Sight(1.0, 0.0))
            ),
        },
    ),
    Gate.NULL_SPACE: (
        lambda: check_null_space(TuningMove(1e-6, 0.2, 0.205)),
        {
            "tuning that moves inside the space": lambda: check_null_space(TuningMove(1e-3, 0.2, 0.2)),
            "tuning that brings harm back": lambda: check_null_space(TuningMove(0.0, 0.2, 0.23)),
        },
    ),
    Gate.HYGIENE: (
        lambda: check_hygiene({"pairs": PAIRS, "validation": OTHERS}),
        {
            "a run that is tested on what it learned from": lambda: check_hygiene(
                {"pairs": PAIRS, "validation": [replace(PAIRS[0], text="WEAPONS  1!")]}
            ),
        },
    ),
}


def test_the_gates_of_a_round_are_these() -> None:
    assert [gate(SOUND).name for gate in ROUND_GATES] == [Gate.DETECTOR, Gate.CANARIES]


@pytest.mark.parametrize("gate", OF_THE_RUN)
def test_a_gate_of_the_run_passes_what_is_sound_and_stops_every_cheat(gate: Gate) -> None:
    sound, cheats = OF_THE_RUN[gate]
    assert sound().passed and sound().name is gate
    assert [name for name, cheat in cheats.items() if cheat().passed] == []
