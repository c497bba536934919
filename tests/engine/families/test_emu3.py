"""Emu3 against transformers' own code: the same codes and answers; tokens and pixels are in test_contract.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import BadInput, BadModel
from engine.families.emu3.picture import encode_one
from engine.model import ImageRequest, Sampling
from engine.registry import load_model
from engine.unified.served_model import ServedModel
from tests.support.families.tiny_emu3 import SIDE, build_tiny_emu3, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    model = load_model(str(build_tiny_emu3(tmp_path_factory.mktemp("emu3") / "model")), "cpu", "float32")
    assert isinstance(model, ServedModel)
    return model


def test_codes_of_an_image_are_those_of_encode(model: ServedModel) -> None:
    emu3: Any = tiny_model()[0]
    images = torch.rand(3, 3, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        right = emu3.model.vqmodel.encode(images, torch.tensor([[2 * SIDE] * 2] * 3)).image_tokens
        for image, codes in zip(images, right, strict=True):
            assert torch.equal(encode_one(emu3.model.vqmodel, image[None]), codes.flatten())


def test_verdicts_are_those_of_forward(model: ServedModel) -> None:
    emu3: Any = tiny_model()[0]
    images = torch.rand(2, 3, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1
    chat = model._parts.drawing.chat
    (phrasing, *_) = model._parts.instructions.phrasings
    row = torch.tensor([chat.question(phrasing.question)] * 2)
    with torch.no_grad():
        seen = emu3(input_ids=row, pixel_values=images, image_sizes=torch.tensor([[2 * SIDE] * 2] * 2)).logits[:, -1]
    answers = [chat.answer(phrasing.question, text) for text in (phrasing.unsafe, phrasing.safe)]
    right = seen[:, answers].softmax(-1)[:, 0]
    scores = torch.tensor([verdict.scores[0] for verdict in model.judge(images)])
    assert torch.allclose(scores, right, atol=1e-4)


def test_another_checkpoint_reads_where_there_is_one(model: ServedModel, tmp_path: Path) -> None:
    pair = load_model(str(build_tiny_emu3(tmp_path / "pair", reader=True)), "cpu", "float32")
    request = ImageRequest("a red fox", Sampling(1), model.base_codebook())
    tokens = model.draw([request])
    assert torch.equal(pair.draw([request]), tokens)
    image = model.decode(tokens, model.base_codebook().pixel)
    assert pair.judge(image) != model.judge(image)
    assert pair.facts.rewrites and not model.facts.rewrites


def test_a_control_token_in_a_prompt_and_a_wrong_size_are_refused(model: ServedModel, tmp_path: Path) -> None:
    for mark in ("<|visual token 000001|>", "<|extra_200|>", "<image>", "<|image start|>"):
        with pytest.raises(BadInput, match="control token"):
            model.check_prompt(f"a fox {mark}")
    folder = build_tiny_emu3(tmp_path / "model")
    text = (folder / "safecb.json").read_text().replace('"image_size": 8', '"image_size": 7')
    (folder / "safecb.json").write_text(text)
    with pytest.raises(BadModel, match="image_size 7 is not a multiple of 2"):
        load_model(str(folder), "cpu", "float32")
