"""Backbone of a language model: the modules that a Decoder takes, and in which of the known ways a layer computes.

Knows module names that transformers gives to Llama-shaped models, no class of them: families say which options hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from core.errors import BadModel

_LAYER = {
    f"{part}.weight"
    for part in (
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        "input_layernorm",
        "post_attention_layernorm",
    )
}
_BIASES = {f"self_attn.{name}_proj.bias" for name in "qkv"}
_HEAD_NORMS = {f"self_attn.{name}_norm.{part}" for name in "qk" for part in ("weight", "bias")}


@dataclass(frozen=True)
class LayerOptions:
    """How a decoder layer differs from Llama's.

    activation: of the gate. gain_offset: added to the gains of all RMSNorms (Gemma: 1). head_norm: of queries and keys
    before their rotary embedding, per head: "rms", or "layer" with a gain and a bias for each head. norms_after:
    whether the two norms follow attention and MLP instead of preceding them.
    """

    activation: Literal["silu", "gelu_tanh"] = "silu"
    gain_offset: float = 0.0
    head_norm: Literal["rms", "layer"] | None = None
    norms_after: bool = False


@dataclass(frozen=True)
class Backbone:
    """The modules of a language model, under transformers' names."""

    embed_tokens: Any
    layers: nn.ModuleList
    norm: Any
    rotary_emb: nn.Module
    options: LayerOptions = LayerOptions()

    def check(self) -> None:
        """Raise BadModel, naming it, for a weight of a layer that a Decoder does not read."""
        allowed = _LAYER | _BIASES | (_HEAD_NORMS if self.options.head_norm is not None else set())
        for number, layer in enumerate(self.layers):
            names = {name for name, _ in layer.named_parameters()}
            if wrong := (names - allowed) | (_LAYER - names):
                raise BadModel(f"layer {number} of the language model differs from what is known by {sorted(wrong)[0]}")
