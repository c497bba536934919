"""A random Janus of the published path and grid (24 x 24 tokens, 384 pixels) in a small geometry."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import JanusConfig, JanusProcessor

from engine.families.janus import random_model
from engine.families.janus.random_model import GEOMETRIES, Geometry, janus_config


def shrink(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let "random:NAME" be small: language model, vision tower and the channels of the VQ model."""

    def small(geometry: Geometry, processor: JanusProcessor) -> JanusConfig:
        config = janus_config(geometry, processor)
        vision: Any = config.vision_config
        pixels: Any = config.vq_config
        vision.num_hidden_layers = 1
        pixels.base_channels = 32  # as few as its GroupNorm of 32 groups allows
        pixels.num_res_blocks = 1
        return config

    monkeypatch.setitem(GEOMETRIES, name, Geometry(hidden=128, layers=2, heads=2, intermediate=256))
    monkeypatch.setattr(random_model, "janus_config", small)
