"""VILA-U against references written from its published code: the same tokens, codes, pixels and answers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from core.errors import BadInput, BadModel
from engine.families.vila_u.tokenizer import MARKS, load_tokenizer
from engine.model import ImageRequest, Sampling
from engine.registry import check_model, load_model
from engine.unified.served_model import ServedModel
from tests.engine.families.test_anole import attention as pixel_attention
from tests.engine.families.test_anole import conv, residual
from tests.engine.families.test_anole import norm as group_norm
from tests.support.families.tiny_vila_u import DEPTH, HEADS, SIDE, SIGLIP, build_tiny_vila_u

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


def layer_norm(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def depth_logits(tensors: Tensors, hidden: Tensor, drawn: list[int]) -> Tensor:
    """Logits [K] of the code after those drawn in a cell, read anew: RQTransformer.generate."""
    table, prefix = tensors["rqvaesiglip.quantizer.codebooks.0.weight"], "rqtransformer"
    x = linear(tensors, f"{prefix}.in_mlp_2", hidden)[None]
    if drawn:
        x = torch.cat([x, linear(tensors, f"{prefix}.in_mlp_1", table[drawn].cumsum(0))])
    x = x + tensors[f"{prefix}.pos_emb_d"][0, : len(x)]
    for layer in range(2):
        block = f"{prefix}.head_transformer.blocks.{layer}"
        normal = layer_norm(tensors, f"{block}.ln1", x)
        parts = (linear(tensors, f"{block}.attn.{part}", normal) for part in ("query", "key", "value"))
        heads = [part.view(len(x), HEADS, -1).transpose(0, 1) for part in parts]
        attended = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + linear(tensors, f"{block}.attn.proj", attended.transpose(0, 1).flatten(1))
        x = x + linear(
            tensors, f"{block}.mlp.2", F.gelu(linear(tensors, f"{block}.mlp.0", layer_norm(tensors, f"{block}.ln2", x)))
        )
    last = layer_norm(tensors, f"{prefix}.classifier_mlp.layer_norm", x)[-1]
    return linear(tensors, f"{prefix}.classifier_mlp.linear", last)


def project(folder: Path, codes: Tensor) -> Tensor:
    layers = load_file(folder / "mm_projector" / "model.safetensors")
    return linear(layers, "layers.2", F.gelu(linear(layers, "layers.0", codes)))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_tokens_are_those_of_a_reference(model: ServedModel, folder: Path, tensors: Tensors, guidance: float) -> None:
    (tokens,) = model.draw([ImageRequest("a red fox", Sampling(1, guidance, 0.0), model.base_codebook())])
    llama = LlamaForCausalLM.from_pretrained(folder / "llm").train(False)
    table = tensors["rqvaesiglip.quantizer.codebooks.0.weight"]
    ids = model.tokenize("a red fox")
    read = [
        llama.model.embed_tokens(torch.tensor([row])) for row in (ids, model._parts.drawing.chat.unconditional(ids))
    ]
    right: list[int] = []
    with torch.no_grad():
        for _ in range(SIDE * SIDE):
            hidden = [llama.model(inputs_embeds=row).last_hidden_state[0, -1] for row in read]
            drawn: list[int] = []
            for _ in range(DEPTH):
                conditional, other = (depth_logits(tensors, state, drawn) for state in hidden)
                drawn.append(int((other + guidance * (conditional - other)).argmax()))
            right += drawn
            cell = project(folder, table[drawn].sum(0))[None, None]
            read = [torch.cat([row, cell], 1) for row in read]
    assert tokens.tolist() == right


def test_pixels_are_those_of_a_reference_decoder(model: ServedModel, tensors: Tensors) -> None:
    tokens, table = torch.arange(SIDE * SIDE * DEPTH) % 61, model.base_codebook().pixel
    cells = table[tokens].view(SIDE * SIDE, DEPTH, -1).sum(1)
    prefix = "rqvaesiglip.decoder"
    x = conv(tensors, "rqvaesiglip.post_quant_conv", cells.T.reshape(1, -1, SIDE, SIDE))
    x = residual(tensors, f"{prefix}.mid.block_1", conv(tensors, f"{prefix}.conv_in", x))
    x = residual(tensors, f"{prefix}.mid.block_2", pixel_attention(tensors, f"{prefix}.mid.attn_1", x))
    for level in (1, 0):  # taming counts from the highest resolution; the lowest attends
        for block in range(2):
            x = residual(tensors, f"{prefix}.up.{level}.block.{block}", x)
            x = pixel_attention(tensors, f"{prefix}.up.1.attn.{block}", x) if level else x
        x = conv(tensors, f"{prefix}.up.1.upsample.conv", F.interpolate(x, scale_factor=2.0)) if level else x
    right = conv(tensors, f"{prefix}.conv_out", F.silu(group_norm(tensors, f"{prefix}.norm_out", x))).clamp(-1, 1)
    assert torch.allclose(model.decode(tokens[None], table), right, atol=1e-5)


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
