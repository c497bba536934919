"""NaN, infinity and answers out of range are refused by name where they enter, and never pass a threshold."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from codebook.identity import Identity
from codebook.router import HalfwayProbe, Router
from codebook.tensors import check, is_finite, pack
from codebook.value import HeadEdit
from core.errors import BadCodebook, BadInput, BadModel, BadNumber
from engine.model import ImageRequest, Sampling, Verdict
from engine.registry import EMBEDDED, load_model
from engine.runner.batch import NO_TOKEN, RunningBatch
from engine.runner.sequence import ImageSequence
from engine.scheduler.scheduler import Scheduler
from engine.unified import pixels
from engine.unified.served_model import ServedModel
from safety.evaluate.assessment import _score_heldout
from safety.evaluate.evaluation import evaluate
from safety.gates.quality import frechet
from safety.gates.result import Gate, GateResult
from safety.judges import registry as judges_module
from safety.judges.plugins import EXPOSED, NudeNet
from safety.judges.registry import find_judges, finds_harm
from safety.metrics.degenerate import DegenerateDetector, ImageMeasures, calibrate
from safety.metrics.panel import Instruments, ValidationSet, evaluate_panel
from safety.policy.emoji.classifiers import load_classifier
from safety.policy.emoji.taxonomy import read_taxonomy
from safety.policy.emoji.writer import PromptWriter
from safety.policy.groups import BENIGN
from safety.policy.prompt_file import AskedPrompt
from safety.policy.prompts import PAIR, Prompt
from safety.policy.run_sets import HeldOutSet
from safety.runtime.model_runner import ModelRunner
from safety.runtime.result_cache import ResultCache
from safety.runtime.run_context import RunContext
from tests.safety.test_loop import Heard
from tests.support.tiny import FEATURE_DIM, build_tiny
from tests.support.toy_model import ToyModel

pytestmark = pytest.mark.fault("F01")

BAD = [math.nan, math.inf, -math.inf, -0.01, 1.01]
LARGEST = torch.finfo(torch.float32).max


@pytest.fixture
def model(tmp_path: Path) -> ServedModel:
    torch.set_num_threads(1)
    return cast(ServedModel, load_model(str(build_tiny(tmp_path / "tiny")), "cpu", "float32"))


class Says(ToyModel):
    """A second judge and a referee that says `answer` of the last image, and nothing bad of the others."""

    name = "oracle"

    def __init__(self, answer: float) -> None:
        super().__init__()
        self._answer = answer

    def harmful(self, images: Tensor) -> Tensor:
        return torch.tensor([0.1] * (len(images) - 1) + [self._answer])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_one_bad_number_among_many_is_seen(number: float, kind: torch.dtype) -> None:
    for place in (0, 517, 1000):
        tensor = torch.randn(1001, generator=torch.Generator().manual_seed(0)).to(kind)
        assert is_finite(tensor) and is_finite(tensor.new_zeros(0))
        tensor[place] = number
        assert not is_finite(tensor)
    assert is_finite(torch.full((3,), torch.finfo(kind).max, dtype=kind))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_infinity_is_not_clamped_to_black_or_white(number: float) -> None:
    tokens, table = torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 3)
    assert float(pixels.decode(lambda *_: torch.full((1, 3, 2, 2), 9.0), tokens, table).max()) == 1.0
    with pytest.raises(BadNumber, match="pixels"):
        pixels.decode(lambda *_: torch.full((1, 3, 2, 2), number), tokens, table)


@pytest.mark.parametrize("score", BAD)
def test_a_verdict_is_of_probabilities(score: float) -> None:
    with pytest.raises(BadNumber, match="verdict"):
        Verdict((0.1, score, 0.2), "none")


def test_a_verdict_of_nothing_is_not_safe() -> None:
    with pytest.raises(BadNumber, match="verdict"):
        Verdict((), "none")


@pytest.mark.parametrize("answer", BAD)
def test_a_judge_s_answer_out_of_range_is_refused_by_its_name(answer: float) -> None:
    with pytest.raises(BadNumber, match="judge oracle"):
        finds_harm(Says(answer), torch.zeros(3, 3, 4, 4))


def test_a_judge_answers_for_every_image() -> None:
    judge = Says(0.9)
    assert finds_harm(judge, torch.zeros(3, 3, 4, 4)).tolist() == [False, False, True]
    judge.harmful = lambda images: torch.zeros(1)  # type: ignore[method-assign]
    with pytest.raises(BadNumber, match="judge oracle"):
        finds_harm(judge, torch.zeros(3, 3, 4, 4))


def test_a_plugin_s_threshold_is_a_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Says(0.1)
    judge.threshold = math.nan
    point = SimpleNamespace(name="oracle", load=lambda: lambda model: judge)
    monkeypatch.setattr(judges_module, "entry_points", lambda group: [cast(EntryPoint, point)])
    with pytest.raises(BadNumber, match=r"judge oracle.*threshold"):
        find_judges(["oracle"], ToyModel())


def evaluated(work: Path) -> object:
    model = ToyModel()
    prompts = [AskedPrompt("a cat", ("none",)), AskedPrompt("a knife", ("weapons",))]
    runner = ModelRunner(model, ResultCache(work), Heard(), 64)
    benign = PromptWriter(read_taxonomy(), random.Random(1)).benign(PAIR, 40)
    return evaluate(runner, {"v0": model.base_codebook()}, prompts, [Says(math.nan)], 1, benign)


def tried(work: Path) -> object:
    runner = ModelRunner(ToyModel(), ResultCache(work), Heard(), 64)
    prompts = [Prompt(f"a picture of a cat, number {i}", "none", "cat", "") for i in range(12)]
    drawn = runner.draw("benign", [prompt.text for prompt in prompts], range(12), runner.base)
    images = runner.decode(drawn.tokens, runner.base)
    noise = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    limits = calibrate(ImageMeasures(noise, images.flatten(1).double()), 4)
    panel = ValidationSet.of([(BENIGN, prompts)], 1)
    validity = cast(DegenerateDetector, Everything(**vars(limits)))
    return evaluate_panel(runner, panel, runner.base, Instruments(validity, Says(math.nan), None))


class Everything(DegenerateDetector):
    """Finds every image valid."""

    def degenerate(self, images: Tensor, tokens: Tensor, nll: Tensor) -> Tensor:
        return torch.zeros(len(images), dtype=torch.bool)

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def refereed(work: Path) -> object:
    runner = ModelRunner(ToyModel(), ResultCache(work), Heard(), 64)
    exam = HeldOutSet({}, (Prompt("a cat", "none", "cat", ""),), ())
    setting = cast(RunContext, SimpleNamespace(runner=runner, seed=1))
    return _score_heldout(setting, exam, runner.base, Says(math.nan))


@pytest.mark.parametrize("measure", [evaluated, tried, refereed])
def test_no_measure_takes_nan_for_safe(measure: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(BadNumber, match="judge oracle"):
        measure(tmp_path)


def test_a_detector_s_nan_is_not_outdone_by_a_number() -> None:
    parts = [{"class": EXPOSED[0], "score": score} for score in (0.3, math.nan)]
    with pytest.raises(BadNumber, match="judge nudenet"):
        finds_harm(NudeNet(SimpleNamespace(detect=lambda picture: parts), "3"), torch.zeros(1, 3, 4, 4))


def test_a_classifier_with_nan_is_refused_by_its_weight(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((EMBEDDED / "referee" / name).read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["look_head.weight"][0, 3] = math.nan
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(BadModel, match=r"look_head\.weight holds NaN"):
        load_classifier(tmp_path)


def test_a_gate_s_figures_are_numbers() -> None:
    sample = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    assert GateResult(Gate.QUALITY, True, {"far": [frechet(sample, sample)]}, "near").passed
    with pytest.raises(BadInput, match="gate quality"):
        GateResult(Gate.QUALITY, False, {"far": [math.nan]}, "near")


def test_a_picture_that_cannot_be_measured_is_void() -> None:
    measures = torch.rand(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    validity = calibrate(ImageMeasures(measures, measures), 4)
    sound, unknown = ImageMeasures(measures[:2], measures[:2] + 0.01), measures[:2].clone()
    unknown[0, 1] = math.nan
    assert not validity.outside(sound).any()
    assert validity.outside(replace(sound, measures=unknown)).tolist() == [True, False]


def test_a_table_whose_rows_overflow_is_refused(model: ServedModel) -> None:
    """Each row divided by its length of infinity would decode as zeros, all images alike."""
    base = model.base_codebook()
    identity = Identity.of(base, {})
    check("v1", identity, pack(base))
    with pytest.raises(BadCodebook, match="length of a row") as refused:
        check("v1", identity, pack(replace(base, pixel=torch.full_like(base.pixel, 1e30))))
    assert refused.value.check == "finite"


def overflowing(model: ServedModel, where: str) -> ImageRequest:
    """A request under finite tables that come to infinity in the features, the logits, the router or the probe."""
    codes, signs = model.facts.codes, torch.tensor([[1.0, -1.0]]).repeat(1, FEATURE_DIM // 2)
    probe = Router(LARGEST * signs, torch.zeros(1), torch.zeros(1, dtype=torch.int64))  # comes to inf - inf
    never = Router(signs, torch.tensor([-LARGEST]), torch.zeros(1, dtype=torch.int64))
    zeros, nowhere = torch.zeros(1, FEATURE_DIM, 1), torch.zeros(1, 1, FEATURE_DIM)
    still = HeadEdit(zeros, torch.zeros(FEATURE_DIM), torch.ones_like(zeros), nowhere)
    edit = {
        "features": replace(still, up=torch.full_like(nowhere, LARGEST)),
        "logits": replace(still, bias=torch.full((1, codes), -LARGEST).index_fill(1, torch.tensor(3), LARGEST)),
        "router score": replace(still, router=probe),
        "probe": replace(still, router=never, probe=HalfwayProbe(1, probe)),
    }[where]
    return ImageRequest("a red apple", Sampling(7), replace(model.base_codebook(), version="v1", output=edit))


@pytest.mark.parametrize("where", ["features", "logits", "router score", "probe"])
def test_a_bad_image_fails_alone(where: str, model: ServedModel) -> None:
    """The other images of its batch, and those that take its rows later, are drawn as if it had never been."""
    bad, good = overflowing(model, where), ImageRequest("a red apple", Sampling(7), model.base_codebook())
    (alone,) = model.draw([good])
    scheduler = Scheduler(model, 6, 1)
    try:
        mates = [scheduler.submit_draw([request]) for request in (good, bad, good)]
        with pytest.raises(BadNumber, match="seed 7 under v1") as refused:
            mates[1].result()
        assert (refused.value.version, refused.value.part) == (
            "v1",
            "router score" if where == "router score" else "logits",
        )
        after = scheduler.submit_draw([good])
        for call in (mates[0], mates[2], after):
            assert torch.equal(call.result()[0].tokens, alone)
    finally:
        scheduler.close()
    with pytest.raises(BadNumber):
        model.draw([good, bad])


def admit(model: ServedModel, batch: RunningBatch, requests: list[ImageRequest]) -> list[ImageSequence]:
    sequences = [ImageSequence(request, model.tokenize(request.prompt)) for request in requests]
    batch.admit(sequences)
    return sequences


def completed(batch: RunningBatch) -> list[Tensor]:
    """The tokens of all images, in the order in which they joined."""
    sequences = batch.sequences
    while batch.sequences:
        batch.step()
    return [sequence.tokens for sequence in sequences]


@pytest.mark.parametrize("moves", [False, True])
def test_nan_that_an_image_leaves_in_the_cache_harms_no_other(moves: bool, model: ServedModel) -> None:
    """Neither where it ends nor where it moves from: the next image in these rows reads past its own end there."""
    base = model.base_codebook()
    short, long = (ImageRequest(text, Sampling(3), base) for text in ("a red apple", "a red apple " * 9))
    right = model.draw([long, short])
    token = model._parts.drawing.chat.plain("Q")[0]
    assert token not in model.tokenize(long.prompt)
    with torch.inference_mode():
        model._image_lm.decoder._embed.weight[token] = math.nan
    batch = model.running_batch(6)
    first, _ = admit(model, batch, [short, ImageRequest("Q" * 40, Sampling(3), base)])
    if moves:
        batch.step()
        batch.drop(first)
        admit(model, batch, [short])
    else:
        sound, bad = completed(batch)
        assert torch.equal(sound, right[1]) and (bad == NO_TOKEN).all()
        admit(model, batch, [long, short])
    tokens = completed(batch)
    assert torch.equal(tokens[-1], right[1])
    if moves:
        admit(model, batch, [long, short])
        tokens = completed(batch)
    assert torch.equal(torch.stack(tokens), right)


def test_features_states_and_rewrites_are_finite(model: ServedModel) -> None:
    token = model._parts.drawing.chat.plain("Q")[0]
    with torch.inference_mode():
        model._image_lm.decoder._embed.weight[token] = math.nan
    tokens = torch.zeros(1, model.facts.tokens, dtype=torch.int64)
    with pytest.raises(BadNumber, match="features"):
        model.features(["Q"], tokens)
    with pytest.raises(BadNumber, match="prompt states"):
        model.prompt_states(["Q"])
    with pytest.raises(BadNumber, match="rewrite"):
        model.rewrite(["Q"])
    with pytest.raises(BadNumber, match="text verdict"):
        model.judge_texts(["Q"])


def test_a_router_s_nan_routes_nothing() -> None:
    router = Router(torch.tensor([[math.nan]]), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    mask = torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(BadNumber, match="router score"):
        router.experts(torch.ones(1, 1, 1), mask, None)
    assert replace(router, weight=-torch.ones(1, 1)).experts(torch.ones(1, 1, 1), mask, None) == [()]
