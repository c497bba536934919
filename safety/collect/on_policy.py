"""On-policy tuning data: images sampled from the edited codebook, for the router's harmful prompts.

They need no verdict: the target at each token is the safe prompt's distribution given the same history.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from codebook.value import Codebook
from safety.collect.token_attribution import PromptContrast, contrast
from safety.policy.prompts import Prompt
from safety.runtime.model_runner import ModelRunner, derived_seed


def on_policy_contrast(
    runner: ModelRunner, prompts: Sequence[Prompt], codebook: Codebook, positions: Tensor, seed: int
) -> PromptContrast:
    """Features under harmful prompts and under their rewrites, of one image of each prompt drawn under the codebook.

    positions: [P] int64, at which features are kept.
    """
    seeds = [derived_seed(seed, "practice", i) for i in range(len(prompts))]
    tokens = runner.tokens("practice", [prompt.text for prompt in prompts], seeds, codebook)
    return contrast(runner.model, prompts, tokens, positions, runner.steps("read practice", len(prompts)))
