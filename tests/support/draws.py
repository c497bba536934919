"""Samplings as a step takes them."""

from collections.abc import Sequence

import torch

from engine.model import Sampling
from engine.runner.sampling import SamplingTensors, counted


def draws_of(samplings: Sequence[Sampling], codes: int, device: str = "cpu") -> SamplingTensors:
    seeds, kept = (torch.tensor(of, device=device) for of in zip(*(counted(s, codes) for s in samplings), strict=True))
    heat = torch.tensor([s.temperature for s in samplings], device=device)
    return SamplingTensors(seeds, heat[:, None], kept[:, None], int(kept.max()))
