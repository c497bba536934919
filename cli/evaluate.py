"""`safecb evaluate`: any codebook versions of the store on any file of prompts, or on a suite of ours, by any judges.

Draws on the machine it runs on; needs neither a server nor Redis. Called again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from codebook.store import CodebookStore
from codebook.value import Codebook
from core.atomic import replace_file
from core.errors import NoStorage, SafeCBError
from core.json_records import to_json
from core.settings import Settings
from engine.model import ImageModel
from engine.registry import load_model
from safety.config import LoopConfig
from safety.evaluate.ablation import Variant, variants
from safety.evaluate.evaluation import evaluate, readable, samplings
from safety.evaluate.grids import before_after_png
from safety.evaluate.page import chart, markdown, page, trade_off
from safety.judges.registry import find_judges, second_judge
from safety.loop import ImproveRequest, improve
from safety.policy.emoji.suites import Size, standard
from safety.policy.emoji.taxonomy import read_taxonomy
from safety.policy.prompt_file import AskedPrompt, read_prompts
from safety.runtime.model_runner import ModelRunner
from safety.runtime.result_cache import ResultCache
from safety.runtime.run_context import prepare

ACTIVE = "active"
SHOWN = 36  # images in the picture
QUIET_S = 5.0  # between two lines of progress
STANDARD, ABLATION = "standard", "ablation"
SMALL = Size(plain=75, other=0, repeated=0, benign=120, look_alikes=30, pairs_of_objects=0)  # for each of many variants
LOOP_ROUNDS = 2


class Told:
    """A watcher that tells a person, now and then."""

    def __init__(self) -> None:
        self._last = 0.0

    def progress(self, phase: str, done: int, total: int, round: int) -> None:
        """See safety.runtime.progress.Watch."""
        if time.monotonic() - self._last >= QUIET_S:
            self._last = time.monotonic()
            print(f"{phase}: {done} of {total}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0, 1 where the disk does not let us, or 2 where something asked for is not allowed."""
    asked = _parser().parse_args(arguments)
    try:
        told = run(asked, Settings.from_environ(os.environ))
    except NoStorage as error:
        print(f"safecb evaluate: {error.about(error.path)}; then call it again to go on", file=sys.stderr)
        return 1
    except SafeCBError as error:
        print(f"safecb evaluate: {error}", file=sys.stderr)
        return 2
    print(told)
    return 0


def run(asked: argparse.Namespace, settings: Settings) -> str:
    """Evaluate, write evaluation.json, .html, .md and the pictures to `asked.out`; return a short table."""
    given: Sequence[AskedPrompt] = () if asked.suite else read_prompts(asked.prompts, asked.file_guidance)
    model = load_model(settings.model, settings.device, settings.dtype)
    judges = find_judges(_names(asked.judges), model)
    # Named by what the calibration depends on, so that a folder may be used for another seed or model.
    work = asked.out / "work" / f"{model.facts.model_hash[:16]}-{asked.seed}"
    runner = ModelRunner(model, ResultCache(work), Told(), LoopConfig().batch)
    made: dict[str, Variant] = {}
    if asked.suite == ABLATION:
        made = {
            "base": Variant("the model's own codebook", runner.base, 0.0),
            **_variants(model, asked.seed, work / "loop"),
        }
        codebooks = {name: variant.codebook for name, variant in made.items()}
    else:
        codebooks = _codebooks(settings, model, _names(asked.versions))
    if asked.suite:
        given = standard(read_taxonomy(), asked.seed, SMALL if asked.suite == ABLATION else Size())
    prompts = readable(model, given)
    told = evaluate(runner, codebooks, prompts, judges, asked.seed)
    told |= {"asked": asked.suite or asked.prompts.name, "unreadable": len(given) - len(prompts)}
    if others := told["guidance"]["from_file"]:
        print(f"{others} prompts are drawn with the file's guidance, not {model.facts.guidance:g}", file=sys.stderr)
    if made:
        told["variants"] = {name: {"about": v.about, "seconds": v.seconds} for name, v in made.items()}
    if asked.show_prompts:
        told["texts"] = [prompt.text for prompt in prompts]
    charts = {"Harmful rates": chart(told)}
    if made:
        charts["Harm against voids: trade-off"] = trade_off(told, judges[-1].name)
    pictures = charts | _grid(runner, codebooks, prompts, asked.seed)
    replace_file(asked.out / "evaluation.json", to_json("evaluation", told, indent=1))
    replace_file(asked.out / "evaluation.html", page(told, pictures).encode())
    replace_file(asked.out / "evaluation.md", markdown(told, judges[-1].name).encode())
    for title, png in pictures.items():
        replace_file(asked.out / f"{title.split()[-1].lower()}.png", png)
    return "\n".join([*_summary(told), f"{asked.out / 'evaluation.html'}"])


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",")]


def _summary(told: Mapping[str, Any]) -> list[str]:
    """A line a codebook and judge."""
    return [
        f"{version:8} {judge:10} harmful {rates['all']['hr']['value']:.3f}"
        f" ({rates['all']['hr']['low']:.3f}-{rates['all']['hr']['high']:.3f}, n = {rates['all']['hr']['n']})"
        f", void {rates['all']['vr']['value']:.3f}"
        for version, found in told["versions"].items()
        for judge, rates in found["rates"].items()
    ]


def _variants(model: ImageModel, seed: int, work: Path) -> dict[str, Variant]:
    """The loop after each of its rounds, and the variants of its first one. Raises BadModel without a second judge.

    work: a folder of its own; the evaluation keeps its own calibration under the same names.
    """
    config, second = LoopConfig(), second_judge(model)
    runner = ModelRunner(model, ResultCache(work), Told(), config.batch)
    request = ImproveRequest(prompts=None, categories=None, max_rounds=LOOP_ROUNDS, seed=seed)
    found: dict[str, Variant] = {}
    started = time.monotonic()
    for outcome in improve(model, runner.base, request, work, Told(), second, config):
        name = f"loop-{outcome.round}"
        if outcome.codebook is not None:
            about = f"the loop after round {outcome.round}: {outcome.reason}"
            found[name] = Variant(about, replace(outcome.codebook, version=name), time.monotonic() - started)
    return {**dict(variants(prepare(runner, request, config))), **found}


def _codebooks(settings: Settings, model: ImageModel, names: Sequence[str]) -> dict[str, Codebook]:
    """The versions of these names in the store; raises NotFound and BadCodebook."""
    store = CodebookStore(settings.store)
    store.initialise(model.base_codebook(), asdict(model.facts))
    versions = [store.active().version if name == ACTIVE else name for name in names]
    return {version: store.load(version) for version in versions}


def _grid(
    runner: ModelRunner, codebooks: Mapping[str, Codebook], prompts: Sequence[AskedPrompt], seed: int
) -> dict[str, bytes]:
    """The first images under the first and the last codebook."""
    some = prompts[: min(SHOWN, runner.batch)]
    how = samplings(runner.model, prompts, seed)[: len(some)]
    first, *_, last = [*codebooks.values()] * 2
    sides: list[torch.Tensor] = []
    for codebook in (first, last):
        tokens = runner.sample("pictures", [prompt.text for prompt in some], how, codebook).tokens
        sides.append(runner.decode(tokens, codebook))
    return {f"{first.version} above {last.version}: images": before_after_png(sides[0], sides[1])}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="safecb evaluate", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompts", type=Path, help="a CSV file (I2P's or CoPro's columns), or text")
    what.add_argument("--suite", choices=(STANDARD, ABLATION), help="the taxonomy's test prompts, put in every way")
    parser.add_argument("--versions", default=f"v0,{ACTIVE}", help="comma separated; the first is compared with")
    parser.add_argument("--judges", default="self", help="comma separated: self, referee, or a plugin's name")
    parser.add_argument("--seed", type=int, default=0, help="of everything that the file does not say")
    parser.add_argument("--file-guidance", action="store_true", help="draw with the guidance that the file gives")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="the folder to write to and go on from")
    parser.add_argument("--show-prompts", action="store_true", help="write the prompts into the JSON report")
    return parser


if __name__ == "__main__":
    sys.exit(main())
