"""`python -m benchmarks.purity --npm node_modules`: in which codebooks an edit of the pixel table removes harm.

Artwork with exact masks, no language model. Writes docs/results/pixel_table.json, shape by shape, and prints tables;
called again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.purity.codecs import Codec, ModelCodec, fit
from benchmarks.purity.trial import SPLITS, split_sets, trial
from benchmarks.purity.twins import Studio
from benchmarks.results import FOLDER, circumstances, table
from engine.registry import find_model, load_model
from recipes.pictures.taxonomy import Taxonomy, load_taxonomy
from safety.policy.emoji.classifiers import load_classifier

NAME = "embedded"
RESULTS = FOLDER / "pixel_table.json"
COUNTS = {"estimation": 180, "validation": 80, "test": 120}  # twins of harm; half as many of each harmless kind
FITTED = 240  # pictures that a codebook is made of


@dataclass(frozen=True)
class Shape:
    """A codebook: pictures of `size` pixels, patches of f x f, [codes, dim]. codes 0: the embedded model's own."""

    name: str
    size: int
    f: int
    codes: int
    dim: int
    normalised: bool


SHAPES = (
    Shape("embedded model", 64, 8, 0, 32, True),
    Shape("8 x 8, f 8", 64, 8, 4096, 8, True),
    Shape("8 x 8, f 16", 128, 16, 4096, 8, True),
    Shape("16 x 16, f 8", 128, 8, 4096, 8, True),
    Shape("16 x 16, f 16", 256, 16, 4096, 8, True),
    Shape("32 x 32, f 8", 256, 8, 4096, 8, True),
    Shape("32 x 32, D 4", 256, 8, 4096, 4, False),
    Shape("32 x 32, D 32", 256, 8, 4096, 32, True),
    Shape("32 x 32, K 16,384", 256, 8, 16384, 8, True),
    Shape("24 x 24, 16,384 x 8", 192, 8, 16384, 8, True),
    Shape("32 x 32, 8,192 x 192", 256, 8, 8192, 192, False),
)


def measure(shape: Shape, npm: Path, counts: Mapping[str, int]) -> dict[str, Any]:
    """The trial of one shape."""
    taxonomy = load_taxonomy()
    referee = load_classifier(find_model(NAME) / "referee")
    studio = Studio(taxonomy, npm, shape.size)
    sets = {split: split_sets(studio, taxonomy, split, counts[split]) for split in SPLITS}
    codec = _fitted(shape, studio, taxonomy) if shape.codes else _own(shape)
    return asdict(shape) | trial(codec, sets, referee, lambda kind: print(f"  {kind}", flush=True))


def _own(shape: Shape) -> Codec:
    return ModelCodec(load_model(NAME, "cpu", "auto"), shape.size // shape.f)


def _fitted(shape: Shape, studio: Studio, taxonomy: Taxonomy) -> Codec:
    """A codebook made of all nouns under all patterns, and plain, as a real one has seen everything."""
    nouns = [noun for noun in taxonomy.nouns if noun not in taxonomy.harmful_nouns]
    twins = studio.twins(nouns, taxonomy.patterns[1:], SPLITS["estimation"], FITTED // 2, 99)
    pictures = torch.cat([twins.covered, twins.clean])
    return fit(pictures, shape.f, shape.codes, shape.dim, shape.normalised)


def tables(results: Mapping[str, Any]) -> list[str]:
    """Markdown tables of what is measured so far: the codebooks, and the edits of each."""
    facts, edits = [], []
    for name, result in results.items():
        facts.append(
            {"codebook": name} | {key: value for key, value in result["evidence"].items() if key != "by purity"}
        )
        for kind, row in result["edits"].items():
            rates = {key: f"{100 * rate['value']:.0f}" for key, rate in row.items() if isinstance(rate, dict)}
            about = {"benign psnr": row["benign psnr"] or "", "rows moved": row["rows moved"]}
            edits.append({"codebook": name, "edit": kind, **rates, **about})
    return [*table(facts), "", *table(edits)]


def main() -> None:
    """Measure each shape that is not in the results yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.purity", description=__doc__)
    parser.add_argument("--npm", type=Path, required=True, help="the folder of the icon sets, as for the recipe")
    parser.add_argument("--only", default="", help="shapes whose names hold this")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for shape in SHAPES:
        if shape.name not in results.get("shapes", {}) and options.only in shape.name:
            print(shape.name, flush=True)
            began = time.monotonic()
            result = measure(shape, options.npm, COUNTS)
            results = {**circumstances(), "shapes": {**results.get("shapes", {}), shape.name: result}}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"  {time.monotonic() - began:.0f} s", flush=True)
    print("\n".join(tables(results["shapes"])))


if __name__ == "__main__":
    main()
