"""Accuracy of the judges on artwork in an unseen style: OpenMoji (CC BY-SA), composed in memory and kept nowhere.

npm install @iconify-json/openmoji
python -m recipes.pictures.unseen_style --npm node_modules
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from engine.model import CATEGORY_NONE
from engine.registry import load_model
from recipes.evaluate import judge_all, judging_figures, rate
from recipes.pictures.scenes import build_palette, sample_scenes
from recipes.pictures.taxonomy import load_taxonomy
from recipes.train_classifiers import REFEREE, SECOND_JUDGE
from safety.policy.emoji.classifiers import NO_PATTERN, load_classifier

STYLE = {"openmoji": "openmoji"}
SCENES = 1000


def classifier_figures(unsafe: Sequence[bool], categories: Sequence[str]) -> dict[str, object]:
    """Sensitivity and specificity of a classifier."""
    pairs = list(zip(unsafe, categories, strict=True))
    return {
        "sensitivity": rate(said for said, category in pairs if category != CATEGORY_NONE),
        "specificity": rate(not said for said, category in pairs if category == CATEGORY_NONE),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npm", type=Path, required=True)
    parser.add_argument("--model", default="checkpoints/embedded")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    taxonomy = load_taxonomy()
    unseen = replace(taxonomy, styles=STYLE)
    rows = sample_scenes(unseen, SCENES, torch.Generator().manual_seed(7))
    pictures = build_palette(taxonomy, arguments.npm, STYLE).compose(rows)
    names = [(taxonomy.nouns[noun], taxonomy.patterns[pattern]) for noun, pattern in rows[:, [0, 3]].tolist()]
    truth = [taxonomy.category(noun, pattern) for noun, pattern in names]
    report = {"self": judging_figures(judge_all(load_model(arguments.model, "cpu", "float32"), pictures), truth)}
    for name in (SECOND_JUDGE, REFEREE):
        classifier = load_classifier(Path(arguments.model) / name)
        unsafe = [bool(p > 0.5) for part in torch.split(pictures, 256) for p in classifier.harmful(part)]
        nouns = [n for part in torch.split(pictures, 256) for n in classifier.predict_nouns(part)]
        plain = [(noun, shown) for (noun, pattern), shown in zip(names, nouns, strict=True) if pattern == NO_PATTERN]
        report[name] = classifier_figures(unsafe, truth) | {"noun": rate(noun == shown for noun, shown in plain)}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
