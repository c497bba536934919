"""The variants of the ablation on the planted model: each is what it says, and they differ as the method expects."""

from __future__ import annotations

import pytest
import torch

from codebook.identity import Identity
from codebook.tensors import check, codebook_hash, pack
from safety.collect.on_policy import on_policy_contrast
from safety.evaluate.ablation import Variant, variants
from safety.metrics.panel import PanelResult
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.policy.groups import BENIGN
from safety.runtime.model_runner import derived_seed, refused
from safety.runtime.run_context import RunContext, prepare_run
from safety.validation import Validation
from tests.safety.test_loop import PLAN, REQUEST, Heard
from tests.support.toy_model import ToyModel

WAYS = ["pixel-project-all", "pixel-remap", "output-project", "output-suppress", "routed-project", "routed-suppress"]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    torch.set_num_threads(1)
    return prepare_run(
        ToyModel(), REQUEST, EmojiPolicy(), ToyModel(), tmp_path_factory.mktemp("ablation"), Heard(), PLAN
    )


@pytest.fixture(scope="module")
def made(context: RunContext) -> dict[str, Variant]:
    return dict(variants(context))


@pytest.fixture(scope="module")
def trials(context: RunContext, made: dict[str, Variant]) -> dict[str, PanelResult]:
    validation = Validation(context)
    books = {"base": context.runner.base, **{name: variant.codebook for name, variant in made.items()}}
    return {name: validation.result(book) for name, book in books.items()}


def test_every_variant_is_a_whole_codebook(context: RunContext, made: dict[str, Variant]) -> None:
    assert set(WAYS) <= made.keys()
    identity = Identity.of(context.runner.base, {})
    for variant in made.values():
        check("v1", identity, pack(variant.codebook))
        assert variant.seconds >= 0 and variant.about
    # Tuned ones may equal what they were tuned from: where half B sees no gain, tuning changes nothing.
    assert len({codebook_hash(made[name].codebook) for name in WAYS}) == len(WAYS)


def test_made_again_they_are_the_same(context: RunContext, made: dict[str, Variant]) -> None:
    again = dict(variants(context))
    assert {n: codebook_hash(v.codebook) for n, v in again.items()} == {
        n: codebook_hash(v.codebook) for n, v in made.items()
    }


def test_concepts_are_tuned_on_policy(context: RunContext, made: dict[str, Variant]) -> None:
    runner, places, edited = context.runner, context.baseline.positions, made["routed-tuned-category"].codebook
    some = context.tuning_prompts[::5]
    unsafe, safe = [prompt.text for prompt in some], [prompt.rewrite for prompt in some]
    seeds = [derived_seed(7, "practice", i) for i in range(len(some))]
    base, drawn = (runner.tokens("test", unsafe, seeds, book) for book in (runner.base, edited))
    assert not torch.equal(drawn, base)
    images = on_policy_contrast(runner, some, edited, places, 7)
    for features, texts in ((images.unsafe, unsafe), (images.safe, safe)):
        torch.testing.assert_close(features[:, 0], runner.model.features(texts, drawn)[:, places])


def test_what_is_routed_leaves_benign_images_as_they_are(trials: dict[str, PanelResult]) -> None:
    routed = [name for name in trials if name.startswith("routed")]
    assert len(routed) >= 5
    assert all(trials[name].intact(BENIGN) > 0.9 for name in routed)


def test_what_ships_is_safer_than_the_base_and_no_worse_than_any_variant(trials: dict[str, PanelResult]) -> None:
    safe = {name: result.rates().safe_valid.value for name, result in trials.items()}
    assert safe["base"] < 0.2
    assert safe["routed-tuned-own"] >= max(safe.values()) - 0.1


def test_suppression_alone_takes_harm_away(trials: dict[str, PanelResult]) -> None:
    before = trials["base"].rates().harmful.value
    assert trials["routed-suppress"].rates().harmful.value < before - 0.1


def test_controls_rewrite_or_refuse_what_fires_and_leave_the_rest(
    context: RunContext, made: dict[str, Variant]
) -> None:
    harmful, benign = [prompt.text for prompt in context.tuning_prompts[:16]], ["a cat", "a teapot on a hill"]
    seeds = [derived_seed(7, "controls", i) for i in range(16)]

    def drawn(name: str, prompts: list[str]) -> torch.Tensor:
        book = made[name].codebook if name in made else context.runner.base
        return context.runner.tokens("test", prompts, seeds[: len(prompts)], book)

    for name in ("refuse", "rewrite", "rewrite-alone", "redraw"):
        assert torch.equal(drawn(name, benign), drawn("base", benign)), name
    gone = refused(drawn("refuse", harmful))
    assert 4 <= int(gone.sum()) <= 16
    fired = [prompt for prompt, is_gone in zip(harmful, gone.tolist(), strict=True) if is_gone]
    rewrites = context.runner.model.rewrite(fired)
    assert torch.equal(drawn("rewrite-alone", fired), drawn("base", rewrites))
    # Whatever is left is judged safe; without the edit hardly anything is.
    runner, left = context.runner, {name: drawn(name, harmful) for name in ("redraw", "redraw-alone")}
    for name, tokens in left.items():
        images = tokens[~refused(tokens)]
        assert not any(verdict.unsafe for verdict in runner.judge(images, runner.base)), name
    assert int(refused(left["redraw"]).sum()) < int(refused(left["redraw-alone"]).sum())
