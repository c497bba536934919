"""`safecb draw`: images of a file of prompts under one codebook, in a folder that other people's harnesses read.

Draws on the machine it runs on; needs neither a server nor Redis. Called again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cli.own_process import (
    ACTIVE,
    JUDGES_HELP,
    ConsoleProgress,
    Prompts,
    check_names,
    exit_code,
    find_codebooks,
    find_judges,
    sort_prompts,
)
from codebook.tensors import codebook_hash, content_hash, is_finite
from codebook.value import Codebook
from core.atomic import list_folder, replace_file
from core.errors import BadInput, BadNumber
from core.settings import Settings
from core.storage import naming
from engine.model import ImageModel, Sampling
from engine.png import encode_png, to_bytes
from engine.registry import open_model
from safety.config import LoopConfig
from safety.evaluate.evaluation import samplings
from safety.judges.registry import Judge, credentials, probabilities
from safety.policy.prompt_file import AskedPrompt, read_prompts
from safety.runtime.model_runner import ModelRunner, derived_seed
from safety.runtime.result_cache import ResultCache

TABLE, METADATA = "prompts.csv", "metadata.jsonl"
SHOWN_CASES = 20
COLUMNS = ("case_number", "prompt", "categories", "evaluation_seed", "evaluation_guidance")


@dataclass(frozen=True)
class Image:
    """One image to draw: the number k of its prompt."""

    prompt: AskedPrompt
    number: int
    sampling: Sampling

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.prompt.case}_{self.number}.png"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0, 1 for a failure of the disk, 2 for a bad argument or model."""
    options = _parser().parse_args(arguments)
    return exit_code("draw", lambda settings: run(options, settings))


def run(options: argparse.Namespace, settings: Settings) -> str:
    """Draw to `options.out`, with TABLE and METADATA; return a short summary."""
    if options.per_prompt < 1:
        raise BadInput("per-prompt", options.per_prompt, "a whole number from 1")
    if options.out.exists() and not options.out.is_dir():
        raise BadInput("out", str(options.out), "a folder")
    if options.prompts.absolute() == (options.out / TABLE).absolute():
        raise BadInput("out", str(options.out), f"another folder than that of the prompts: {TABLE} would be lost")
    names = check_names(options.judges)
    prompts = read_prompts(options.prompts, options.file_guidance, numbered=True)
    model = open_model(settings)
    parted = sort_prompts(model, prompts, options.prompts)
    judges = find_judges(names, model)
    (codebook,) = find_codebooks(settings, model, [options.version]).values()
    images = _images(model, parted.usable, options)
    runner = ModelRunner(model, _claim(options.out, model, codebook, images), ConsoleProgress(), LoopConfig().batch)
    replace_file(options.out / TABLE, _table([image for image in images if image.number == 0]))
    rows = [row for part in _draw(runner, images, codebook, judges, options.out) for row in part]
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    replace_file(options.out / METADATA, "".join(lines).encode())
    return "\n".join(_summary(options.out, codebook, rows, judges, parted))


def _images(model: ImageModel, prompts: Sequence[AskedPrompt], options: argparse.Namespace) -> list[Image]:
    """The images in order: all of a prompt together. The first has the seed of the prompt, the others derived ones."""
    return [
        Image(prompt, k, replace(how, seed=derived_seed(how.seed, "draw", k)) if k else how)
        for prompt, how in zip(prompts, samplings(model, prompts, options.seed), strict=True)
        for k in range(options.per_prompt)
    ]


def _claim(out: Path, model: ImageModel, codebook: Codebook, images: Sequence[Image]) -> ResultCache:
    """The cache in the folder. Raises BadInput where the folder holds images of other prompts, a model or a version."""
    lines = [f"{image.file} {image.sampling} {image.prompt.categories} {image.prompt.text}" for image in images]
    run = {
        "model": model.facts.model_hash,
        "codebook": codebook_hash(codebook),
        "prompts, seeds or guidance": hashlib.sha256("\0".join(lines).encode()).hexdigest(),
    }
    pictures = sorted(name for name in list_folder(out) if name.endswith(".png"))
    if pictures and not (out / "work" / "run.json").exists():
        raise BadInput("out", str(out), f"a folder without images; {pictures[0]} is not of this command")
    cache = ResultCache(out / "work")
    before = cache.facts("run", lambda: run)
    if other := [name for name in run if before.get(name) != run[name]]:
        raise BadInput("out", str(out), f"another folder: this one holds images of other {', '.join(other)}")
    return cache


def _draw(
    runner: ModelRunner, images: Sequence[Image], codebook: Codebook, judges: Sequence[Judge], out: Path
) -> Iterator[list[dict[str, Any]]]:
    """Draw, write and judge batch by batch; the rows of metadata of each."""
    for start in range(0, len(images), runner.batch):
        part = images[start : start + runner.batch]
        runner.report("draw", start, len(images))
        texts, how = [image.prompt.text for image in part], [image.sampling for image in part]
        tokens = runner.sample_tokens("draw", texts, how, codebook)
        files = _Files(runner, part, tokens, codebook, out)
        digests = runner.cache.facts(f"files-{files.key}", files.write)
        if files.digests() != digests:  # somebody has moved or changed one
            files.write()
        verdicts = {judge.name: files.judged(judge) for judge in judges}
        yield [_row(runner.model, codebook, image, i, judges, verdicts) for i, image in enumerate(part)]


class _Files:
    """The files of one batch of images."""

    def __init__(
        self, runner: ModelRunner, images: Sequence[Image], tokens: Tensor, codebook: Codebook, out: Path
    ) -> None:
        """tokens: [B, N] int64 of the images, drawn under the codebook."""
        self._runner, self._images, self._tokens, self._codebook, self._out = runner, images, tokens, codebook, out
        names = "\n".join(image.file for image in images)
        content = content_hash({"tokens": tokens.contiguous(), "pixel": codebook.pixel})
        self.key = hashlib.sha256(f"{content}\n{names}".encode()).hexdigest()[:32]

    @cached_property
    def pixels(self) -> Tensor:
        """The images [B, 3, H, W] in [-1, 1]. Raises BadNumber naming the file of one that holds NaN or infinity."""
        pixels = self._runner.decode(self._tokens, self._codebook)
        for image, one in zip(self._images, pixels, strict=True):
            if not is_finite(one):
                raise BadNumber(f"image {image.file}", version=self._codebook.version)
        return pixels

    def write(self) -> list[str]:
        """Write each image in one step; their SHA-256."""
        hashes = []
        for image, levels in zip(self._images, to_bytes(self.pixels), strict=True):
            png = encode_png(levels, {})
            replace_file(self._out / image.file, png)
            hashes.append(hashlib.sha256(png).hexdigest())
        return hashes

    def digests(self) -> list[str]:
        """The SHA-256 of each file as it is; "" where there is none."""
        return [_digest(self._out / image.file) for image in self._images]

    def judged(self, judge: Judge) -> list[float]:
        """A judge's probabilities of the images; cached."""
        name = hashlib.sha256(f"{self.key} {judge.name} {judge.version}".encode()).hexdigest()[:32]
        scores = self._runner.cache.tensors(f"verdicts-{name}", lambda: {"harmful": self._judge(judge)})["harmful"]
        return [float(score) for score in scores]

    def _judge(self, judge: Judge) -> Tensor:
        return torch.cat([probabilities(judge, part).cpu() for part in torch.split(self.pixels, judge.batch)])


def _digest(path: Path) -> str:
    with naming(path):
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _row(
    model: ImageModel,
    codebook: Codebook,
    image: Image,
    place: int,
    judges: Sequence[Judge],
    verdicts: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """The line of metadata of the image at a place of its batch, as JSON."""
    return {
        "file_name": image.file,
        "case_number": image.prompt.case,
        "prompt": image.prompt.text,
        "categories": list(image.prompt.categories),
        "seed": image.sampling.seed,
        "guidance": image.sampling.guidance,
        "model": model.facts.title,
        "codebook": codebook.version,
        "codebook_hash": codebook_hash(codebook),
        "judges": {
            judge.name: {
                "version": judge.version,
                "threshold": judge.threshold,
                "probability": verdicts[judge.name][place],
                "harmful": verdicts[judge.name][place] > judge.threshold,
            }
            for judge in judges
        },
    }


def _table(images: Sequence[Image]) -> bytes:
    """The prompts of these images as CSV, in I2P's columns."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for image in images:
        prompt, how = image.prompt, image.sampling
        writer.writerow((prompt.case, prompt.text, ", ".join(prompt.categories), how.seed, how.guidance))
    return text.getvalue().encode()


def _summary(
    out: Path, codebook: Codebook, rows: Sequence[Mapping[str, Any]], judges: Sequence[Judge], parted: Prompts
) -> list[str]:
    """Lines for the terminal: images, harmful ones by judge, and prompts left out, by case."""
    lines = [f"{len(rows)} images of {len(parted.usable)} prompts under {codebook.version} in {out}"]
    for judge in judges:
        harmful = sum(row["judges"][judge.name]["harmful"] for row in rows)
        lines.append(f"{credentials(judge)['name']}: {harmful} of {len(rows)} harmful")
    for prompts, fault in ((parted.unreadable, "that the model cannot read"), (parted.refused, "not of adults alone")):
        if prompts:
            cases = ", ".join(str(prompt.case) for prompt in prompts[:SHOWN_CASES])
            more = f" and {len(prompts) - SHOWN_CASES} more" if len(prompts) > SHOWN_CASES else ""
            lines.append(f"left out, {fault}: {len(prompts)} (case {cases}{more})")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="safecb draw", description=__doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="a CSV file (I2P's or CoPro's columns), or text")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to and go on from")
    parser.add_argument("--version", default=ACTIVE, help="of the store")
    parser.add_argument("--judges", default="self", help=JUDGES_HELP)
    parser.add_argument("--seed", type=int, default=0, help="for every prompt whose row has none")
    parser.add_argument("--file-guidance", action="store_true", help="draw with the guidance that the file gives")
    parser.add_argument("--per-prompt", type=int, default=1, help="images a prompt")
    return parser


if __name__ == "__main__":
    sys.exit(main())
