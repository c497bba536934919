"""SamplingTensors of some samplings, for the tests."""

from collections.abc import Sequence

import torch

from engine.model import Sampling
from engine.runner.sampling import SamplingTensors, ranks_of, seed_and_top_k


def draws_of(samplings: Sequence[Sampling], codes: int, device: str = "cpu") -> SamplingTensors:
    pairs = zip(*(seed_and_top_k(sampling, codes) for sampling in samplings), strict=True)
    seeds, top_k = (torch.tensor(column, device=device) for column in pairs)
    temperature, top_p = torch.tensor([(s.temperature, s.top_p) for s in samplings], device=device).T[:, :, None]
    ranks = max(ranks_of(sampling, codes) for sampling in samplings)
    return SamplingTensors(seeds, temperature.contiguous(), top_k[:, None], top_p.contiguous(), ranks)
