"""Liquid against transformers' Gemma: the same tokens and the same answers; its VQGAN is Anole's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import BadModel
from engine.families.liquid.loading import fits
from engine.model import ImageRequest, Sampling
from engine.registry import hash_weights, load_model
from engine.unified.served_model import ServedModel
from tests.support.families.tiny_anole import CODES, SIDE
from tests.support.families.tiny_liquid import build_tiny_liquid, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    model = load_model(str(build_tiny_liquid(tmp_path_factory.mktemp("liquid") / "model")), "cpu", "float32")
    assert isinstance(model, ServedModel)
    return model


@pytest.mark.parametrize("guidance", [1.0, 7.0])
def test_tokens_are_those_of_generate(model: ServedModel, guidance: float) -> None:
    (tokens,) = model.draw([ImageRequest("a red fox", Sampling(1, guidance, 0.0), model.base_codebook())])
    gemma: Any = tiny_model()[0]
    offset = len(tiny_model()[3])
    ids = model.tokenize("a red fox")
    other = model._parts.drawing.chat.unconditional(ids)
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
    options["prefix_allowed_tokens_fn"] = lambda _, row: list(range(offset, offset + CODES))
    if guidance != 1.0:
        mask = torch.ones(1, len(other), dtype=torch.int64)
        negative = {"negative_prompt_ids": torch.tensor([other]), "negative_prompt_attention_mask": mask}
        options |= {"guidance_scale": guidance, **negative}
    row = gemma.generate(input_ids=torch.tensor([ids]), max_new_tokens=SIDE * SIDE, **options)[0, len(ids) :]
    assert tokens.tolist() == (row - offset).tolist()


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
