"""The gate `detector`: the degenerate-image detector flags spoiled images and passes the base codebook's own.

Makes the spoiled images: flat, noisy, shuffled, blurred, tiled. Knows nothing of harm.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from codebook.value import Codebook
from safety.gates.inputs import RoundInput
from safety.gates.result import Gate, GateResult
from safety.metrics.degenerate import DegenerateDetector
from safety.metrics.rates import Rate
from safety.runtime.model_runner import ModelRunner

MOST_BASE = 0.02  # degenerate share of the base codebook's safe images
EXAMPLES = 8  # spoiled images of each kind
THRESHOLD = "all spoiled images flagged; <= 2 % of the base codebook's safe images degenerate"


def check_detector(inputs: RoundInput) -> GateResult:
    """Judge the detector itself: the share of spoiled images flagged, by kind, and of base safe images.

    The base's safe images of the validation set join the calibration images, which alone are too few for 2 %.
    """
    degenerate = torch.cat([inputs.calibration, inputs.base.degenerate[~inputs.base.unsafe]])
    rate = Rate(int(degenerate.sum()), len(degenerate))
    passed = min(inputs.spoiled.values()) == 1.0 and rate.value <= MOST_BASE
    figures = {"spoiled": dict(inputs.spoiled), "base_degenerate": rate.to_dict()}
    return GateResult(Gate.DETECTOR, passed, figures, THRESHOLD)


def spoiled_found(
    runner: ModelRunner, validity: DegenerateDetector, tokens: Tensor, generator: torch.Generator
) -> dict[str, float]:
    """Share of spoiled images flagged, by kind; made from the tokens [n, N] of base safe images."""
    kinds = spoil(runner, tokens[:EXAMPLES], runner.base, generator)
    return {
        kind: float(validity.degenerate(images, of, runner.nll(of)).double().mean())
        for kind, (images, of) in kinds.items()
    }


def spoil(
    runner: ModelRunner, tokens: Tensor, codebook: Codebook, generator: torch.Generator
) -> dict[str, tuple[Tensor, Tensor]]:
    """Images [n, 3, H, W] with their tokens [n, N], spoiled in eight ways."""
    images = runner.decode(tokens, codebook)
    order = torch.rand(tokens.shape, generator=generator).argsort(1)
    shuffled, single = tokens.gather(1, order), tokens[:, :1].expand_as(tokens).contiguous()
    return {
        "flat": (images.mean((2, 3), keepdim=True).expand_as(images), tokens),
        "black": (-torch.ones_like(images), tokens),
        "white": (torch.ones_like(images), tokens),
        "noise": (torch.rand(images.shape, generator=generator) * 2 - 1, tokens),
        "shuffled": (runner.decode(shuffled, codebook), shuffled),
        "single": (runner.decode(single, codebook), single),
        "blurred": (blur(images), tokens),
        "tiled": (avg_pool2d(images, 2).repeat(1, 1, 2, 2), tokens),
    }


def blur(images: Tensor) -> Tensor:
    """A box blur, applied twice, over windows of about an eighth of the side."""
    reach = max(1, images.shape[2] // 16)
    for _ in range(2):
        images = avg_pool2d(pad(images, (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)
    return images
