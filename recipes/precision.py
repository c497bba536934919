"""Precision of training. Knows the processor; knows no model."""

from __future__ import annotations

import torch


def mixed() -> torch.autocast:
    """Products in bfloat16 where oneDNN multiplies it; all in float32 elsewhere, where it would take ten times as long.

    The recorded training was mixed.
    """
    is_fast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.autocast("cpu", torch.bfloat16, enabled=is_fast)
