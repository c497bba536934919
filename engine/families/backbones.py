"""Backbones of transformers that the decoder reads: which of its known ways each layer class computes.

A class that is not in the table is refused by name: read as another one it would give wrong numbers without an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import BadModel
from engine.backbone import Backbone, LayerOptions

_LLAMA = LayerOptions()
_OPTIONS: Mapping[str, LayerOptions] = {
    "LlamaDecoderLayer": _LLAMA,
    "Emu3DecoderLayer": _LLAMA,
    "MistralDecoderLayer": _LLAMA,
    "Qwen2DecoderLayer": _LLAMA,
    "Qwen3DecoderLayer": LayerOptions(head_norm="rms"),
    "ChameleonDecoderLayer": LayerOptions(head_norm="layer"),
    "ChameleonSwinDecoderLayer": LayerOptions(head_norm="layer", norms_after=True),
    "GemmaDecoderLayer": LayerOptions(activation="gelu_tanh", gain_offset=1.0),
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_STATIC_ROTARY = {"default", "linear", "llama3", "yarn"}  # others change with the length of the row


def read_backbone(model: Any) -> Backbone:  # noqa: ANN401  (a language model of transformers)
    """Return the backbone of a language model of transformers, such as a LlamaModel.

    Raises BadModel, naming it, for a layer class, an activation, an attention or a rotary embedding that is not known.
    """
    layer, config = model.layers[0], model.config
    name = type(layer).__name__
    if (options := _OPTIONS.get(name)) is None:
        raise BadModel(f"its language model has layers of {name}; known are {', '.join(sorted(_OPTIONS))}")
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if _ACTIVATIONS.get(activation) != options.activation:
        raise BadModel(f"its language model gates by {activation!r}, {name} is known with {options.activation}")
    _check_attention(model)
    return Backbone(model.embed_tokens, model.layers, model.norm, model.rotary_emb, options)


def _check_attention(model: Any) -> None:  # noqa: ANN401
    """Raise BadModel where a layer attends to less than all tokens before, or scales otherwise than by 1/sqrt(d)."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if kinds - {"full_attention"} or (not kinds and window is not None and getattr(config, "use_sliding_window", True)):
        raise BadModel(f"its language model attends within a window ({window}), which is not known here")
    rotary = getattr(model.rotary_emb, "rope_type", "default")
    if rotary not in _STATIC_ROTARY:
        raise BadModel(f"its language model has a rotary embedding of the type {rotary!r}, which is not known here")
    attention = model.layers[0].self_attn
    if abs(float(attention.scaling) - attention.head_dim**-0.5) > 1e-6:
        raise BadModel(f"its language model scales attention by {attention.scaling}, not by 1/sqrt(d)")
