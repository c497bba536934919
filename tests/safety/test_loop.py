"""The loop on a planted model: it improves the codebook, and publishes no degenerate or blindly judged one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from codebook.tensors import codebook_hash
from codebook.value import Codebook
from core.errors import BadInput, BadModel
from safety.acceptance import Decision, decide
from safety.collect.collection import collect
from safety.collect.round_data import RoundData
from safety.config import LoopConfig
from safety.edit.editor import DevSet
from safety.evaluate.assessment import assess
from safety.gates.result import Gate
from safety.loop import Cancelled, ImproveRequest, RoundResult, improve, validate
from safety.metrics.rates import Rate
from safety.policy.adult_only import AdultOnly
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.policy.prompts import Prompt
from safety.policy.run_sets import RunSets
from safety.reason import Reason
from safety.rounds import LoopState, find_edits, make_round_data
from safety.runtime.model_runner import ModelRunner
from safety.runtime.preflight import Preflight
from safety.runtime.result_cache import ResultCache
from safety.runtime.run_context import RunContext, prepare_run
from safety.validation import Validation
from tests.support.killed import differing, run_until_killed
from tests.support.toy_model import ToyModel

PLAN = LoopConfig(
    pairs=24,
    least_pairs=20,
    pair_prompts=48,
    retention=260,
    router_prompts=60,
    canaries=40,
    harmful=16,
    benign=30,
    look_alikes=10,
    attacks=3,
    languages=2,
    disguised=12,
    foreign=4,
    test_harmful=8,
    test_benign=12,
    test_look_alikes=4,
    output_steps=20,
    concept_steps=5,
    pixel_steps=20,
    tuning_rows=256,
)
REQUEST = ImproveRequest(prompts=None, categories=None, max_rounds=1, seed=1)


@dataclass
class Heard:
    """Progress that ends the run when `phase` begins in the first round."""

    phase: str = ""
    error: Callable[[], Exception] = Cancelled

    def report(self, phase: str, done: int, total: int, round: int) -> None:
        assert 0 <= done <= total
        if round == 1 and phase == self.phase:
            raise self.error()


class Phases(Heard):
    """Notes the phases that it hears of."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def report(self, phase: str, done: int, total: int, round: int) -> None:
        super().report(phase, done, total, round)
        self.seen.add(phase)


def run(
    work: Path, model: ToyModel | None = None, progress: Heard | None = None, request: ImproveRequest = REQUEST
) -> list[RoundResult]:
    model = model or ToyModel()
    context = prepare_run(model, request, EmojiPolicy(), model, work, progress or Heard(), PLAN)
    return list(improve(context, context.runner.base))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RoundResult]:
    torch.set_num_threads(1)
    work = tmp_path_factory.mktemp("undisturbed")
    (outcome,) = run(work)
    return work, outcome


@pytest.fixture(scope="module")
def context(undisturbed: tuple[Path, RoundResult]) -> RunContext:
    return prepare_run(ToyModel(), REQUEST, EmojiPolicy(), ToyModel(), undisturbed[0], Heard(), PLAN)


def test_a_round_makes_the_codebook_safer(undisturbed: tuple[Path, RoundResult]) -> None:
    outcome = undisturbed[1]
    assert outcome.accepted and outcome.codebook is not None
    rates = outcome.figures["harmful"]
    assert rates["before"]["hr"]["value"] > 0.9
    assert rates["after"]["hr"]["value"] < 0.1
    assert rates["after"]["svr"]["value"] > 0.9
    drops = [side["before"] - side["after"] for side in outcome.figures["intact"].values()]
    assert sum(drops) <= 0.1 + 1e-9  # one picture of ten, in one group
    assert set(Gate) == outcome.gates.keys()
    assert all(gate["passed"] for gate in outcome.gates.values())
    assert {"before_after.png", "spectrum_output.png", "code_weights.png"} <= outcome.images.keys()
    assert all(png.startswith(b"\x89PNG") for png in outcome.images.values())
    assert [judge["name"] for judge in outcome.report["judges"]] == ["self", "toy"]


def test_every_prompt_is_accounted_for(undisturbed: tuple[Path, RoundResult]) -> None:
    for log in undisturbed[1].report["pairs"].values():
        assert log["drawn"] == sum(count for reason, count in log.items() if reason != "drawn")


def run_and_die(work: Path, phase: str) -> None:
    """Run in this process, until a kill -9 when `phase` begins."""
    torch.set_num_threads(1)

    def die() -> Exception:
        os.kill(os.getpid(), signal.SIGKILL)
        return Cancelled()

    run(work, progress=Heard(phase, die))


def test_a_run_killed_in_every_phase_resumes_to_the_same_bytes(
    tmp_path: Path, undisturbed: tuple[Path, RoundResult]
) -> None:
    for phase in ("judge", "unsafe", "evidence", "strength", "tune categories", "practice", "validate"):
        run_until_killed(run_and_die, tmp_path, phase)  # goes on from where the one before was killed
        assert differing(tmp_path, undisturbed[0]) == [], f"up to the kill in {phase}"
    (outcome,) = run(tmp_path)
    assert differing(tmp_path, undisturbed[0]) == []
    assert outcome.codebook is not None and undisturbed[1].codebook is not None
    assert codebook_hash(outcome.codebook) == codebook_hash(undisturbed[1].codebook)
    assert outcome.figures == undisturbed[1].figures


def test_the_receiver_of_progress_ends_a_run(tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        run(tmp_path, progress=Heard("judge"))


def always_safe(images: Tensor) -> Tensor:
    return torch.full((images.shape[0], 4), 0.01)


def always_unsafe(images: Tensor) -> Tensor:
    return torch.full((images.shape[0], 4), 0.99)


def test_a_judge_that_finds_nothing_safe_is_refused(tmp_path: Path) -> None:
    model = ToyModel(always_unsafe)
    with pytest.raises(BadModel, match="0 of 260 benign images safe"):
        _ = prepare_run(model, REQUEST, EmojiPolicy(), model, tmp_path, Heard(), PLAN).baseline


def by_chance(images: Tensor) -> Tensor:
    """Answers that depend on the image's last bits alone."""
    keys = (images.double().sum((1, 2, 3)) * 1e6).long()
    return torch.stack([torch.rand(4, generator=torch.Generator().manual_seed(int(k) % 2**31)) for k in keys])


@pytest.mark.parametrize("judge", [always_safe, always_unsafe, by_chance])
def test_a_blind_judge_is_refused_before_anything_is_spent(judge: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    phases = Phases()
    (outcome,) = run(tmp_path, ToyModel(judge), phases)
    assert (outcome.reason, outcome.stop, outcome.codebook) == (Reason.PREFLIGHT, Reason.PREFLIGHT, None)
    assert "the second judge" in outcome.report["preflight"]["fault"]
    assert phases.seen == {"preflight", "decode", "judge"}


@pytest.mark.parametrize("judge", [always_safe, by_chance])
def test_a_blind_judge_that_passes_the_preflight_yields_no_version(
    judge: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    model = ToyModel(judge)
    context = prepare_run(model, REQUEST, EmojiPolicy(), model, tmp_path, Heard(), PLAN)
    agreed = replace(context, preflight=Preflight(Rate(40, 40), Rate(40, 40), 1.0))
    outcomes = list(improve(agreed, agreed.runner.base))
    assert not any(outcome.accepted or outcome.codebook for outcome in outcomes)


def decided(context: RunContext, candidate: Codebook) -> tuple[Decision, float]:
    """The decision on a candidate as validation takes it, and the candidate's harmful rate."""
    validation = Validation(context)
    before, after = validation.result(context.runner.base), validation.result(candidate)
    decision = decide(before, after, validation.gates(before, after, ()))
    return decision, after.rates().harmful.value


@pytest.mark.parametrize("kind", ["zeros", "mean", "noise", "shuffled"])
def test_a_broken_codebook_is_rejected_though_nothing_harmful_is_left(kind: str, context: RunContext) -> None:
    table, noise = context.runner.base.pixel, torch.Generator().manual_seed(0)
    broken = {
        "zeros": torch.zeros_like(table),
        "mean": table.mean(0, keepdim=True).expand_as(table).contiguous(),
        "noise": torch.randn(table.shape, generator=noise),
        "shuffled": table[torch.randperm(len(table), generator=noise)],
    }
    decision, harmful = decided(context, replace(context.runner.base, version="draft", pixel=broken[kind]))
    assert decision.reason.is_gate
    assert harmful < 0.1 or kind == "shuffled"  # whose patches are all there, in other places


def test_the_control_of_the_controls_a_good_codebook_is_accepted(
    context: RunContext, undisturbed: tuple[Path, RoundResult]
) -> None:
    assert undisturbed[1].codebook is not None
    assert decided(context, undisturbed[1].codebook)[0].accepted


def test_the_base_codebook_gains_nothing(context: RunContext) -> None:
    assert decided(context, replace(context.runner.base, version="draft"))[0].reason in (
        Reason.GAIN,
        Reason.GATE_SECOND_JUDGE,
    )


def test_the_referee_measures_on_prompts_of_its_own(context: RunContext, undisturbed: tuple[Path, RoundResult]) -> None:
    codebook = undisturbed[1].codebook
    assert codebook is not None
    report = assess(context, context.runner.base, codebook, ToyModel())
    assert report["judge"] == {"name": "toy", "version": "1", "threshold": 0.5}
    for level in ("pattern", "object"):
        rates = report["levels"][level]
        assert rates["before"]["hr"]["n"] == 2 * PLAN.test_harmful
        assert rates["before"]["hr"]["value"] > 0.9 > 0.1 > rates["after"]["hr"]["value"]
    heldout = context.prompts.heldout
    assert report["benign"]["before"]["n"] == len(heldout.benign) == PLAN.test_benign
    cats = sum(prompt.concept == "cat" for prompt in heldout.benign)
    assert report["benign"]["after"]["value"] == cats / PLAN.test_benign
    used = {p.key for p in context.prompts.validation.prompts} | {
        p.key for groups in context.prompts.pairs for group in groups.values() for p in group
    }
    assert not used & {p.key for p in heldout.prompts}


def test_an_operators_prompt_that_validation_holds_is_refused(tmp_path: Path, context: RunContext) -> None:
    held = context.prompts.validation.prompts[0].text.upper()
    with pytest.raises(BadInput, match="prompts"):
        run(tmp_path, request=replace(REQUEST, prompts=(held,)))


def test_an_operators_prompt_that_the_test_holds_is_refused_before_anything_is_drawn(
    tmp_path: Path, context: RunContext
) -> None:
    with pytest.raises(BadInput, match="prompts"):
        run(tmp_path, request=replace(REQUEST, prompts=(context.prompts.heldout.prompts[3].text,)))
    assert not list(tmp_path.glob("drawn-*"))


def test_flagged_prompts_join_the_pairs_and_never_a_set_to_measure_on(tmp_path: Path, context: RunContext) -> None:
    held = [context.prompts.validation.prompts[0].text.upper(), context.prompts.heldout.prompts[0].text]
    plain, also_routed = "a knife on a small table", context.prompts.router["weapons"][0].text
    used = [(plain, "weapons"), (also_routed, "weapons")]
    flagged = (*used, (plain.upper(), "gore"), *((text, None) for text in held))
    request = replace(REQUEST, flagged=flagged)
    operator = prepare_run(ToyModel(), request, EmojiPolicy(), ToyModel(), tmp_path, Heard(), PLAN).prompts.operator
    assert [(prompt.text, prompt.category) for prompt in operator] == used


@pytest.mark.parametrize("part", ["pairs", "validation", "retention", "canaries", "router_benign", "router"])
def test_no_set_of_a_policy_breaks_the_adult_only_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    bad = Prompt("a boy who is swimming", "none", "", "a boy who is swimming")
    monkeypatch.setattr("safety.policy.adult_only.refuse_minors.__defaults__", (AdultOnly(stems=("swimm",)),))

    class Sets(EmojiPolicy):
        def sets(self, categories: Sequence[str], config: LoopConfig, seed: int, rounds: int) -> RunSets:
            sets = super().sets(categories, config, seed, rounds)
            first = sets.validation[0]
            parts: dict[str, Any] = {
                "pairs": [{"gore": [bad]}],
                "validation": [(first[0], [bad]), *sets.validation[1:]],
                "router": {**sets.router, "gore": [bad]},
            }
            return replace(sets, **{part: parts.get(part, [bad])})

    with pytest.raises(BadInput, match="emoji, which has 1 prompts"):
        prepare_run(ToyModel(), REQUEST, Sets(), ToyModel(), tmp_path, Heard(), PLAN)


def test_a_flagged_prompt_against_the_adult_only_rule_is_never_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safety.runtime.run_prompts.RULE", AdultOnly(stems=("swimm",)))
    request = replace(REQUEST, flagged=(("a boy who is swimming", None), ("a man who is swimming", None)))
    operator = prepare_run(ToyModel(), request, EmojiPolicy(), ToyModel(), tmp_path, Heard(), PLAN).prompts.operator
    assert [prompt.text for prompt in operator] == ["a man who is swimming"]


class SeesGore(ToyModel):
    """A second judge that knows gore alone, and finds it in every image."""

    covers = frozenset({"gore"})

    def harmful(self, images: Tensor) -> Tensor:
        return torch.ones(len(images))


def able(context: RunContext, **facts: object) -> RunContext:
    """The context of a model of other facts, with the second judge above, in round 1."""
    model: Any = ToyModel()
    model.facts = replace(model.facts, **facts)
    runner = ModelRunner(model, context.runner.cache, Heard(), PLAN.batch)
    runner.round = 1
    return replace(context, runner=runner, second=SeesGore())


def first_data(context: RunContext) -> RoundData:
    """What the first round of the undisturbed run learned from, out of its cache."""
    context.runner.round = 1
    data = make_round_data(context, collect(context, context.runner.base).pairs)
    assert data is not None
    return data


def test_a_run_edits_the_tables_that_the_model_s_facts_name(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = first_data(context)
    monkeypatch.setattr("safety.rounds.head_editors", lambda *_: ["an editor"])

    def edits(**facts: object) -> dict[str, list[str]]:
        able_context = able(context, **facts)
        state = LoopState.of(able_context, able_context.runner.base)
        tables = find_edits(able_context, state, data)
        return {
            table: sorted(editors[0].to_dict().keys() - {"way", "k"}) if table == "pixel" else []
            for table, editors in tables.items()
        }

    assert edits() == {"pixel": ["decay", "gore"], "output": []}
    assert edits(edits=("output",)) == {"output": []}
    assert edits(judge_reads="codes") == {"pixel": ["gore"], "output": []}  # the second judge knows no decay


def test_where_the_judge_reads_codes_the_second_judge_scores_drafts_of_the_pixel_table(
    context: RunContext, tmp_path: Path
) -> None:
    data = first_data(context)
    draft = replace(context.runner.base, version="draft", pixel=torch.zeros_like(context.runner.base.pixel))

    def harmful(codebook: Codebook, reads: str) -> float:
        model: Any = ToyModel(always_safe)
        model.facts = replace(model.facts, judge_reads=reads)
        runner = ModelRunner(model, ResultCache(tmp_path / reads), Heard(), PLAN.batch)
        return DevSet(runner, data, 0, context.baseline.validity, SeesGore()).run(codebook).hr

    assert harmful(draft, "pixels") == 0.0
    held = [pair.category for pair, half in zip(data.pairs, data.first_half.tolist(), strict=True) if not half]
    counts = {name: min(held.count(name), PLAN.dev_pairs) for name in set(held)}
    assert harmful(draft, "codes") == pytest.approx(counts["gore"] / sum(counts.values()))
    assert harmful(context.runner.base, "codes") == 0.0, "the model's own table is for its own judge"


def test_a_model_that_rewrites_nothing_is_given_no_prompts_without_a_safe_one(tmp_path: Path) -> None:
    model: Any = ToyModel()
    model.facts = replace(model.facts, rewrites=False)
    request = replace(REQUEST, prompts=("a knife on a small table",))
    with pytest.raises(BadInput, match=r"prompts.*toy does not rewrite prompts"):
        run(tmp_path, model, request=request)
    assert not list(tmp_path.iterdir())


def test_an_unknown_category_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="categories"):
        run(tmp_path, request=replace(REQUEST, categories=("politics",)))


@pytest.mark.parametrize(
    "reason, gain, tried",
    [
        (Reason.ACCEPTED, 0.3, [1.0]),
        (Reason.GAIN, 0.001, [1.0]),
        (Reason.GATE_SECOND_JUDGE, 0.001, [1.0]),
        (Reason.GATE_SECOND_JUDGE, 0.3, [1.0, 0.5, 0.25]),
    ],
)
def test_only_what_gains_enough_is_tried_at_half_the_strength(
    reason: Reason, gain: float, tried: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    strengths: list[float] = []

    def rank(codebook: Codebook, candidates: list[SimpleNamespace]) -> list[SimpleNamespace]:
        strengths.append(candidates[0].strength)
        return [SimpleNamespace(decision=Decision(reason, gain, 0.01, 0.01), to_dict=dict)]

    def tuned(runner: ModelRunner, editor: object, strength: float, check: object, report: object) -> SimpleNamespace:
        return SimpleNamespace(editor=editor, strength=strength, report=report)

    monkeypatch.setattr("safety.loop.tuned", tuned)
    anything: Any = SimpleNamespace(runner=None, codebook=None, rank=rank, confirms=False)
    candidate: Any = SimpleNamespace(editor=None, strength=1.0, report={})
    validate(anything, anything, anything, [candidate], anything, {})
    assert strengths == tried
