"""VILA-U against references written from its published code: the same codes and answers; see test_contract.py too."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from core.errors import BadInput, BadModel
from engine.families.vila_u.tokenizer import MARKS, load_tokenizer
from engine.registry import check_model, load_model
from engine.unified.served_model import ServedModel
from tests.support.families.tiny_vila_u import DEPTH, SIDE, SIGLIP, build_tiny_vila_u

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_vila_u(tmp_path_factory.mktemp("vila_u") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> ServedModel:
    model = load_model(str(folder), "cpu", "float32")
    assert isinstance(model, ServedModel)
    return model


@pytest.fixture(scope="module")
def tensors(folder: Path) -> Tensors:
    """The tower's tensors as they lie in the checkpoint."""
    return load_file(folder / "vision_tower" / "model.safetensors")


def linear(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def project(folder: Path, codes: Tensor) -> Tensor:
    layers = load_file(folder / "mm_projector" / "model.safetensors")
    return linear(layers, "layers.2", F.gelu(linear(layers, "layers.0", codes)))


def test_the_judge_reads_pixels_encoded_by_the_models_own_table(
    model: ServedModel, folder: Path, tensors: Tensors
) -> None:
    images = torch.rand(2, 3, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1
    config = SiglipVisionConfig(**SIGLIP | {"num_hidden_layers": 3}, image_size=2 * SIDE, vision_use_head=False)
    eyes, prefix = SiglipVisionModel(config).train(False), "rqvaesiglip.siglip_model.vision_model."
    eyes.load_state_dict(
        {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix) and ".head." not in k}
    )
    table = tensors["rqvaesiglip.quantizer.codebooks.0.weight"][:-1]
    with torch.no_grad():
        rest = eyes(images, output_hidden_states=True).hidden_states[-2]
        quantised = torch.zeros_like(rest)
        for _ in range(DEPTH):
            codes = torch.cdist(rest, table).argmin(-1)
            quantised, rest = quantised + table[codes], rest - table[codes]
        assert torch.allclose(model._parts.drawing.see(images), project(folder, quantised), atol=1e-4)


def test_codebooks_may_lie_in_the_files_for_each_depth(model: ServedModel, tmp_path: Path) -> None:
    other = load_model(str(build_tiny_vila_u(tmp_path / "model", shared=False)), "cpu", "float32")
    assert torch.equal(other.base_codebook().pixel, model.base_codebook().pixel)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = build_tiny_vila_u(tmp_path / "model")
    assert "vila_u" in check_model(str(folder))
    config = folder / "vision_tower" / "config.json"
    settings = json.loads(config.read_text())
    settings["rqvaesiglip"]["shared_codebook"] = False
    config.write_text(json.dumps(settings))
    with pytest.raises(BadModel, match="a codebook of its own for each depth"):
        load_model(str(folder), "cpu", "float32")
    (folder / "mm_projector" / "model.safetensors").unlink()
    with pytest.raises(BadModel, match=r"mm_projector.*holds no \.safetensors file"):
        load_model(str(folder), "cpu", "float32")


def test_control_tokens_are_refused(model: ServedModel) -> None:
    for mark in ("<im_start>", "<vi_end>", "</s>", "<image>"):
        with pytest.raises(BadInput, match="control token"):
            model.check_prompt(f"a fox {mark}")


def test_a_sentencepiece_model_is_read(tmp_path: Path) -> None:
    pieces = [*((name, 0.0) for name in ("<unk>", "<s>", "</s>")), ("▁fox", -1.0), ("ox", -2.0), ("fox", -3.0)]
    pieces += [(letter, -9.0) for letter in ("▁", "f", "o", "x", "a")]
    messages = [b"\x0a%c%b\x15%b" % (len(t.encode()), t.encode(), struct.pack("<f", score)) for t, score in pieces]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(b"\x0a%c%b" % (len(m), m) for m in messages))
    added = {mark: len(pieces) + number for number, mark in enumerate(MARKS)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("<s> fox a<im_start>", add_special_tokens=False).input_ids == [1, 3, 6, 10, added["<im_start>"]]
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\xff")
    with pytest.raises(BadModel, match="is no tokenizer"):
        load_tokenizer(tmp_path)
