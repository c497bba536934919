"""Backbones: a decoder of transformers is read as its own code reads it, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModel, ChameleonConfig, ChameleonModel, Emu3TextConfig
from transformers.models.emu3.modeling_emu3 import Emu3TextModel

from core.errors import BadModel
from engine.families.backbones import read_backbone
from engine.runner import decoder as decoding
from engine.runner.decoder import PIECE, Decoder
from engine.runner.step.attention import attend

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "llama-biased": {"attention_bias": True},
}
KNOWN = ("llama", "mistral", "qwen2", "qwen3", "gemma", "emu3", "chameleon", "chameleon-swin", "llama-biased")
STRANGE = (
    *("arcee", "apertus", "bitnet", "cohere", "cohere2", "cwm", "diffllama", "doge", "ernie4_5", "exaone4", "gemma2"),
    *("gemma3_text", "glm", "glm4", "gpt_neox", "granite", "helium", "hunyuan_v1_dense", "lfm2", "llama4_text"),
    *("ministral", "mixtral", "nemotron", "olmo", "olmo2", "olmo3", "persimmon", "phi", "phi3", "seed_oss"),
    *("smollm3", "stablelm", "starcoder2", "vaultgemma"),
)


def build(name: str, **options: Any) -> Any:  # noqa: ANN401  (a class of transformers)
    """A tiny random language model, drawn so wide that every part of a layer matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "emu3":
            model: Any = Emu3TextModel(Emu3TextConfig(**SIZES))
        elif name.startswith("chameleon"):
            vocabulary = {"<image>": 3, **{f"IMGIMG{letter}Z": 10 + n for n, letter in enumerate("ABCD")}}
            vq = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "resolution": 16}
            config = ChameleonConfig(**SIZES, vocabulary_map=vocabulary, vq_config=vq, swin_norm=name.endswith("swin"))
            model = ChameleonModel(config)
        else:
            kind = name.partition("-")[0]
            auto: Any = AutoModel
            model = auto.from_config(AutoConfig.for_model(kind, **SIZES, head_dim=8, **options))
        model.train(False).requires_grad_(False)
        for weight in model.parameters():
            weight.normal_(0, 0.3) if weight.dim() > 1 else weight.uniform_(0.5, 1.5)
    return model


def test_long_prompts_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, lengths = Decoder(read_backbone(build("llama")), PIECE + 80), []

    def noted(query: Tensor, *rest: Tensor) -> Tensor:
        lengths.append(query.shape[1])
        return attend(query, *rest)

    monkeypatch.setattr(decoding, "attend", noted)
    prompts = [[(seed * n) % 97 for n in range(1, PIECE + 71 - seed)] for seed in (3, 5, 7)]
    with torch.no_grad():
        states, last, cache = decoder.prefill(prompts, 0)
        assert set(lengths) == {PIECE, 80} and cache.lengths.tolist() == [len(prompt) for prompt in prompts]
        for row, prompt in enumerate(prompts):
            alone = decoder.prefill([prompt], 0)
            assert torch.equal(alone[1][0], last[row]) and torch.equal(
                alone[0][0, : len(prompt)], states[row, : len(prompt)]
            )
        monkeypatch.setattr(decoding, "PIECE", 2 * PIECE)
        assert torch.allclose(decoder.prefill(prompts, 0)[0], states, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "chameleon-swin"])
def test_states_at_the_ends_alone_are_those_of_a_whole_reading(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PIECE", 16)
    decoder, ids = Decoder(read_backbone(build(name)), 48), torch.arange(80).view(2, 40) + 10
    ends, rows = torch.tensor([[33, 39], [32, 35]]), torch.arange(2)[:, None]
    with torch.inference_mode():
        whole, some, none = (decoder.new_cache(2, 40) for _ in range(3))
        states = decoder.extend(decoder.embed(ids), whole)
        assert torch.equal(decoder.extend(decoder.embed(ids), some, ends), states[rows, ends])
        assert decoder.extend(decoder.embed(ids), none, ends[:, :0]).shape == (2, 0, 32)
    for cache in (some, none):
        assert torch.equal(cache.keys, whole.keys) and torch.equal(cache.values, whole.values)
        assert cache.lengths.tolist() == [40, 40]


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_decoder_is_read_as_by_its_own_code(name: str) -> None:
    options = OPTIONS.get(name, {})
    model = build(name, **options)
    if name == "llama-biased":  # o_proj has a bias too, which is not known
        with pytest.raises(BadModel, match=r"differs from what is known by self_attn\.o_proj\.bias"):
            Decoder(read_backbone(model), 64)
        return
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22]]
    with torch.inference_mode():
        right = [model(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in prompts]
        decoder = Decoder(read_backbone(model), 64)
        states, last, cache = decoder.prefill(prompts, 4)
        for row, expected in enumerate(right):
            assert torch.allclose(states[row, : len(expected)], expected, rtol=1e-4, atol=1e-4)
            assert torch.allclose(last[row], expected[-1], rtol=1e-4, atol=1e-4)
        more = decoder.extend(decoder.embed(torch.tensor([[30], [31]])), cache)
    whole = build(name, **options)
    with torch.inference_mode():
        longer = whole(input_ids=torch.tensor([[*prompts[0], 30]])).last_hidden_state[0, -1]
    assert torch.allclose(more[0, 0], longer, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", STRANGE)
def test_a_decoder_that_is_not_known_is_refused_by_its_layers(name: str) -> None:
    with pytest.raises(BadModel, match=r"has layers of \w+; known are ChameleonDecoderLayer"):
        read_backbone(build(name))


def is_refused(layer: str) -> bool:
    """Whether a model with a layer of this class's name is refused by that name."""
    try:
        read_backbone(SimpleNamespace(layers=[type(layer, (), {})()], config=SimpleNamespace(hidden_act=None)))
    except BadModel as error:
        return f"has layers of {layer}; known are" in str(error)
    return False


def test_of_all_layers_in_transformers_those_alone_are_read_that_are_compared_above() -> None:
    """By its sources. Were a name that is read two models' own, the layer of one would be read as the other's."""
    models: dict[str, list[str]] = {}
    for file in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"):
        for layer in re.findall(r"^class (\w*(?:Layer|Block))\b", file.read_text("utf-8"), re.MULTILINE):
            models.setdefault(layer, []).append(file.parent.name)
    compared = {type(build(name, **OPTIONS.get(name, {})).layers[0]).__name__ for name in KNOWN}
    assert {layer for layer in models if not is_refused(layer)} == compared and len(compared) == 8
    assert len(models) > 500 and [len(models[layer]) for layer in compared] == [1] * 8


def test_what_a_known_layer_does_otherwise_is_refused() -> None:
    with pytest.raises(BadModel, match=r"attends within a window \(4096\)"):
        read_backbone(build("mistral"))
    with pytest.raises(BadModel, match="gates by 'gelu'"):
        read_backbone(build("llama", hidden_act="gelu"))
    with pytest.raises(BadModel, match="rotary embedding of the type 'dynamic'"):
        read_backbone(build("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}))
    scaled = build("llama")
    scaled.layers[0].self_attn.scaling = 1.0
    with pytest.raises(BadModel, match=r"scales attention by 1\.0"):
        read_backbone(scaled)
    grown = build("llama")
    grown.layers[1].self_attn.register_parameter("sink", torch.nn.Parameter(torch.zeros(4)))
    with pytest.raises(BadModel, match=r"layer 1 .* differs from what is known by self_attn\.sink"):
        Decoder(read_backbone(grown), 64)
