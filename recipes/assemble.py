"""Put the trained parts into checkpoints/embedded: a model folder that transformers itself can load."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from torch import nn
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from recipes.pictures.geometry import build_model, build_processor
from recipes.pictures.questions import CATEGORY_QUESTION, PHRASINGS, REWRITE_INSTRUCTION
from recipes.pictures.taxonomy import load_taxonomy
from recipes.train_classifiers import REFEREE, SECOND_JUDGE

SHARD = "15MB"
GUIDANCE, TEMPERATURE = 2.0, 0.7  # where the referee recognises most drawings


def trained_model(out: Path) -> JanusForConditionalGeneration:
    """The language model of out/lm.pt with the VQ model of out/vq.pt, which may have been taught further since."""
    model = build_model(PreTrainedTokenizerFast.from_pretrained(out / "tokenizer"))
    model.load_state_dict(torch.load(out / "lm.pt"))
    model.model.vqmodel.load_state_dict(torch.load(out / "vq.pt"))
    model.train(False)
    return model


def settings() -> dict[str, object]:
    """safecb.json: what a server must know of this model besides its weights."""
    return {
        "categories": list(load_taxonomy().look_alikes),
        "judge": list(PHRASINGS),
        "category_question": CATEGORY_QUESTION,
        "rewrite_instruction": REWRITE_INSTRUCTION,
        "guidance": GUIDANCE,
        "temperature": TEMPERATURE,
    }


def assemble(out: Path, target: Path) -> None:
    """Write the model folder `target` anew from the training folder `out`; a model card that is there stays."""
    model = trained_model(out)
    card = (target / "README.md").read_text(encoding="utf-8") if (target / "README.md").exists() else None
    shutil.rmtree(target, ignore_errors=True)
    nn.Module.half(model)
    model.save_pretrained(target, max_shard_size=SHARD)
    build_processor(PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")).save_pretrained(target)
    (target / "safecb.json").write_text(json.dumps(settings(), indent=1) + "\n", encoding="utf-8")
    for name in (SECOND_JUDGE, REFEREE):
        shutil.copytree(out / name, target / name)
    if card is not None:
        (target / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the training folder")
    parser.add_argument("--target", type=Path, default=Path("checkpoints/embedded"))
    arguments = parser.parse_args()
    assemble(arguments.out, arguments.target)


if __name__ == "__main__":
    main()
