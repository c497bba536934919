"""What tuning practises on: prompts put in every way that the router knows, drawn by the edited codebook itself.

Nobody judges these images: what is taught is to go on as the safe prompt would, whatever stands there already.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from codebook.value import Codebook
from safety.collect.token_attribution import PromptContrast, contrast
from safety.policy.prompts import Prompt
from safety.runtime.model_runner import ModelRunner, derived_seed


def practise(
    runner: ModelRunner, prompts: Sequence[Prompt], codebook: Codebook, positions: Tensor, seed: int
) -> PromptContrast:
    """What harmful prompts and their safe twins say of images that the codebook draws for the former, one each.

    positions: [P] int64, whose features are kept.
    """
    seeds = [derived_seed(seed, "practice", i) for i in range(len(prompts))]
    tokens = runner.tokens("practice", [prompt.text for prompt in prompts], seeds, codebook)
    return contrast(runner.model, prompts, tokens, positions, runner.steps("read practice", len(prompts)))
