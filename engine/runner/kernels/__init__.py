"""Triton kernels of the decode step (RMSNorm, GEMM, attention, guidance, sampling) and of the VQ decoder (GroupNorm).

All are batch-invariant: each sum is taken in one fixed order, whatever the tile and the number of rows.
"""

from engine.runner.kernels.attention import attend, rotary
from engine.runner.kernels.floors import floors
from engine.runner.kernels.gemm import gated, multiply, rms_norm
from engine.runner.kernels.sampler import apply_cfg, sample
from engine.runner.kernels.vq_norm import group_norm

__all__ = ["apply_cfg", "attend", "floors", "gated", "group_norm", "multiply", "rms_norm", "rotary", "sample"]
