"""Anole against transformers' own code: the same codes and answers; tokens and pixels are in test_contract.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from core.errors import BadInput, BadModel
from engine.families.vqgan import PREFIXES, read_decoder
from engine.model import ImageRequest, Sampling
from engine.registry import load_model
from engine.unified.served_model import ServedModel
from tests.support.families.tiny_anole import SIDE, build_tiny_anole, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    model = load_model(str(build_tiny_anole(tmp_path_factory.mktemp("anole") / "model")), "cpu", "float32")
    assert isinstance(model, ServedModel)
    return model


def test_codes_and_verdicts_are_those_of_transformers(model: ServedModel) -> None:
    anole: Any = tiny_model()[0]
    images = torch.rand(2, 3, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1
    chat, (phrasing, *_) = model._parts.drawing.chat, model._parts.instructions.phrasings
    with torch.no_grad():
        words = anole.get_image_tokens(images)
        assert torch.equal(model._parts.drawing.see(images), anole.model.embed_tokens(words))
        row = torch.tensor([chat.question(phrasing.question)] * 2)
        logits = anole(input_ids=row, pixel_values=images).logits[:, -1]
    answers = [chat.answer(phrasing.question, text) for text in (phrasing.unsafe, phrasing.safe)]
    scores = torch.tensor([verdict.scores[0] for verdict in model.judge(images)])
    assert torch.allclose(scores, logits[:, answers].softmax(-1)[:, 0], atol=1e-4)


def test_a_checkpoint_without_a_decoder_is_refused_with_what_would_work(tmp_path: Path) -> None:
    folder = build_tiny_anole(tmp_path / "model", decoder=False)
    with pytest.raises(BadModel, match=r"holds no weights of an image decoder.*Anole-7b-v0\.1-hf"):
        load_model(str(folder), "cpu", "float32")


def test_a_decoder_may_lie_in_a_file_of_its_own(model: ServedModel, tmp_path: Path) -> None:
    """Under the names that different hands give its tensors; here each third has the names of one."""
    folder = build_tiny_anole(tmp_path / "model", decoder=False)
    tensors = enumerate(read_decoder(Path(model.facts.model_id)).items())
    save_file({PREFIXES[n % 3] + name: tensor for n, (name, tensor) in tensors}, folder / "decoder.safetensors")
    other, base = load_model(str(folder), "cpu", "float32"), model.base_codebook()
    tokens = model.draw([ImageRequest("a fox", Sampling(1), base)])
    assert torch.equal(other.draw([ImageRequest("a fox", Sampling(1), other.base_codebook())]), tokens)
    assert torch.equal(other.decode(tokens, base.pixel), model.decode(tokens, base.pixel))
    assert other.facts.model_hash != model.facts.model_hash  # of another file


def test_control_tokens_are_refused(model: ServedModel) -> None:
    for mark in ("<racm3:break>", "<reserved08706>", "IMGIMGABCZ", "<image>"):
        with pytest.raises(BadInput, match="control token"):
            model.check_prompt(f"a fox {mark}")
