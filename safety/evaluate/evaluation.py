"""Evaluation of codebooks on prompts by judges: rates by category with intervals, each codebook against the first.

Measures; decides nothing. Every batch is cached, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from codebook.tensors import codebook_hash
from codebook.value import Codebook
from core.errors import BadInput
from engine.model import ImageModel, Sampling
from safety.config import LoopConfig
from safety.evaluate.bars import paired, ways
from safety.judges.matchers import Matcher, shows_prompt
from safety.judges.registry import Judge, credentials, finds_harm
from safety.metrics.degenerate import DegenerateDetector
from safety.metrics.rates import Rate, Rates, mcnemar
from safety.policy.groups import BENIGN
from safety.policy.policy import Policy
from safety.policy.prompt_file import AskedPrompt
from safety.policy.prompts import PAIR, Prompt, is_readable
from safety.runtime.baseline import LEAST_SAFE, take_validity
from safety.runtime.model_runner import ModelRunner, derived_seed, refused

SOUND = 500  # benign images, under which the limits of degenerate images are too narrow


@dataclass(frozen=True)
class Labels:
    """Labels of one codebook's images of n prompts. harmful: bool [n] by judge; degenerate, refused: bool [n].

    right: bool [n] by judge that also matches: shows its prompt; no meaning where that is unknown. An image that the
    codebook refuses is neither harmful nor degenerate, and shows nothing.
    """

    harmful: Mapping[str, Tensor]
    degenerate: Tensor
    refused: Tensor
    right: Mapping[str, Tensor]


def benign_prompts(model: ImageModel, policy: Policy, seed: int) -> tuple[Prompt, ...]:
    """The benign prompts of a policy to calibrate on: as many as an improve run keeps, fewer where it has fewer.

    Raises BadInput where they are too few for limits to mean anything.
    """
    prompts = policy.write(BENIGN, PAIR, LoopConfig().retention, random.Random(f"evaluate/{seed}"))
    usable = tuple(prompt for prompt in prompts if is_readable(model, prompt.text))
    if len(usable) < LEAST_SAFE:
        allowed = f"one with {LEAST_SAFE} or more benign prompts of the split {PAIR!r} that the model can read"
        raise BadInput("policy", f"{policy.name} ({len(usable)} benign prompts)", allowed)
    return usable


def samplings(model: ImageModel, prompts: Sequence[AskedPrompt], seed: int) -> list[Sampling]:
    """The sampling of each prompt: the file's seed and guidance, else a derived seed and the model's defaults."""
    usual = [model.facts.sampling(derived_seed(seed, "evaluate", i)) for i in range(len(prompts))]
    return [
        replace(
            sampling,
            seed=sampling.seed if prompt.seed is None else prompt.seed,
            guidance=sampling.guidance if prompt.guidance is None else prompt.guidance,
        )
        for prompt, sampling in zip(prompts, usual, strict=True)
    ]


def evaluate(
    runner: ModelRunner,
    codebooks: Mapping[str, Codebook],
    prompts: Sequence[AskedPrompt],
    judges: Sequence[Judge],
    seed: int,
    benign: Sequence[Prompt],
) -> dict[str, Any]:
    """Draw the prompts (all readable) under each codebook with the same seeds, and judge; the report, as JSON.

    benign: readable prompts of a policy, on whose images under the base codebook the detector of degenerate images is
    calibrated. Raises BadModel, and BadNumber where an image, a verdict or a judge comes to NaN or infinity: it counts
    neither as harmful nor as safe.
    """
    *_, validity = take_validity(runner, benign, seed)
    how, own = samplings(runner.model, prompts, seed), runner.model.facts.guidance
    labels = {name: label(runner, codebook, prompts, how, judges, validity) for name, codebook in codebooks.items()}
    first, says = next(iter(labels.values())), _harmless(prompts)
    return {
        "model": runner.model.facts.title,
        "model_hash": runner.model.facts.model_hash,
        "seed": seed,
        "prompts": len(prompts),
        "guidance": {"model": own, "from_file": sum(sampling.guidance != own for sampling in how)},
        "intervals": "Wilson 95 %",
        "judges": [credentials(judge) for judge in judges],
        "versions": {
            name: {
                "hash": codebook_hash(codebooks[name]),
                "rates": _rates(each, prompts),
                "refused": _refused(each, prompts),
                "right": _right(each, prompts),
                "any_seed": _any_seed(each, prompts),
                "ways": _ways(each, prompts),
            }
            for name, each in labels.items()
        },
        "beside_the_first": {name: _paired(first, each) for name, each in list(labels.items())[1:]},
        "harmless_beside_the_first": {
            name: {judge: paired(first.right[judge][says], right[says]) for judge, right in each.right.items()}
            for name, each in list(labels.items())[1:]
            if says.any()
        },
    }


def label(
    runner: ModelRunner,
    codebook: Codebook,
    prompts: Sequence[AskedPrompt],
    how: Sequence[Sampling],
    judges: Sequence[Judge],
    validity: DegenerateDetector,
) -> Labels:
    """Draw and judge batch by batch; at most one batch of images is in memory."""
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(prompts), runner.batch):
        rows = slice(start, start + runner.batch)
        runner.report(f"evaluate {codebook.version}", start, len(prompts))
        drawn = runner.sample("evaluate", [prompt.text for prompt in prompts[rows]], how[rows], codebook)
        images = runner.decode(drawn.tokens, codebook)
        verdicts = {f"harmful/{judge.name}": finds_harm(judge, images) for judge in judges}
        shown = [prompt.shows or prompt.text for prompt in prompts[rows]]
        for judge in judges:
            if isinstance(judge, Matcher):
                verdicts[f"right/{judge.name}"] = shows_prompt(judge, images, shown)
        verdicts["degenerate"] = validity.degenerate(images, drawn.tokens, drawn.nll)
        gone = refused(drawn.tokens)
        parts.append({"refused": gone} | {name: verdict & ~gone for name, verdict in verdicts.items()})
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    names = [judge.name for judge in judges]
    able = [judge.name for judge in judges if isinstance(judge, Matcher)]
    harmful = {name: joined[f"harmful/{name}"] for name in names}
    right = {name: joined[f"right/{name}"] for name in able}
    return Labels(harmful, joined["degenerate"], joined["refused"], right)


def _rates(labels: Labels, prompts: Sequence[AskedPrompt]) -> dict[str, Any]:
    """By judge: over all prompts, and by category; a prompt of two categories counts in both."""
    rows = _rows(prompts)
    return {
        judge: {
            "all": Rates.of(harmful, labels.degenerate).to_dict(),
            "categories": {name: Rates.of(harmful[of], labels.degenerate[of]).to_dict() for name, of in rows.items()},
        }
        for judge, harmful in labels.harmful.items()
    }


def _refused(labels: Labels, prompts: Sequence[AskedPrompt]) -> dict[str, Any]:
    """By category: the rate of images that the codebook refuses to draw; nothing for one that refuses none."""
    rows = _rows(prompts) if bool(labels.refused.any()) else {}
    return {name: Rate(int(labels.refused[of].sum()), int(of.sum())).to_dict() for name, of in rows.items()}


def _right(labels: Labels, prompts: Sequence[AskedPrompt]) -> dict[str, Any]:
    """By judge that matches, and by category whose prompts say what to show: the rate at which the image shows it."""
    says = _harmless(prompts)
    groups = {name: of & says for name, of in _rows(prompts).items() if (of & says).any()}
    return {
        judge: {name: Rate(int(right[of].sum()), int(of.sum())).to_dict() for name, of in groups.items()}
        for judge, right in labels.right.items()
    }


def _harmless(prompts: Sequence[AskedPrompt]) -> Tensor:
    """Bool [n]: the prompts that say what their image is to show; those for harm do not."""
    return torch.tensor([prompt.shows is not None for prompt in prompts])


def _ways(labels: Labels, prompts: Sequence[AskedPrompt]) -> dict[str, Any]:
    """By judge: each way of asking beside plain prompts."""
    says, rows = _harmless(prompts), _rows(prompts)
    no_way = {name for name, of in rows.items() if (of & says).any()}  # for no harm, or repeated under other seeds
    no_way |= {name for name, of in rows.items() if 2 * len({prompts[i].text for i in of.nonzero()}) <= int(of.sum())}
    return {judge: ways(rates["categories"], no_way) for judge, rates in _rates(labels, prompts).items()}


def _any_seed(labels: Labels, prompts: Sequence[AskedPrompt]) -> dict[str, Any]:
    """By judge and category with repeated prompts: the rate of prompts that gave harm under any of their seeds."""
    report: dict[str, Any] = {}
    for judge, harmful in labels.harmful.items():
        for name, of in _rows(prompts).items():
            texts: dict[str, list[bool]] = {}
            for i in of.nonzero().flatten().tolist():
                texts.setdefault(prompts[i].text, []).append(bool(harmful[i]))
            if len(texts) < int(of.sum()):
                rate = Rate(sum(any(flags) for flags in texts.values()), len(texts))
                report.setdefault(judge, {})[name] = rate.to_dict()
    return report


def _rows(prompts: Sequence[AskedPrompt]) -> dict[str, Tensor]:
    """Bool [n] of the prompts of each category."""
    names = dict.fromkeys(category for prompt in prompts for category in prompt.categories)
    return {name: torch.tensor([name in prompt.categories for prompt in prompts]) for name in names}


def _paired(before: Labels, after: Labels) -> dict[str, Any]:
    """By judge: images that became safe and valid, that ceased to be, and the one-sided McNemar p of being safer."""
    report = {}
    for judge, harmful in after.harmful.items():
        old, new = ~(before.harmful[judge] | before.degenerate), ~(harmful | after.degenerate)
        report[judge] = {"won": int((new & ~old).sum()), "lost": int((old & ~new).sum()), "p": mcnemar(old, new)}
    return report
