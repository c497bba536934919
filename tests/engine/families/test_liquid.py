"""Liquid against transformers' Gemma: the same answers; tokens and pixels are in test_contract.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from core.errors import BadModel
from engine.families.liquid.loading import fits
from engine.registry import hash_weights, load_model
from engine.unified.served_model import ServedModel
from tests.support.families.tiny_anole import SIDE
from tests.support.families.tiny_liquid import build_tiny_liquid, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    model = load_model(str(build_tiny_liquid(tmp_path_factory.mktemp("liquid") / "model")), "cpu", "float32")
    assert isinstance(model, ServedModel)
    return model


def test_verdicts_are_those_of_forward_over_the_codes_of_the_image(model: ServedModel) -> None:
    gemma, vq, _, tokenizer = tiny_model()
    images = torch.rand(2, 3, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1
    chat, (phrasing, *_) = model._parts.drawing.chat, model._parts.instructions.phrasings
    row = torch.tensor([chat.question(phrasing.question)] * 2)
    with torch.no_grad():
        codes = vq.encode(images).image_tokens.view(2, -1)
        row[row == chat.image_token] = (codes + len(tokenizer)).flatten()
        logits = gemma(input_ids=row).logits[:, -1]
    answers = [chat.answer(phrasing.question, text) for text in (phrasing.unsafe, phrasing.safe)]
    scores = torch.tensor([verdict.scores[0] for verdict in model.judge(images)])
    assert torch.allclose(scores, logits[:, answers].softmax(-1)[:, 0], atol=1e-4)


def test_its_vqgan_is_a_part_of_it(model: ServedModel, tmp_path: Path) -> None:
    folder = build_tiny_liquid(tmp_path / "model")
    assert hash_weights(folder) != hash_weights(folder, ("vq",)) == model.facts.model_hash
    shutil.rmtree(folder / "vq")
    with pytest.raises(BadModel, match=r"has no folder 'vq' .*Anole-7b-v0\.1-vqvae-hf"):
        load_model(str(folder), "cpu", "float32")


def test_a_plain_gemma_is_not_of_this_family() -> None:
    assert not fits({"model_type": "gemma", "vocab_size": 256000}) and not fits({"model_type": "gemma2"})
