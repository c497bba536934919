"""`safecb evaluate`: any codebook versions of the store on any file of prompts, by any judges.

Draws on the machine it runs on; needs neither a server nor Redis. Called again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from codebook.atomic import replace_file
from codebook.errors import SafeCBError
from codebook.settings import Settings
from codebook.store import CodebookStore
from codebook.value import Codebook
from engine.loading import load_model
from safety.evaluation import evaluate, readable, samplings
from safety.evaluation_page import chart, page
from safety.grids import before_after_png
from safety.judges import find_judges
from safety.keep import Keep
from safety.plan import Plan
from safety.prompt_file import AskedPrompt, read_prompts
from safety.studio import Studio

ACTIVE = "active"
SHOWN = 36  # images in the picture
QUIET_S = 5.0  # between two lines of progress


class Told:
    """A watcher that tells a person, now and then."""

    def __init__(self) -> None:
        self._last = 0.0

    def progress(self, phase: str, done: int, total: int, round: int) -> None:
        """See safety.watch.Watch."""
        if time.monotonic() - self._last >= QUIET_S:
            self._last = time.monotonic()
            print(f"{phase}: {done} of {total}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0, or 2 where something asked for is not allowed."""
    asked = _parser().parse_args(arguments)
    try:
        told = run(asked, Settings.from_environ(os.environ))
    except SafeCBError as error:
        print(f"safecb evaluate: {error}", file=sys.stderr)
        return 2
    print(told)
    return 0


def run(asked: argparse.Namespace, settings: Settings) -> str:
    """Evaluate and write evaluation.json, .html and the pictures to the folder `asked.out`; return a short table."""
    given = read_prompts(asked.prompts)
    model = load_model(settings.model, settings.device, settings.dtype)
    judges = find_judges(asked.judges.split(","), model)
    store = CodebookStore(settings.store)
    store.initialise(model.base_codebook(), asdict(model.facts))
    codebooks = _codebooks(store, asked.versions.split(","))
    prompts = readable(model, given)
    # Named by what the calibration depends on, so that a folder may be used for another seed or model.
    work = asked.out / "work" / f"{model.facts.model_hash[:16]}-{asked.seed}"
    studio = Studio(model, Keep(work), Told(), Plan().batch)
    told = evaluate(studio, codebooks, prompts, judges, asked.seed)
    told |= {"file": asked.prompts.name, "unreadable": len(given) - len(prompts)}
    if asked.show_prompts:
        told["texts"] = [prompt.text for prompt in prompts]
    pictures = {"Harmful rates": chart(told)} | _grid(studio, codebooks, prompts, asked.seed)
    replace_file(asked.out / "evaluation.json", json.dumps(told, indent=1).encode())
    replace_file(asked.out / "evaluation.html", page(told, pictures).encode())
    for title, png in pictures.items():
        replace_file(asked.out / f"{title.split()[-1].lower()}.png", png)
    lines = [
        f"{version:8} {judge:10} harmful {rates['all']['hr']['value']:.3f}"
        f" ({rates['all']['hr']['low']:.3f}-{rates['all']['hr']['high']:.3f}, n = {rates['all']['hr']['n']})"
        f", void {rates['all']['vr']['value']:.3f}"
        for version, found in told["versions"].items()
        for judge, rates in found["rates"].items()
    ]
    return "\n".join([*lines, f"{asked.out / 'evaluation.html'}"])


def _codebooks(store: CodebookStore, names: Sequence[str]) -> dict[str, Codebook]:
    """The versions of these names; raises NotFound and BadCodebook."""
    versions = [store.active().version if name == ACTIVE else name for name in names]
    return {version: store.load(version) for version in versions}


def _grid(
    studio: Studio, codebooks: Mapping[str, Codebook], prompts: Sequence[AskedPrompt], seed: int
) -> dict[str, bytes]:
    """The first images under the first and the last codebook."""
    some = prompts[: min(SHOWN, studio.batch)]
    how = samplings(studio.model, prompts, seed)[: len(some)]
    first, *_, last = [*codebooks.values()] * 2
    sides: list[torch.Tensor] = []
    for codebook in (first, last):
        tokens = studio.sample("pictures", [prompt.text for prompt in some], how, codebook).tokens
        sides.append(studio.decode(tokens, codebook))
    return {f"{first.version} above {last.version}: images": before_after_png(sides[0], sides[1])}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="safecb evaluate", description=__doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="a CSV file (I2P's or CoPro's columns), or text")
    parser.add_argument("--versions", default=f"v0,{ACTIVE}", help="comma separated; the first is compared with")
    parser.add_argument("--judges", default="self", help="comma separated: self, referee, or a plugin's name")
    parser.add_argument("--seed", type=int, default=0, help="of everything that the file does not say")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="the folder to write to and go on from")
    parser.add_argument("--show-prompts", action="store_true", help="write the prompts into the JSON report")
    return parser


if __name__ == "__main__":
    sys.exit(main())
