"""Rebuild the embedded model, its second judge and its referee with one command.

    npm install @iconify-json/noto @iconify-json/twemoji @iconify-json/fluent-emoji-flat emojibase-data
    python -m recipes.build --npm node_modules --out out

Steps whose result lies in `out` are not run again, so a build that was cut goes on. The model folder is written anew,
and its further words are learned anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from recipes import train_classifiers, train_vq
from recipes.assemble import assemble
from recipes.language import train_lm, train_words
from recipes.sizes import SMOKE, Sizes


def build(npm: Path, out: Path, target: Path, sizes: Sizes) -> None:
    """Train everything under `out` and write the model folder `target`."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "vq.pt").exists():
        train_vq.train(npm, out, sizes)
    if not (out / "lm.pt").exists():
        train_lm.train(npm, out, sizes)
    if not (out / train_classifiers.REFEREE).exists():
        train_classifiers.train(npm, out, sizes)
    assemble(out, target)
    train_words.extend(target, sizes)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npm", type=Path, required=True, help="the node_modules folder")
    parser.add_argument("--out", type=Path, required=True, help="the training folder")
    parser.add_argument("--target", type=Path, default=Path("checkpoints/embedded"))
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    build(arguments.npm, arguments.out, arguments.target, SMOKE if arguments.smoke else Sizes())


if __name__ == "__main__":
    main()
