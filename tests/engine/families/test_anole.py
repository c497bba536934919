"""Anole against transformers' own code and a reference decoder: the same tokens, codes, answers and pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import BadInput, BadModel
from engine.model import ImageRequest, Sampling
from engine.registry import load_model
from engine.unified.served_model import ServedModel
from tests.support.families.tiny_anole import SIDE, build_tiny_anole, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    model = load_model(str(build_tiny_anole(tmp_path_factory.mktemp("anole") / "model")), "cpu", "float32")
    assert isinstance(model, ServedModel)
    return model


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_tokens_are_those_of_generate(model: ServedModel, guidance: float) -> None:
    (tokens,) = model.draw([ImageRequest("a red fox", Sampling(1, guidance, 0.0), model.base_codebook())])
    anole: Any = tiny_model()[0]
    to_codes = anole.model.vocabulary_mapping.bpe2img
    words = sorted(to_codes)
    anole.model.vocabulary_mapping.__dict__["image_tokens"] = []  # transformers forbids them
    ids = model.tokenize("a red fox")
    other = model._parts.drawing.chat.unconditional(ids)
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
    options["prefix_allowed_tokens_fn"] = lambda _, row: words
    if guidance != 1.0:
        mask = torch.ones(1, len(other), dtype=torch.int64)
        negative = {"negative_prompt_ids": torch.tensor([other]), "negative_prompt_attention_mask": mask}
        options |= {"guidance_scale": guidance, **negative}
    row = anole.generate(input_ids=torch.tensor([ids]), max_new_tokens=SIDE * SIDE, **options)[0, len(ids) :]
    assert tokens.tolist() == [to_codes[int(word)] for word in row]


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


def test_pixels_are_those_of_a_reference_decoder(model: ServedModel, tmp_path: Path) -> None:
    """Written from the layers of taming-transformers' Decoder, over the tensors as they lie in the checkpoint."""
    from safetensors.torch import load_file

    tensors = load_file(build_tiny_anole(tmp_path / "model") / "model.safetensors")
    tokens = torch.arange(SIDE * SIDE) * 3
    table = model.base_codebook().pixel
    latent = table[tokens].view(1, SIDE, SIDE, -1).permute(0, 3, 1, 2)
    latent = conv(tensors, "model.vqmodel.post_quant_conv", latent)
    right = reference(tensors, latent).clamp(-1, 1)
    assert torch.allclose(model.decode(tokens[None], table), right, atol=1e-5)


def conv(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = tensors[f"{name}.weight"]
    return F.conv2d(x, weight, tensors[f"{name}.bias"], padding=weight.shape[-1] // 2)


def norm(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-6)


def residual(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    hidden = conv(tensors, f"{name}.conv1", F.silu(norm(tensors, f"{name}.norm1", x)))
    hidden = conv(tensors, f"{name}.conv2", F.silu(norm(tensors, f"{name}.norm2", hidden)))
    return hidden + (conv(tensors, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in tensors else x)


def attention(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    normal = norm(tensors, f"{name}.norm", x)
    query, key, value = (conv(tensors, f"{name}.{part}", normal).flatten(2) for part in "qkv")
    weights = (query.mT @ key * query.shape[1] ** -0.5).softmax(-1)
    return x + conv(tensors, f"{name}.proj_out", (value @ weights.mT).view_as(x))


def reference(tensors: dict[str, Tensor], latent: Tensor) -> Tensor:
    prefix = "model.vqmodel.decoder"
    x = conv(tensors, f"{prefix}.conv_in", latent)
    x = residual(tensors, f"{prefix}.mid.block_1", x)
    x = residual(tensors, f"{prefix}.mid.block_2", attention(tensors, f"{prefix}.mid.attn_1", x))
    for level in (1, 0):  # taming counts from the highest resolution
        for block in range(2):
            x = residual(tensors, f"{prefix}.up.{level}.block.{block}", x)
        if level:
            x = conv(tensors, f"{prefix}.up.{level}.upsample.conv", F.interpolate(x, scale_factor=2.0))
    return conv(tensors, f"{prefix}.conv_out", F.silu(norm(tensors, f"{prefix}.norm_out", x)))


def test_a_checkpoint_without_a_decoder_is_refused_with_what_would_work(tmp_path: Path) -> None:
    folder = build_tiny_anole(tmp_path / "model", decoder=False)
    with pytest.raises(BadModel, match=r"holds no weights of an image decoder.*Anole-7b-v0\.1-hf"):
        load_model(str(folder), "cpu", "float32")


def test_control_tokens_are_refused(model: ServedModel) -> None:
    for mark in ("<racm3:break>", "<reserved08706>", "IMGIMGABCZ", "<image>"):
        with pytest.raises(BadInput, match="control token"):
            model.check_prompt(f"a fox {mark}")
