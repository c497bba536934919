"""`safecb evaluate`: codebook versions of the store on a file of prompts, or on a built-in suite, by any judges.

Draws on the machine it runs on; needs neither a server nor Redis. Called again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cli import iteration
from cli.own_process import (
    ACTIVE,
    JUDGES_HELP,
    ConsoleProgress,
    check_names,
    exit_code,
    find_codebooks,
    find_judges,
    policy_of,
    sort_prompts,
)
from codebook.value import Codebook
from core.atomic import replace_file
from core.errors import BadInput
from core.json_records import to_json
from core.settings import Settings
from engine.registry import open_model
from safety.config import LoopConfig
from safety.evaluate.ablation import Variant, variants
from safety.evaluate.charts import chart, trade_off
from safety.evaluate.cost import costs
from safety.evaluate.evaluation import SOUND, benign_prompts, evaluate, samplings
from safety.evaluate.grids import before_after_png
from safety.evaluate.page import markdown, page
from safety.loop import ImproveRequest, improve
from safety.policy.emoji.classifier_judge import second_judge
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.policy.emoji.suites import Size, standard
from safety.policy.emoji.taxonomy import read_taxonomy
from safety.policy.prompt_file import AskedPrompt, read_prompts
from safety.runtime.model_runner import ModelRunner
from safety.runtime.result_cache import ResultCache
from safety.runtime.run_context import prepare_run

SHOWN = 36  # images in the picture
STANDARD, ABLATION = "standard", "ablation"
SMALL = Size(plain=75, other=0, repeated=0, benign=120, look_alikes=30, pairs_of_objects=0)  # for each of many variants
LOOP_ROUNDS = 2
NOT_OF_ITERATION = ("versions", "judges", "policy", "seed", "file_guidance", "costs", "show_prompts")
COSTS = 16  # harmful and harmless images each, timed under every variant


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0, 1 for a failure of the disk, 2 for a bad argument or model."""
    options = _parser().parse_args(arguments)

    def command(settings: Settings) -> str:
        _refuse_others(options.suite, arguments)
        return iteration.run(options, settings) if options.suite == iteration.ITERATION else run(options, settings)

    return exit_code("evaluate", command)


def _refuse_others(suite: str | None, arguments: Sequence[str] | None) -> None:
    """Raise BadInput for the first option among the arguments that this suite would not follow."""
    parser, others = _parser(), NOT_OF_ITERATION if suite == iteration.ITERATION else iteration.OPTIONS
    parser.set_defaults(**dict.fromkeys(others))  # what is not None then stands in the arguments
    options = vars(parser.parse_args(arguments))
    for name in others:
        if options[name] is not None:
            word = "without" if others is iteration.OPTIONS else "with"
            raise BadInput(name, options[name], f"no such option {word} --suite {iteration.ITERATION}")


def run(options: argparse.Namespace, settings: Settings) -> str:
    """Evaluate, write evaluation.json, .html, .md and the pictures to `options.out`; return a short table."""
    if options.suite and options.policy not in (None, EmojiPolicy.name):
        raise BadInput("policy", options.policy, f"{EmojiPolicy.name}, whose test prompts the suites are")
    prompts = _prompts(options)
    names = check_names(options.judges)
    model = open_model(settings)
    parted = sort_prompts(model, prompts, options.suite or options.prompts)
    policy = policy_of(EmojiPolicy.name if options.suite else options.policy, settings, model)
    benign = benign_prompts(model, policy, options.seed)
    if len(benign) < SOUND:
        print(
            f"{len(benign)} benign prompts: too many images will count as degenerate; {SOUND} are due", file=sys.stderr
        )
    judges = find_judges(names, model)
    # Named by the inputs of the calibration, so that a folder may be used for another seed, model or policy.
    work = options.out / "work" / f"{model.facts.model_hash[:16]}-{policy.version[:16]}-{options.seed}"
    runner = ModelRunner(model, ResultCache(work), ConsoleProgress(), LoopConfig().batch)
    ablation = _variants(runner, options.seed, work / "loop") if options.suite == ABLATION else {}
    versions = [name.strip() for name in options.versions.split(",")]
    codebooks = {name: variant.codebook for name, variant in ablation.items()}
    codebooks = codebooks or find_codebooks(settings, model, versions)
    report = evaluate(runner, codebooks, parted.usable, judges, options.seed, benign)
    report |= {
        "asked": options.suite or options.prompts.name,
        "unreadable": len(parted.unreadable),
        "refused": len(parted.refused),
        "policy": {"name": policy.name, "version": policy.version, "benign": len(benign)},
    }
    if count := COSTS if options.costs is None and ablation else options.costs or 0:
        how = samplings(model, parted.usable, options.seed)
        report["costs"] = costs(runner, codebooks, parted.usable, how, count)
    if others := report["guidance"]["from_file"]:
        print(f"{others} prompts are drawn with the file's guidance, not {model.facts.guidance:g}", file=sys.stderr)
    if options.show_prompts:
        report["texts"] = [prompt.text for prompt in parted.usable]
    charts = {"Harmful rates": chart(report)}
    if ablation:
        report["variants"] = {name: {"about": v.about, "seconds": v.seconds} for name, v in ablation.items()}
        charts["Harmful against degenerate images: trade-off"] = trade_off(report, judges[-1].name)
    pictures = charts | _grid(runner, codebooks, parted.usable, options.seed)
    _write(options.out, report, pictures, judges[-1].name)
    return "\n".join([*_summary(report), f"{options.out / 'evaluation.html'}"])


def _prompts(options: argparse.Namespace) -> Sequence[AskedPrompt]:
    """The prompts of the file, or of the suite. Raises BadInput."""
    if (options.costs or 0) < 0:
        raise BadInput("costs", options.costs, "a whole number of images, 0 or more")
    if not options.suite:
        return read_prompts(options.prompts, options.file_guidance)
    return standard(read_taxonomy(), options.seed, SMALL if options.suite == ABLATION else Size())


def _write(out: Path, report: Mapping[str, Any], pictures: Mapping[str, bytes], judge: str) -> None:
    """The report as JSON, HTML and Markdown (by one judge), and its pictures as PNG files."""
    replace_file(out / "evaluation.json", to_json("evaluation", report, indent=1))
    replace_file(out / "evaluation.html", page(report, pictures).encode())
    replace_file(out / "evaluation.md", markdown(report, judge).encode())
    for title, png in pictures.items():
        replace_file(out / f"{title.split()[-1].lower()}.png", png)


def _summary(report: Mapping[str, Any]) -> list[str]:
    """A line a codebook and judge."""
    return [
        f"{version:8} {judge:10} harmful {rates['all']['hr']['value']:.3f}"
        f" ({rates['all']['hr']['low']:.3f}-{rates['all']['hr']['high']:.3f}, n = {rates['all']['hr']['n']})"
        f", degenerate {rates['all']['vr']['value']:.3f}"
        for version, result in report["versions"].items()
        for judge, rates in result["rates"].items()
    ]


def _variants(runner: ModelRunner, seed: int, work: Path) -> dict[str, Variant]:
    """The base codebook, the loop after each of its rounds, and the variants of its first one.

    work: a folder of its own; the evaluation keeps its own calibration under the same names. Raises BadModel without a
    second judge.
    """
    model = runner.model
    judge, started = second_judge(model), time.monotonic()
    request = ImproveRequest(prompts=None, categories=None, max_rounds=LOOP_ROUNDS, seed=seed)
    context = prepare_run(model, request, EmojiPolicy(), judge, work, ConsoleProgress(), LoopConfig())
    rounds: dict[str, Variant] = {}
    for result in improve(context, context.runner.base):
        name = f"loop-{result.round}"
        if result.codebook is not None:
            about = f"the loop after round {result.round}: {result.reason}"
            rounds[name] = Variant(about, replace(result.codebook, version=name), time.monotonic() - started)
    return {"base": Variant("the model's own codebook", runner.base, 0.0), **dict(variants(context)), **rounds}


def _grid(
    runner: ModelRunner, codebooks: Mapping[str, Codebook], prompts: Sequence[AskedPrompt], seed: int
) -> dict[str, bytes]:
    """The first images under the first and the last codebook."""
    first_prompts = prompts[: min(SHOWN, runner.batch)]
    how = samplings(runner.model, prompts, seed)[: len(first_prompts)]
    first, *_, last = [*codebooks.values()] * 2
    sides: list[torch.Tensor] = []
    for codebook in (first, last):
        tokens = runner.sample("pictures", [prompt.text for prompt in first_prompts], how, codebook).tokens
        sides.append(runner.decode(tokens, codebook))
    return {f"{first.version} above {last.version}: images": before_after_png(sides[0], sides[1])}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="safecb evaluate", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompts", type=Path, help="a CSV file (I2P's or CoPro's columns), or text")
    source.add_argument(
        "--suite",
        choices=(STANDARD, ABLATION, iteration.ITERATION),
        help="the taxonomy's test prompts, in every wording",
    )
    parser.add_argument("--versions", default=f"v0,{ACTIVE}", help="comma separated; the first is compared with")
    parser.add_argument("--judges", default="self", help=JUDGES_HELP)
    parser.add_argument("--policy", help="whose benign prompts set the limits of degenerate images")
    parser.add_argument("--seed", type=int, default=0, help="for every prompt whose row has none")
    parser.add_argument("--file-guidance", action="store_true", help="draw with the guidance that the file gives")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="the folder to write to and go on from")
    parser.add_argument("--costs", type=int, help="time so many harmful and harmless images under each codebook")
    parser.add_argument("--show-prompts", action="store_true", help="write the prompts into the JSON report")
    iteration.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
