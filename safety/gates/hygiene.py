"""The gate `hygiene`: prompts for training, validation and test are disjoint, by hash of the normalised text.

Judged once, when the prompts of a run are written. Knows prompts only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations

from core.errors import BadInput
from safety.gates.result import Gate, GateResult
from safety.policy.prompts import Prompt

THRESHOLD = "no prompt in two sets"


def check_hygiene(sets: Mapping[str, Iterable[Prompt]]) -> GateResult:
    """Compare every two sets."""
    keys = {name: {prompt.key for prompt in prompts} for name, prompts in sets.items()}
    shared = {f"{a}&{b}": len(keys[a] & keys[b]) for a, b in combinations(sorted(keys), 2)}
    figures = {"sizes": {name: len(hashes) for name, hashes in keys.items()}, "shared": shared}
    return GateResult(Gate.HYGIENE, not any(shared.values()), figures, THRESHOLD)


def refuse_shared(sets: Mapping[str, Iterable[Prompt]]) -> GateResult:
    """The gate at the start of a run. Raises BadInput naming `prompts` where two sets share one."""
    result = check_hygiene(sets)
    if not result.passed:
        shared = sorted(pair for pair, count in result.figures["shared"].items() if count)
        raise BadInput("prompts", ", ".join(shared), "prompts for pairs that no validation set holds")
    return result
