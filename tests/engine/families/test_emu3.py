"""Emu3 against transformers' own code: the same tokens, the same pixels, the same codes, the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import BadInput, BadModel
from engine.families.emu3.loading import EOL
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


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("prompt", ["a red fox", "a dog on a table, seen from above"])
def test_tokens_are_those_of_generate(model: ServedModel, prompt: str, guidance: float) -> None:
    (tokens,) = model.draw([ImageRequest(prompt, Sampling(1, guidance, 0.0), model.base_codebook())])
    emu3: Any = tiny_model()[0]
    ids, words = model.tokenize(prompt), emu3.config.vocabulary_map
    other = model._parts.drawing.chat.unconditional(ids)
    codes = {words[name]: int(name[-8:-2]) for name in words if name.startswith("<|visual token")}

    def allowed(_: int, row: torch.Tensor) -> list[int]:
        is_end = (len(row) - len(ids) + 1) % (SIDE + 1) == 0
        return [words[EOL]] if is_end else sorted(codes)

    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "prefix_allowed_tokens_fn": allowed}
    if guidance != 1.0:
        mask = torch.ones(1, len(other), dtype=torch.int64)
        negative = {"negative_prompt_ids": torch.tensor([other]), "negative_prompt_attention_mask": mask}
        options |= {"guidance_scale": guidance, **negative}
    count = SIDE * (SIDE + 1)
    rows = emu3.generate(input_ids=torch.tensor([ids]), max_new_tokens=count, **options)[0, len(ids) :]
    assert tokens.tolist() == [codes[int(word)] for word in rows.view(SIDE, SIDE + 1)[:, :-1].flatten()]


def test_pixels_are_those_of_the_first_frame(model: ServedModel) -> None:
    emu3: Any = tiny_model()[0]
    tokens = torch.randint(64, (3, SIDE * SIDE), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        right = emu3.model.vqmodel.decode(tokens.view(3, SIDE, SIDE)).clamp(-1, 1)
    assert torch.allclose(model.decode(tokens, model.base_codebook().pixel), right, atol=1e-5)


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


def test_a_control_token_in_a_prompt_and_a_wrong_size_are_refused(model: ServedModel, tmp_path: Path) -> None:
    for mark in ("<|visual token 000001|>", "<|extra_200|>", "<image>", "<|image start|>"):
        with pytest.raises(BadInput, match="control token"):
            model.check_prompt(f"a fox {mark}")
    folder = build_tiny_emu3(tmp_path / "model")
    text = (folder / "safecb.json").read_text().replace('"image_size": 8', '"image_size": 7')
    (folder / "safecb.json").write_text(text)
    with pytest.raises(BadModel, match="image_size 7 is not a multiple of 2"):
        load_model(str(folder), "cpu", "float32")
