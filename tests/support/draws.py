"""SamplingTensors of some samplings, for the tests."""

from collections.abc import Sequence

import torch

from engine.model import Sampling
from engine.runner.sampling import SamplingTensors, seed_and_top_k


def draws_of(samplings: Sequence[Sampling], codes: int, device: str = "cpu") -> SamplingTensors:
    pairs = zip(*(seed_and_top_k(sampling, codes) for sampling in samplings), strict=True)
    seeds, top_k = (torch.tensor(column, device=device) for column in pairs)
    temperature = torch.tensor([s.temperature for s in samplings], device=device)
    return SamplingTensors(seeds, temperature[:, None], top_k[:, None], int(top_k.max()))
